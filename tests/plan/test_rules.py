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
        "for the weights it is off by +3.9%: they are 26.95 GB: it has 6.74B parameters, not 7B",
        "for the peak, in decode, it is wrong by 1.02x: it leaves out key-value cache (1.61 GB) and "
        "growth of the cache (12.58 MB)",
        "it does not know the cache, which takes 1.05 MB for each token of each row",
    ],
    "7B bf16": [
        "7B x 2 bytes = 14.00 GB",
        "for the weights it is off by +3.9%: they are 13.48 GB: it has 6.74B parameters, not 7B",
        "for the peak, in decode, it is wrong by 1.02x: it leaves out key-value cache (805.31 MB) and "
        "growth of the cache (6.29 MB)",
        "it does not know the cache, which takes 524.29 kB for each token of each row",
    ],
    "7B int8": [
        "7B x 1 byte = 7.00 GB",
        "right for the weights to 1.9%",
        "for the peak, in decode, it is wrong by 1.25x: it leaves out key-value cache (1.61 GB) and "
        "growth of the cache (12.58 MB)",
        "it does not know the cache, which takes 1.05 MB for each token of each row",
    ],
    "7B training": [
        "7B x 4 bytes, training x4 = 112.00 GB",
        "for the weights, gradients and states it is off by +3.9%: they are 107.81 GB: it has 6.74B parameters, not 7B",
        "at the peak, in backward, it is 1.04x what is needed",
        "it knows neither batch nor length: activations and logits grow with both, states do not",
    ],
    "small tied int8": [
        "135M x 1 byte = 135.00 MB",
        "for the weights it is off by -45.7%: they are 248.69 MB: embeddings and norms stay "
        "fp32, and the tied table exists twice, once in int8",
        "for the peak, in load, it is wrong by 2.68x: it leaves out conversion (113.25 MB)",
        "it does not know the cache, which takes 46.08 kB for each token of each row",
    ],
    "long context": [
        "8B x 2 bytes = 16.00 GB",
        "right for the weights to 0.4%",
        "for the peak, in decode, it is wrong by 3.17x: it leaves out key-value cache (34.43 GB) "
        "and growth of the cache (268.96 MB)",
        "it does not know the cache, which takes 131.07 kB for each token of each row",
    ],
    "ALBERT": [
        "735.57k x 4 bytes = 2.94 MB",
        "right for the weights to 0.0%",
        "for the peak, in forward, it is wrong by 2.07x: it leaves out activations (3.15 MB)",
        "12 layers share 1 set of weights: time and activations are those of all",
    ],
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_said(name: str) -> None:
    rule = plan(**ASKED[name]).rule
    assert [rule.said, *rule.sentences] == SAID[name]
