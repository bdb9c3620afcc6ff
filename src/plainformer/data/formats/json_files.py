"""JSON: an object per line, a list of objects, or SQuAD's nested articles (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plainformer.config.values import read_json_line
from plainformer.data.files import filled_lines, text_lines, whole_text
from plainformer.data.rows import DataRow, Reading
from plainformer.errors import InputError, a_type


def read_jsonl(reading: Reading) -> Iterator[DataRow]:
    """Yield the object of each line; a text alone is a row with the one column "text"."""
    for line, _, place in filled_lines(reading):
        yield _row(read_json_line(line, place), place)


def read_json(reading: Reading) -> Iterator[DataRow]:
    """Yield the objects of a file that is one list of them."""
    for path in reading.files:
        name = reading.name(path)
        values = _whole(path, name)
        if not isinstance(values, list):
            raise InputError(f"{name} holds {a_type(values)}, not a list of objects", "give a list, or another format")
        for place, value in enumerate(values):
            yield _row(value, f"{name} item {place + 1}")


def _whole(path: Path, name: str) -> Any:
    try:
        return json.loads(whole_text(path, name))
    except (ValueError, RecursionError) as error:
        lines = "Extra data" in str(error)
        fix = "it looks like one value per line: give format jsonl" if lines else "correct the file"
        raise InputError(f"{name} is not valid JSON: {error}", fix) from None


def _row(value: Any, place: str) -> DataRow:
    if isinstance(value, str):
        return DataRow({"text": value}, place)
    if not isinstance(value, dict):
        raise InputError(f"{place} holds {a_type(value)}, not an object", 'write rows as {"column": value, ...}')
    return DataRow(value, place)


def looks_like(path: Path, name: str) -> str:
    """Return the format of a .json file by how it begins: json for a list, jsonl for an object per line, else squad."""
    lines = (line for _, line in text_lines(path, name) if line.strip())
    first, second = next(lines, ""), next(lines, None)
    if first.lstrip().startswith("["):
        return "json"
    try:
        alone = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        alone = False
    return "jsonl" if alone and (second is not None or '"paragraphs"' not in first) else "squad"


def read_squad(reading: Reading) -> Iterator[DataRow]:
    """Yield a row for each question: id, question, context, answers ({"text", "answer_start"}), title, is_impossible."""
    for path in reading.files:
        name = reading.name(path)
        whole = _whole(path, name)
        for number, article in enumerate(_list(whole, "data", name), 1):
            where = f"{name} article {number}"
            for at, paragraph in enumerate(_list(article, "paragraphs", where), 1):
                place = f"{where} paragraph {at}"
                for nth, question in enumerate(_list(paragraph, "qas", place), 1):
                    yield _question(article, paragraph, question, f"{place} question {nth}")


def _list(value: Any, key: str, where: str) -> list[Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise InputError(
            f"{where} has no list {key!r}", "SQuAD files are data → paragraphs → qas; give another format?"
        )
    return found


def _question(article: Mapping[str, Any], paragraph: Mapping[str, Any], question: Any, place: str) -> DataRow:
    context, asked = paragraph.get("context"), question.get("question") if isinstance(question, Mapping) else None
    if not isinstance(context, str) or not isinstance(asked, str):
        raise InputError(f"{place} has no text for 'question' or 'context'", "correct the file")
    answers = question.get("answers", [])
    whole = isinstance(answers, list) and all(
        isinstance(one, Mapping) and isinstance(one.get("text"), str) and isinstance(one.get("answer_start"), int)
        for one in answers
    )
    if not whole:
        raise InputError(f"{place} has answers without 'text' and 'answer_start'", "correct the file")
    values = {
        "id": str(question.get("id", place)),
        "question": asked,
        "context": context,
        "answers": [{"text": one["text"], "answer_start": one["answer_start"]} for one in answers],
        "title": article.get("title", ""),
        "is_impossible": bool(question.get("is_impossible", False)),
    }
    return DataRow(values, place)
