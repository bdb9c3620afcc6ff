"""Damaged, lying and malicious checkpoints, and hostile inputs, from `load` and the command line to the error.

Every case must end in one PlainformerError that names its cause, quickly, in little memory, and with nothing executed.
The tests of the formats and of the inputs go deeper into each file; these see that nothing leaks on the way up.
"""

from __future__ import annotations

import json
import math
import pickle
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import plainformer
from plainformer.cli.main import run_app
from plainformer.config.checks import MAX_LAYERS
from plainformer.errors import CheckpointError, InputError, PlainformerError, UsageError
from plainformer.families import FAMILIES, config_from_dict, table_for
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.info import inspect_checkpoint
from plainformer.loading import load, load_model
from plainformer.model.transformer import Transformer
from plainformer.saving import save_model
from tests.support.fuzz import Outcomes
from tests.support.models import save

Folder = Callable[[str], Path]
MEGABYTE = 2**20


@pytest.fixture
def bert(tiny: Folder, tmp_path: Path) -> Path:
    """A classifier's folder that a test may damage."""
    return Path(shutil.copytree(tiny("text-classification"), tmp_path / "model"))


@pytest.fixture
def chat(tiny: Folder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("chat"), tmp_path / "chat"))


def change(folder: Path, name: str = "config.json", **fields: Any) -> Path:
    """Set fields of a JSON file; `...` deletes one."""
    raw = json.loads((folder / name).read_text())
    for field, value in fields.items():
        if value is ...:
            raw.pop(field, None)
        else:
            raw[field] = value
    (folder / name).write_text(json.dumps(raw))
    return folder


@contextmanager
def bounded(seconds: float = 10.0, megabytes: float = 64.0) -> Iterator[None]:
    """What happens inside must be quick and take little memory: Python's, and what torch asks of it or of the system.

    Quick in seconds of this process: those of the clock count what else the machine does.
    """
    tracemalloc.start()
    start, before = time.process_time(), _resident()
    try:
        yield
        took, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        grown = _resident() - before
    finally:
        tracemalloc.stop()
    assert took < seconds, f"took {took:.1f} s"
    assert peak < megabytes * MEGABYTE, f"took {peak / MEGABYTE:.0f} MB of Python's memory"
    assert grown < 4 * megabytes * MEGABYTE, f"grew by {grown / MEGABYTE:.0f} MB"


def _resident() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def refused(folder: Path, message: str, **options: Any) -> CheckpointError:
    """Loading gives one CheckpointError with `message` in it, short enough to read."""
    with bounded(), pytest.raises(CheckpointError, match=message) as caught:
        load(folder, **options)
    assert len(str(caught.value)) < 2000, "a message that nobody reads"
    return caught.value


# --------------------------------------------------------------------------------------------------- config.json's text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"model_type": "bert"', "not valid JSON"),
        (b"not json at all", "not valid JSON"),
        (b"<!doctype html><html></html>", "HTML"),
        (b"[1, 2]", "object was expected, not a list"),
        (b'"bert"', "object was expected, not a str"),
        (b"null", "object was expected"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"model_type": "bert", "model_type": "gpt2"}', "'model_type' occurs twice"),
        ('{"model_type": "bért"}'.encode("latin-1"), "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not valid JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\x00" * 100, "zero bytes"),
        (b"{}", "'model_type' is missing"),
        (b'{"model_type": null}', "'model_type' is missing"),
        (b'{"model_type": ["bert"]}', "'model_type' is"),
        (b'{"model_type": "Ber-t"}', "did you mean 'bert'"),
        (b'{"model_type": "flaubert"}', "supported: albert, "),
        (b'{"model_type": "' + b"b" * 3_000_000 + b'"}', "model_type"),
        (b'{"model_type": "bert", "architectures": "BertModel"}', "architectures"),
        (b'{"model_type": "bert", "architectures": [1]}', "architectures"),
        (b'{"model_type": "bert", "architectures": ["BertForTea"]}', "architecture 'BertForTea' is not supported"),
        (b'{"model_type": "bert", "architectures": ["BertForCausalLM"], "vocab_size": 9}', "no 'causal_lm' head"),
        (b'{"model_type": "llama", "architectures": ["LlamaForMaskedLM"], "vocab_size": 9}', "no 'masked_lm' head"),
    ],
)  # fmt: skip
def test_text_of_config(bert: Path, content: bytes, message: str) -> None:
    (bert / "config.json").write_bytes(content)
    refused(bert, message)


def test_config_that_is_no_file(bert: Path) -> None:
    (bert / "config.json").unlink()
    refused(bert, "no config.json")
    (bert / "config.json").mkdir()
    refused(bert, "config.json")


def test_a_task_that_the_architecture_lacks_is_a_usage_error(bert: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot do|no 'causal_lm' head"):
        load(bert, task="text-generation")


# ------------------------------------------------------------------------------------------------- config.json's values

NAN, INFINITY = math.nan, math.inf
TERABYTE = {"hidden_size": 2**19, "intermediate_size": 2**20, "num_attention_heads": 8, "num_hidden_layers": 12}
BERT_VALUES: list[tuple[dict[str, Any], str]] = [
    *(({name: value}, name.split("_")[-1]) for name in ("hidden_size", "intermediate_size") for value in (0, -1, 10**12)),
    *(({"num_hidden_layers": value}, "layers") for value in (0, -1, 10**9, 10**400)),
    *(({"num_attention_heads": value}, "heads") for value in (0, -1, 3, 10**9)),
    *(({"vocab_size": value}, "vocab_size") for value in (0, -1, 10**9, 10**400)),
    *(({"max_position_embeddings": value}, "max_position_embeddings") for value in (0, -1, 10**12)),
    *(
        ({name: value}, name)
        for name in ("hidden_size", "num_hidden_layers", "vocab_size", "type_vocab_size")
        for value in (2.0, "32", True, [32], {}, NAN, INFINITY, 1e400)
    ),
    *(({"layer_norm_eps": value}, "layer_norm_eps|epsilon") for value in (NAN, INFINITY, -1e-5, 2, "1e-5", True, 10**400)),
    ({"vocab_size": ...}, "'vocab_size' is missing"),
    ({"hidden_act": "gelou"}, "supported: "),
    ({"hidden_act": 3}, "hidden_act"),
    ({"hidden_act": "g" * 1_000_000}, "hidden_act"),
    ({"problem_type": "guess"}, "problem_type"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"is_decoder": True}, "is_decoder"),
    ({"id2label": ["a", "b"]}, "id2label"),
    ({"id2label": {"zero": "a"}}, "id2label"),
    ({"id2label": {"1": "a", "2": "b"}}, "id2label"),
    ({"id2label": {"0": "a", "00": "b"}}, "id2label"),
    ({"id2label": {"0": {"a": 1}}}, "id2label"),
    ({"id2label": {}}, "id2label"),
    ({"id2label": 7}, "id2label"),
    *(({"id2label": ..., "num_labels": value}, "num_labels") for value in (0, -1, 10**9, "3", 2.5)),
    *(({name: value}, name) for name in ("pad_token_id", "bos_token_id") for value in ("0", 1.5, True, 10**30, -2, {})),
    *(({"eos_token_id": value}, "eos_token_id") for value in ("</s>", ["</s>"], [1, "2"], [[1]], 10**12)),
    # Consistent, and another model than the weights are of.
    ({"hidden_size": 64}, "not of the same model"),
    ({"num_hidden_layers": 3}, "missing from the checkpoint"),
    ({"num_hidden_layers": MAX_LAYERS}, "1024 layers, and the weights are only"),
    ({"num_hidden_layers": 1}, "does not use"),
    ({"vocab_size": 50}, "not of the same model"),
    ({"type_vocab_size": 0}, "does not use"),
    ({"id2label": {"0": "a", "1": "b"}}, "not of the same model"),
    ({"model_type": "roberta"}, "tensor"),
    ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "tensor"),
    (TERABYTE, "not of the same model"),
    ({"vocab_size": 2**24, "max_position_embeddings": 2**27}, "not of the same model"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BERT_VALUES, ids=lambda value: str(value)[:60])
def test_values_of_an_encoder(bert: Path, fields: dict[str, Any], message: str) -> None:
    refused(change(bert, **fields), message)


def scaling(**fields: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, **fields}}


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
DECODER_VALUES: list[tuple[dict[str, Any], str]] = [
    *(({"num_key_value_heads": value}, "key-value|num_key_value") for value in (-1, 3, 8, 1.5, "2", 10**9)),
    *(({"head_dim": value}, "head_dim|channels") for value in (-8, 7, 1.5, "8", 10**12)),
    *(({"rope_theta": value}, "rope_theta") for value in (-1, NAN, INFINITY, "10000", [1], 10**400)),
    ({"rope_parameters": {"rope_theta": 0}}, "rope_theta"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"rope_scaling": "linear"}, "rope_scaling"),
    ({"rope_parameters": 3}, "rope_parameters"),
    *(({"rope_scaling": {"rope_type": kind}}, "factor") for kind in ("linear", "dynamic", "llama3")),
    ({"rope_scaling": {"rope_type": "spiral"}}, "rope type 'spiral'"),
    ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type"),
    *((scaling(rope_type=kind, factor=factor), "factor")
      for kind in ("linear", "dynamic", "yarn", "llama3") for factor in ("abc", 0, -1, NAN, True, [2], 10**400)),
    *((scaling(**{name: value}), name)
      for name in ("beta_fast", "beta_slow", "attention_factor") for value in (0, -1, "x", NAN)),
    *((scaling(original_max_position_embeddings=value), "original") for value in (0, -1, "x", 1.5, 10**12)),
    (scaling(mscale="x", mscale_all_dim=1), "mscale"),
    (scaling(mscale=-100, mscale_all_dim=1, factor=8.0), "mscale"),
    (scaling(truncate="no"), "truncate"),
    ({**scaling(), "rope_theta": 1}, "rope_theta"),
    (scaling(rope_type="llama3", low_freq_factor=4, high_freq_factor=1), "high_freq_factor"),
    (scaling(rope_type="llama3", low_freq_factor=0), "low_freq_factor"),
    ({"rope_scaling": {**LONG, "short_factor": 1}}, "short_factor"),
    ({"rope_scaling": {**LONG, "long_factor": [1.0, "x", 1.0, 1.0]}}, "long_factor"),
    ({"rope_scaling": {**LONG, "long_factor": [0, 1, 1, 1]}}, "positive"),
    ({"rope_scaling": {**LONG, "long_factor": [1.0] * 3}}, "3 factors for 4 pairs"),
    ({"rope_scaling": {**LONG, "original_max_position_embeddings": 1}}, "original length 1"),
    *(({"partial_rotary_factor": value}, "partial_rotary_factor|channels") for value in (-1, 2, 1e308, "x", 0.001)),
    *(({"rms_norm_eps": value}, "eps") for value in (NAN, "x", 5)),
    ({"attention_bias": "no"}, "attention_bias"),
    ({"hidden_act": "swoosh"}, "hidden_act"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ({"max_position_embeddings": "x"}, "max_position_embeddings"),
    ({"head_dim": 16}, "not of the same model"),
    ({"num_key_value_heads": 4}, "not of the same model"),
    ({"attention_bias": True}, "missing from the checkpoint"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), DECODER_VALUES, ids=lambda value: str(value)[:60])
def test_values_of_a_decoder(chat: Path, fields: dict[str, Any], message: str) -> None:
    if "rope_scaling" in fields or "rope_theta" in fields:
        change(chat, rope_parameters=...)
    refused(change(chat, **fields), message)


WINDOWED = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 8}
OTHERS: list[tuple[dict[str, Any], str]] = [
    ({**WINDOWED, "layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 layers"),
    ({**WINDOWED, "layer_types": ["full_attention", "fuller_attention"]}, "layer_types='fuller_attention'"),
    ({**WINDOWED, "layer_types": "full_attention"}, "layer_types"),
    ({**WINDOWED, "layer_types": [1, 2]}, "layer_types"),
    *(({**WINDOWED, "sliding_window": value}, "window") for value in (0, -1, "x", 1.5)),
    *(({**WINDOWED, "query_pre_attn_scalar": value}, "query_pre_attn_scalar") for value in (0, -1, "x")),
    *(({**WINDOWED, "attn_logit_softcapping": value}, "soft") for value in (0, -1, "x", NAN)),
    *(({**WINDOWED, "final_logit_softcapping": value}, "soft") for value in (0, "x")),
    ({**WINDOWED, "model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern"),
    ({**WINDOWED, "model_type": "gemma3", "text_config": [1]}, "text_config"),
    ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers has 1 entries"),
    ({"model_type": "smollm3", "no_rope_layers": ["a", "b"]}, "no_rope_layers"),
    ({"model_type": "mistral", "layer_types": ["sliding_attention"]}, "layer_types"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), OTHERS, ids=lambda value: str(value)[-60:])
def test_values_of_other_decoders(chat: Path, fields: dict[str, Any], message: str) -> None:
    refused(change(chat, **{"architectures": ["LlamaForCausalLM"], **fields}), message)


SIZES = dict(
    vocab_size=60, hidden_size=32, d_model=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40
)
BY_FAMILY: list[tuple[str, dict[str, Any], str]] = [
    ("deberta-v2", {"relative_attention": True, "conv_kernel_size": 3, "conv_groups": 3}, "conv_groups"),
    ("deberta-v2", {"relative_attention": True, "conv_kernel_size": 3, "conv_groups": 0}, "conv_groups"),
    ("deberta-v2", {"relative_attention": True, "position_buckets": 1}, "position_buckets"),
    ("deberta-v2", {"relative_attention": True, "pos_att_type": ["p2q"]}, "pos_att_type"),
    ("t5", {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets"),
    ("t5", {"feed_forward_proj": "gated-magic"}, "feed_forward_proj"),
    ("vit", {"image_size": [32]}, "image_size"),
    ("vit", {"image_size": "large"}, "image_size"),
    ("vit", {"image_size": 8, "patch_size": 16}, "patch_size"),
    ("vit", {"patch_size": 2**16, "image_size": 2**16, "num_channels": 4096}, "patch_size"),
    ("wav2vec2", {"conv_dim": [8] * 100_000, "conv_kernel": [2] * 100_000, "conv_stride": [2] * 100_000}, "convolutions"),
    ("wav2vec2", {"conv_dim": "x"}, "conv_dim"),
    ("wav2vec2", {"conv_dim": [8, 8]}, "differ in length"),
    ("wav2vec2", {"num_conv_pos_embedding_groups": 0}, "groups"),
    ("albert", {"num_hidden_groups": 10**9}, "num_hidden_groups"),
    ("albert", {"inner_group_num": 0}, "inner_group_num"),
    ("modernbert", {"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
    ("modernbert", {"rope_parameters": {"full_attention": 3}}, "full_attention"),
    ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings"),
    ("bart", {"decoder_layers": 10**9}, "layers"),
    ("whisper", {"decoder_attention_heads": 5, "d_model": 32}, "heads"),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "fields", "message"), BY_FAMILY)
def test_values_of_each_family(model_type: str, fields: dict[str, Any], message: str) -> None:
    with bounded(), pytest.raises(CheckpointError, match=message):
        Transformer(config_from_dict({**SIZES, "model_type": model_type, **fields}))


def test_no_zeros_for_a_lying_configuration(bert: Path) -> None:
    """Whisper's keys have no bias, ours is zero: those zeros must not be made before the file has proved its size."""
    sizes = {"d_model": 2**20, "encoder_layers": 12, "decoder_layers": 12, "encoder_ffn_dim": 64}
    change(bert, model_type="whisper", architectures=["WhisperForConditionalGeneration"], **sizes)
    refused(change(bert, encoder_attention_heads=4, decoder_attention_heads=4), "tensor", allow_unused=True)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**13), 10**13)
    | st.integers(-3, 200)
    | st.floats()
    | st.sampled_from(["", "gelu", "yarn", "full_attention", "x", "0", "\ud800"])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["0", "1", "type", "factor", "a"]), inner)
    ),
    max_leaves=6,
)
FIELDS = sorted({
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings", "hidden_act", "rms_norm_eps", "layer_norm_eps", "rope_scaling",
    "rope_parameters", "rope_theta", "attention_bias", "mlp_bias", "tie_word_embeddings", "architectures", "model_type",
    "id2label", "num_labels", "problem_type", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id",
    "type_vocab_size", "layer_types", "sliding_window", "partial_rotary_factor", "original_max_position_embeddings",
    "torch_dtype", "dtype", "quantization_config", "auto_map",
})  # fmt: skip


@pytest.mark.parametrize("name", ["text-classification", "chat"])
def test_random_configurations_load_or_say_why(tiny: Folder, tmp_path: Path, name: str) -> None:
    folder, outcomes = tmp_path / "model", Outcomes()

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON | st.just(...), min_size=1, max_size=3))
    @example(changes={"vocab_size": 10**400})
    @example(changes={"rope_parameters": {"rope_type": "dynamic", "factor": 1e308}, "head_dim": 2})
    def load_and_ask(changes: dict[str, Any]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        change(Path(shutil.copytree(tiny(name), folder)), **changes)
        with bounded(), outcomes.one():
            task = load(folder, backend="plain")
            task("a cat", **({"max_new_tokens": 2} if name == "chat" else {}))

    load_and_ask()
    outcomes.check(least=10)


def test_random_configurations_of_every_family() -> None:
    outcomes = Outcomes()

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(
        model_type=st.sampled_from(sorted(FAMILIES)),
        changes=st.dictionaries(st.sampled_from([*FIELDS, *SIZES]), JSON, max_size=4),
    )
    def build(model_type: str, changes: dict[str, Any]) -> None:
        with bounded(megabytes=96), outcomes.one():  # a thousand layers on the meta device are Python objects
            config = config_from_dict({**SIZES, "model_type": model_type, **changes})
            Transformer(config)
            table_for(config)

    build()
    outcomes.check(least=10)


# --------------------------------------------------------------------------------------------------------- weight files


def test_info_builds_no_deeper_model_than_there_are_weights(bert: Path) -> None:
    change(bert, num_hidden_layers=MAX_LAYERS)
    with pytest.raises(CheckpointError, match="1024 layers, and the weights are only"):
        inspect_checkpoint(str(bert))


def test_weights_absent(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    refused(bert, "no weights")
    (bert / "tf_model.h5").write_bytes(b"\x89HDF")
    refused(bert, "TensorFlow weights")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:20], "truncated|not"),
        (lambda data: b"", "empty"),
        (lambda data: b"\xff" * 8 + data[8:], "truncated"),
        (lambda data: data[:8] + b"[" + data[9:], "safetensors"),
        (lambda data: data + b"x", "not fully covered"),
        (lambda data: b"<html>" + data, "safetensors"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (lambda data: data.replace(b'"F32"', b'"X32"', 1), "unknown variant `X32`"),
        (lambda data: data.replace(b'"F32"', b'"I32"'), "not floating-point"),
    ],
)
def test_damaged_safetensors(bert: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(bert, message)


class _Trap:
    """A pickle that would make a file if it were executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def _as_bin(folder: Path, value: Any, **options: Any) -> Path:
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(value, folder / "pytorch_model.bin", **options)
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_bin_file_is_not_executed(bert: Path, tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "executed"
    weights = {"bert.pooler.dense.weight": torch.ones(2), "x": _Trap(trap)}
    refused(_as_bin(bert, weights, _use_new_zipfile_serialization=zipped), "contains code")
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(trap)))
    refused(bert, "refused|damaged")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "not a dictionary"),
        ({"state_dict": {}}, "training checkpoint"),
        ({"bert.pooler.dense.weight": 3}, "not a tensor"),
        ({"bert.pooler.dense.weight": torch.zeros(1).expand(2**20, 2**20)}, "claims"),
        ({"bert.pooler.dense.weight": torch.zeros(32, 32, dtype=torch.int64)}, "not floating-point"),
        ({}, "missing from the checkpoint"),
    ],
)
def test_bin_files_that_are_no_weights(bert: Path, value: Any, message: str) -> None:
    refused(_as_bin(bert, value), message)


def test_damaged_bin(bert: Path) -> None:
    _as_bin(bert, {"w": torch.ones(100)})
    path = bert / "pytorch_model.bin"
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:10], b"", b"\x80\x02garbage"):
        path.write_bytes(damaged)
        refused(bert, "truncated|damaged|empty|is not")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"w": "../secret.safetensors"}, "not a plain file name"),
        ({"w": "/etc/passwd"}, "not a plain file name"),
        ({"w": "..\\secret.safetensors"}, "not a plain file name"),
        ({"w": "C:secret.safetensors"}, "not a plain file name"),
        ({"w": "weights.bin"}, "not a .safetensors file"),
        ({"w": "gone.safetensors"}, "gone.safetensors"),
        ({"w": 3}, "plain file name"),
        ({}, "weight_map"),
        ([], "weight_map"),
        ({"w": "part.safetensors"}, "the index says"),
    ],
)
def test_index(bert: Path, weight_map: Any, message: str) -> None:
    (bert / "model.safetensors").rename(bert / "part.safetensors")
    shutil.copy(bert / "part.safetensors", bert.parent / "secret.safetensors")
    (bert / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    refused(bert, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF", "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "architecture '' is not supported"),
        (b"{}", "JSON"),
        (b"", "empty"),
    ],
)
def test_damaged_gguf(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    refused(path, message)


def test_no_code_of_a_checkpoint_is_executed(bert: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    for name in ("modeling_bert.py", "configuration_bert.py", "tokenization_bert.py", "__init__.py"):
        (bert / name).write_text(f"import pathlib; pathlib.Path({str(trap)!r}).touch()\n")
    auto = {"AutoModel": "modeling_bert.Model", "AutoConfig": "configuration_bert.Config"}
    change(bert, auto_map=auto, trust_remote_code=True)
    change(bert, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_bert.T", None]})
    with suppress(PlainformerError):  # to refuse is as good as to ignore
        load(bert)("a cat")
    change(bert, model_type="custom_code_model")
    refused(bert, "custom_code_model")
    assert not trap.exists()


def test_a_lone_surrogate_in_a_label_can_be_saved(bert: Path, tmp_path: Path) -> None:
    change(bert, id2label={"0": "\ud800", "1": "b", "2": "c"})
    save_model(load_model(bert), tmp_path / "saved")
    assert load_model(tmp_path / "saved").config.labels == ("\ud800", "b", "c")


# -------------------------------------------------------------------------------------------------- tokenizers and chat


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"model": 3}', b'{"model": {"type": "BPE"}}', b"\xff\xfe", b"[" * 100_000, b"x" * 100],
)  # fmt: skip
def test_damaged_tokenizer(bert: Path, content: bytes) -> None:
    (bert / "tokenizer.json").write_bytes(content)
    refused(bert, "tokenizer.json")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"padding_side": 3}'])
def test_damaged_tokenizer_config(bert: Path, content: bytes) -> None:
    (bert / "tokenizer_config.json").write_bytes(content)
    refused(bert, "tokenizer_config.json|model_max_length|padding_side")


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(10**9) %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages[0].__init__.__globals__ }}",
        "{% for m in messages %}",
        "{{ nothing.at.all }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_hostile_chat_templates(chat: Path, template: str) -> None:
    task = load(change(chat, "tokenizer_config.json", chat_template=template))
    with bounded(seconds=30), pytest.raises(PlainformerError, match="template") as caught:
        task([{"role": "user", "content": "hello"}], max_new_tokens=1)
    assert len(str(caught.value)) < 2000


# -------------------------------------------------------------------------------------------------------------- inputs


def test_texts(tiny: Folder) -> None:
    task = load(tiny("text-classification"))
    assert task("").label in task.config.labels  # its special tokens are there to be read
    assert task("a \x00 cat \u202e \ufffe").label
    for hopeless in (None, 3, b"bytes", ["a", 3], {"text": "a"}):
        with pytest.raises(InputError, match="is not an input for text-classification"):
            task(hopeless)
    with pytest.raises(InputError, match="half a surrogate pair"):
        task("a \ud800 cat")
    with bounded(seconds=60, megabytes=1024), pytest.raises(InputError, match="the limit is 40") as caught:
        task("a cat sat " * 1_000_000)
    assert len(str(caught.value)) < 2000


def test_empty_prompts(tiny: Folder) -> None:
    task = load(tiny("text-generation"))
    with pytest.raises(InputError, match="empty prompt"):
        task("")
    assert task([]) == []
    with bounded(seconds=60, megabytes=2048), pytest.raises(InputError, match="the limit is 48"):
        task("x" * 10_000_000)
    for count in (0, -1, 1.5, "3", True):
        with pytest.raises(UsageError, match="max_new_tokens"):
            task("a", max_new_tokens=count)


def test_tensors(tiny: Folder) -> None:
    model = load_model(tiny("text-classification"))
    ids = torch.tensor([[2, 5, 3]])
    vocabulary = model.config.vocab_size
    assert vocabulary is not None
    for bad, message in (
        (ids + vocabulary, f"token id {vocabulary + 5} is outside"),
        (-ids, "token id -5 is outside"),
        (ids.float(), "float"),
        (ids[0], "shape"),
        (ids[None], "shape"),
        (ids[:, :0], "shape|no tokens|empty"),
        (ids.repeat(1, 40), "120"),
    ):
        with pytest.raises(InputError, match=message):
            model(bad)
    for mask in (torch.ones(1, 4), torch.ones(2, 3), torch.ones(3), torch.ones(1, 1, 3)):
        with pytest.raises(UsageError, match="attention_mask of shape"):
            model(ids, mask)
    for mask in (torch.ones(2), torch.ones(4, 2), torch.ones(1, 2, 4)):
        with pytest.raises(UsageError, match="head_mask of shape"):
            model(ids, head_mask=mask)
    with pytest.raises(UsageError, match="token_type_ids from 0 to 7"):
        model(ids, token_type_ids=torch.tensor([[0, 0, 7]]))
    with pytest.raises(UsageError, match="not an input"):
        model(ids, labels=ids)
    with pytest.raises(UsageError, match="input_ids"):
        model()
    for bad in (ids.bool(), ids.to(torch.int8), ids + 0j):
        with pytest.raises(InputError, match="not whole numbers"):
            model(bad)
    for shape in ((1, 3, 31), (3, 32), (3,), (1, 0, 32)):
        with pytest.raises(InputError, match="inputs_embeds of shape"):
            model(inputs_embeds=torch.zeros(shape))
    assert model(inputs_embeds=torch.zeros(1, 3, 32, dtype=torch.float64)).logits.dtype == torch.float32
    for name in ("position_ids", "token_type_ids"):
        for value in (torch.zeros(1, 2).long(), torch.zeros(2, 3).long(), torch.zeros(3).long(), torch.zeros(1, 3)):
            with pytest.raises(UsageError, match=f"{name} of shape"):
                model(ids, **{name: value})
    for count in (-1, True, "1"):
        with pytest.raises(UsageError, match="logits_to_keep"):
            model(ids, logits_to_keep=count)
    for bad, message in ((ids + vocabulary, "is outside this model's vocabulary"), (ids.float(), "float")):
        with pytest.raises(InputError, match=message):
            model.embed_tokens(bad)
    with pytest.raises(UsageError, match="not a tensor"):
        model.embed_tokens([[2, 5, 3]])  # type: ignore[arg-type]


def test_what_a_model_has_no_use_for(tiny: Folder) -> None:
    ids = torch.tensor([[2, 5, 3], [2, 6, 3]])
    encoder, decoder, both = (load_model(tiny(name)) for name in ("text-classification", "chat", "text2text"))
    with pytest.raises(UsageError, match="no decoder"):
        encoder(ids, cache=KeyValueCache(decoder.config, 2))
    with pytest.raises(UsageError, match="encoder_output"):
        decoder(ids, encoder_output=both.encode(ids))
    with pytest.raises(UsageError, match="not an encoder's output"):
        both(decoder_input_ids=ids, encoder_output=both(ids))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="1 rows, and the encoder's output 2"):
        both(ids, decoder_input_ids=ids[:1])
    with pytest.raises(UsageError, match="not an input"):
        both.encode(ids, decoder_input_ids=ids)
    for cache in (KeyValueCache(decoder.config, 3), KeyValueCache(both.config, 2)):
        with pytest.raises(UsageError, match="does not fit"):
            decoder(ids, cache=cache)


@pytest.mark.parametrize("ref", [None, 5, b"x", [], "a" * 5000])
def test_references_of_no_kind(ref: Any) -> None:
    with pytest.raises(
        PlainformerError, match="is neither a text nor a path" if ref != "a" * 5000 else "cannot be read"
    ):
        load(ref)


@pytest.mark.parametrize("task", [5, [], ""])
def test_tasks_of_no_kind(tiny: Folder, task: Any) -> None:
    with pytest.raises(UsageError, match="is unknown"):
        load(tiny("chat"), task=task)


@pytest.mark.parametrize("folder", [5, None, "", "a\0b", "\ud800", b"x"])
def test_folders_of_no_kind(tiny: Folder, folder: Any) -> None:
    with pytest.raises(UsageError, match="not the path of a folder"):
        plainformer.save(load_model(tiny("embedding")), folder)


def test_saving_where_or_what_cannot_be(tiny: Folder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    task = load(tiny("embedding"))
    for write in (lambda: plainformer.save(task, tmp_path / "file"), lambda: task.tokenizer.save(tmp_path / "file")):
        with pytest.raises(UsageError, match="choose another folder"):
            write()
    for value in ("x", None, task.tokenizer):
        with pytest.raises(UsageError, match="neither a model nor a task"):
            plainformer.save(value, tmp_path / "new")


@pytest.mark.parametrize("dtype", ["fp8", "float64", "", 16, torch.int8, torch.float64, ["fp32"], "FP32 "])
def test_dtypes(tiny: Folder, dtype: Any) -> None:
    with pytest.raises(UsageError, match="is not supported"):
        load_model(tiny("text-classification"), dtype=dtype)


@pytest.mark.parametrize("device", ["", "gpu", "tpu", "meta", "cuda:99", 3.5, None, "cpu:x"])
def test_devices(tiny: Folder, device: Any) -> None:
    with pytest.raises(UsageError, match="device="):
        load_model(tiny("text-classification"), device=device)


@pytest.mark.parametrize(
    "options", [{"backend": "magic"}, {"ffn_chunk_size": -1}, {"ffn_chunk_size": "x"}, {"head": "hat"}, {"head": "ctc"}]
)
def test_other_options(tiny: Folder, options: dict[str, Any]) -> None:
    for name in ("text-classification", "chat"):
        with pytest.raises(UsageError, match=next(iter(options))):
            load_model(tiny(name), **options)


# --------------------------------------------------------------------------------------------------------- command line


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and stderr; there is never a traceback or a report of a defect."""
    code = run_app([str(argument) for argument in arguments])
    seen = capsys.readouterr().err
    assert "Traceback" not in seen and "defect" not in seen, seen
    assert (code == 0) == (not seen.startswith("error")), seen
    return code, seen


@pytest.mark.parametrize("verb", ["run", "info", "explain"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "brt"}'),
        ("config.json", b"[" * 100_000),
        ("model.safetensors", b"x" * 100),
        ("model.safetensors", b""),
    ],
)
def test_damaged_files_exit_with_1(
    bert: Path, capsys: pytest.CaptureFixture[str], verb: str, name: str, content: bytes
) -> None:
    (bert / name).write_bytes(content)
    code, seen = command(capsys, verb, bert, *([] if verb == "info" else ["a cat"]))
    assert code == 1 and seen.startswith("error:"), seen


def test_wrong_usage_exits_with_2(tiny: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny("text-classification")
    wrong: list[tuple[object, ...]] = [
        ("run", model),
        ("run", model, "a", "--dtype", "fp8"),
        ("run", model, "a", "--device", "gpu"),
        ("run", model, "a", "--task", "text-generation"),
        ("run", model, "a", "--task", "nonsense"),
        ("run", model, "a", "--no-such-flag"),
        ("run", model, "the cat " * 100),
        ("rnu", model, "a"),
        ("info",),
    ]
    for arguments in wrong:
        code, seen = command(capsys, *arguments)
        assert code == 2, (arguments, code, seen)
    assert command(capsys, "run", tmp_path / "absent", "a")[0] == 1
    assert command(capsys, "run", model, "a cat")[0] == 0


def test_changed_tiny_checkpoints_still_load(tmp_path: Path) -> None:
    """The folders that this file damages are sound before that."""
    tasks = {
        "text-classification": "text-classification",
        "chat": "text-generation",
        "text-generation": "text-generation",
    }
    assert {name: load(save(name, tmp_path / name)).name for name in tasks} == tasks
