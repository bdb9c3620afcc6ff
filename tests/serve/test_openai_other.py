"""Vectors, rankings, recordings, models and tokens, as clients see them; equal to the library's own calls."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile

import plainformer
from tests.support.serving import Running

TEXTS = ["A cat sat on the mat.", "Stock markets fell sharply today.", "Die Katze"]


@pytest.fixture(scope="module")
def minilm() -> Any:
    return plainformer.load("all-minilm-l6-v2", threads=1)


# ---- vectors ------------------------------------------------------------------------------------------------------------


def test_vectors_as_the_client_asks_for_them_by_default(client: openai.OpenAI, minilm: Any) -> None:
    """The client asks for base64 and decodes it: the numbers are those of the library.

    Not to the bit: each process chooses by a measurement how linears run, and on a busy machine two may choose otherwise.
    """
    own = np.asarray(minilm(TEXTS))
    found = client.embeddings.create(model="minilm", input=TEXTS)
    assert [one.index for one in found.data] == [0, 1, 2]
    vectors = np.array([one.embedding for one in found.data], dtype=np.float32)
    assert vectors.shape == own.shape and np.abs(vectors - own).max() < 1e-6
    alone = client.embeddings.create(model="minilm", input=TEXTS[0])
    assert np.abs(np.array(alone.data[0].embedding) - np.asarray(minilm(TEXTS[0]))).max() < 1e-6
    assert found.usage.prompt_tokens == sum(len(minilm.tokenizer.encode(text)) for text in TEXTS)


def test_numbers_and_base64_say_the_same(house: Running) -> None:
    plain = house.ask("/v1/embeddings", {"model": "minilm", "input": TEXTS[0], "encoding_format": "float"})["data"][0][
        "embedding"
    ]
    coded = house.ask("/v1/embeddings", {"model": "minilm", "input": TEXTS[0], "encoding_format": "base64"})["data"][0][
        "embedding"
    ]
    assert np.array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), np.array(plain, dtype="<f4"))
    assert house.ask("/v1/embeddings", {"model": "minilm", "input": TEXTS[0]})["data"][0]["embedding"] == plain


def test_token_ids_are_taken_where_they_are_of_a_text(house: Running, minilm: Any) -> None:
    text = "a cat sat on the mat."
    ids = minilm.tokenizer.encode(text).input_ids
    plain = house.ask("/v1/embeddings", {"model": "minilm", "input": text})["data"]
    assert house.ask("/v1/embeddings", {"model": "minilm", "input": ids})["data"] == plain
    assert house.ask("/v1/embeddings", {"model": "minilm", "input": [ids[1:-1]]})["data"] == plain
    assert (
        "check_embedding_ctx_length"
        in house.refused("/v1/embeddings", {"model": "minilm", "input": [101, 101, 7]})["message"]
    )


def test_what_vectors_cannot_be(house: Running) -> None:
    body = {"model": "minilm", "input": "x"}
    assert "Matryoshka" in house.refused("/v1/embeddings", {**body, "dimensions": 5})["message"]
    house.ask("/v1/embeddings", {**body, "dimensions": 384})
    long = {"model": "minilm", "input": "word " * 700}
    error = house.refused("/v1/embeddings", long, 400, "context_length_exceeded")
    assert "maximum context length is 256" in error["message"] and error["param"] == "input"
    assert house.ask("/v1/embeddings", {**long, "truncate": True})["usage"]["prompt_tokens"] == 256
    house.refused("/v1/embeddings", {"model": "minilm", "input": []})
    house.refused("/v1/embeddings", {"model": "minilm", "input": ["x"] * 2049})
    house.refused("/v1/embeddings", {"model": "smol", "input": "x"}, 400, "wrong_task")
    assert (
        "did you mean"
        in house.refused("/v1/embeddings", {"model": "minilmm", "input": "x"}, 404, "model_not_found")["message"]
    )


# ---- rankings -----------------------------------------------------------------------------------------------------------

DOCUMENTS = ["the cat sat on the mat", "the dog looked at it", "who is in france?", "on the mat"]


def test_rankings_in_three_dialects(house: Running) -> None:
    body = {"model": "ranker", "query": "the cat", "documents": DOCUMENTS}
    jina = house.ask("/v1/rerank", {**body, "return_documents": True})["results"]
    assert sorted(one["index"] for one in jina) == [0, 1, 2, 3]
    assert [one["relevance_score"] for one in jina] == sorted((one["relevance_score"] for one in jina), reverse=True)
    assert all(one["document"]["text"] == DOCUMENTS[one["index"]] for one in jina)
    cohere = house.ask("/v2/rerank", {**body, "top_n": 2, "documents": [{"text": one} for one in DOCUMENTS]})
    assert cohere["id"] and cohere["results"] == [{k: one[k] for k in ("index", "relevance_score")} for one in jina[:2]]
    tei = house.ask("/rerank", {"model": "ranker", "query": "the cat", "texts": DOCUMENTS, "return_text": True})
    assert [(one["index"], one["score"]) for one in tei] == [(one["index"], one["relevance_score"]) for one in jina]
    raw = house.ask("/rerank", {"model": "ranker", "query": "the cat", "texts": DOCUMENTS, "raw_scores": True})
    assert [one["index"] for one in raw] == [one["index"] for one in jina] and raw[0]["score"] != tei[0]["score"]


def test_rankings_by_vectors(house: Running, minilm: Any) -> None:
    body = {"model": "minilm", "query": "the cat", "documents": DOCUMENTS, "top_n": 3}
    assert "by" in house.refused("/v1/rerank", body, 400, "wrong_task")["message"]
    found = house.ask("/v1/rerank", {**body, "by": "embedding"})["results"]
    own = minilm.search("the cat", DOCUMENTS, top_k=3)
    assert [one["index"] for one in found] == [hit.index for hit in own]
    assert [one["relevance_score"] for one in found] == pytest.approx([hit.score for hit in own], abs=1e-5)


def test_rankings_refuse(house: Running) -> None:
    house.refused("/v1/rerank", {"model": "ranker", "query": "x", "documents": []})
    house.refused("/v1/rerank", {"model": "ranker", "query": "", "documents": ["x"]})
    house.refused("/v1/rerank", {"model": "ranker", "query": "x", "documents": ["x"] * 1001})
    house.refused(
        "/v1/rerank", {"model": "ranker", "query": "x", "documents": ["the cat " * 60]}, 400, "context_length_exceeded"
    )


# ---- recordings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording() -> bytes:
    wave = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    file = io.BytesIO()
    soundfile.write(file, wave, 16000, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize("model", ["speech", "whisper"])
@pytest.mark.parametrize("kind", ["json", "text", "srt", "vtt", "verbose_json"])
def test_transcriptions(client: openai.OpenAI, recording: bytes, model: str, kind: Any) -> None:
    found = client.audio.transcriptions.create(model=model, file=("a.wav", recording), response_format=kind)
    if kind in ("text", "srt", "vtt"):
        assert isinstance(found, str) and (kind != "vtt" or found.startswith("WEBVTT\n\n"))
    else:
        assert isinstance(found.text, str)
    if kind == "verbose_json":
        assert float(found.duration) == pytest.approx(1.0) and isinstance(found.segments, list)


def test_transcriptions_are_the_librarys(house: Running, recording: bytes, tiny: Callable[[str], Path]) -> None:
    own = plainformer.load(str(tiny("speech")), threads=1)(recording, timestamps=True, word_timestamps=True)
    form = {"model": "speech", "response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    found = house.client.post("/v1/audio/transcriptions", data=form, files={"file": ("a.wav", recording)}).json()
    assert found["text"] == own.text
    assert [(one["word"], one["start"], one["end"]) for one in found["words"]] == [
        (w.text, w.start, w.end) for w in own.words
    ]
    assert [one["text"] for one in found["segments"]] == [one.text for one in own.segments]
    form = {"model": "speech", "response_format": "srt"}
    page = house.client.post("/v1/audio/transcriptions", data=form, files={"file": ("a.wav", recording)}).text
    times = re.findall(r"(\d\d):(\d\d):(\d\d),(\d{3}) --> ", page)
    starts = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in times]
    assert starts == pytest.approx([one.start for one in own.segments], abs=1e-3)


def test_recordings_refuse(house: Running, recording: bytes) -> None:
    def refused(path: str, status: int, data: Any, files: Any) -> str:
        response = house.client.post(path, data=data, files=files)
        assert response.status_code == status, response.text
        return str(response.json()["error"]["message"])

    path, file = "/v1/audio/transcriptions", {"file": ("a.wav", recording)}
    assert "not audio" in refused(path, 400, {"model": "speech"}, {"file": ("a.wav", b"no sound")})
    refused(path, 400, {"model": "speech", "language": "en"}, file)
    refused(path, 400, {"model": "speech", "response_format": "mp4"}, file)
    refused(path, 400, {"model": "speech", "timestamp_granularities[]": "word"}, file)
    refused(path, 400, {"model": "speech", "words": "yes"}, file)
    refused(path, 400, {"model": "minilm"}, file)
    refused("/v1/audio/translations", 400, {"model": "speech"}, file)
    refused(path, 400, {"model": "speech"}, {"other": ("a.wav", recording)})
    house.refused(path, {"model": "speech"}, 415)


# ---- models and tokens --------------------------------------------------------------------------------------------------


def test_models(client: openai.OpenAI, house: Running) -> None:
    names = [one.id for one in client.models.list()]
    assert names[:2] == ["smol", "minilm"] and "whisper" in names
    one = client.models.retrieve("smol")
    assert one.id == "smol" and one.object == "model"
    said = one.model_extra["plainformer"]
    assert (
        said["task"] == "text-generation"
        and said["context"] == 8192
        and said["chat"]
        and said["parameters"] == 134515008
    )
    with pytest.raises(openai.NotFoundError, match="did you mean 'smol'"):
        client.models.retrieve("smoll")
    assert "/" not in json.dumps({k: v for k, v in said.items() if k != "device"})


def test_tokens(house: Running, minilm: Any) -> None:
    found = house.ask("/v1/tokenize", {"model": "minilm", "text": "A cat"})
    row = minilm.tokenizer.encode("A cat")
    assert found["tokens"] == list(row.input_ids) and found["count"] == 4
    assert [(one["start"], one["end"]) for one in found["details"]] == list(row.offsets)
    assert house.ask("/tokenize", {"model": "minilm", "text": "A cat", "add_special_tokens": False})["count"] == 2
    assert (
        house.ask("/v1/detokenize", {"model": "minilm", "tokens": found["tokens"], "skip_special_tokens": True})["text"]
        == "a cat"
    )
    house.refused("/v1/detokenize", {"model": "minilm", "tokens": [10**8]})


def test_the_exact_prompt_of_a_chat(house: Running) -> None:
    messages = [{"role": "user", "content": "Hi <|im_end|>"}, {"role": "assistant", "content": "He"}]
    found = house.ask("/v1/chat/render", {"model": "smol", "messages": messages})
    assert found["prompt"].endswith("<|im_start|>assistant\nHe") and "Hi <|im_end|>" in found["prompt"]
    answer = house.ask("/v1/chat/completions", {"model": "smol", "messages": messages, "max_tokens": 1})
    assert answer["usage"]["prompt_tokens"] == found["count"] == len(found["tokens"])
