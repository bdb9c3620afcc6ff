"""LoRA adapters: peft reads ours, we read peft's, and every tensor of an adapter finds its place or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import plainformer as pf
from plainformer.checkpoint.low_rank import add_adapters, matrices, save_adapters
from plainformer.config.training import LoraConfig
from plainformer.errors import CheckpointError, PlainformerError, UsageError
from plainformer.families import table_for
from plainformer.model.lora import merge_adapters
from tests.support import models
from tests.support.close import close

IDS = torch.tensor([[5, 9, 3, 8, 21, 30], [7, 7, 4, 11, 13, 6]])
# Name → how the base model is made, what an adapter of it targets, and its task as peft names it.
CASES: dict[str, tuple[Callable[[Path], Any], list[str], str | None]] = {
    "encoder": (lambda folder: models.bert(folder, "BertForMaskedLM"), ["query", "value", "output.dense"], None),
    "fused and transposed": (models.gpt2, ["c_attn", "c_proj"], "CAUSAL_LM"),
    "encoder-decoder": (models.bart, ["q_proj", "v_proj", "fc1"], "SEQ_2_SEQ_LM"),
    "tied": (models.t5, ["q", "v", "wo"], "SEQ_2_SEQ_LM"),
}


def both(name: str, task: str | None) -> dict[str, Any]:
    return {"decoder_input_ids": IDS} if task == "SEQ_2_SEQ_LM" else {}


def shake(model: torch.nn.Module) -> None:
    """Factors that do something."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or ".adapter." in name:
                p.copy_(torch.randn(p.shape, generator=draw) * 0.2)


def theirs(folder: Path, name: str, **settings: Any) -> Any:
    """A base model and an adapter of peft, in folders; the reference model with the adapter."""
    make, targets, task = CASES[name]
    (folder / "base").mkdir()
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type=task, **settings)
    model = peft.get_peft_model(make(folder / "base"), config).eval()
    shake(model)
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return model


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"rank_pattern": {"v|value|c_attn": 2}, "alpha_pattern": {"v": 3}}]
)
@pytest.mark.parametrize("name", CASES)
def test_adapters_of_peft_give_its_logits(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    reference = theirs(tmp_path, name, **settings)
    more = both(name, CASES[name][2])
    with torch.no_grad():
        expected = reference(input_ids=IDS, **more).logits
        ours = pf.load_model(tmp_path / "base", adapter=tmp_path / "adapter", backend="plain")
        close(ours(IDS, **more).logits, expected, name)
        without = pf.load_model(tmp_path / "base", backend="plain")(IDS, **more).logits
        assert (without - expected).abs().max() > 0.1
        merged = reference.merge_and_unload()(input_ids=IDS, **more).logits
        close(ours(IDS, **more).logits, merged, name)


def trained(folder: Path, name: str, **config: Any) -> tuple[Any, LoraConfig]:
    make, targets, _ = CASES[name]
    if not (folder / "base").exists():
        (folder / "base").mkdir()
        make(folder / "base")
    model = pf.load_model(folder / "base", purpose="train")
    asked = LoraConfig(**{"rank": 4, "alpha": 6, "targets": targets, **config})
    add_adapters(model, table_for(model.config), asked)
    return model, asked


@pytest.mark.parametrize("name", CASES)
def test_peft_reads_ours_and_they_survive_merging(name: str, tmp_path: Path) -> None:
    model, asked = trained(tmp_path, name)
    shake(model)
    more = both(name, CASES[name][2])
    out = tmp_path / "ours"
    out.mkdir()
    save_adapters(model, table_for(model.config), out, asked, str(tmp_path / "base"))
    with torch.no_grad():
        ours = model.eval()(IDS, **more).logits
        kind = getattr(transformers, json.loads((tmp_path / "base" / "config.json").read_text())["architectures"][0])
        reference = kind.from_pretrained(tmp_path / "base")
        close(ours, peft.PeftModel.from_pretrained(reference, out).eval()(input_ids=IDS, **more).logits, name)
        for again in (pf.load_model(tmp_path / "base", adapter=str(out)), pf.load_model(out)):
            close(again(IDS, **more).logits, ours, name)
        merge_adapters(model)
        pf.save(model, tmp_path / "merged")
        close(pf.load_model(tmp_path / "merged")(IDS, **more).logits, ours, name)
    assert not any(".adapter." in key for key in model.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_peft(name: str, tmp_path: Path) -> None:
    reference = theirs(tmp_path, name)
    more = both(name, CASES[name][2])
    model, _ = trained(tmp_path, name)
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    known = {matrix.theirs: matrix for matrix in matrices(model, table_for(model.config))}
    with torch.no_grad():
        for key, tensor in factors.items():
            module, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
            low = model.get_submodule(known[module].ours[0]).adapter.low
            (low.a if part == "A" else low.b).copy_(tensor)
    weights = torch.randn(reference(input_ids=IDS, **more).logits.shape, generator=torch.Generator().manual_seed(0))
    (reference(input_ids=IDS, **more).logits * weights).sum().backward()
    (model.eval()(IDS, **more).logits * weights).sum().backward()
    grads = {
        n.replace(".default", ""): p.grad
        for n, p in reference.named_parameters()
        if p.grad is not None and "lora_" in n
    }
    compared = 0
    for key, grad in grads.items():
        module, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        low = model.get_submodule(known[module].ours[0]).adapter.low
        close((low.a if part == "A" else low.b).grad, grad, key)
        compared += 1
    assert compared == len(factors)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if ".adapter." in n
    }


def test_a_new_head_is_saved_whole(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    models.bert(base, "BertForMaskedLM")
    model = pf.with_head(base, "sequence", labels=["no", "yes", "perhaps"]).model
    table = table_for(model.config)
    asked = LoraConfig(rank=2)
    names = add_adapters(model, table, asked)
    assert {name.rpartition("attention.")[2] for name in names} == {
        "self.query",
        "self.key",
        "self.value",
        "output.dense",
    }
    shake(model)
    out = tmp_path / "out"
    out.mkdir()
    save_adapters(model, table, out, asked, str(base))
    values = json.loads((out / "adapter_config.json").read_text())
    assert values["modules_to_save"] == ["classifier", "pooler"] and values["task_type"] == "SEQ_CLS"
    with torch.no_grad():
        ours = model.eval()(IDS).logits
        close(pf.load_model(out)(IDS).logits, ours, "logits")
        from transformers import AutoModelForSequenceClassification

        reference = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        close(peft.PeftModel.from_pretrained(reference, out).eval()(input_ids=IDS).logits, ours, "logits")
    assert pf.load_model(out).config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_several_adapters_add_up(tmp_path: Path) -> None:
    theirs(tmp_path, "encoder")
    one = pf.load_model(tmp_path / "base", adapter=[str(tmp_path / "adapter")] * 2).state_dict()
    base, single = (
        pf.load_model(tmp_path / "base", **more).state_dict() for more in ({}, {"adapter": str(tmp_path / "adapter")})
    )
    for name, tensor in one.items():
        close(tensor - base[name], 2 * (single[name] - base[name]), name)


def edited(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def _dropped(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[sorted(tensors)[0]]


def _renamed(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layer.0." in name]:
        tensors[name.replace(".layer.0.", ".layer.7.")] = tensors.pop(name)


def _transposed(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].t()


def _exchanged(tensors: dict[str, torch.Tensor]) -> None:
    a, b = (name for name in sorted(tensors) if ".layer.0.attention.self.query" in name)
    tensors[a], tensors[b] = tensors[b].t(), tensors[a].t()


def _wider(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    tensors[name] = torch.cat((tensors[name], tensors[name]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_dropped, "has no lora_A"),
        (_renamed, "the base model has no"),
        (_transposed, "has factors of"),
        (_wider, "is for a matrix of"),
    ],
)
def test_a_wrong_tensor_is_an_error(change: Callable[[Any], None], said: str, tmp_path: Path) -> None:
    theirs(tmp_path, "encoder")
    edited(tmp_path, change)
    with pytest.raises(CheckpointError, match=said):
        pf.load_model(tmp_path / "base", adapter=tmp_path / "adapter")


def test_an_unknown_whole_tensor_is_an_error(tmp_path: Path) -> None:
    theirs(tmp_path, "encoder")
    edited(tmp_path, lambda tensors: tensors.update({"base_model.model.bert.novel.weight": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=r"novel\.weight"):
        pf.load_model(tmp_path / "base", adapter=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "IA3"}, "only LoRA is read"),
        ({"use_dora": True}, "use_dora=True is not known"),
        ({"init_lora_weights": "pissa"}, "changed the base model's weights"),
        ({"r": 8}, "of rank 4"),
        ({"lora_alpha": "much"}, "not a number"),
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "is an adapter for '/nowhere/at/all'"),
    ],
)
def test_adapters_that_are_something_else(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    theirs(tmp_path, "encoder")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(PlainformerError, match=said):
        pf.load_model(tmp_path / "adapter")


def test_targets_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    models.gpt2(tmp_path / "base")
    for config, said in (
        ({"targets": ["c_atn"]}, "did you mean 'c_attn'"),
        ({"targets": ["wte"]}, "is not a linear"),
        ({"targets": ["lm_head"]}, "is not a linear"),  # tied to the embeddings
        ({"targets": ["c_attn"], "rank": 4000}, "is more than"),
    ):
        model = pf.load_model(tmp_path / "base", purpose="train")
        with pytest.raises(UsageError, match=said):
            add_adapters(model, table_for(model.config), LoraConfig(**config))
    names = add_adapters(model, table_for(model.config), LoraConfig(targets=["all-linear"]))
    assert {name.rpartition(".")[2] for name in names} == {"c_attn", "c_proj", "c_fc"}


def test_adapters_begin_as_nothing_and_equal_seeds_are_equal(tmp_path: Path) -> None:
    first, _ = trained(tmp_path, "tied")
    second, _ = trained(tmp_path, "tied")
    base = pf.load_model(tmp_path / "base", backend="plain")
    with torch.no_grad():
        assert torch.equal(first.eval()(IDS, decoder_input_ids=IDS).logits, base(IDS, decoder_input_ids=IDS).logits)
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_dropout_is_before_a_and_in_training_alone(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, "tied", dropout=0.5)
    shake(model)
    with torch.no_grad():
        torch.manual_seed(0)
        noisy = model.train()(IDS, decoder_input_ids=IDS).logits
        calm = [model.eval()(IDS, decoder_input_ids=IDS).logits for _ in range(2)]
    assert torch.equal(*calm) and not torch.allclose(noisy, calm[0])


def test_adapters_by_name_are_switched(tmp_path: Path) -> None:
    base, text = "all-minilm-l6-v2", "A man is eating food."
    named = {name: tmp_path / name for name in ("law", "poems")}
    for number, folder in enumerate(named.values()):
        model = pf.load_model(base, purpose="train")
        asked = LoraConfig(rank=2, targets=["query"])
        add_adapters(model, table_for(model.config), asked)
        shake(model)
        with torch.no_grad():
            for _, p in model.named_parameters():
                if p.requires_grad:
                    p.mul_(1 + number)
        folder.mkdir()
        save_adapters(model, table_for(model.config), folder, asked, base)
    alone = {name: pf.load(base, adapter=folder)(text).vector for name, folder in named.items()}
    alone |= {None: pf.load(base)(text).vector}
    embed = pf.load(base, adapter=named)
    assert (embed.adapters, embed.adapter) == (("law", "poems"), "law")
    for name in ("law", "poems", None, "law"):
        embed.use_adapter(name)
        assert embed.adapter == name and torch.equal(embed(text).vector, alone[name])
    assert not torch.equal(alone["law"], alone["poems"]) and not torch.equal(alone["law"], alone[None])
    with pytest.raises(UsageError, match="no adapter 'laws'"):
        embed.use_adapter("laws")
    with pytest.raises(UsageError, match="no adapter 5"):
        embed.use_adapter(5)  # type: ignore[arg-type]
    both = pf.load(base, adapter=list(named.values()))(text).vector  # paths, as one alone may be
    assert torch.equal(both, pf.load(base, adapter=[str(folder) for folder in named.values()])(text).vector)
    assert embed.adapter == "law"
    with pytest.raises(UsageError, match="without adapters that have names"):
        pf.load(base).use_adapter("law")
    with pytest.raises(UsageError, match="names adapters to choose from"):
        pf.load_model(base, adapter=named)
    with pytest.raises(UsageError, match="names no adapter"):
        pf.load(base, adapter={})
