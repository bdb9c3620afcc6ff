"""Every task with a tiny checkpoint and inputs: what the battery runs, in one process and in several."""

from __future__ import annotations

from typing import Any

from tests.support.media import CLIPS, pictures

TEXTS = ["the cat sat on the mat", "paris", "who is the dog in france?"]
NLI = {"id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}}
ONE = {"id2label": {"0": "score"}}
QUESTIONS = [("who sat?", "the cat sat on the mat"), ("where?", "paris"), ("who is it?", "a good dog and a bad cat")]
CHOICES = [("the cat", ["sat", "ran on the mat", "bad"]), ("who", ["is it", "a"]), ("paris", ["is good"])]
RANKED = [("who sat?", ["the cat", "a dog on the mat"]), ("paris", ["good", "bad", "in france"]), ("a", ["the mat"])]
WRITTEN = {"max_new_tokens": 6}
PICTURES = [*pictures(), pictures()[0].rotate(90)]

# task → (checkpoint, what its config.json changes, inputs, a misspelt option, options of every call)
BATTERY: dict[str, tuple[str, dict[str, Any], list[Any], str, dict[str, Any]]] = {
    "text-generation": ("text-generation", {}, TEXTS, "max_new_token", WRITTEN),
    "text2text-generation": ("text2text", {}, TEXTS, "max_new_token", WRITTEN),
    "fill-mask": ("fill-mask", {}, [f"[MASK] {text}" for text in TEXTS], "topk", {}),
    "text-classification": ("text-classification", {}, TEXTS, "truncat", {}),
    "token-classification": ("token-classification", {}, TEXTS, "agregation", {"aggregation": "none"}),
    "question-answering": ("question-answering", {}, QUESTIONS, "topk", {}),
    "multiple-choice": ("multiple-choice", {}, CHOICES, "truncat", {}),
    "feature-extraction": ("embedding", {}, TEXTS, "normalise", {}),
    "image-feature-extraction": ("image-embedding", {}, PICTURES, "normalise", {}),
    "image-classification": ("image-classification", {}, PICTURES, "image_siz", {}),
    "audio-feature-extraction": ("audio-embedding", {}, CLIPS, "normalise", {}),
    "audio-classification": ("audio-classification", {}, CLIPS, "sampling_rat", {}),
    "automatic-speech-recognition": ("speech", {}, CLIPS, "beam_widht", {}),
    "zero-shot-classification": ("text-classification", NLI, TEXTS, "multilabel", {"labels": ["good", "dog"]}),
    "text-ranking": ("text-classification", ONE, RANKED, "topk", {}),
    "abstractive-question-answering": ("text2text", {}, QUESTIONS, "max_new_token", WRITTEN),
}
