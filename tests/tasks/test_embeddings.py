"""Vectors as arrays: one, many, compared, searched. numpy is the oracle."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plainformer.errors import InputError, MissingDependencyError, UsageError
from plainformer.tasks.embeddings import Embedding, Embeddings, Hits, _ranked
from plainformer.tasks.results import Results
from plainformer.tasks.text.similarity import SIMILARITIES
from tests.support import models as make
from tests.support.close import close
from tests.support.media import CLIPS, pictures

TEXTS = ["the cat sat on the mat", "paris", "who is the dog in france?", "paris"]


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make.load(make.save("embedding", tmp_path_factory.mktemp("embed") / "model"))


def test_a_list_of_vectors_is_an_array(embed: Any) -> None:
    found = embed(TEXTS)
    rows = [np.array(one.vector.tolist(), dtype=np.float32) for one in found]
    assert type(found) is Embeddings and np.asarray(found).dtype == np.float32
    assert np.array_equal(np.asarray(found), np.stack(rows)) and torch.equal(
        found.vectors, torch.tensor(np.stack(rows))
    )
    assert type(found[1:3]) is Embeddings and np.array_equal(np.asarray(found[1:3]), np.stack(rows[1:3]))
    assert type(found[0]) is Embedding and np.asarray(found[::-1]).shape == (4, 32)
    assert np.array(found, dtype=np.float64).dtype == np.float64 and np.asarray(embed([])).shape == (0, 32)
    assert found == embed(TEXTS) and found != embed(TEXTS[:3]) and found == pickle.loads(pickle.dumps(found))
    assert type(found + found) is Embeddings and len(found + found) == 8 and type([*found]) is list
    assert list(found.to_dataframe().columns) == list(range(32)) and found.to_dataframe().shape == (4, 32)
    assert repr(found) == "Embeddings(4 vectors of 32 numbers; mean)" and type(found.copy()) is Embeddings


def test_one_vector_is_an_array(embed: Any) -> None:
    one = embed(TEXTS[0])
    assert np.asarray(one).shape == (32,) and len(one) == 32 and list(one) == one.vector.tolist()
    assert torch.equal(one[:4], one.vector[:4]) and torch.tensor(np.asarray(one)).shape == (32,)
    assert one == embed(TEXTS[0]) and one != embed(TEXTS[1]) and one != "text" and len({one, embed(TEXTS[0])}) == 1
    assert repr(one).startswith("Embedding(32 numbers: ") and repr(one).endswith(", ...; mean)")
    assert len(one.lines()) == 1 and one.lines()[0].startswith("32 numbers: ") and len(one.to_dict()["vector"]) == 32
    copy = np.array(one)
    copy[0] = 9
    assert one.vector[0] != 9


def test_columns_are_lists(embed: Any) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": TEXTS}, index=[7, 8, 9, 10])
    for given in (frame.text, frame.text.values, np.array(TEXTS), pd.Series(TEXTS, dtype="string")):
        assert embed(given) == embed(TEXTS)
        assert torch.equal(embed.tokenizer(given).input_ids, embed.tokenizer(TEXTS).input_ids)
        assert embed.similarity(given).shape == (4, 4)
    assert frame.join(embed(frame.text).to_dataframe(index=frame.index)).shape == (4, 33)
    with pytest.raises(UsageError, match="the index has 1 entry for 4 results"):
        Results(embed(TEXTS)).to_dataframe(index=[1])
    with pytest.raises(UsageError, match="the index has 3 entries for 4 results"):
        embed(frame.text).to_dataframe(index=frame.index[:3])
    with pytest.raises(InputError, match=r"input 1, (nan|None|<NA>), is missing"):
        embed(pd.Series(["a", None], dtype="string"))
    with pytest.raises(InputError, match="no order"):
        embed({"a"})


@pytest.mark.parametrize("form", [list, np.asarray, lambda e: e.vectors, lambda e: e, lambda e: np.asarray(e).tolist()])
def test_similarity_of_vectors_is_that_of_their_texts(embed: Any, form: Callable[[Any], Any]) -> None:
    found, expected = embed(TEXTS), embed.similarity(TEXTS)
    rows = np.asarray(found, dtype=np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    close(expected, rows @ rows.T)
    close(embed.similarity(form(found)), expected)
    close(embed.similarity(TEXTS[:2], form(found)), expected[:2])
    close(embed.similarity(form(found), TEXTS[1]), expected[:, 1])
    close(embed.similarity(found[2], form(found)), expected[2])
    close(embed.similarity(found.vectors[2], TEXTS[1]), expected[2, 1].item())


def test_torch_takes_embeddings_for_their_vectors(embed: Any) -> None:
    found = embed(TEXTS)
    assert torch.equal(torch.stack(found), found.vectors) and torch.equal(torch.stack([*found]), found.vectors)
    close(torch.dot(found[0], found[1].vector), found[0].vector @ found[1].vector)


def test_no_vectors_have_a_width_all_the_same(embed: Any, tiny: Callable[[str], Path]) -> None:
    for none in (embed([]), embed(TEXTS)[:0], embed([]).copy(), pickle.loads(pickle.dumps(embed([])))):
        assert none.vectors.shape == (0, 32)
    assert embed([], pooling="cls+mean", truncate_dim=50).vectors.shape == (0, 50)
    for name, item in (("image-embedding", pictures()[0]), ("audio-embedding", CLIPS[0])):
        task = make.load(tiny(name))
        assert task([]).vectors.size(1) == len(task(item))


def test_what_cannot_be_compared(embed: Any) -> None:
    for wrong, message in (
        (np.zeros((2, 3)), "vectors of 32 and of 3 numbers"),
        (np.zeros((2, 2, 32)), "shape"),
        ([np.zeros(3), np.zeros(4)], "not vectors of one length"),
        (np.full((2, 32), np.nan), "not finite"),
        ([["a", "b"]], "not vectors"),
        (3, "cannot compare an int"),
    ):
        with pytest.raises(InputError, match=message):
            embed.similarity("a", wrong)
        with pytest.raises(InputError, match=message):
            embed.search("a", wrong)
    with pytest.raises(UsageError, match="top_k=0"):
        embed.search("a", TEXTS, 0)
    with pytest.raises(InputError, match="corpus of a search is one input"):
        embed.search("a", "b")
    with pytest.raises(InputError, match="input 2, an int"):
        embed.search("a", ["b", "b", 3])


def test_a_search_ranks_the_corpus(embed: Any) -> None:
    query, corpus = "a cat", [*TEXTS, "a cat", "the dog", *TEXTS]
    scores = embed.similarity(query, corpus)
    order = sorted(range(len(corpus)), key=lambda place: (-round(scores[place].item(), 5), place))
    found = embed.search(query, corpus, len(corpus) + 5)
    assert type(found) is Hits and [hit.index for hit in found] == order
    assert [hit.document for hit in found] == [corpus[place] for place in order] and found[0].document == "a cat"
    close([hit.score for hit in found], scores[order])
    assert embed.search(query, corpus, 3) == found[:3]
    again = embed.search(query, embed(corpus), top_k=3)
    assert again[0].document is None and again[0].index == found[0].index
    several = embed.search([query, "paris"], corpus, top_k=2)
    assert (
        several[0] == found[:2]
        and [hit.index for hit in several[1]] == [1, 3]
        and several[1][0].score == several[1][1].score
    )
    assert embed.search(query, []) == [] and embed.search([], corpus) == []
    assert list(found[:2].to_dataframe().columns) == ["index", "score", "document"]
    assert found.to_dataframe().index.name == "rank" and found[0].lines()[0].endswith("[4]  a cat")


@pytest.mark.parametrize("name", SIMILARITIES)
def test_equal_vectors_keep_their_order(name: str) -> None:
    """However many there are, wherever they are: a product's last bits depend on the row."""
    torch.manual_seed(0)
    distinct = torch.randn(40, 24)
    places = torch.randint(40, (1001,))
    queries, corpus = torch.randn(3, 24), distinct[places]
    exact = SIMILARITIES[name](queries.double(), distinct.double()).float()[:, places]
    for row, top_k in ((0, 5), (1, 100), (2, 1001)):
        found = list(_ranked(queries, corpus, top_k, SIMILARITIES[name]))[row]
        expected = sorted(range(1001), key=lambda place: (-exact[row, place].item(), place))[:top_k]
        assert [place for place, _ in found] == expected
        close([score for _, score in found], exact[row, expected])


def test_a_search_takes_the_prompts_of_a_checkpoint(tmp_path: Path) -> None:
    """As `encode_query` and `encode_document` of sentence-transformers do."""
    folder = make.save("embedding", tmp_path / "model")
    (folder / "config_sentence_transformers.json").write_text(
        '{"prompts": {"query": "who: ", "passage": "the "}, "default_prompt_name": null}'
    )
    (folder / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},'
        '{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]'
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    embed = make.load(folder)
    scores = embed.similarity(embed("paris", prompt_name="query"), embed(TEXTS, prompt_name="passage"))
    found = embed.search("paris", TEXTS, 4)
    close([hit.score for hit in found], scores[[hit.index for hit in found]])
    plain = embed.search("paris", TEXTS, 4, prompt="")
    close([hit.score for hit in plain], embed.similarity("paris", TEXTS, prompt="")[[hit.index for hit in plain]])
    assert [hit.score for hit in plain] != [hit.score for hit in found]


@pytest.mark.parametrize(("kind", "items"), [("image-embedding", pictures()), ("audio-embedding", CLIPS)])
def test_images_and_sounds_are_compared_and_searched(kind: str, items: list[Any], tiny: Callable[[str], Path]) -> None:
    task = make.load(tiny(kind), task=kind.replace("embedding", "feature-extraction"))
    vectors = task(items)
    assert type(vectors) is Embeddings and np.asarray(vectors).shape == (len(items), 32)
    close(task.similarity(items), task.similarity(vectors))
    assert abs(task.similarity(items[0], items[0]) - 1) < 1e-5
    assert task.search(items[1], vectors, 1)[0].index == 1 and task.search(vectors[1], items, 1)[0].document is items[1]


def test_without_pandas(embed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for found in (embed(TEXTS), Results(), embed(TEXTS)[0]):
        with pytest.raises(MissingDependencyError, match="pip install pandas"):
            found.to_dataframe()
