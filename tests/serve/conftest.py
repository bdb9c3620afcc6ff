"""Servers that test modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import plainformer
from tests.support.serving import Running, models

TINY = ("chat", "text2text", "text-classification", "token-classification", "question-answering", "multiple-choice")
TINY += ("fill-mask", "embedding", "image-classification", "speech", "audio-classification")


@pytest.fixture(scope="session")
def house(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with the bundled chat model and embedding model, and a tiny random one of each other kind."""
    from tests.support.models import save, whisper

    ranker = save(
        "text-classification", tmp_path_factory.mktemp("ranker"), id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}
    )
    hearing = tmp_path_factory.mktemp("whisper")
    whisper(hearing)
    given = [f"whisper={hearing}", f"ranker={ranker}", *models(tiny, *TINY)]
    bundled = ("smol=smollm2-135m-instruct", "minilm=all-minilm-l6-v2")
    with Running(*bundled, *given, "--task", "ranker=text-ranking") as running:
        yield running


@pytest.fixture(scope="module")
def client(house: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def smol() -> Any:
    return plainformer.load("smollm2-135m-instruct", threads=1)
