"""/tasks: every task of the library, with its own inputs, options and results, as `plainformer run --json` has them.

From HTTP only data reaches a task: where the library takes the path of a file, here the file's bytes are sent, as
{"data": base64}, and options that are code or paths do not exist (`fields.NOT_SERVED`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from typing import Any

from plainformer.config.options import OptionSet
from plainformer.errors import UsageError
from plainformer.generation.options import DEFAULT_NEW_TOKENS
from plainformer.serve.api.fields import OBJECT, TEXT, Field, Schema, Table, either, list_of, table_of
from plainformer.serve.api.service import MOST_WORKS, Call, json_response
from plainformer.serve.api.writing import WRITERS
from plainformer.serve.errors import Refusal, invalid
from plainformer.serve.names import Served
from plainformer.serve.sse import DONE
from plainformer.tasks import ALIASES, TASKS, TaskInfo, task_info

_TEXT_PAIR: Schema = {
    "type": "object",
    "required": ["text", "pair"],
    "properties": {"text": TEXT, "pair": TEXT},
    "additionalProperties": False,
}
_MEDIA: Schema = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "contentEncoding": "base64"}},
    "additionalProperties": False,
}
_MESSAGE: Schema = {"type": "object", "required": ["role", "content"], "properties": {"role": TEXT, "content": TEXT}}
_CONTEXT: Schema = {
    "type": "object",
    "required": ["question", "context"],
    "properties": {"question": TEXT, "context": TEXT},
}
_CHOICES: Schema = {
    "type": "object",
    "required": ["prompt", "choices"],
    "properties": {"prompt": TEXT, "choices": list_of(TEXT, 1)},
}
_QUERY: Schema = {
    "type": "object",
    "required": ["query", "documents"],
    "properties": {"query": TEXT, "documents": list_of(TEXT, 1)},
}
_FORMS: dict[str, tuple[Schema, ...]] = {
    "text-generation": (TEXT, list_of(_MESSAGE, 1)),
    "text-classification": (TEXT, _TEXT_PAIR),
    "question-answering": (_CONTEXT,),
    "abstractive-question-answering": (_CONTEXT,),
    "multiple-choice": (_CHOICES,),
    "text-ranking": (_QUERY,),
}
TABLE = Table(
    Field("inputs", {}, "One input of the task, or a list of them; see the task's schema.", required=True),
    Field("model", TEXT, "Name of a served model; without it, the first that does the task."),
    Field("options", OBJECT, "Options of the task, by name.", neutral=({},)),
)


def known_task(name: str) -> TaskInfo:
    """Return the task of a name or an alias. Raises: Refusal, 404."""
    try:
        return task_info(name)
    except UsageError as error:
        raise Refusal(404, f"there is no task {name[:80]!r}\n  → {error.fix}", code="task_not_found") from None


def input_forms(task: str) -> tuple[Schema, ...]:
    """Return the schemas that one input of a task may have."""
    media = TASKS[task].reads in ("image", "audio")
    return (_MEDIA,) if media else _FORMS.get(task, (TEXT,))


def options_of(model: Served, task: str) -> type[OptionSet]:
    """Return the class of a task's options, as a model does it."""
    if task == model.can.task:
        return type(model.task).Options  # type: ignore[no-any-return]
    from plainformer.tasks import task_class

    return task_class(TASKS[task], model.task.config.head.kind).Options


def inputs_schema(task: str) -> dict[str, Any]:
    """Return the schema of `inputs`: one, or a list."""
    forms = input_forms(task)
    one = dict(forms[0]) if len(forms) == 1 else {"anyOf": list(forms)}
    return {"anyOf": [*forms, {"type": "array", "items": one}]}


async def answer(call: Call) -> Any:
    """Answer inputs with a task."""
    info = known_task(call.http.path_params["task"])
    given = await call.read(TABLE)
    model = call.find(given.get("model"), (info.name,), info.name)
    table = table_of(options_of(model, info.name))
    options = table.read(given.get("options", {}), where="options.")
    inputs, count = read_inputs(info.name, given["inputs"])
    if count > call.options.max_inputs:
        what = f"inputs has {count:,} items, more than {call.options.max_inputs:,}"
        raise invalid(f"{what}\n  → send fewer at once, or start the server with a higher --max-inputs", "inputs")
    if (
        info.name in WRITERS
        and {"max_new_tokens", "max_length"}.isdisjoint(options)
        and options.get("defaults") != "checkpoint"
    ):
        options["max_new_tokens"] = DEFAULT_NEW_TOKENS  # as the library's own call has it
    if call.http.query_params.get("stream") in ("1", "true"):
        return await _streamed(call, model, info, inputs, count, options)
    if info.name in WRITERS:
        written = await _written(call, model, inputs if count else [inputs], options)
        results = written if count else written[0]
    else:
        results = (await call.run(model, inputs, options, info.name)).result
    from plainformer.tasks.results import plain

    return json_response({"model": model.name, "task": info.name, "results": plain(results)})


async def _written(call: Call, model: Served, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    """Return the results of a task that writes: each input's answer joins the batch by itself, beside those of others."""
    if len(inputs) > MOST_WORKS:
        raise invalid(
            f"inputs has {len(inputs):,} items, more than {MOST_WORKS} to write\n  → send fewer at once", "inputs"
        )
    seeds = options.get("seed")
    if isinstance(seeds, list) and len(seeds) != len(inputs):
        raise invalid(f"{len(seeds)} seeds for {len(inputs)} inputs\n  → give one number, or one for each", "seed")
    works = []
    for place, one in enumerate(inputs):
        own = {**options, "seed": seeds[place]} if isinstance(seeds, list) else options
        works.append(call.engine.generate(model.name, one, own, **call.identity()))
    return [outcome.result for outcome in await call.outcomes(*works)]


async def _streamed(call: Call, model: Served, info: TaskInfo, inputs: Any, count: int, options: dict[str, Any]) -> Any:
    if info.name not in WRITERS or count:
        what = "one input of " + " or ".join(WRITERS)
        raise invalid(f"stream=1 has no effect here: it is for {what}\n  → leave it out", "stream")
    work = call.engine.generate(model.name, inputs, options, **call.identity())

    async def values() -> AsyncIterator[dict[str, Any]]:
        async for event in work:
            if event.text:
                yield {"index": event.index, "text": event.text}
        outcome = await work.outcome()
        yield {"model": model.name, "task": info.name, "results": outcome.result.to_dict(), "seed": outcome.seed}

    return await call.stream([work], values(), DONE)


# ---- inputs -------------------------------------------------------------------------------------------------------------


def read_inputs(task: str, given: Any) -> tuple[Any, int]:
    """Return inputs as the task takes them, and how many a list has; 0 for one that is in no list."""
    if task == "text-generation" and _is_chat(given):
        return given, 0
    if not isinstance(given, list):
        return _input(task, given, "inputs"), 0
    if not given:
        raise invalid("inputs is an empty list\n  → give at least one", "inputs")
    return [_input(task, one, f"inputs[{place}]") for place, one in enumerate(given)], len(given)


def _is_chat(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], dict)


def _input(task: str, given: Any, where: str) -> Any:
    from plainformer.serve.api.fields import check

    check(given, either(*input_forms(task)), where)
    if TASKS[task].reads in ("image", "audio"):
        return _bytes_of(given["data"], where)
    if isinstance(given, dict) and "pair" in given:
        return given["text"], given["pair"]
    return given


def _bytes_of(data: str, where: str) -> bytes:
    """Return bytes from base64, which may be a data URI."""
    if data.startswith("data:"):
        data = data.partition(",")[2]
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{where}.data is not base64\n  → send the file's bytes in base64", "inputs") from None


# ---- lists and schemas --------------------------------------------------------------------------------------------------


async def tasks(call: Call) -> Any:
    """List the tasks, with the models that do each."""
    models = call.service.names.models.values()
    data = []
    for info in TASKS.values():
        aliases = [alias for alias, name in ALIASES.items() if name == info.name]
        able = [model.name for model in models if info.name in model.tasks]
        row = {"id": info.name, "object": "task", "field": info.field, "reads": info.reads, "answers": info.answers}
        data.append({**row, "aliases": aliases, "models": able})
    return json_response({"object": "list", "data": data})


async def schema(call: Call) -> Any:
    """Return the JSON schema of a task's inputs and options, as a model does it."""
    info = known_task(call.http.path_params["task"])
    named = call.http.query_params.get("model")
    able = any(info.name in model.tasks for model in call.service.names.models.values())
    kind = (
        _usual_options(info)
        if named is None and not able
        else options_of(call.find(named, (info.name,), info.name), info.name)
    )
    return json_response(schema_of(info, kind))


def _usual_options(info: TaskInfo) -> type[OptionSet]:
    from plainformer.tasks import task_class

    return task_class(info, info.head).Options


def schema_of(info: TaskInfo, kind: type[OptionSet]) -> dict[str, Any]:
    """Return the schema of a body for a task; each option with the modes of generation in which it has an effect."""
    options = table_of(kind).published()
    from plainformer.generation.options import TAKEN_BY

    for name, made in options["properties"].items():
        if name in TAKEN_BY and info.name in WRITERS:
            made["x-modes"] = list(TAKEN_BY[name])
    properties = {
        "model": TEXT,
        "inputs": inputs_schema(info.name),
        "options": {**options, "additionalProperties": False},
    }
    about = f"{info.name}: {info.reads} → {info.answers}"
    required = ["inputs", *(["options"] if options.get("required") else [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": info.name, "description": about, "type": "object",
            "required": required, "properties": properties}  # fmt: skip
