"""Make the data of the recipes on Debian's package descriptions, from `packages.jsonl.gz`: a record for each package, with
`package`,
`section`, `synopsis`, `description`, and `fr`, [synopsis, description] in French, or null.

    python recipes/debian_data.py data/debian/packages.jsonl.gz data/debian

Half of the packages share the first paragraph of their description with another one, so the split is by this paragraph: all
packages that share it are on one side. Nine of ten paragraphs are for training, one of twenty each for validation and for
the test.

| files (train, validation, test) | columns | for |
|---|---|---|
| `train.jsonl.gz` ... | package, section, synopsis, description | synopses, masked-lm |
| `fr-train.jsonl.gz` ... | package, source, target | English to French: synopses, and paragraphs where both texts have as many |
| `fr-text.jsonl.gz` | text | the tokenizer of both languages: all of fr-train |
| `sections-train.jsonl.gz` ... | text, label | the section of a package: 1,000 rows to learn from, one of each paragraph |
| `chats-train.jsonl.gz` ... | prompt, response, package | instructions: write the synopsis |
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SIDES = ("train", "validation", "test")
LABELLED = 1000  # rows with a section to learn from
RARE = 0.01  # sections with a smaller share of the packages are left out of sections-*
CHATS = {"train": 2000, "validation": 200, "test": 500}
CHAT_CHARACTERS = 600  # longest description of a chat
ASKED = "Write the synopsis of this software package: one line of at most ten words, without its name.\n\n"

Row = dict[str, Any]


def plain(text: str) -> str:
    """Return a text in lower case on one line."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def hash_of(text: str) -> int:
    """Return 64 bits that depend on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def group_of(row: Row) -> str:
    """Return what a row's side depends on: its first paragraph."""
    return plain(row["description"].split("\n\n")[0])


def side_of(row: Row) -> str:
    """Return the side of a row."""
    share = hash_of(group_of(row)) / 2**64
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


def in_french(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield pairs of an English and a French text, each on one line, and each once."""
    seen = set()
    for row in rows:
        if not row["fr"]:
            continue
        synopsis, description = row["fr"]
        pairs = [(row["synopsis"], synopsis)]
        english, french = row["description"].split("\n\n"), description.split("\n\n")
        pairs += zip(english, french, strict=True) if len(english) == len(french) else []
        for one, other in pairs:
            pair = (" ".join(one.split()), " ".join(other.split()))
            if all(pair) and pair not in seen:
                seen.add(pair)
                yield {"package": row["package"], "source": pair[0], "target": pair[1]}


def one_of_each_group(rows: Iterable[Row]) -> list[Row]:
    """Return of each group the row whose package's name has the lowest hash; in the order of these hashes."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: hash_of(row["package"])):
        found.setdefault(group_of(row), row)
    return list(found.values())


def with_section(rows: Iterable[Row], sections: set[str]) -> list[Row]:
    """Return texts with their section."""
    kept = (row for row in one_of_each_group(rows) if row["section"] in sections)
    return [{"text": row["description"], "label": row["section"], "package": row["package"]} for row in kept]


def as_chats(rows: Iterable[Row]) -> list[Row]:
    """Return prompts and responses."""
    short = (row for row in one_of_each_group(rows) if len(row["description"]) <= CHAT_CHARACTERS)
    return [
        {"prompt": ASKED + row["description"], "response": row["synopsis"], "package": row["package"]} for row in short
    ]


def write(path: Path, rows: Iterable[Row]) -> int:
    """Write rows, a JSON object a line; return how many. The same rows give the same bytes."""
    count = 0
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for count, row in enumerate(rows, 1):  # noqa: B007  # the last count is wanted
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    return count


def main() -> None:
    """Read, divide and write."""
    asked = argparse.ArgumentParser(description="The data of the recipes on Debian's package descriptions.")
    asked.add_argument("packages", type=Path)
    asked.add_argument("folder", type=Path)
    given = asked.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    sides: dict[str, list[Row]] = defaultdict(list)
    with gzip.open(given.packages, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["description"].strip() and row["synopsis"].strip():
                sides[side_of(row)].append(row)
    counts = Counter(row["section"] for rows in sides.values() for row in rows)
    frequent = {section for section, count in counts.items() if count >= RARE * counts.total()}
    for side in SIDES:
        rows = sides[side]
        columns = ("package", "section", "synopsis", "description")
        sections = with_section(rows, frequent)
        parts = {
            side: [{name: row[name] for name in columns} for row in rows],
            f"fr-{side}": list(in_french(rows)),
            f"sections-{side}": sections[:LABELLED] if side == "train" else sections,
            f"chats-{side}": as_chats(rows)[: CHATS[side]],
        }
        if side == "train":
            pairs = parts["fr-train"]
            parts["fr-text"] = [{"text": pair[name]} for pair in pairs for name in ("source", "target")]
        for name, part in parts.items():
            print(f"{name:<20}{write(given.folder / f'{name}.jsonl.gz', part):>8,} rows")


if __name__ == "__main__":
    main()
