"""Encoder-only families against the reference, for each head and each value that changes the computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.parity.harness import PAD, VOCABULARY, Case, check_everything

TINY: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=64,
    pad_token_id=PAD,
    num_labels=3,
)


def config(name: str, **changes: Any) -> Any:
    return lambda: getattr(transformers, name)(**{**TINY, **changes})


def heads(family: str, prefix: str, *, token_types: int = 0, **changes: Any) -> list[Case]:
    """The usual heads of an encoder."""
    made = config(f"{prefix}Config", **changes)
    names = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    spans = config(f"{prefix}Config", **{**changes, "num_labels": 2})  # some span heads size themselves by num_labels
    cases = [
        Case(family, prefix + name, spans if "Question" in name else made, token_types=token_types) for name in names
    ]
    if hasattr(transformers, f"{prefix}ForMultipleChoice"):
        cases.append(Case(family, f"{prefix}ForMultipleChoice", made, kind="choice", token_types=token_types))
    return cases


BERT = [
    *heads("bert", "Bert", token_types=2),
    Case("bert-relu", "BertForMaskedLM", config("BertConfig", hidden_act="relu"), token_types=2),
    Case("bert-gelu-new", "BertModel", config("BertConfig", hidden_act="gelu_new", type_vocab_size=5), token_types=5),
]


@pytest.mark.parametrize("case", BERT, ids=str)
def test_encoder(case: Case, tmp_path: Path) -> None:
    check_everything(case, tmp_path)
