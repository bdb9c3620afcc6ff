"""How every benchmark here measures: both sides in one process and one run, in turn, medians, and their ratio."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the results. `ratio` > 1 means that we need less (time, memory) or give more (throughput)."""

    what: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    note: str = ""

    def markdown(self) -> str:
        values = f"{self.ours:.3g} {self.unit} | {self.theirs:.3g} {self.unit} | **{self.ratio:.2f}x**"
        return f"| {self.what} | {values} | {self.note} |"


@dataclass(frozen=True)
class Missing:
    """A line of the results in place of a peer that cannot be measured here, and why."""

    what: str
    why: str

    def markdown(self) -> str:
        return f"| {self.what} | | | | {self.why} |"


def paired(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], *, rounds: int = 5, note: str = "") -> Row:
    """Seconds of each side, alternating A B B A so that drift hits both; the ratio is the median of each pair's."""
    for warm in (ours, theirs):
        warm()
    a: list[float] = []
    b: list[float] = []
    for index in range(rounds):
        order = ((ours, a), (theirs, b)) if index % 2 == 0 else ((theirs, b), (ours, a))
        for run, seconds in order:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    ratio = statistics.median(t / o for o, t in zip(a, b, strict=True))
    return Row(what, statistics.median(a), statistics.median(b), "s", ratio, note)


def in_process(code: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run code in a fresh Python; its last line of stdout."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=env)
    return done.stdout.strip().splitlines()[-1]


def paired_processes(
    what: str,
    ours: str,
    theirs: str,
    *arguments: str,
    rounds: int = 5,
    unit: str = "s",
    env: dict[str, str] | None = None,
) -> list[Row]:
    """Code that prints numbers, each side in its own fresh process, alternating; one row for each number printed.

    The first run of each side warms the disk cache and does not count.
    """
    a: list[list[float]] = []
    b: list[list[float]] = []
    for index in range(rounds + 1):
        sides = [(ours, a), (theirs, b)] if index % 2 == 0 else [(theirs, b), (ours, a)]
        for code, numbers in sides:
            numbers.append([float(x) for x in in_process(code, *arguments, env=env).split()])
    rows = []
    for column in range(len(a[0])):
        mine = [values[column] for values in a[1:]]
        other = [values[column] for values in b[1:]]
        ratio = statistics.median(t / o for o, t in zip(mine, other, strict=True))
        rows.append(Row(what, statistics.median(mine), statistics.median(other), unit, ratio))
    return rows


def reference_model(name: str, folder: Path, **changes: Any) -> Any:
    """A reference model with random weights in a published shape, saved where both sides load it from."""
    import torch
    import transformers

    torch.manual_seed(0)
    shapes: dict[str, tuple[str, dict[str, Any]]] = {
        "smollm2-135m": (
            "LlamaForCausalLM",
            dict(
                vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                intermediate_size=1536, max_position_embeddings=8192, tie_word_embeddings=True, rope_theta=100000.0,
            ),
        ),
        "gpt2-small": ("GPT2LMHeadModel", {}),
        "bart-base": (
            "BartForConditionalGeneration",
            dict(
                d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12,
                encoder_ffn_dim=3072, decoder_ffn_dim=3072, vocab_size=50265,
                normalize_before=False, normalize_embedding=True,  # of an older release; CTranslate2 asks for them
            ),
        ),
        "minilm-l6": (
            "BertModel",
            dict(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
        ),
        "wide-ffn": (
            "BertModel",
            dict(
                vocab_size=100, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8192,
                max_position_embeddings=2048,
            ),
        ),
    }  # fmt: skip
    class_name, fields = shapes[name]
    model_class = getattr(transformers, class_name)
    model = model_class(model_class.config_class(**{**fields, **changes})).eval()
    model.save_pretrained(folder)
    return model
