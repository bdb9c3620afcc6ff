"""/embeddings: vectors of texts, as numbers or as base64 of little-endian fp32, as OpenAI's clients ask by default."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from starlette.responses import StreamingResponse

from plainformer.serve.api.fields import FLAG, TEXT, TEXTS_OR_IDS, Field, Table, option_fields, whole, words
from plainformer.serve.api.service import Call
from plainformer.serve.errors import Refusal, invalid
from plainformer.serve.names import Served
from plainformer.tasks.text.options import FeatureExtractionOptions

TASK = "feature-extraction"
_OWN = ("pooling", "normalize", "prompt", "prompt_name", "truncate", "max_length")
TABLE = Table(
    Field(
        "input",
        TEXTS_OR_IDS,
        "A text, token ids, or a list of either.",
        required=True,
    ),
    Field("model", TEXT, "Name of a served model; without it, the first that gives vectors."),
    Field("encoding_format", words("float", "base64"), "Numbers, or base64 of little-endian fp32.", default="float"),
    Field("dimensions", whole(1), "Numbers to keep of each vector, of models that were trained for it (Matryoshka)."),
    *(one for one in option_fields(FeatureExtractionOptions) if one.name in _OWN),
)


async def embeddings(call: Call) -> Any:
    """Embed texts."""
    given = await call.read(TABLE)
    model = call.find(given.get("model"), (TASK,), "vectors of texts")
    texts = await asyncio.to_thread(_texts, model, given["input"])
    if len(texts) > call.options.max_inputs:
        what = f"input has {len(texts):,} texts, more than {call.options.max_inputs:,}"
        raise invalid(f"{what}\n  → send fewer at once, or start the server with a higher --max-inputs", "input")
    options = {name: given[name] for name in _OWN if name in given}
    tokens = await asyncio.to_thread(counted, model, texts, given)
    if tokens > call.options.max_input_tokens:
        what = f"input has {tokens:,} tokens, more than {call.options.max_input_tokens:,}"
        raise invalid(f"{what}\n  → send less at once, or start the server with a higher --max-input-tokens", "input")
    if "dimensions" in given:
        options |= _dimensions(model, given["dimensions"])
    found = (await call.run(model, texts, options, TASK)).result
    plain = given.get("encoding_format", "float") == "float"
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    head = {"object": "list", "model": model.name, "usage": usage}
    return ItemResponse(head, "data", len(found), lambda place: _item(place, found[place], plain))


def _item(place: int, vector: Any, plain: bool) -> dict[str, Any]:
    numbers = np.asarray(vector)
    value = numbers.tolist() if plain else base64.b64encode(numbers.astype("<f4").tobytes()).decode()
    return {"object": "embedding", "index": place, "embedding": value}


class ItemResponse(StreamingResponse):
    """JSON with a long list, written item by item: all of it at once would hold up everything else meanwhile."""

    def __init__(self, head: dict[str, Any], name: str, count: int, item: Callable[[int], Any]) -> None:
        async def parts() -> AsyncIterator[bytes]:
            begun = json.dumps(head, ensure_ascii=False)[:-1] + f", {json.dumps(name)}: ["
            yield begun.encode()
            for place in range(count):
                yield (("," if place else "") + json.dumps(item(place), ensure_ascii=False)).encode()
                await asyncio.sleep(0)
            yield b"]}"

        super().__init__(parts(), media_type="application/json")


def _texts(model: Served, given: Any) -> list[str]:
    """Return the inputs as texts; token ids are taken where they are what the tokenizer makes of a text."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], str):
        return list(given)
    rows = given if isinstance(given[0], list) else [given]
    return [_text_of(model, [int(i) for i in row], place) for place, row in enumerate(rows)]


def _text_of(model: Served, ids: list[int], place: int) -> str:
    tokenizer = model.tokenizer
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    (row,) = tokenizer.encode_batch([text], max_length=None)
    bare = [i for i, special in zip(row.input_ids, row.special, strict=True) if not special]
    if ids not in (bare, list(row.input_ids)):
        what = f"input[{place}] are token ids that {model.name}'s tokenizer makes of no text"
        fix = "send the text itself (langchain: check_embedding_ctx_length=False)"
        raise invalid(f"{what}\n  → {fix}", "input")
    return text


def counted(model: Served, texts: list[str], given: dict[str, Any]) -> int:
    """Return how many tokens texts have; of those that are to be cut, what is left."""
    limits = (given.get("max_length"), getattr(model.task, "max_tokens", None), model.can.context)
    most: int = next((limit for limit in limits if limit), 0)
    cut = given.get("truncate") and most
    return sum(min(length, most) if cut else length for length in model.lengths(texts))


def _dimensions(model: Served, dimensions: int) -> dict[str, Any]:
    """Return the option that keeps this many numbers; only a model that was trained for it keeps its meaning then."""
    config = model.task.config
    width = (config.encoder or config.main_stack).hidden_size
    trained = config.source.get("matryoshka_dimensions") or (
        getattr(model.task, "files", None) and model.task.files.truncate_dim
    )
    if dimensions == width:
        return {}
    if not trained:
        what = f"dimensions={dimensions} has no meaning for {model.name}, which was not trained to be cut (Matryoshka)"
        raise invalid(f"{what}\n  → leave it out: its vectors have {width} numbers", "dimensions")
    return {"truncate_dim": dimensions}


__all__ = ["FLAG", "TABLE", "TASK", "ItemResponse", "Refusal", "counted", "embeddings"]
