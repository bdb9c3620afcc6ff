"""Put the model of a run of `recipes/code.yaml` into the package: in bf16, with its card.

    python recipes/code_model.py runs/code/best data/code [--scores scores.json] [--to FOLDER]

What is written is `model.safetensors`, `config.json`, the tokenizer and README.md: what `plainformer run "df = pd."` uses.
`scores.json` is what `code_scores.py --json` printed. A model and a tokenizer of more than 12 MB are refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import plainformer as pf

TO = Path(pf.__file__).parent / "assets" / "code-completion"
RECIPE = Path(__file__).parent / "code.yaml"
LIMIT = 12_000_000  # bytes
VERSIONS = ("plainformer", "torch", "python", "device")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")

ABOUT = """# code-completion

A small model that goes on with Python code, for trying the library without a network:

```sh
plainformer run "import pandas as pd\\ndf = "
```

It has read each line once or a few times and has {parameters:,} parameters: enough for the idioms of a few packages, not for
programs. It completes lines; it does not follow instructions, and what it writes may be wrong, unsafe, or close to a line of
its sources.

## What it learnt from

Python sources, without tests unless said below, without near duplicates: {packages}, and the standard library of Python
{python}. Licences: {licences}. Held out, and never trained on: {held_out}.

{parts}

## How good it is

{scores}

## How it was made

{versions}. Architecture: Llama, {sizes}. The weights are stored in bf16.

```sh
{commands}
```

recipes/code.yaml:

```yaml
{options}
```
"""
FRONT = """---
library_name: plainformer
pipeline_tag: text-generation
license: other
tags: [plainformer, llama, causal-lm, code]
---

"""
COMMANDS = """python recipes/code_data.py data/code{tests}
plainformer tokenizer train data/code/train.jsonl.gz --output data/code/tokenizer --vocab-size 8192
plainformer train recipes/code.yaml{options}
python recipes/code_scores.py runs/code/best data/code --json > scores.json
python recipes/code_model.py runs/code/best data/code --scores scores.json"""


def card(run: Path, data: Path, scores: dict[str, Any] | None, config: dict[str, Any], parameters: int) -> str:
    """Return the model card."""
    about = json.loads((data / "about.json").read_text(encoding="utf-8"))
    versions = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    licences = "; ".join(f"{name}: {licence}" for name, licence in about["licences"].items())
    parts = [f"| {side} | {part['files']:,} | {part['bytes']:,} |" for side, part in about["parts"].items()]
    said = "Not measured yet." if scores is None else "\n".join(scores["lines"])
    sizes = ", ".join(
        f"{config[name]} {word}"
        for name, word in {
            "num_hidden_layers": "layers",
            "hidden_size": "wide",
            "vocab_size": "tokens",
            "max_position_embeddings": "positions",
        }.items()
    )
    tests = " --tests" if about.get("tests") else ""
    return FRONT + ABOUT.format(
        parameters=parameters,
        packages=", ".join(about["packages"]),
        python=about["python"],
        licences=licences,
        held_out=", ".join(folder for folders in about["held out"].values() for folder in folders),
        parts="\n".join(["| part | files | bytes |", "| --- | --- | --- |", *parts])
        + ("\n\nTests of the packages are among the files to learn from." if tests else ""),
        scores=said,
        versions="Made with " + ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions),
        sizes=sizes,
        commands=COMMANDS.format(tests=tests, options=_changed(run)),
        options=RECIPE.read_text(encoding="utf-8").strip(),
    )


def _changed(run: Path) -> str:
    """Return the options in which a run differs from the recipe, as they are typed."""
    from plainformer.config.building import as_data, flat, read_config

    recipe = flat(as_data(read_config(RECIPE)))
    mine = flat(as_data(read_config(run / "config.yaml")))
    skipped = ("folder", "data.train", "data.validation", "data.test", "model.tokenizer", "model.config")
    changed = {
        name: value for name, value in mine.items() if recipe.get(name) != value and not name.startswith(skipped)
    }
    return "".join(
        f" --{name.replace('_', '-')} {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in changed.items()
    )


def main() -> None:
    """Convert, write, and check what was written."""
    asked = argparse.ArgumentParser(description="Put a trained model of code into the package.")
    asked.add_argument("model", type=Path, help="RUN/best")
    asked.add_argument("data", type=Path, help="the folder with about.json")
    asked.add_argument("--scores", type=Path)
    asked.add_argument("--to", type=Path, default=TO)
    given = asked.parse_args()
    scores = json.loads(given.scores.read_text(encoding="utf-8")) if given.scores else None
    model = pf.load_model(str(given.model), dtype="bf16")
    given.to.mkdir(parents=True, exist_ok=True)
    pf.save(model, given.to)
    for name in TOKENIZER:
        shutil.copyfile(given.model / name, given.to / name)
    config = json.loads((given.to / "config.json").read_text(encoding="utf-8"))
    parameters = sum(tensor.numel() for tensor in model.parameters())
    run = given.model.parent
    (given.to / "README.md").write_text(card(run, given.data, scores, config, parameters), encoding="utf-8")
    for path in given.to.iterdir():
        path.chmod(0o644)  # others read a package, too
    size = sum(path.stat().st_size for path in given.to.iterdir())
    if size > LIMIT:
        raise SystemExit(f"{given.to} has {size:,} bytes, more than {LIMIT:,}")
    complete = pf.load(str(given.to))
    print(f"{given.to}: {size:,} bytes, {parameters:,} parameters")
    print(complete("import pandas as pd\ndf =", max_new_tokens=16).text)


if __name__ == "__main__":
    main()
