"""CTC decoding against enumeration of all alignments, n-gram models against arithmetic by hand."""

from __future__ import annotations

import gzip
import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.errors import InputError
from plainformer.tasks.speech.ctc_decoding import Language, align, best_alignment, make_lexicon, prefix_beam_search
from plainformer.tasks.speech.ngram import NgramModel

BLANK, SPACE, A, B = 0, 1, 2, 3
TOKENS = ["", " ", "a", "b"]
ARPA = """
\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.0\t<unk>\t0
-99\t<s>\t-0.3
-0.7\t</s>
-0.5\ta\t-0.4
-0.9\tab\t-0.2

\\2-grams:
-0.2\t<s> a
-0.6\ta ab
-0.1\tab </s>

\\end\\
"""
# Bigrams of the sentence "bugs bunny".
BUGS_BUNNY = """
\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.0\t<unk>\t0
0\t<s>\t-0.3
-0.7\t</s>\t0
-0.7\tbugs\t-0.3
-0.7\tbunny\t-0.3

\\2-grams:
-0.2\t<s> bugs
-0.2\tbugs bunny
-0.2\tbunny </s>

\\end\\
"""
ALL: dict[str, Any] = dict(beam_width=100_000, min_token_logprob=-math.inf, max_beam_gap=math.inf)


def model(tmp_path: Path, text: str = ARPA) -> NgramModel:
    path = tmp_path / "model.arpa"
    path.write_text(text, encoding="utf-8")
    return NgramModel.read(path)


def random_frames(seed: int, length: int, peak: float = 2.0) -> Any:
    logits = np.random.default_rng(seed).normal(size=(length, len(TOKENS))) * peak
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def enumerated(frames: Any) -> dict[tuple[int, ...], float]:
    """Every text's log-probability, as the sum over all alignments."""
    sums: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(len(TOKENS)), repeat=len(frames)):
        text = tuple(i for n, i in enumerate(path) if i != BLANK and (n == 0 or i != path[n - 1]))
        sums[text] += math.exp(sum(frames[n, i] for n, i in enumerate(path)))
    return {text: math.log(p) for text, p in sums.items()}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 5))
def test_scores_are_the_sums_over_all_alignments(seed: int, length: int) -> None:
    frames = random_frames(seed, length)
    expected = enumerated(frames)
    found = prefix_beam_search(frames, BLANK, **ALL)
    assert {one.ids for one in found} == set(expected)
    for one in found:
        assert one.score == pytest.approx(expected[one.ids], abs=1e-9)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.floats(0, 3), bonus=st.floats(-2, 2), listed=st.booleans())
def test_words_and_n_grams_count_as_enumeration_says(
    tmp_path_factory: pytest.TempPathFactory, seed: int, weight: float, bonus: float, listed: bool
) -> None:
    ngrams = model(tmp_path_factory.mktemp("lm"))
    frames = random_frames(seed, 5)
    words = [(A,), (A, B)] if listed else None
    lexicon = make_lexicon(words) if words else None
    language = Language(SPACE, TOKENS, lexicon, ngrams, weight, bonus)
    expected = {}
    for ids, logprob in enumerated(frames).items():
        parts = [p for p in "".join(TOKENS[i] for i in ids).split(" ") if p]
        if words and not set(parts) <= {"a", "ab"}:
            continue
        # Back-off by the definition, with the numbers of ARPA written out.
        one = {"a": -0.5, "ab": -0.9, "</s>": -0.7}
        two = {("<s>", "a"): -0.2, ("a", "ab"): -0.6, ("ab", "</s>"): -0.1}
        off = {"<s>": -0.3, "a": -0.4, "ab": -0.2}
        total, before = 0.0, "<s>"
        for word in [*parts, "</s>"]:
            word = word if word in one else "<unk>"
            single = one.get(word, -1.0)
            total += two[before, word] if (before, word) in two else off.get(before, 0.0) + single
            before = word
        expected[ids] = logprob + weight * total * math.log(10) + bonus * len(parts)
    found = {one.ids: one.score for one in prefix_beam_search(frames, BLANK, language=language, **ALL)}
    assert found.keys() == expected.keys()
    for ids, score in found.items():
        assert score == pytest.approx(expected[ids], abs=1e-9)


def test_the_best_text_is_not_always_that_of_the_best_alignment() -> None:
    frames = np.log(np.array([[0.4, 0.0001, 0.35, 0.2499], [0.4, 0.0001, 0.35, 0.2499]]))
    assert best_alignment(frames, BLANK).ids == ()
    assert prefix_beam_search(frames, BLANK)[0].ids == (A,)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 6))
def test_alignments_are_the_likeliest(seed: int, length: int) -> None:
    frames = random_frames(seed, length)
    ids = prefix_beam_search(frames, BLANK)[0].ids
    best, where = -math.inf, None
    for path in itertools.product(range(len(TOKENS)), repeat=length):
        kept = [n for n, i in enumerate(path) if i != BLANK and (n == 0 or i != path[n - 1])]
        score = sum(frames[n, i] for n, i in enumerate(path))
        if tuple(path[n] for n in kept) == ids and score > best:
            ends = [next((m for m in range(n, length) if path[m] != path[n]), length) for n in kept]
            best, where = score, list(zip(kept, ends, strict=True))
    assert align(frames, ids, BLANK) == where


# ---- what pyctcdecode publishes -------------------------------------------------------------------------------------

LABELS = ["", " ", "b", "g", "n", "s", "u", "y"]


def spelt(*parts: tuple[str, float]) -> Any:
    """Frames that spell texts, one letter each ("_" is the blank), each with its share."""
    frames = np.zeros((len(parts[0][0]), len(LABELS)))
    for text, share in parts:
        for place, letter in enumerate(text):
            frames[place, LABELS.index(letter.replace("_", ""))] += share
    return np.log(np.clip(frames, 1e-15, 1))


MIXED = np.vstack([spelt(("bugs__", 0.49), ("bun_ny", 0.51)), spelt((" bun_ny", 1.0))])


def written(ids: Any) -> str:
    return "".join(LABELS[i] for i in ids)


def test_bugs_and_bunny(tmp_path: Path) -> None:
    """The published expectations of pyctcdecode's own tests on the same frames."""
    found = prefix_beam_search(MIXED, BLANK)
    assert written(found[0].ids) == "bunny bunny"
    assert len(found) == 16 and written(found[-1].ids) == "bugs bunny"
    bigrams = model(tmp_path, BUGS_BUNNY)
    language = Language(1, LABELS, None, bigrams, weight=1.0)
    best = prefix_beam_search(MIXED, BLANK, language=language)[0].ids
    assert written(best) == "bugs bunny"
    spans = align(MIXED, best, BLANK)
    assert (spans[0][0], spans[3][1]) == (0, 4) and (spans[5][0], spans[-1][1]) == (7, 13)
    # Only the best token of each frame: the n-grams have nothing to choose from.
    assert written(prefix_beam_search(MIXED, BLANK, language=language, min_token_logprob=0.0)[0].ids) == "bunny bunny"
    other = np.vstack([spelt(("bugs ", 1.0)), spelt(("bugs__", 0.51), ("bun_ny", 0.49))])
    assert written(prefix_beam_search(other, BLANK)[0].ids) == "bugs bugs"
    assert written(prefix_beam_search(other, BLANK, language=language)[0].ids) == "bugs bunny"
    for words, text in ((["bunny"], "bunny bunny"), (["bugs", "bunny"], "bunny bunny")):
        lexicon = make_lexicon([[LABELS.index(letter) for letter in word] for word in words])
        assert written(prefix_beam_search(MIXED, BLANK, language=Language(1, LABELS, lexicon))[0].ids) == text


# ---- edges ----------------------------------------------------------------------------------------------------------


def test_nothing_and_silence() -> None:
    assert prefix_beam_search(np.zeros((0, 4)), BLANK)[0].ids == ()
    assert best_alignment(np.zeros((0, 4)), BLANK).ids == ()
    silence = np.log(np.clip(np.eye(4)[[BLANK] * 30], 1e-12, 1))
    assert prefix_beam_search(silence, BLANK)[0].ids == ()
    assert align(silence, (), BLANK) == []


def test_a_text_that_ends_inside_a_word_keeps_what_is_whole() -> None:
    lexicon = make_lexicon([(A, B)])
    sure = np.log(np.clip(np.eye(4)[[A, B, SPACE, A]], 1e-9, 1))
    found = prefix_beam_search(sure, BLANK, language=Language(SPACE, TOKENS, lexicon), beam_width=1)
    assert found[0].ids == (A, B, SPACE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "no .data. section"),
        (lambda text: text.replace("ngram 1=5", "ngram 1=6"), "5 1-grams, but 6 were promised"),
        (lambda text: text.replace("-0.5\ta", "x\ta"), "no number"),
        (lambda text: text.replace("-0.2\t<s> a", "-0.2\t<s>"), "is not a 2-gram"),
        (lambda text: text.replace("\\end\\", ""), "ends before"),
        (lambda text: text.replace("\\2-grams:", "\\3-grams:"), "should"),
        (lambda text: text.replace("ngram 1=5\n", ""), "from 1 up"),
        (lambda text: text.replace("-0.5\ta", "nan\ta"), "no number"),
    ],
)
def test_corrupt_models(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(tmp_path, change(ARPA))


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        NgramModel.read(tmp_path / "none.arpa")
    (tmp_path / "bad.arpa.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match="cannot be read"):
        NgramModel.read(tmp_path / "bad.arpa.gz")
    with gzip.open(tmp_path / "good.arpa.gz", "wt") as file:
        file.write(ARPA)
    assert NgramModel.read(tmp_path / "good.arpa.gz").order == 2


def test_back_off_by_hand(tmp_path: Path) -> None:
    found = model(tmp_path)
    ten = math.log(10)
    assert found.score(("<s>",), "a") == pytest.approx(-0.2 * ten)
    assert found.score(("<s>",), "ab") == pytest.approx((-0.3 - 0.9) * ten)
    assert found.score(("ab", "a"), "ab") == pytest.approx(-0.6 * ten)
    assert found.score(("<unk>",), "a") == pytest.approx(-0.5 * ten)
    assert found.known("AB") == "ab" and found.known("zebra") == "<unk>"
