"""Files as they are found: wrapped names, models in parts, adapters; and `info` says what `load` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import plainformer
from plainformer.checkpoint.formats import open_gguf
from plainformer.checkpoint.formats.parts import part_names, whole_models
from plainformer.errors import CheckpointError, PlainformerError, UsageError
from plainformer.info import inspect_checkpoint
from plainformer.loading import load_model
from plainformer.saving import save_model
from tests.support import models
from tests.support.cli import Cli, done
from tests.support.gguf_files import write_gguf

State = dict[str, Tensor]
LLAMA: dict[str, Any] = dict(
    models.TINY, vocab_size=61, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False
)


def rewrite(folder: Path, state: State) -> None:
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")


# ---- names ----------------------------------------------------------------------------------------------------------

WRAPPED = (
    "_orig_mod.",
    "module.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.model.",
    "module.module.",
    "net.a.",
)


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForCausalLM", "BertModel", "BertForTokenClassification"])
@torch.no_grad()
def test_a_prefix_on_all_names(name: str, wrapper: str, tmp_path: Path) -> None:
    bert = name.startswith("Bert")
    config = transformers.BertConfig(**models.TINY, vocab_size=61) if bert else transformers.LlamaConfig(**LLAMA)
    reference = models.save_model(tmp_path, name, config)
    state = load_file(tmp_path / "model.safetensors")
    rewrite(tmp_path, {wrapper + key: tensor for key, tensor in state.items()})
    ours, ids = load_model(tmp_path, backend="plain"), torch.arange(5, 14)[None]
    theirs, mine = reference(ids), ours(ids)
    for kind in ("logits", "last_hidden_state"):
        expected = getattr(theirs, kind, None)
        if expected is not None:
            assert (getattr(mine, kind) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert "has no tokenizer" in str(inspect_checkpoint(tmp_path).problem)  # and nothing else
    save_model(ours, tmp_path / "ours")
    assert sorted(load_file(tmp_path / "ours" / "model.safetensors")) == sorted(state)


def test_a_wrapper_in_the_middle(tmp_path: Path) -> None:
    """One submodule was compiled, another one is FSDP's."""
    models.save("fill-mask", tmp_path)
    expected = load_model(tmp_path).state_dict()
    state = load_file(tmp_path / "model.safetensors")
    for old, new in (("encoder.", "encoder._orig_mod."), ("layer.1.", "layer._fsdp_wrapped_module.1.")):
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    rewrite(tmp_path, state)
    assert all(torch.equal(value, expected[key]) for key, value in load_model(tmp_path).state_dict().items())


# ---- models in parts ------------------------------------------------------------------------------------------------


def split(path: Path, count: int, folder: Path) -> list[Path]:
    """Cut a GGUF file as llama.cpp's gguf-split does: metadata in the first part, tensors in all."""
    reader, parts = gguf.GGUFReader(path), []
    names = [tensor.name for tensor in reader.tensors]
    for number in range(count):
        part = folder / f"tiny-{number + 1:05d}-of-{count:05d}.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            for field in reader.fields.values():
                if field.name == "general.architecture" or field.name.startswith("GGUF."):
                    continue
                kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
        else:
            writer.kv_data[0].clear()
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(names))
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(part)
    return parts


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    whole = write_gguf(tmp_path / "whole.gguf")
    (tmp_path / "parts").mkdir()
    return split(whole, 3, tmp_path / "parts")


def test_any_part_stands_for_the_model(parts: list[Path]) -> None:
    expected = load_model(parts[0].parent.parent / "whole.gguf").state_dict()
    for ref in (*parts, parts[0].parent):
        found = load_model(ref).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    info = inspect_checkpoint(parts[1])
    assert info.weights["files"] == "3" and info.problem is None and info.tokenizer is not None


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    for ref in (parts[0], parts[2], parts[0].parent):
        for reads in (load_model, inspect_checkpoint):
            with pytest.raises(CheckpointError, match=r"one of 3 parts.*missing: tiny-00002-of-00003\.gguf"):
                reads(ref)


def test_parts_that_do_not_belong_together(parts: list[Path], tmp_path: Path) -> None:
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(CheckpointError, match=r"tiny-00002-of-00003\.gguf: is not part 2 of 3"):
        load_model(parts[0])
    renamed = parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match="is one of 3 parts of a model, and its name does not say which"):
        load_model(renamed)


def test_names_of_parts() -> None:
    assert part_names("a/b-00002-of-00003.gguf") == [f"a/b-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    assert part_names("b-00004-of-00003.gguf") == ["b-00004-of-00003.gguf"] and part_names("b.gguf") == ["b.gguf"]
    names = ["q8-00001-of-00002.gguf", "q8-00002-of-00002.gguf", "q4.gguf", "f16-00002-of-00002.gguf"]
    assert whole_models(names) == ["f16-00002-of-00002.gguf", "q4.gguf", "q8-00001-of-00002.gguf"]


def test_a_whole_model_under_a_parts_name(tmp_path: Path) -> None:
    """Publishers number single files too; and a file that says nothing of parts is whole whatever its name."""
    for name in ("m-00001-of-00001.gguf", "m-00001-of-00002.gguf"):
        path = write_gguf(tmp_path / name)
        assert load_model(path) is not None and open_gguf(path).files == 1


# ---- adapters -------------------------------------------------------------------------------------------------------

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-2-7b-hf", "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_names_its_base_model(with_config: bool, tmp_path: Path) -> None:
    models.save("chat", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    if not with_config:
        (tmp_path / "config.json").unlink()
    for reads in (plainformer.load, load_model, inspect_checkpoint):
        with pytest.raises(PlainformerError, match="is an adapter for 'meta-llama/Llama-2-7b-hf'") as caught:
            reads(tmp_path)
        assert "adapter=" in caught.value.fix


def test_an_adapter_as_gguf(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"it is an adapter \(LoRA\)"):
        plainformer.load(tmp_path)


def test_prompts_cannot_be_merged(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**ADAPTER, "peft_type": "PREFIX_TUNING"}))
    with pytest.raises(CheckpointError, match="an adapter of the kind 'PREFIX_TUNING'") as caught:
        plainformer.load(tmp_path)
    assert "merge" not in caught.value.fix


# ---- info tells what load tells ----------------------------------------------------------------------------------------


def damage_nothing(folder: Path, state: State) -> State:
    return state


def lose(folder: Path, state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "layer.1.output.dense.weight" not in name}


def add(folder: Path, state: State) -> State:
    return {**state, "bert.encoder.layer.0.adapter.weight": torch.ones(2)}


def narrow(folder: Path, state: State) -> State:
    return {name: tensor[:-1] if name.endswith("word_embeddings.weight") else tensor for name, tensor in state.items()}


def whole_numbers(folder: Path, state: State) -> State:
    return {name: tensor.to(torch.int8) if "query.weight" in name else tensor for name, tensor in state.items()}


def pack(folder: Path, state: State) -> State:
    return {name.replace("query.weight", "query.qweight"): tensor for name, tensor in state.items()}


def rename(folder: Path, state: State) -> State:
    return {f"{index}": tensor for index, tensor in enumerate(state.values())}


def no_tokenizer(folder: Path, state: State) -> State:
    for path in [*folder.glob("tokenizer*"), *folder.glob("vocab*")]:
        path.unlink()
    return state


SAYS = {
    damage_nothing: "",
    lose: "encoder.layers.1.ffn.down.weight",
    add: "bert.encoder.layer.0.adapter.weight",
    narrow: "the configuration asks for",
    whole_numbers: "int8",
    pack: "the weights are quantised",
    rename: "no tensor has a name that this family's models have",
    no_tokenizer: "tokenizer",
}


@pytest.mark.parametrize("edit", SAYS)
def test_info_says_what_load_says(edit: Any, tmp_path: Path, cli: Cli) -> None:
    models.save("fill-mask", tmp_path)
    rewrite(tmp_path, edit(tmp_path, load_file(tmp_path / "model.safetensors")))
    found = inspect_checkpoint(tmp_path)
    if edit is damage_nothing:
        plainformer.load(tmp_path)
        assert found.problem is None and "not loadable" not in done(cli("info", tmp_path)).out
        return
    with pytest.raises(CheckpointError) as caught:
        plainformer.load(tmp_path)
    assert str(found.problem) == str(caught.value) and SAYS[edit] in str(caught.value)
    assert found.to_dict()["problem"] == str(caught.value)
    assert "not loadable" in done(cli("info", tmp_path)).out
    damaged = edit in (no_tokenizer,)  # what a whole download would bring
    assert damaged or "ownload" not in str(caught.value)


def test_info_of_a_model_without_a_task(tmp_path: Path) -> None:
    models.save("audio-classification", tmp_path)
    path = tmp_path / "config.json"
    raw = {**json.loads(path.read_text()), "architectures": ["Wav2Vec2ForAudioFrameClassification"]}
    path.write_text(json.dumps(raw))
    rewrite(tmp_path, {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "projector" not in k})
    problem = inspect_checkpoint(tmp_path).problem
    with pytest.raises((UsageError, CheckpointError)) as caught:
        plainformer.load(tmp_path)
    assert str(problem) == str(caught.value)
