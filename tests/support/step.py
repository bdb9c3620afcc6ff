"""Decoders for the tests of compiled steps, and the decoding of a few tokens with one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plainformer.config import HeadConfig, ModelConfig, StackConfig, TokenFrontend
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.model.transformer import Transformer

BASE: dict[str, Any] = {
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_size": 40,
    "direction": "causal",
    "norm_place": "pre",
    "final_norm": "norm",
}


def make(encoder: bool = False, **changes: Any) -> Transformer:
    """A random model of the shape that `changes` describe."""
    frontend = TokenFrontend(vocab_size=50, embedding_size=24)
    decoder = StackConfig(frontend=frontend, **{**BASE, **changes}, cross_attention=encoder)
    encoding = StackConfig(frontend=frontend, **{**BASE, "direction": "both"}) if encoder else None
    head = HeadConfig(kind="seq2seq_lm" if encoder else "causal_lm", out_size=50)
    model = Transformer(ModelConfig("tiny", encoder=encoding, decoder=decoder, head=head)).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


@torch.no_grad()
def decode(model: Transformer, ids: Tensor, mask: Tensor | None = None, copies: int = 1, **options: Any) -> Tensor:
    """Logits of a prompt of six tokens and of each token behind it, for `copies` rows of each prompt."""
    rows = len(ids) // copies
    cache = KeyValueCache(model.config, rows, 6, kind=options.pop("kind", "full"))
    first = model(ids[::copies, :6], None if mask is None else mask[::copies, :6], cache=cache).logits[:, -1:]
    if copies > 1:
        cache.share(copies)
        first = first.repeat_interleave(copies, 0)
    found = [first]
    for end in range(7, ids.size(1) + 1):
        seen = None if mask is None else mask[:, :end]
        found.append(model(ids[:, end - 1 : end], seen, cache=cache, **options).logits)
    return torch.cat(found, dim=1)


def ids_of(rows: int, length: int = 14) -> Tensor:
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(rows))
