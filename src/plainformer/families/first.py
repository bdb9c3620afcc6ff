"""First weights as most families have them: normal, with the deviation that config.json names, and a padding row of zeros."""

from __future__ import annotations

from plainformer.config import ModelConfig
from plainformer.config.initial import Distribution, FirstWeights
from plainformer.families.hf_config import HfConfig

TOKENS = "*.frontend.tokens.weight"
# An output of the residual path: of attention, of cross-attention and of the feed-forward network.
RESIDUAL = ("*.attention.out.weight", "*.cross.out.weight", "*.ffn.down.weight")


def deviation(source: HfConfig) -> float:
    """Return the standard deviation of matrices and tables; 0 means the usual 0.02, as null does."""
    return source.number("initializer_range", "init_std", default=0.02) or 0.02


def usual(source: HfConfig, config: ModelConfig, rules: dict[str, Distribution] | None = None) -> FirstWeights:
    """Return the family's first weights; `rules`, of our parameters' names, are what differs."""
    return FirstWeights(deviation(source), tuple((rules or {}).items()), padding_row(config))


def padding_row(config: ModelConfig) -> tuple[tuple[str, int], ...]:
    """Return the row of the word vectors that no real token has."""
    size = config.vocab_size or 0
    return ((TOKENS, config.pad_id),) if config.pad_id is not None and 0 <= config.pad_id < size else ()
