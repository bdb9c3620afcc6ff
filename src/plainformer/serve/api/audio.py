"""/audio/transcriptions and /audio/translations: what was said in a recording, as text, subtitles, or with times."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.datastructures import UploadFile
from starlette.responses import PlainTextResponse

from plainformer.serve.api.fields import FLAG, TEXT, Field, Table, check, list_of, number, words
from plainformer.serve.api.service import Call, json_response
from plainformer.serve.errors import Refusal, invalid
from plainformer.serve.names import Served

TASK = "automatic-speech-recognition"
FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_SHARED = (
    Field(
        "file",
        {"type": "string", "contentMediaType": "application/octet-stream"},
        "The recording: wav, flac, mp3, ogg.",
        required=True,
    ),
    Field("model", TEXT, "Name of a served model; without it, the first that hears."),
    Field("response_format", words(*FORMATS), "json, text, srt, vtt, or verbose_json with times.", default="json"),
    Field("temperature", number(0), "0 takes the likeliest token; above 0 sampling.", neutral=(0,)),
    Field("prompt", TEXT, "Text before the recording.", neutral=("",), why="what a recording follows is not read."),
    Field(
        "chunking_strategy",
        {},
        "How a recording is cut.",
        neutral=("auto",),
        why="long recordings are read in windows by themselves.",
    ),
    Field("stream", FLAG, "Send text while it is written.", neutral=(False,), why="recordings are answered whole."),
    Field("include", list_of(TEXT), "More of the answer.", neutral=([],), why="ask for verbose_json."),
)
TRANSLATIONS = Table(*_SHARED)
TRANSCRIPTIONS = Table(
    *_SHARED,
    Field("language", TEXT, "Language spoken, such as en; without it, the model finds out."),
    Field(
        "timestamp_granularities",
        list_of(words("word", "segment")),
        "Times of words, of segments, or both; with verbose_json.",
    ),
)


async def transcriptions(call: Call) -> Any:
    """Transcribe a recording."""
    return await _answer(call, TRANSCRIPTIONS, "transcribe")


async def translations(call: Call) -> Any:
    """Translate a recording into English."""
    return await _answer(call, TRANSLATIONS, "translate")


async def _answer(call: Call, table: Table, kind: str) -> Any:
    given, data = await _read(call, table)
    model = call.find(given.get("model"), (TASK,), "recordings")
    reads_languages = "language" in type(model.task).options()
    wanted = given.get("response_format", "json")
    times = given.get("timestamp_granularities", ["segment"] if wanted == "verbose_json" else [])
    if times and wanted != "verbose_json":
        what = f"timestamp_granularities has no effect with response_format={wanted}"
        raise invalid(f"{what}\n  → ask for verbose_json", "timestamp_granularities")
    options: dict[str, Any] = {}
    if kind == "translate":
        if not reads_languages:
            raise invalid(
                f"{model.name} does not translate: it writes what it hears\n  → ask a Whisper model",
                "model",
                "wrong_task",
            )
        options["task"] = "translate"
    if "language" in given:
        if not reads_languages:
            raise invalid(f"language has no effect: {model.name} has one language alone\n  → leave it out", "language")
        options["language"] = given["language"]
    if given.get("temperature"):
        if not reads_languages:
            raise invalid(f"temperature has no effect: {model.name} draws nothing\n  → leave it out", "temperature")
        options |= {"do_sample": True, "temperature": given["temperature"]}
    if wanted in ("srt", "vtt") or "segment" in times:
        options["timestamps"] = True
    if "word" in times:
        options["word_timestamps"] = True
    wave, rate = await asyncio.to_thread(_decoded, model, data, call.options.max_audio_seconds)
    found = (await call.run(model, {"array": wave, "sampling_rate": rate}, options)).result
    return _shown(found, wanted, kind, len(wave) / rate, times)


async def _read(call: Call, table: Table) -> tuple[dict[str, Any], bytes]:
    """Return the checked fields of a form, and the recording's bytes."""
    kind = call.http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        what = f"the Content-Type is {kind[:60]!r}, not multipart/form-data"
        raise Refusal(415, f"{what}\n  → send the recording as the file of a form", code="unsupported_media_type")
    try:
        form = await call.http.form(max_files=1, max_fields=100, max_part_size=2**20)
    except Refusal:
        raise
    except Exception as error:  # whatever a parser finds in a hostile form
        raise invalid(
            f"the form cannot be read: {getattr(error, 'detail', None) or error}\n  → send multipart/form-data"
        ) from None
    try:
        body: dict[str, Any] = {}
        data = None
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "file":
                    raise invalid(f"{name[:80]} is a file\n  → send the recording as file", name[:80])
                data = await value.read()
            elif name.endswith("[]"):
                body.setdefault(name[:-2], []).append(value)
            else:
                body[name] = _typed(table, name, value)
        if data is None:
            raise invalid("the form has no file\n  → send the recording as file", "file", "missing_field")
        return table.read({**body, "file": "recording"}, unknown=call.options.unknown_fields), data
    finally:
        await form.close()


def _typed(table: Table, name: str, text: str) -> Any:
    """Return a form's text as the value that its field has."""
    field = table.fields.get(name)
    if field is None or field.schema.get("type") == "string":
        return text
    if field.schema.get("type") == "array" and not text.startswith("["):
        return text.split(",")
    try:
        value = json.loads(text)
    except ValueError:
        check(text, field.schema, name)
        return text
    return value


def _decoded(model: Served, data: bytes, most: float) -> tuple[Any, int]:
    from plainformer.inputs.audio.file import load_audio

    rate = int(model.task.processor.sampling_rate)
    return load_audio(data, rate, max_seconds=most), rate


# ---- how an answer is written -------------------------------------------------------------------------------------------


def _shown(found: Any, wanted: str, kind: str, seconds: float, times: list[str]) -> Any:
    if wanted == "json":
        return json_response({"text": found.text, "usage": {"type": "duration", "seconds": round(seconds)}})
    if wanted == "text":
        return PlainTextResponse(found.text + "\n")
    if wanted == "srt":
        return PlainTextResponse(srt(found.segments or ()))
    if wanted == "vtt":
        return PlainTextResponse(vtt(found.segments or ()), media_type="text/vtt")
    made: dict[str, Any] = {"task": kind, "language": found.language or "", "duration": seconds, "text": found.text}
    if "segment" in times:
        parts = enumerate(found.segments or ())
        made["segments"] = [{"id": place, "start": one.start, "end": one.end, "text": one.text} for place, one in parts]
    if "word" in times:
        made["words"] = [{"word": one.text, "start": one.start, "end": one.end} for one in found.words or ()]
    return json_response(made)


def srt(segments: Any) -> str:
    """Return segments as SubRip subtitles."""
    rows = enumerate(segments, 1)
    return "".join(
        f"{n}\n{_clock(one.start, ',')} --> {_clock(one.end, ',')}\n{_line(one.text)}\n\n" for n, one in rows
    )


def vtt(segments: Any) -> str:
    """Return segments as WebVTT subtitles (w3.org/TR/webvtt1)."""
    rows = [f"{_clock(one.start, '.')} --> {_clock(one.end, '.')}\n{_line(one.text)}\n\n" for one in segments]
    return "WEBVTT\n\n" + "".join(rows)


def _line(text: str) -> str:
    return " ".join(text.split()).replace("-->", "→")


def _clock(seconds: float, point: str) -> str:
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
