"""`only_logits`: the last layer is spared where the head does not read it, and the logits are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plainformer.families import config_from_dict
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from tests.support.close import close
from tests.support.models import BART, BERT, GPT2, LABELS, LLAMA, VIT

SIZES = {name: BERT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
TEXT = {**SIZES, "vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0, **LABELS}
GEMMA = {**TEXT, "head_dim": 8, "num_key_value_heads": 2, "query_pre_attn_scalar": 8, "sliding_window": 3}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "bert": {**BERT, **LABELS, "architectures": ["BertForSequenceClassification"]},
    "roberta": {**TEXT, "model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]},
    "albert": {**TEXT, "model_type": "albert", "embedding_size": 16, "architectures": ["AlbertForSequenceClassification"]},
    "deberta": {
        **TEXT, "model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8, "conv_kernel_size": 3, "type_vocab_size": 0,
        "architectures": ["DebertaV2ForSequenceClassification"],
    },
    "modernbert": {
        **TEXT, "model_type": "modernbert", "local_attention": 4, "global_attn_every_n_layers": 3,
        "architectures": ["ModernBertForSequenceClassification"],
    },
    "llama": {**LLAMA, **LABELS, "architectures": ["LlamaForSequenceClassification"]},
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "architectures": ["GPT2LMHeadModel"]},
    "llama": {**LLAMA, "architectures": ["LlamaForCausalLM"]},
    "gpt_neox": {**TEXT, "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]},
    "gemma2": {**GEMMA, "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]},
    "olmo2": {**TEXT, "model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]},
}


def make(raw: dict[str, Any]) -> Transformer:
    return initialise(Transformer(config_from_dict(raw)), seed=0, std=0.4).eval()


def ids_of(rows: int, length: int) -> Tensor:
    return torch.randint(5, 40, (rows, length), generator=torch.Generator().manual_seed(rows))


def mask_of(ids: Tensor, padding: str) -> Tensor | None:
    """One row has no padding, so that the batch is as long as it is."""
    mask = torch.ones_like(ids)
    if padding == "left":
        mask[1, :4] = 0
    if padding == "right":
        mask[1, -4:] = 0
    return mask if padding != "none" else None


def ffn_vectors(model: Transformer) -> list[int]:
    """Vectors that each later call of a feed-forward network runs; seen without a hook, which would be shown all."""
    seen: list[int] = []
    for block in model.main.layers:
        network = block.ffn.network
        block.ffn.network = lambda x, run=network: (seen.append(x.shape[:-1].numel()), run(x))[1]
    return seen


def same(found: Tensor | None, expected: Tensor | None) -> None:
    assert found is not None and expected is not None
    close(found, expected)


@torch.inference_mode()
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classes(name: str, padding: str) -> None:
    model, ids = make(CLASSIFIERS[name]), ids_of(3, 11)
    mask = mask_of(ids, padding)
    expected = model(ids, mask)
    seen = ffn_vectors(model)
    found = model(ids, mask, only_logits=True)
    same(found.logits, expected.logits)
    assert found.last_hidden_state is None and expected.last_hidden_state is not None
    reads_last = model.config.head.pick == "last"
    pooled = model.config.head.pick == "mean"
    spared = not pooled and (padding == "none" or padding == ("left" if reads_last else "right"))
    vectors = 33 if mask is None or name == "deberta" else int(mask.sum())
    assert seen == [vectors, 3 if spared else vectors]


@torch.inference_mode()
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", DECODERS)
def test_the_next_token(name: str, padding: str) -> None:
    model, ids = make(DECODERS[name]), ids_of(2, 9)
    mask = mask_of(ids, padding)
    expected = model(ids, mask).logits[:, -1:]
    seen = ffn_vectors(model)
    cache = KeyValueCache(model.config, 2)
    first = model(
        ids[:, :5], mask[:, :5] if mask is not None else None, cache=cache, logits_to_keep=1, only_logits=True
    )
    assert first.logits.shape[1] == 1 and cache.length == 5
    found = model(ids[:, 5:], mask, cache=cache, logits_to_keep=1, only_logits=True)
    same(found.logits, expected)
    prompt = 10 if mask is None else int(mask[:, :5].sum())
    assert seen == [prompt, 2, 8, 2] and cache.length == 9
    more = model(ids[:, :1], None if mask is None else torch.cat((mask, mask[:, -1:]), 1), cache=cache).logits
    full = torch.cat((ids, ids[:, :1]), 1)
    same(more[:, -1], model(full, None if mask is None else torch.cat((mask, mask[:, -1:]), 1)).logits[:, -1])


@torch.inference_mode()
def test_behind_an_encoder() -> None:
    model, ids = make({**BART, "architectures": ["BartForConditionalGeneration"]}), ids_of(2, 9)
    expected = model(ids, decoder_input_ids=ids[:, :6]).logits[:, -1:]
    seen = ffn_vectors(model)
    same(model(ids, decoder_input_ids=ids[:, :6], logits_to_keep=1, only_logits=True).logits, expected)
    assert seen == [12, 2]


@torch.inference_mode()
def test_images() -> None:
    model = make({**VIT, **LABELS, "architectures": ["ViTForImageClassification"]})
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(pixel_values=pixels).logits
    seen = ffn_vectors(model)
    same(model(pixel_values=pixels, only_logits=True).logits, expected)
    assert seen == [34, 2]


@torch.inference_mode()
@pytest.mark.parametrize("keep", [0, 2])
def test_where_more_than_one_position_is_scored_all_run(keep: int) -> None:
    model, ids = make(DECODERS["gpt2"]), ids_of(2, 9)
    seen = ffn_vectors(model)
    same(model(ids, logits_to_keep=keep, only_logits=True).logits, model(ids, logits_to_keep=keep).logits)
    assert seen == [18, 18] * 2


@torch.inference_mode()
def test_who_watches_sees_everything() -> None:
    model, ids = make(CLASSIFIERS["bert"]), ids_of(2, 9)
    expected = model(ids, output_hidden_states=True, output_attentions=True)
    found = model(ids, only_logits=True, output_hidden_states=True, output_attentions=True)
    same(found.logits, expected.logits)
    same(found.hidden_states[-1], expected.hidden_states[-1])
    same(found.attentions[-1], expected.attentions[-1])
    watched: list[tuple[int, ...]] = []
    last: nn.Module = model.main.layers[-1]
    handle = last.register_forward_hook(lambda module, inputs, output: watched.append(tuple(output[0].shape)))
    same(model(ids, only_logits=True).logits, expected.logits)
    handle.remove()
    assert watched == [(2, 9, 32)]


def test_a_head_mask_and_gradients() -> None:
    model, ids = make(CLASSIFIERS["bert"]), ids_of(2, 9)
    heads = torch.ones(2, 4)
    heads[1, 2] = 0.5
    gradients = []
    for only in (False, True):
        model.zero_grad()
        model(ids, head_mask=heads, only_logits=only).logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert gradients[0]
    for full, spared in zip(*gradients, strict=True):
        close(spared, full)
