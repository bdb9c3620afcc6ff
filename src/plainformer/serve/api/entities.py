"""/entities: what many documents' entities say together, and which documents have what is required (`plainformer entities`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from plainformer.serve.api.embeddings import TASK as VECTORS
from plainformer.serve.api.fields import FLAG, TEXT, Field, Table, either, list_of, number, option_fields, words
from plainformer.serve.api.service import Call, json_response
from plainformer.serve.errors import invalid
from plainformer.tasks.text.options import TokenClassificationOptions

TASK = "token-classification"
_DOCUMENT = {
    "type": "object",
    "required": ["text"],
    "properties": {"name": TEXT, "text": TEXT},
    "additionalProperties": False,
}
_OPTIONS = ("aggregation", "scheme", "window", "stride")
TABLE = Table(
    Field(
        "documents", list_of(either(TEXT, _DOCUMENT), 1), 'Texts, or objects with a "text" and a "name".', required=True
    ),
    Field("model", TEXT, "Name of a served model; without it, the first that labels tokens."),
    Field("labels", list_of(TEXT), "The types that count.", neutral=([],)),
    Field("min_score", number(0, 1), "The least score that counts.", neutral=(0, 0.0)),
    Field("within", words("document", "paragraph", "line"), "What makes phrases occur together.", default="paragraph"),
    Field("required", list_of(TEXT), "Phrases that documents should have: ranks them.", neutral=([],)),
    Field("similar", TEXT, "Name of a served model of vectors, to find phrases of similar meaning, too."),
    Field("threshold", number(-1, 1), "Least cosine of a similar phrase."),
    Field("anywhere", FLAG, "Required words count outside entities, too.", neutral=(False,)),
    *(one for one in option_fields(TokenClassificationOptions) if one.name in _OPTIONS),
)


async def entities(call: Call) -> Any:
    """Analyse documents."""
    from plainformer.entities import Document, analyse

    given = await call.read(TABLE)
    model = call.find(given.get("model"), (TASK,), "entities")
    if len(given["documents"]) > call.options.max_documents:
        what = f"documents has {len(given['documents']):,} items, more than {call.options.max_documents:,}"
        raise invalid(f"{what}\n  → send fewer at once, or start the server with a higher --max-documents", "documents")
    for name in ("similar", "anywhere"):
        if name in given and "required" not in given:
            raise invalid(f"{name} has no effect without required\n  → give required, or leave it out", name)
    if "threshold" in given and "similar" not in given:
        raise invalid("threshold has no effect without similar\n  → give similar, or leave it out", "threshold")
    documents = [
        Document(f"document {place}", one)
        if isinstance(one, str)
        else Document(one.get("name", f"document {place}"), one["text"])
        for place, one in enumerate(given["documents"], 1)
    ]
    how: dict[str, Any] = {
        name: given[name]
        for name in ("labels", "min_score", "within", "required", "threshold", "anywhere")
        if name in given
    }
    if "similar" in given:
        how["compare"] = call.find(given["similar"], (VECTORS,), "vectors of phrases").task.similarity
    texts = [one.text for one in documents if one.text.strip()]
    options = {name: given[name] for name in _OPTIONS if name in given}
    found: Sequence[Any] = (await call.run(model, texts, options, TASK)).result if texts else []

    def known(wanted: Iterable[str]) -> Iterator[Any]:
        for _, mentions in zip(wanted, found, strict=True):
            yield mentions

    # Phrases of similar meaning are found by a model: then nothing else may compute meanwhile.
    if "compare" in how:
        analysis = await call.alone(lambda: analyse(known, documents, **how))
    else:
        analysis = analyse(known, documents, **how)
    return json_response({"model": model.name, **analysis.to_dict()})
