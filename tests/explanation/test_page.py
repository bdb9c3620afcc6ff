"""The page: it needs nothing else, it is well formed, it holds what it should, and nothing in it can become markup."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import plainformer
from plainformer.explanation import Explanation, explain, explain_steps
from plainformer.explanation.page import _short, map_size_of, to_html, visible
from plainformer.explanation.request import Request
from plainformer.explanation.tree import beam_tree
from tests.support import models as make

HOSTILE = "</script><script>alert(1)</script> \"'<img src=x onerror=alert(1)> &amp; ]]> {{ 7*7 }}"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects elements, attributes and text, and checks that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        self.texts[where] = self.texts.get(where, "") + data

    def all_text(self) -> str:
        return "".join(text for tag, text in self.texts.items() if tag not in ("script", "style"))


def maps_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="maps">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def self_contained(page: str) -> Reader:
    read = Reader(page)
    loads = {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "source", "image", "use"}
    assert not loads & {tag for tag, _ in read.elements}
    for _, attributes in read.elements:
        assert not {"src", "href", "xlink:href", "action", "srcset", "data"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "http" not in page.replace("http-equiv", "") and "url(" not in page and "@import" not in page
    policy = next(a["content"] for tag, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    return read


@pytest.fixture(scope="module")
def page_of(tiny: Callable[[str], Path]) -> Callable[..., tuple[Explanation, str]]:
    def made(name: str, item: Any, steps: dict[str, Any] | None = None, **options: Any) -> tuple[Explanation, str]:
        task = plainformer.load(tiny(name), backend="plain")
        found_steps = None
        if steps is not None:
            found_steps = explain_steps(task, Request(item, options=steps), steps=3)
            answer = found_steps.trace.answers[0].token_ids
            options["ids"] = (*found_steps.trace.prompt_ids, *answer)
        found = explain(task, item, **{"attention": "all", **options})
        return found, found.to_html(found_steps)

    return made


@pytest.mark.parametrize("name", ["chat", "text-generation", "text2text", "fill-mask", "text-classification"])
def test_the_page_has_every_token_and_number(page_of: Any, name: str) -> None:
    generates = name in ("chat", "text-generation", "text2text")
    text = "the [MASK] sat" if name == "fill-mask" else "the cat sat"
    found, page = page_of(name, text, {} if generates else None, lens=name != "text-classification")
    read = self_contained(page)
    shown = read.all_text()
    for piece in found.pieces:
        assert visible(piece.text) in shown
    data = maps_of(page)
    assert set(data) == {side.name for side in found.attention.sides}
    for one in found.attention.maps:
        packed = base64.b64decode(data[one.side]["maps"][f"{one.layer}.{one.head}"])
        levels = [int.from_bytes(packed[i : i + 2], "little") for i in range(0, len(packed), 2)]
        weights = torch.tensor(one.weights).flatten()
        assert len(levels) == len(weights)
        assert (torch.tensor(levels) / 65535 - weights).abs().max() < 1e-5
    for reading in found.lens:
        for layer in reading.layers:
            assert all(f"{visible(one.token)} {one.probability:.2f}" in shown for one in layer.tokens)
    buttons = [attributes for tag, attributes in read.elements if tag == "button"]
    assert len(buttons) == len(found.attention.heads)
    assert "The first" not in shown and "the maps show" not in shown  # nothing was cut


# The parts of a browser that the page's script uses.
BROWSER = """
class Element {
  constructor(name) { this.name = name; this.children = []; this.dataset = {}; this.attributes = {}; this.namespaceURI = "svg" }
  setAttribute(name, value) { this.attributes[name] = value }
  append(...more) { this.children.push(...more) }
  replaceChildren() { this.children = [] }
  addEventListener() {}
}
const parts = { map: new Element("svg"), which: new Element("p"), maps: new Element("script") };
const document = {
  getElementById: id => parts[id],
  createElementNS: (space, name) => { if (space !== "svg") throw "another namespace"; return new Element(name) },
  querySelectorAll: () => [],
};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's script outside a browser")
def test_the_script_draws_the_weights(page_of: Any) -> None:
    found, page = page_of("text2text", "the <b>cat</b>", {})
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    for one in (found.attention.map("encoder.1.2"), found.attention.map("cross.0.3")):
        side = found.attention.side(one.side)
        data = f"parts.maps.textContent = {json.dumps(json.dumps(maps_of(page)))};"
        ask = f"show({one.side!r}, '{one.layer}.{one.head}');"
        tell = "const cells = parts.map.children.filter(e => e.name === 'rect').map(e => e.children[0].textContent);"
        program = f"{BROWSER}{data}{script}{ask}{tell}console.log(JSON.stringify(cells))"
        done = subprocess.run(["node", "-e", program], capture_output=True, text=True, timeout=60, check=True)
        expected = [
            (f"{visible(query)} looks at {visible(key)}", one.weights[row][column])
            for row, query in enumerate(side.queries)
            for column, key in enumerate(side.keys)
        ]
        drawn = [tuple(cell.rsplit(": ", 1)) for cell in json.loads(done.stdout)]
        assert [what for what, _ in drawn] == [what for what, _ in expected]
        assert max(abs(float(w) - weight) for (_, w), (_, weight) in zip(drawn, expected, strict=True)) < 1e-4


def test_hostile_text_stays_text(page_of: Any) -> None:
    for name, steps in (("chat", {"num_beams": 2}), ("text-classification", None), ("text2text", {})):
        text = HOSTILE[:36] if name == "text-classification" else HOSTILE[:60]
        found, page = page_of(name, text, steps)
        read = self_contained(page)
        tags = [tag for tag, _ in read.elements]
        assert tags.count("script") == 2 and "img" not in tags
        assert "49" not in maps_of(page)["decoder" if "decoder" in maps_of(page) else "encoder"]["queries"]
        assert all(visible(piece.text) in read.all_text() for piece in found.pieces)
    task = page_of("chat", "a")[0]
    assert HOSTILE not in to_html(Explanation(HOSTILE, HOSTILE, task.pieces, (), (), HOSTILE))
    self_contained(to_html(Explanation(HOSTILE, HOSTILE, task.pieces, (), (), HOSTILE)))


def test_steps_and_the_tree(page_of: Any, tiny: Callable[[str], Path]) -> None:
    task = plainformer.load(tiny("chat"), backend="plain")
    steps = explain_steps(task, Request("hi", options={"num_beams": 2}), steps=3)
    read = self_contained(to_html(explain(task, "hi"), steps))
    branches = [branch for step in steps.trace.steps for group in step.groups for branch in group.branches]
    fates = [attributes["class"] for tag, attributes in read.elements if tag == "text"]
    assert fates == [branch.fate for branch in branches]
    titles = read.texts["title"]
    assert all(f"log-probability {branch.log_probability:.4f}" in titles for branch in branches)
    sampled = explain_steps(task, Request("hi", options={"do_sample": True, "seed": 3, "top_k": 3}), steps=3)
    read = self_contained(to_html(explain(task, "hi"), sampled))
    shown = read.all_text()
    for step in sampled.trace.steps:
        assert f"by the draw {step.picks[0].draw:.6f}" in shown
        assert f"{step.ladders[0].probabilities[0]:.4f}" in shown
    assert "banned" in shown and "seed 3" in shown


def test_the_tree_is_laid_out() -> None:
    model = make.make("llama")
    from plainformer.explanation import record

    trace = record(model, torch.tensor([[5, 6, 7]]), num_beams=3, max_new_tokens=4).trace
    nodes = beam_tree(trace)
    assert len(nodes) == sum(len(group.branches) for step in trace.steps for group in step.groups)
    for node in nodes:
        if node.parent is None:
            assert node.depth == 1
        else:
            parent = nodes[node.parent]
            # The parent is the candidate of the step before that went on in the row this one comes from.
            assert parent.depth == node.depth - 1 and parent.branch.row == node.branch.parent
    leaves = sorted(n.height for place, n in enumerate(nodes) if place not in {other.parent for other in nodes})
    assert leaves == [float(place) for place in range(len(leaves))]
    assert beam_tree(trace, 2) == tuple(n for n in beam_tree(trace, 2) if n.depth <= 2) != nodes
    greedy = record(model, torch.tensor([[5]]), max_new_tokens=2).trace
    assert beam_tree(greedy) == ()


def test_what_is_cut_is_said(page_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, page = page_of("text2text", "the cat sat on the mat", {}, map_size=2)
    assert "cross: the maps show the first 2 of " in page and "and the first 2 of " in page
    assert len(maps_of(page)["encoder"]["queries"]) == 2
    monkeypatch.setattr("plainformer.explanation.page.MAX_PIECES", 3)
    monkeypatch.setattr("plainformer.explanation.page.MAX_STEPS", 1)
    monkeypatch.setattr("plainformer.explanation.page.MAX_NODES", 7)
    found, page = page_of("chat", "the cat sat", {"num_beams": 2})
    assert f"The first 3 of {len(found.pieces)}." in page
    assert "The first 1 of 3 steps." in page and "The first steps alone" in page


def test_the_page_stays_small() -> None:
    small = make.make("llama")
    assert map_size_of(small) == 64

    class Large:
        encoder = None
        decoder = type("Stack", (), {"config": type("C", (), dict(num_layers=80, num_heads=64, cross_attention=False))})

    assert 8 <= map_size_of(Large) < 30  # type: ignore[arg-type]


def test_media(page_of: Any) -> None:
    found, page = page_of("image-classification", torch.rand(3, 32, 32))
    read = self_contained(page)
    assert "class token 0" in "".join(str(a) for _, a in read.elements) or "class" in read.all_text()
    assert len(found.pieces) == 17 and "negative" in read.all_text()


def test_a_vector_is_shown_by_its_first_numbers() -> None:
    answer = {"vector": [0.5] * 300, "labels": [{"label": "a", "score": 0.25}]}
    assert _short(answer) == {"vector": f"300 numbers: {', '.join(['0.5000'] * 8)}, ...", "labels": answer["labels"]}


def test_a_notebook_shows_the_page_in_a_frame(tiny: Callable[[str], Path]) -> None:
    task = plainformer.load(tiny("chat"), backend="plain")
    found = explain(task, "the cat " + HOSTILE, attention="0.1")
    ((tag, given),) = Reader(found._repr_html_()).elements
    assert tag == "iframe" and given["sandbox"] == "allow-scripts"
    assert given["srcdoc"] == found.to_html()
