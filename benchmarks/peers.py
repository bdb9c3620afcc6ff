"""The other engines: the same random model in the formats that CTranslate2 and llama.cpp read.

CTranslate2: its own converter, with a made-up vocabulary of the right size (it insists on one). llama.cpp: a GGUF file in
fp32 that we write here with the `gguf` package, for the Llama shape only.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

THREADS = 2
# Engine → the packages it needs, by module; `make bench` installs them. onnxruntime runs what onnxscript helped to export.
PACKAGES = {
    "transformers": {"transformers": "transformers"},
    "CTranslate2": {"ctranslate2": "ctranslate2"},
    "llama.cpp": {"llama_cpp": "llama-cpp-python"},
    "faster-whisper": {"faster_whisper": "faster-whisper"},
    "sentence-transformers": {"sentence_transformers": "sentence-transformers"},
    "onnxruntime": {"onnxruntime": "onnxruntime", "onnxscript": "onnxscript", "onnx": "onnx"},
}


def missing(engine: str) -> str | None:
    """What to install for an engine, as a sentence; None if it is all there."""
    absent = [package for module, package in PACKAGES[engine].items() if find_spec(module) is None]
    return f"not installed (pip install {' '.join(absent)})" if absent else None


def dummy_tokenizer(folder: Path, size: int) -> None:
    """A tokenizer of `size` words "t0", "t1", ...: what CTranslate2's converter wants to see."""
    import transformers
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0"))
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="t0", bos_token="t1", eos_token="t2", pad_token="t0"
    )
    made.save_pretrained(folder)


def ctranslate2_model(folder: Path) -> Any:
    """A Generator (or Translator for an encoder-decoder) in fp32."""
    import json

    import ctranslate2

    config = json.loads((folder / "config.json").read_text())
    target = folder / "ct2"
    if not target.exists():
        dummy_tokenizer(folder, config["vocab_size"])
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(target))
    kind = ctranslate2.Translator if config.get("is_encoder_decoder") else ctranslate2.Generator
    return kind(str(target), device="cpu", compute_type="float32", intra_threads=THREADS, inter_threads=1)


def ctranslate2_run(
    engine: Any, ids: list[list[int]], new: int, beams: int = 1, start: int | None = None
) -> Callable[[], Any]:
    """A call that makes exactly `new` tokens from each row of ids."""
    rows = [[f"t{i}" for i in row] for row in ids]
    if start is not None:
        prefix = [[f"t{start}"] for _ in rows]
        return lambda: engine.translate_batch(
            rows, target_prefix=prefix, beam_size=beams, max_decoding_length=new + 1, min_decoding_length=new + 1
        )
    return lambda: engine.generate_batch(
        rows, beam_size=beams, max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False
    )


def llama_cpp_run(folder: Path, ids: list[int], new: int) -> Callable[[], Any]:
    """llama.cpp in fp32 on a Llama-shaped folder."""
    import llama_cpp

    path = folder / "f32.gguf"
    if not path.exists():
        write_llama_gguf(folder, path)
    engine = llama_cpp.Llama(
        str(path),
        n_ctx=max(1280, len(ids) + new + 16),
        n_threads=THREADS,
        n_threads_batch=THREADS,
        verbose=False,
        logits_all=False,
    )

    def run() -> None:
        engine.reset()
        engine.eval(ids)
        for _ in range(new - 1):
            engine.eval([engine.sample(temp=0.0)])
        engine.sample(temp=0.0)

    return run


def write_llama_gguf(folder: Path, path: Path) -> None:
    """An fp32 GGUF of a Llama folder, with rows of q and k in the order of llama.cpp's interleaved rotation."""
    import json

    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(str(folder / "model.safetensors"))
    size, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads, vocab = config["num_key_value_heads"], config["vocab_size"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(size)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(size // heads)
    writer.add_rope_freq_base((config.get("rope_parameters") or config).get("rope_theta", 10000.0))
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(vocab)])
    writer.add_token_types([1] * vocab)
    writer.add_token_merges(["t 1"])

    def turned(weight: np.ndarray, count: int) -> np.ndarray:
        return weight.reshape(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for layer in range(config["num_hidden_layers"]):
        for theirs, name in names.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if name in ("attn_q", "attn_k"):
                weight = turned(weight, heads if name == "attn_q" else kv_heads)
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
