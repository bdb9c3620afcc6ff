"""Speech recognition by CTC with a search, a word list and n-grams, on a tiny wav2vec 2.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plainformer.cli.main import run_app
from plainformer.errors import InputError, UsageError
from plainformer.tasks.speech.ngram import NgramModel
from tests.support import models as make
from tests.support.close import close
from tests.support.media import CLIPS
from tests.support.models import STABLE, wav2vec2
from tests.support.vocabularies import CTC_TOKENS

ARPA = "\\data\\\nngram 1=4\n\n\\1-grams:\n-2 <unk>\n-99 <s>\n-1 </s>\n-0.1 tea\n\n\\end\\\n"
WORDS = ["tea", "EAT", "hot", "soul", "I'd"]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ctc")
    wav2vec2(folder, "Wav2Vec2ForCTC", masked=True, **STABLE)
    return make.load(folder)


def test_a_beam_finds_a_text_at_least_as_likely(task: Any) -> None:
    """The score of a search is that of a text, all its alignments; PyTorch's CTC loss says the same."""
    found = task(CLIPS, beam_width=20, num_return_sequences=3, min_token_logprob=-30.0, max_beam_gap=100.0)
    frames = task._frames(task.encode(CLIPS, task.Options()))
    for result in found:
        texts = [result, *result.alternatives]
        assert len(texts) == 3 and len({t.text for t in texts}) >= 2
        assert [t.score for t in texts] == sorted((t.score for t in texts), reverse=True)
    for clip, rows in zip(CLIPS, frames, strict=True):
        options = task.Options(beam_width=300, min_token_logprob=-30.0)
        best = task.predict(task.encode([clip], options), options)[0].hypotheses[0]
        loss = torch.nn.functional.ctc_loss(
            torch.tensor(rows)[:, None],
            torch.tensor([best.ids]),
            torch.tensor([len(rows)]),
            torch.tensor([len(best.ids)]),
            blank=0,
            reduction="sum",
        )
        assert best.score <= -float(loss) + 1e-6  # a beam may miss alignments, and never invents any
        assert best.score == pytest.approx(-float(loss), abs=3.0)


def test_batches_change_nothing(task: Any) -> None:
    options: dict[str, Any] = dict(beam_width=8, timestamps=True)
    together = task([*CLIPS, *CLIPS], batch_size=4, **options)
    for clip, result in zip([*CLIPS, *CLIPS], together, strict=True):
        alone = task(clip, **options)
        assert (result.text, len(result.segments)) == (alone.text, len(alone.segments))
        close(result.score, alone.score, rel=1e-4)


def test_only_listed_words_are_written(task: Any, tmp_path: Path) -> None:
    for result in task(CLIPS, words=WORDS, timestamps=True):
        words = [word for word in result.text.split(" ") if word]
        assert set(words) <= {word.upper() for word in WORDS}
        assert [segment.text for segment in result.segments] == words
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS) + "\n\n", encoding="utf-8")
    assert task(CLIPS, words=path) == task(CLIPS, words=WORDS) == task(CLIPS, words=str(path))


def test_n_grams_lead(task: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.arpa"
    path.write_text(ARPA, encoding="utf-8")
    led = task(CLIPS, ngram=path, ngram_weight=20.0, words=WORDS)
    assert led == task(CLIPS, ngram=NgramModel.read(path), ngram_weight=20.0, words=WORDS)
    assert all(set(result.text.split()) <= {"TEA"} for result in led)
    free = task(CLIPS, ngram=path, ngram_weight=0.0, word_bonus=0.0)
    assert [r.text for r in free] == [r.text for r in task(CLIPS, beam_width=50)]


def test_times_are_of_the_sound(task: Any) -> None:
    for clip, result in zip(CLIPS, task(CLIPS, timestamps=True), strict=True):
        length = len(clip["array"]) / clip["sampling_rate"]
        reached = 0.0
        assert " ".join(s.text for s in result.segments) == " ".join(result.text.split())
        for segment in result.segments:
            assert reached <= segment.start < segment.end <= length + 0.02
            reached = segment.end


def test_silence_has_a_defined_answer(task: Any) -> None:
    silence = {"array": np.zeros(8000, np.float32), "sampling_rate": 16000}
    plain = task(silence).text
    assert task(silence, timestamps=True).text == plain == task(silence).text
    assert set(task(silence, words=WORDS).text.split()) <= {word.upper() for word in WORDS}
    for options in ({"beam_width": 5}, {"words": WORDS}):
        assert task([CLIPS[0], silence], **options)[1].text == task(silence, **options).text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "beam_width=0"),
        ({"beam_width": 1, "words": ["tea"]}, "words has no effect on the best alignment"),
        ({"min_token_logprob": -3}, "min_token_logprob has no effect"),
        ({"beam_width": 4, "num_return_sequences": 5}, "num_return_sequences=5 of 4 beams"),
        ({"words": []}, "words is empty"),
        ({"words": ["tea", "çay"]}, "has no 'ç'"),
        ({"words": ["tea", 3]}, "is not a list of texts"),
        ({"ngram": 3}, "ngram is an int"),
        ({"ngram_weight": 0.5}, "without ngram"),
        ({"word_bonus": 0.5}, "without words or ngram"),
        ({"beam_width": 5, "words": ["tea"], "word_bonus": "x"}, "word_bonus='x' is not a finite number"),
        ({"timestamps": "word"}, "neither True nor False"),
        ({"language": "en"}, "language has no effect on a CTC model"),
        ({"num_beams": 4}, "num_beams has no effect on a CTC model"),
        ({"beam_widht": 4}, "beam_width"),
        ({"words": "/nowhere/words.txt"}, "cannot be read"),
        ({"ngram": "/nowhere/m.arpa"}, "cannot be read"),
    ],
)
def test_wrong_options(task: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, InputError), match=message):
        task(CLIPS[0], **options)


def test_a_vocabulary_without_a_delimiter_has_no_words(tmp_path: Path) -> None:
    wav2vec2(tmp_path, "Wav2Vec2ForCTC")
    settings = '{"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "%"}'
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(UsageError, match="no token between words"):
        make.load(tmp_path)(CLIPS[0], words=["TEA"])
    assert "%" not in CTC_TOKENS


def test_the_command_line(task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.media import write_wav

    path = tmp_path / "clip.wav"
    write_wav(path)
    words = tmp_path / "words.txt"
    words.write_text("TEA\n", encoding="utf-8")
    assert run_app(["run", str(task.folder), str(path), "--words", str(words)]) == 0
    assert set(capsys.readouterr().out.split()) <= {"TEA"}
    assert run_app(["run", str(task.folder), str(path), "--ngram-weight", "2"]) == 2
    assert "--ngram-weight has no effect without" in capsys.readouterr().err
