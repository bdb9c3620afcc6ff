"""The model card of a checkpoint: README.md, as the Hub shows it. Written from what the run knows; without a clock.

A card is public: of local paths it names the last part alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plainformer.config.building import flat
from plainformer.errors import plural
from plainformer.train.interval import said

CARD = "README.md"
_SHOWN = 12  # evaluations in the table


@dataclass(frozen=True)
class Use:
    """What a trained model does: its task on the Hub, in words, and an input in Python and on the command line."""

    task: str
    words: str
    python: str
    shell: str


_TEXT = '"A man is eating food."'
_GENERATES = Use("text-generation", "text generation", '"Once upon a time", max_new_tokens=40', '"Once upon a time"')
_REWRITES = Use("text2text-generation", "text to text", _TEXT, _TEXT)
_HEARS = Use("automatic-speech-recognition", "speech recognition", '"speech.wav"', "speech.wav")
USES = {
    "causal-lm": _GENERATES,
    "masked-lm": Use("fill-mask", "filling gaps", '"A man is [MASK] food."', '"A man is [MASK] food."'),
    "denoising": _REWRITES,
    "seq2seq": _REWRITES,
    "instruction": Use(
        "text-generation",
        "answering instructions",
        '[{"role": "user", "content": "Name three colours."}], max_new_tokens=40',
        '--chat "Name three colours."',
    ),
    "text-classification": Use("text-classification", "text classification", _TEXT, _TEXT),
    "token-classification": Use("token-classification", "token classification", _TEXT, _TEXT),
    "question-answering": Use(
        "question-answering",
        "extractive question answering",
        '("Who eats?", "A man is eating food.")',
        f'--question "Who eats?" {_TEXT}',
    ),
    "multiple-choice": Use(
        "multiple-choice",
        "multiple choice",
        '{"prompt": "A man is eating", "choices": ["food", "stones"]}',
        '--choice food --choice stones "A man is eating"',
    ),
    "ctc": _HEARS,
    "speech-to-text": _HEARS,
    "image-classification": Use("image-classification", "image classification", '"picture.png"', "picture.png"),
    "audio-classification": Use("audio-classification", "audio classification", '"sound.wav"', "sound.wav"),
}


@dataclass(frozen=True)
class Side:
    """Rows of one side, "train" or "validation": the data's name, its examples and tokens, and a digest of what it held.

    `left_out`: reason → rows that were dropped.
    """

    side: str
    name: str
    examples: int
    tokens: int
    digest: str
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        name: of the model. objective: of `config.training.OBJECTIVES`. model_type: of config.json.
        parameters, trained: of the model, and how many of them were trained.
        base: what it started from, a folder or Hub id; None from scratch. method: "full", "head" or "lora".
        hub_data: data sets of the Hub. mask_token: of the tokenizer, for the example of a masked language model.
        options: of the run, nested; every one is written.
        step, total_steps, epochs, tokens: how far training had come.
        evaluations: lines of metrics.jsonl that have "validation". metric: what chose the best.
        verdict: on overfitting, at the end.
        versions: package → version. units: what the head's numbers are, where they are not the data's.
    """

    name: str
    objective: str
    model_type: str
    parameters: int
    trained: int
    data: Sequence[Side]
    options: Mapping[str, Any]
    step: int
    total_steps: int
    epochs: float
    tokens: int
    evaluations: Sequence[Mapping[str, Any]] = ()
    metric: str = "loss"
    verdict: str = ""
    base: str | None = None
    method: str = "full"
    hub_data: Sequence[str] = ()
    mask_token: str = "[MASK]"
    versions: Mapping[str, str] = field(default_factory=dict)
    units: str = ""

    @property
    def use(self) -> Use:
        return USES[self.objective]

    def write(self, folder: Path) -> None:
        """Write README.md."""
        (folder / CARD).write_text(str(self), encoding="utf-8")

    def __str__(self) -> str:
        title = f"# {self.name}"
        parts = [self._front(), title, self._what(), self._results(), self._data(), self._training(), self._how()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _front(self) -> str:
        """Return what the Hub reads: YAML, each value as JSON, which YAML includes."""
        values: dict[str, Any] = {"library_name": "plainformer", "pipeline_tag": self.use.task}
        if self.base is not None and not _local(self.base):
            values["base_model"] = self.base
        if self.hub_data:
            values["datasets"] = list(self.hub_data)
        values["metrics"] = [name for name in self._metrics() if name != "loss"]
        values["tags"] = ["plainformer", self.model_type, self.objective]
        lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items() if value]
        return "\n".join(["---", *lines, "---"])

    def _what(self) -> str:
        start = f"Fine-tuned from `{_public(self.base)}`" if self.base is not None else "Trained from scratch"
        part = {"head": "; the backbone was frozen", "lora": " by low-rank adaptation"}.get(self.method, "")
        few = f", of which {self.trained:,} were trained" if self.trained != self.parameters else ""
        text = f"A `{self.model_type}` model for {self.use.words}. {start}{part}. {self.parameters:,} parameters{few}."
        if not self.units:
            return text
        units = f"Its head answers in scaled units, {self.units} (`target_scaling` in config.json), and so are losses."
        return f"{text}\n\n{units} plainformer's answers, and errors below, are in the data's own units."

    def _metrics(self) -> list[str]:
        return list(dict.fromkeys(name for line in self.evaluations for name in line["validation"]))

    def _results(self) -> str:
        if not self.evaluations:
            return ""
        names = self._metrics()
        probed = any("probe" in line for line in self.evaluations)
        learnt = list(dict.fromkeys(("loss", self.metric))) if probed else []
        best = max((line["step"] for line in self.evaluations if line.get("best")), default=None)
        last = self.evaluations[-_SHOWN:]
        shown = [line for line in self.evaluations if line["step"] == best and line not in last] + list(last)
        rows = [
            [
                f"**{line['step']:,}**" if line["step"] == best else f"{line['step']:,}",
                f"{line['epoch']:.2f}",
                *(_number(line["validation"].get(name)) for name in names),
                *(_number(line.get("probe", {}).get(name)) for name in learnt),
            ]
            for line in shown
        ]
        note = f"On the validation rows. The bold step is the best so far by {self.metric}"
        chosen = next((line for line in shown if line["step"] == best), {})
        sure = f": {said(chosen['validation'][self.metric], chosen['interval'])}" if "interval" in chosen else ""
        note += f"{sure}{', with the interval of 95 % (bootstrap over groups, else rows)' * bool(sure)}."
        heads = ["step", "epoch", *names, *(f"{name} of train" for name in learnt)]
        said_of_it = f"\n\nOverfitting: {self.verdict}." if self.verdict else ""
        return "## Results\n\n" + note + "\n\n" + _table(heads, rows) + said_of_it

    def _data(self) -> str:
        rows = [
            [one.side, _public(one.name), f"{one.examples:,}", f"{one.tokens:,}", f"`{one.digest[:16]}`"]
            for one in self.data
        ]
        left = [
            f"- {one.side}: {plural(count, 'row')} left out: {reason}"
            for one in self.data
            for reason, count in one.left_out.items()
        ]
        text = "## Data\n\n" + _table(["side", "data", "examples", "tokens", "digest"], rows)
        return text + ("\n\n" + "\n".join(left) if left else "")

    def _training(self) -> str:
        done = f"Step {self.step:,} of {self.total_steps:,}: {self.epochs:.2f} epochs, {plural(self.tokens, 'token')}."
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        rows = [[f"`{name}`", f"`{json.dumps(_public(value))}`"] for name, value in flat(self.options).items()]
        made = f"Made with {versions}." if versions else ""
        return "\n\n".join(
            part for part in ("## Training", f"{done} {made}".strip(), _table(["option", "value"], rows)) if part
        )

    def _how(self) -> str:
        python, shell = (text.replace("[MASK]", self.mask_token) for text in (self.use.python, self.use.shell))
        return (
            "## How to use it\n\n"
            "```py\n"
            "import plainformer as pf\n\n"
            'task = pf.load("FOLDER")  # the folder of this file\n'
            f"print(task({python}))\n"
            "```\n\n"
            f"```sh\nplainformer run FOLDER {shell}\n```"
        )


def _local(name: str) -> bool:
    """Return whether a name is a path and not an id of the Hub."""
    return os.path.isabs(name) or name[:1] in (".", "~") or os.path.exists(name) or "\\" in name


def _public(value: Any) -> Any:
    """Return a value that may be shown: the last part of a path to a file or folder of this machine."""
    if isinstance(value, str) and value and _local(value):
        return Path(value).name or value
    return [_public(one) for one in value] if isinstance(value, list | tuple) else value


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
