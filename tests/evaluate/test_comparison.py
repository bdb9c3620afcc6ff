"""Systems side by side: what is matched, grouped, tested, refused, and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import plainformer as pf
from plainformer.errors import InputError, UsageError
from plainformer.evaluate import make_scorer
from plainformer.evaluate.comparison import FIGURES, FOLDS, ONE_SEED, Asked, compare, compare_separately
from plainformer.evaluate.paired import EXACT, SEEDS, SIGN_FLIP, SWAP, holm
from tests.support.kept import LABELS, hits, keep, labelled, run

SCORER = make_scorer("single-label", labels=LABELS)
GOOD, FAIR = hits(200, 0.9, 0), hits(200, 0.7, 1)


def test_two_runs(tmp_path: Path) -> None:
    full, lora = run(tmp_path / "full", GOOD), run(tmp_path / "lora", FAIR, rate=1e-3)
    found = pf.compare(full, lora)
    assert isinstance(found, pf.Comparison) and found.n == found.units == 200 and found.task == "text-classification"
    assert [one.name for one in found.systems] == ["full", "lora"] and [metric.name for metric in found.metrics] == [
        "accuracy"
    ]
    values = [one.values["accuracy"] for one in found.systems]
    assert [value.value for value in values] == pytest.approx([np.mean(GOOD), np.mean(FAIR)])
    assert values[0].low is not None and values[0].high is not None and values[0].low < np.mean(GOOD) < values[0].high
    (one,) = found.differences
    assert one.tested.difference == pytest.approx(np.mean(FAIR) - np.mean(GOOD)) and one.tested.method == SIGN_FLIP
    assert one.tested.p is not None and one.tested.p < 0.001 and one.corrected == one.tested.p
    assert one.tested.high is not None and one.tested.high < 0
    assert found.notes == (ONE_SEED,)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["differences"][0]["baseline"] == "full"
    assert pf.compare(full, lora) == found


def test_the_interval_is_that_of_the_evaluation(tmp_path: Path) -> None:
    """Each run's own interval is what `bootstrap` says of it, so that two reports do not differ."""
    from plainformer.evaluate import bootstrap
    from plainformer.evaluate.kept import Kept

    folder = run(tmp_path / "one", GOOD)
    kept = Kept(folder / "evaluations" / "validation-best-1")
    expected = bootstrap(np.asarray(kept.rows), kept.scorer.measure, np.asarray(kept.units))["accuracy"]
    found = compare(folder).systems[0].values["accuracy"]
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_the_order_of_the_data_has_no_effect(tmp_path: Path) -> None:
    """The second was evaluated on the same rows in another order, copies among them with other right answers."""
    texts = [f"text {number // 2}" for number in range(200)]
    pairs = [labelled(one) for one in (GOOD, FAIR)]
    order = np.random.default_rng(0).permutation(200).tolist()
    documents = [f"document {number // 4}" for number in range(200)]
    about = {"inputs": texts, "units": documents}
    first = keep(tmp_path / "first", SCORER, pairs[0], **about).folder
    same = keep(tmp_path / "same", SCORER, pairs[1], **about).folder
    other = keep(tmp_path / "other", SCORER, pairs[1], order=order, **about).folder
    found = compare(first, same, other)
    assert found.units == 50 and found.unit == "document"
    assert found.differences[0].tested == found.differences[1].tested


def test_corpus_metrics_are_recomputed(tmp_path: Path) -> None:
    found = compare(
        run(tmp_path / "a", GOOD), run(tmp_path / "b", FAIR, rate=1), metrics=["mcc", "nll"], draws=99, resamples=50
    )
    assert [one.tested.method for one in found.differences] == [SWAP, SIGN_FLIP]
    assert [metric.better for metric in found.metrics] == ["higher", "lower"]
    assert found.differences[0].tested.p == 0.01
    ps = [one.tested.p or 0 for one in found.differences]
    assert [one.corrected for one in found.differences] == pytest.approx(holm(ps))


def test_holm_is_over_all_comparisons(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"r{number}", hits(200, 0.8, number), rate=number) for number in range(4)]
    found = compare(*folders)
    ps = [one.tested.p or 0 for one in found.differences]
    assert [one.corrected for one in found.differences] == pytest.approx(holm(ps))
    assert any("corrected for 3 comparisons" in note for note in found.notes)
    assert {one.baseline for one in found.differences} == {"r0"}


# ---- seeds ---------------------------------------------------------------------------------------------------------------


def test_runs_that_differ_by_their_seed_are_one_thing(tmp_path: Path) -> None:
    full = [run(tmp_path / f"full-{seed}", hits(200, 0.9, seed), seed=seed) for seed in range(3)]
    lora = [run(tmp_path / f"lora-{seed}", hits(200, 0.8, 9 + seed), seed=seed, rate=1e-3) for seed in range(3)]
    found = compare(full[0], lora[0], full[1], full[2], lora[1], lora[2])
    assert [(one.name, one.seeds) for one in found.systems] == [("full", 3), ("lora", 3)]
    assert found.differences[0].tested.method == SEEDS and found.differences[0].tested.trains
    assert ONE_SEED not in found.notes
    assert "their configurations differ by the seed alone" in found.notes[0] and str(full[2]) in found.notes[0]
    shares = [np.mean(hits(200, 0.9, seed)) for seed in range(3)]
    assert found.systems[0].values["accuracy"].value == pytest.approx(np.mean(shares))


def test_seeds_can_be_given_by_hand(tmp_path: Path) -> None:
    a = [run(tmp_path / f"a{seed}", hits(200, 0.9, seed), seed=seed, rate=seed) for seed in range(2)]
    b = run(tmp_path / "b", FAIR, rate=7)
    found = compare(f"ours={a[0]},{a[1]}", f"theirs={b}")
    assert [(one.name, one.seeds) for one in found.systems] == [("ours", 2), ("theirs", 1)]
    assert "as given" in found.notes[0] and found.notes[1].startswith("of theirs there is one seed")


def test_one_seed_twice_is_not_two_seeds(tmp_path: Path) -> None:
    """Two runs of one configuration and one seed are shown beside each other."""
    found = compare(run(tmp_path / "a", GOOD), run(tmp_path / "b", GOOD))
    assert [one.seeds for one in found.systems] == [1, 1] and found.differences[0].tested.p == 1


# ---- folds ---------------------------------------------------------------------------------------------------------------


def folded(folder: Path, shares: list[float], seed: int, rate: float = 1e-4) -> Path:
    """Make a k-fold run: each fold's evaluation of the rows held out of it."""
    run(folder, [True], rate=rate)
    shutil.rmtree(folder / "evaluations")
    for number, share in enumerate(shares, start=1):
        texts = [f"fold {number} text {place}" for place in range(50)]
        run(folder / f"fold-{number}", hits(50, share, seed + number), inputs=texts, side="held_out")
    return folder


def test_folds_are_tested_fold_by_fold(tmp_path: Path) -> None:
    from plainformer.evaluate.paired import compare_folds

    first, second = folded(tmp_path / "a", [0.9] * 5, 0), folded(tmp_path / "b", [0.7] * 5, 100, rate=1)
    found = compare(first, second)
    assert [one.folds for one in found.systems] == [5, 5] and found.n == 250
    accuracy = [
        [np.mean(hits(50, share, seed + number)) for number in range(1, 6)] for share, seed in ((0.9, 0), (0.7, 100))
    ]
    differences = np.subtract(accuracy[1], accuracy[0]).tolist()
    expected = compare_folds(differences, 1 / 4)
    assert found.differences[0].tested.p == pytest.approx(expected.p)
    assert found.systems[0].values["accuracy"].value == pytest.approx(np.mean(accuracy[0]))  # pooled; folds are equal
    assert FOLDS in found.notes and ONE_SEED not in found.notes
    with pytest.raises(UsageError, match=r"5 folds and .* has 1 fold"):
        compare(first, run(tmp_path / "c", GOOD))
    with pytest.raises(UsageError, match="held out of each fold"):
        compare(first, side="test")
    for number in range(1, 6):  # each fold's run says how many rows it learnt from: some were for validation
        (first / f"fold-{number}" / "data.json").write_text('{"split": {"sides": {"train": {"rows": 150}}}}')
    assert compare(first, second).differences[0].tested.p == pytest.approx(compare_folds(differences, 1 / 3).p)
    with pytest.raises(UsageError, match=r"fold 1 of .*: 50 examples only in .*fold-1"):
        compare(first, moved(second))


def moved(folder: Path) -> Path:
    """Exchange two folds."""
    (folder / "fold-1").rename(folder / "old")
    (folder / "fold-2").rename(folder / "fold-1")
    (folder / "old").rename(folder / "fold-2")
    return folder


# ---- what cannot be compared ---------------------------------------------------------------------------------------------


def test_other_examples_are_named(tmp_path: Path) -> None:
    first = keep(tmp_path / "a", SCORER, labelled([True] * 30)).folder
    second = keep(tmp_path / "b", SCORER, labelled([True] * 28)).folder
    with pytest.raises(UsageError, match=r"different data: 2 examples only in .*a \(data line 29, data line 30\)"):
        compare(first, second)
    twice = keep(
        tmp_path / "c", SCORER, labelled([True] * 30) + labelled([True]), inputs=[f"text {n % 30}" for n in range(31)]
    )
    with pytest.raises(UsageError, match="30 and 31 examples, some more often"):
        compare(first, twice.folder)


def test_other_right_answers_are_named(tmp_path: Path) -> None:
    first = keep(tmp_path / "a", SCORER, labelled([True] * 30)).folder
    second = keep(tmp_path / "b", SCORER, labelled([True] * 30, [0] * 30)).folder
    with pytest.raises(
        UsageError, match=r"different right answers for 15 examples: data line 2, data line 4, data line 6, \.\.\."
    ):
        compare(first, second)


def test_other_units_tasks_and_labels_are_named(tmp_path: Path) -> None:
    first = keep(tmp_path / "a", SCORER, labelled([True] * 30)).folder
    units = keep(tmp_path / "b", SCORER, labelled([True] * 30), units=[str(n // 3) for n in range(30)]).folder
    with pytest.raises(UsageError, match="different units: row and document"):
        compare(first, units)
    labels = keep(tmp_path / "c", make_scorer("single-label", labels=LABELS[::-1]), labelled([True] * 30)).folder
    with pytest.raises(UsageError, match=r"scored with different labels: \['bad', 'good'\] and \['good', 'bad'\]"):
        compare(first, labels)
    other = keep(tmp_path / "d", make_scorer("speech"), [("a b", "a b")] * 30, task="speech-recognition").folder
    with pytest.raises(UsageError, match="different tasks: text-classification and speech-recognition"):
        compare(first, other)


def test_folders_without_an_evaluation(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", GOOD)
    before = compare(folder).to_dict()
    with pytest.raises(InputError, match="no evaluation of the test side; it has one of: validation"):
        compare(folder, side="test")
    with pytest.raises(InputError, match="is not there"):
        compare(tmp_path / "none")
    with pytest.raises(UsageError, match="nothing to compare"):
        compare()
    with pytest.raises(UsageError, match="given twice"):
        compare(folder, folder)
    with pytest.raises(UsageError, match="accuracy"):
        compare(folder, metrics="acuracy")
    with pytest.raises(UsageError, match="side"):
        compare(folder, side="train")
    with pytest.raises(UsageError, match="draws"):
        compare(folder, draws=0)
    data = {"name": "dev.tsv", "side": "validation"}
    keep(folder / "evaluations" / "cooled", SCORER, labelled(FAIR), data=data, temperature=2.0)
    assert compare(folder).to_dict() == before  # not what one has to ask for
    keep(folder / "evaluations" / "second", SCORER, labelled(FAIR), data=data)
    assert compare(folder).to_dict() != before  # of the same kind the newest
    keep(folder / "evaluations" / "third", SCORER, labelled(GOOD), data=data, options={"truncate": True})
    with pytest.raises(UsageError, match="3 evaluations of the validation side"):
        compare(folder)
    assert compare(folder / "evaluations" / "second").n == 200


def test_names_are_different(tmp_path: Path) -> None:
    first, second = run(tmp_path / "x" / "run", GOOD), run(tmp_path / "y" / "run", FAIR, rate=1)
    with pytest.raises(UsageError, match="the name 'run' is given twice"):
        compare(first, second)
    assert [one.name for one in compare(f"x={first}", f"y={second}").systems] == ["x", "y"]


def test_predictions_that_were_lost(tmp_path: Path) -> None:
    first, second = (keep(tmp_path / name, SCORER, labelled([True] * 30)).folder for name in "ab")
    lines = (second / "predictions.jsonl").read_text().splitlines(keepends=True)
    (second / "predictions.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match=r"predictions\.jsonl is damaged"):
        compare(first, second)


# ---- published figures ---------------------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    (folder / "figures.yaml").write_text(text)
    return folder / "figures.yaml"


GIVEN = """figures:
  - name: BERT-base
    metric: accuracy
    value: 0.935
    source: Devlin et al. 2019, table 1
    n: 1821
"""


def test_one_run_beside_published_figures(tmp_path: Path) -> None:
    found = compare(run(tmp_path / "run", GOOD), figures=written(tmp_path, GIVEN))
    (figure,) = found.figures
    assert (figure.value, figure.n, figure.source) == (0.935, 1821, "Devlin et al. 2019, table 1")
    assert found.differences == () and found.notes == (FIGURES,)
    assert not any("p" in one for one in found.to_dict()["figures"])  # never a p


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GIVEN.replace("    source: Devlin et al. 2019, table 1\n", ""), "line 2: source is missing"),
        (GIVEN.replace("0.935", "93.5"), "line 2: accuracy is 93.5, and it is a share here\n.*write 0.935"),
        (GIVEN.replace("0.935", "high"), "line 4: value is 'high'"),
        (GIVEN.replace("0.935", ".nan"), "line 4: value is nan"),
        (GIVEN.replace("0.935", "true"), "line 4: value is True"),
        (GIVEN.replace("metric: accuracy", "metric: bleu"), "line 2: 'bleu' was not measured"),
        (GIVEN.replace("n: 1821", "n: 0"), "line 6: n is 0"),
        (GIVEN.replace("n: 1821", "sorce: x"), "line 6: unknown key 'sorce'\n.*'source'"),
        (GIVEN.replace("name: BERT-base", "name: 3"), "line 2: name is 3\n.*quote"),
        (GIVEN + "other: 1\n", "line 7: unknown key 'other'"),
        ("figures: 3\n", "line 1: figures is not a list"),
        ("figures: []\n", "line 1: figures is not a list"),
        ("{}\n", "figures is missing"),
        ("figures:\n  - 3\n", "line 2: a figure is 3"),
    ],
)
def test_wrong_figures_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    folder = run(tmp_path / "run", GOOD)
    with pytest.raises(InputError, match=message):
        compare(folder, figures=written(tmp_path, text))


def test_squads_figures_are_in_percent(tmp_path: Path) -> None:
    pairs = [(["Paris"], {"text": "Paris" if number % 4 else "Rome"}) for number in range(40)]
    folder = keep(tmp_path / "qa", make_scorer("squad"), pairs, task="question-answering").folder
    text = GIVEN.replace("accuracy", "f1")
    with pytest.raises(InputError, match=r"in percent here\n.*write 93.5"):
        compare(folder, figures=written(tmp_path, text))
    assert compare(folder, figures=written(tmp_path, text.replace("0.935", "93.5"))).figures[0].value == 93.5


def test_tasks_one_by_one(tmp_path: Path) -> None:
    """One backbone fine-tuned for several tasks, each beside its own figures."""
    sentiment = run(tmp_path / "sentiment", GOOD)
    other = run(tmp_path / "other", FAIR, rate=1)
    pairs = [(["Paris"], {"text": "Paris" if number % 4 else "Rome"}) for number in range(40)]
    answers = keep(tmp_path / "answers", make_scorer("squad"), pairs, task="question-answering").folder
    figures = written(tmp_path, GIVEN + GIVEN.partition("\n")[2].replace("accuracy", "f1").replace("0.935", "88.5"))
    blocks = compare_separately(sentiment, answers, other, figures=figures, asked=Asked(draws=99, resamples=50))
    assert [(one.task, len(one.systems)) for one in blocks] == [("text-classification", 2), ("question-answering", 1)]
    assert [[figure.metric for figure in one.figures] for one in blocks] == [["accuracy"], ["f1"]]
    both = written(tmp_path, GIVEN.replace("accuracy", "accuracy\n    task: speech"))
    with pytest.raises(UsageError, match="no run is of the task 'speech'"):
        compare_separately(sentiment, answers, figures=both)
    with pytest.raises(UsageError, match="separate"):
        compare(sentiment, answers)


def test_a_test_set_that_was_looked_at_twice_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its looks are in the user's ledger; the intervals are wider."""
    from plainformer.evaluate.ledger import Ledger, Look

    monkeypatch.setenv("PLAINFORMER_STATE", str(tmp_path / "state"))
    data = {"name": "test.tsv", "side": "test", "identity": "1234", "test": True}
    folder = keep(tmp_path / "kept", SCORER, labelled(GOOD), data=data).folder
    ledger = Ledger()
    for number, reason in enumerate((None, "a label was wrong")):
        ledger.add(Look("2026", "1234", "test.tsv", "run", f"model {number}", "config", {}), reason)
        found = compare(folder)
        assert found.level == (0.95, 0.975)[number]
    assert found.notes[0].startswith("test set looked at 2 times") and "a label was wrong" in found.notes[1]
    assert compare(folder, level=0.9).level == 0.9


def test_few_that_differ_are_counted_exactly(tmp_path: Path) -> None:
    other = [*GOOD[:190], *([True] * 10)]
    found = compare(run(tmp_path / "a", GOOD), run(tmp_path / "b", other, rate=1))
    assert found.differences[0].tested.method == EXACT
