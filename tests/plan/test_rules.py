"""What the rule of thumb is said to be worth: the sentences themselves, for the models that people ask about."""

from __future__ import annotations

from typing import Any

import pytest

from plainformer.planning import plan

ASKED: dict[str, dict[str, Any]] = {
    "7B fp32": {"params": "7B"},
    "7B bf16": {"params": "7B", "dtype": "bf16"},
    "7B int8": {"params": "7B", "dtype": "int8"},
    "7B training": {"params": "7B", "purpose": "training"},
    "small tied int8": {"params": "135M", "dtype": "int8"},
    "long context": {"params": "8B", "dtype": "bf16", "prompt": 131072, "new": 1024},
    "ALBERT": {"model": "albert-smiles"},
}
SAID = {
    "7B fp32": [
        "7B x 4 bytes = 28.00 GB",
        "the weights are 26.95 GB, 3.7% less: the model has 6.74B parameters, not 7B",
        "the peak is 28.04 GB, 1.00 times the rule",
        "the rule does not know the cache: 1.05 MB for each token of each row",
    ],
    "7B bf16": [
        "7B x 2 bytes = 14.00 GB",
        "the weights are 13.48 GB, 3.7% less: the model has 6.74B parameters, not 7B",
        "the peak is 14.02 GB, 1.00 times the rule",
        "the rule does not know the cache: 524.29 kB for each token of each row",
    ],
    "7B int8": [
        "7B x 1 byte = 7.00 GB",
        "the weights are 7.14 GB: right to 2.0%",
        "the peak is 27.41 GB, 3.92 times the rule, which leaves out conversion (20.27 GB)",
        "the rule does not know the cache: 1.05 MB for each token of each row",
    ],
    "7B training": [
        "7B x 4 bytes x 4 for training = 112.00 GB",
        "the weights, gradients and optimizer states are 107.81 GB, 3.7% less: the model has 6.74B parameters, not 7B",
        "the peak is 107.82 GB, 0.96 times the rule",
        "the rule knows neither batch nor length: activations and logits grow with both",
    ],
    "small tied int8": [
        "135M x 1 byte = 135.00 MB",
        "the weights are 248.69 MB, 84.2% more: embeddings and norms stay fp32, and the tied table exists twice, once in int8",
        "the peak is 543.04 MB, 4.02 times the rule, which leaves out conversion (294.36 MB)",
        "the rule does not know the cache: 46.08 kB for each token of each row",
    ],
    "long context": [
        "8B x 2 bytes = 16.00 GB",
        "the weights are 16.06 GB: right to 0.4%",
        "the peak is 47.90 GB, 2.99 times the rule, which leaves out key-value cache (17.21 GB) and activations (14.50 GB)",
        "the rule does not know the cache: 131.07 kB for each token of each row",
    ],
    "ALBERT": [
        "735.57k x 4 bytes = 2.94 MB",
        "the weights are 2.94 MB: right to 0.0%",
        "the peak is 6.09 MB, 2.07 times the rule, which leaves out activations (3.15 MB)",
        "12 layers share 1 set of weights, but each of them takes its time and its activations",
    ],
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_said(name: str) -> None:
    rule = plan(**ASKED[name]).rule
    assert [rule.said, *rule.sentences] == SAID[name]
