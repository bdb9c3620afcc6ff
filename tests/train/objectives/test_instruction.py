"""Instruction tuning: which tokens are answers, in templates of many kinds; the reference's own marks are the oracle."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
import transformers

from plainformer.errors import CheckpointError, UsageError
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.train.objectives.base import Dropped
from plainformer.train.objectives.instruction import InstructionTuning
from tests.support import models
from tests.support.close import close
from tests.support.parity import load_ours
from tests.support.tokenizers import byte_level, sentencepiece
from tests.support.training import batch_of, check_batching, examples_of, fresh, train_config

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|eot|>", "<|user|>", "<|assistant|>", "<|done|>")
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}
{{- m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# template, and what is learned of the conversation below, in one example or in several.
STABLE = {
    "chatml": (CHATML, ["Hi!<|im_end|>", "Nothing.<|im_end|>"]),
    "llama-2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        [" Hi! <|done|>", " Nothing. <|done|>"],
    ),
    "phi": (  # the end of the text is not a part of the answers before the last
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|eot|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ["Hi!<|eot|>", "Nothing.<|eot|>\n<|done|>"],
    ),
    "system-first": (  # the last question carries the system's message, wherever it is
        "{% for m in messages %}{% if m.role != 'system' %}{{ '<|' + m.role + '|>' + m.content + '<|eot|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ["Hi!<|eot|>", "Nothing.<|eot|>"],
    ),
}
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "What now? <|im_end|>"},
    {"role": "assistant", "content": "Nothing."},
]


@lru_cache
def chat_tokenizer(template: str) -> Tokenizer:
    made = byte_level.__wrapped__()
    made.backend.add_special_tokens([*SPECIAL, "<s>"])
    roles = {"eos_token": "<|done|>", "bos_token": "<s>"}
    return Tokenizer(made.backend, special_tokens=roles, chat_template=template)


def tuning(template: str, config=None, **sections) -> InstructionTuning:
    config = config or models.make("llama", vocab_size=700).config
    return InstructionTuning(train_config("instruction", **sections), config, chat_tokenizer(template))


def learned(objective: InstructionTuning, example) -> list[str]:
    """The texts of an example's answers."""
    marks = np.flatnonzero(np.diff(np.concatenate(([0], example["answers"], [0]))))
    parts = [example["input_ids"][a:b].tolist() for a, b in zip(marks[::2], marks[1::2], strict=True)]
    return [objective.processor.decode(part) for part in parts]


@pytest.mark.parametrize("name", STABLE)
def test_answers_and_their_ends_are_learned(name: str) -> None:
    template, answers = STABLE[name]
    objective = tuning(template)
    (example,) = objective.encode({"messages": CHAT}).examples
    assert learned(objective, example) == answers
    whole = objective.processor.chat_prompt(CHAT, add_generation_prompt=False)
    assert objective.processor.decode(example["input_ids"]) == whole.text
    assert example["input_ids"].tolist() == objective.processor.encode(whole, max_length=None).input_ids
    # What the model is to continue is what it sees when it writes: the prompt's own ids.
    prompt = objective.processor.encode(objective.processor.chat_prompt(CHAT[:2]), max_length=None).input_ids
    first = int(example["answers"].argmax())
    assert example["input_ids"][:first].tolist() == prompt


def test_the_references_marks() -> None:
    """`{% generation %}` marks answers for transformers; ours are found without it."""
    ours = chat_tokenizer(CHATML)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=ours.backend, bos_token="<s>", eos_token="<|done|>", chat_template=CHATML
    )
    chat = [*CHAT[:3], {"role": "user", "content": "What now?"}, CHAT[4]]  # there a control token in a message is one
    expected = theirs.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    (example,) = tuning(CHATML).encode({"messages": chat}).examples
    assert example["input_ids"].tolist() == expected["input_ids"]
    assert example["answers"].tolist() == expected["assistant_masks"]


def test_templates_that_change_earlier_answers() -> None:
    """Reasoning that is left out once others follow: each answer is learned as the model writes it."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and not loop.last %}"
        "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = [{**m, "content": "<think>so</think>" + m["content"]} if m["role"] == "assistant" else m for m in CHAT]
    objective = tuning(template)
    first, second = objective.encode({"messages": chat}).examples
    assert learned(objective, first) == ["<think>so</think>Hi!<|im_end|>"]
    assert learned(objective, second) == ["<think>so</think>Nothing.<|im_end|>"]
    assert objective.processor.decode(second["input_ids"]).count("<think>") == 1
    plain = objective.encode({"messages": CHAT}).examples
    assert len(plain) == 1  # nothing to leave out


def test_templates_without_an_end() -> None:
    """The model must learn to stop all the same."""
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    objective = tuning(template)
    found = objective.encode({"messages": CHAT}).examples
    assert [learned(objective, one) for one in found] == [["Hi!<|done|>"], ["Nothing.<|done|>"]]


def test_a_generation_prompt_that_no_answer_begins_with() -> None:
    template = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    with pytest.raises(CheckpointError, match=r"writes 'Hi!<\|im_end\|>\\n' where its generation prompt has '<think>"):
        tuning(template).encode({"messages": CHAT})


def test_tools_and_turns_without_content() -> None:
    template = (
        "{% if tools %}{{ tools|length }} tools\n{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}(){% else %}{{ m.content }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]},
        {"role": "tool", "content": "12:00"},
        {"role": "assistant", "content": "Noon."},
    ]
    objective = tuning(template)
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    (example,) = objective.encode({"messages": chat, "tools": tools}).examples
    assert learned(objective, example) == ["clock()<|im_end|>", "Noon.<|im_end|>"]
    assert objective.processor.decode(example["input_ids"]).startswith("1 tools")


def test_rows_of_other_shapes() -> None:
    objective = tuning(CHATML)
    alpaca = {"prompt": "Sum up.", "input": "A text.", "response": "T.", "system": "Short."}
    (example,) = objective.encode(alpaca).examples
    text = objective.processor.decode(example["input_ids"])
    assert (
        "system\nShort." in text
        and "user\nSum up.\n\nA text.<" in text
        and learned(objective, example) == ["T.<|im_end|>"]
    )
    (example,) = objective.encode(
        {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    ).examples
    assert learned(objective, example) == ["b<|im_end|>"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": CHAT[:2]}, "no answer"),
        ({"prompt": "a", "response": ""}, "no response"),
        ({"prompt": None, "response": "a"}, "no prompt"),
        ({"messages": "text"}, "not a list of dicts"),
        (
            {"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "a"}]},
            "refused by|cannot have",
        ),
    ],
)
def test_rows_that_teach_nothing(row, why: str) -> None:
    with pytest.raises(Dropped, match=why):
        tuning(CHATML).encode(row)


def test_what_cannot_work_is_said_first() -> None:
    with pytest.raises(UsageError, match="no chat template"):
        InstructionTuning(train_config("instruction"), models.make("llama").config, sentencepiece())
    with pytest.raises(UsageError, match="separate answers from what they answer"):
        tuning(CHATML, data=dict(too_long="window"))
    with pytest.raises(Exception, match="malformed"):
        tuning("{% for %}")


def test_long_conversations() -> None:
    whole = tuning(CHATML).encode({"messages": CHAT}).examples[0]["input_ids"]
    cut = tuning(CHATML, data=dict(max_length=len(whole) - 4)).encode({"messages": CHAT})
    (example,) = cut.examples
    assert cut.cut == 4 and learned(tuning(CHATML), example)[0] == "Hi!<|im_end|>"
    with pytest.raises(Dropped, match="no answer within max_length"):
        tuning(CHATML, data=dict(max_length=8)).encode({"messages": CHAT})
    with pytest.raises(Dropped, match="longer than max_length"):
        tuning(CHATML, data=dict(max_length=8, too_long="drop")).encode({"messages": CHAT})


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory):
    size = chat_tokenizer(CHATML).vocab_size
    config = transformers.LlamaConfig(
        **models.TINY, num_key_value_heads=2, vocab_size=size, max_position_embeddings=256
    )
    theirs = models.reference("LlamaForCausalLM", config)
    return fresh(load_ours(theirs, tmp_path_factory.mktemp("llama"))).eval(), theirs


def rows() -> list[dict]:
    return [{"prompt": "say " + "ab " * n, "response": "cd " * (n + 1)} for n in range(8)]


def test_loss_is_the_references(llama) -> None:
    ours, theirs = llama
    objective = tuning(CHATML, ours.config)
    examples = examples_of(objective, rows())
    batch = batch_of(objective, examples)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    labels = torch.full_like(ids, -100)
    for line, example in zip(labels, examples, strict=True):
        kept = torch.from_numpy(example["answers"].astype(bool))
        line[: len(kept)][kept] = torch.from_numpy(example["input_ids"])[kept]
    close(
        objective.loss(ours, batch).total / batch.count,
        theirs(input_ids=ids, attention_mask=mask, labels=labels).loss,
        "loss",
        rel=1e-6,
    )


def test_any_batching_gives_one_gradient(llama) -> None:
    objective = tuning(CHATML, llama[0].config)
    check_batching(llama[0], objective, examples_of(objective, rows()))


def test_shown() -> None:
    objective = tuning(CHATML)
    shown = objective.shown(objective.encode({"prompt": "a", "response": "b"}).examples[0])
    assert [label for _, label in shown if label] == ["b", "<|im_end|>"]
