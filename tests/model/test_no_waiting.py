"""A training step on a GPU never waits for it: no value of a tensor is read on the way from ids to gradients.

On the meta device, whose tensors have no values, every look at one is an error: what runs there reads none. That shows it
for every family without a GPU; with one, torch itself reports any waiting.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from plainformer.families import config_from_dict
from plainformer.model.dropout import set_dropout
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.train.losses import label_losses, word_losses
from tests.support.cases import decoders, encoder_decoders, encoders, vision_and_speech
from tests.support.close import close
from tests.support.models import BERT, CONFIGS, WAVE
from tests.support.parity import Case, make_inputs

ALL = [
    *decoders.LLAMA,
    *decoders.OTHERS,
    *encoders.ALL,
    *encoder_decoders.BART,
    *encoder_decoders.SINUSOIDAL,
    *encoder_decoders.T5,
    *vision_and_speech.IMAGES,
    *vision_and_speech.WAVES,
    *vision_and_speech.MELS,
]


def few(cases: list[Case]) -> list[Case]:
    """One model of every configuration, and one with every head: a head is the same for all families."""
    found: list[Case] = []
    seen: set[str] = set()
    for case in cases:
        head = re.sub(r"^.*?(?=For|Model$|LMHead)", "", case.model_class)
        if not {case.name, head} <= seen:
            found.append(case)
        seen |= {case.name, head}
    return found


CASES = few(ALL)


def masked(case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs and a mask with padding, where the model takes one."""
    name = next((name for name in ("input_ids", "input_values") if name in inputs), None)
    if name is None:
        return inputs
    mask = torch.ones_like(inputs[name], dtype=torch.long)
    mask[0, ..., -2:] = 0
    return {**inputs, "attention_mask": mask}


def learn(model: Transformer, inputs: dict[str, Tensor], **options: Any) -> None:
    """Forward, a loss, and its gradient."""
    head = model.config.head
    if head.out_size and head.pick == "all" and not options:
        states = model.states(**inputs).last_hidden_state.flatten(0, 1)
        places = torch.zeros(3, dtype=torch.long, device=states.device)
        word_losses(model, states.index_select(0, places), places, 0.1).sum().backward()
        return
    output = model(**inputs, **options)
    scores = output.logits if output.logits is not None else output.last_hidden_state
    scores = scores.flatten(0, -2)
    label_losses(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device)).sum().backward()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_training_step_reads_no_values(case: Case) -> None:
    raw = {**json.loads(case.config().to_json_string()), "architectures": [case.model_class]}
    model = Transformer(config_from_dict(raw)).train().requires_grad_()
    set_dropout(model, 0.1)
    assert model.device.type == "meta"
    inputs = masked(case, make_inputs(case))
    away = {name: value.to("meta") for name, value in inputs.items()}
    learn(model, away)
    learn(model, away, only_logits=True) if model.config.head.out_size else learn(model, away)
    if case.kind == "text" and model.config.head.pick == "all" and model.config.kind != "encoder-decoder":
        del away["attention_mask"]
        learn(model, {**away, "document_ids": away["input_ids"]})
    assert any(parameter.grad is not None for parameter in model.parameters())


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none")
TAGS = {"id2label": {"0": "O", "1": "B-PER", "2": "I-PER"}}
TRAINED: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "decoder": ({**CONFIGS["gemma2"], "architectures": ["Gemma2ForCausalLM"]}, {"document_ids": (4, 24)}),
    "long rope": (
        {
            **CONFIGS["llama"], "architectures": ["LlamaForCausalLM"],
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8},
        },
        {"attention_mask": (4, 24)},
    ),
    "encoder": ({**BERT, **TAGS, "architectures": ["BertForTokenClassification"]}, {"attention_mask": (4, 24)}),
    "relative encoder": (
        {
            **BERT, **TAGS, "model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 8, "conv_kernel_size": 3, "architectures": ["DebertaV2ForTokenClassification"],
        },
        {"document_ids": (4, 24)},
    ),
    "classifier": ({**BERT, **TAGS, "architectures": ["BertForSequenceClassification"]}, {"attention_mask": (4, 24)}),
    "encoder-decoder": (
        {**CONFIGS["t5"], "architectures": ["T5ForConditionalGeneration"]},
        {"attention_mask": (4, 24), "decoder_input_ids": (4, 12)},
    ),
    "wave": ({**WAVE, "architectures": ["Wav2Vec2ForCTC"]}, {"attention_mask": (4, 2000)}),
}  # fmt: skip


def batches(names: dict[str, tuple[int, ...]], count: int) -> list[dict[str, Tensor]]:
    """Batches with padding at the end of a row, on the GPU before training looks at them."""
    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        batch = {}
        if "decoder_input_ids" in names or max(max(shape) for shape in names.values()) < 100:
            batch["input_ids"] = torch.randint(5, 20, (4, 24), generator=generator)
        else:
            batch["input_values"] = torch.randn(4, 2000, generator=generator)
        for name, shape in names.items():
            batch[name] = torch.randint(5, 20, shape, generator=generator)
            if name == "attention_mask":
                batch[name] = torch.ones(shape, dtype=torch.long)
                batch[name][seed % 4, shape[1] * 2 // 3 :] = 0
            if name == "document_ids":
                batch[name] = torch.randint(2, shape, generator=generator).cumsum(1)
                batch[name][seed % 4, -3:] = -1
        made.append({name: value.cuda() for name, value in batch.items()})
    return made


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", TRAINED)
def test_twenty_steps_on_a_gpu_never_wait_for_it(name: str) -> None:
    """Forward, loss, gradients, clipping and AdamW in bf16 autocast, after one step that may move constants."""
    raw, names = TRAINED[name]
    model = initialise(Transformer(config_from_dict(raw)), seed=0).cuda().train().requires_grad_()
    set_dropout(model, 0.1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    ready = batches(names, 21)

    def step(batch: dict[str, Tensor]) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            learn(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(ready[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in ready[1:]:
            step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["gemma2", "llama", "gpt2", "mistral"])
def test_packed_rows_on_a_gpu_are_those_of_a_cpu(name: str) -> None:
    """By mask there, by runs here; losses of words and their gradient as well."""
    special = {"gpt2": "GPT2LMHeadModel"}
    raw = {**CONFIGS[name], "architectures": [special.get(name, name.capitalize() + "ForCausalLM")]}
    ids = torch.randint(5, 50, (3, 40), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "document_ids": (torch.arange(40) // 9).expand(3, 40)}
    found = []
    for device in ("cpu", "cuda"):
        model = initialise(Transformer(config_from_dict(raw)), seed=0, std=0.2).to(device).eval().requires_grad_()
        given = {key: value.to(device) for key, value in inputs.items()}
        states = model.states(**given).last_hidden_state
        losses = word_losses(model, states.flatten(0, 1), given["input_ids"].flatten(), 0.1, chunk=32)
        gradients = torch.autograd.grad(losses.sum(), list(model.parameters()))
        found.append([model(**given).logits, losses, *gradients])
    for here, there in zip(*found, strict=True):
        close(there, here, rel=1e-4)


def test_outside_training_values_are_checked() -> None:
    """The test above sees a look at a value when there is one."""
    model = Transformer(config_from_dict({**CONFIGS["llama"], "architectures": ["LlamaForCausalLM"]})).eval()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        model(torch.zeros(2, 5, dtype=torch.long, device="meta"))


@gpu
@pytest.mark.gpu
def test_the_watch_sees_a_look_at_a_value() -> None:
    raw, names = TRAINED["encoder"]
    model = initialise(Transformer(config_from_dict(raw)), seed=0).cuda().eval()
    inputs = batches(names, 1)[0]
    model(**inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            model(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
