"""Record what an older reference release generates in the modes that later ones have given up.

Contrastive search, DoLa and diverse (group) beam search left transformers after 4.49 (for code that is fetched from a
hub). Run this in an environment of its own, and commit what it writes:

    python -m venv /tmp/old && /tmp/old/bin/pip install transformers==4.49.0 torch numpy safetensors
    /tmp/old/bin/python tests/support/record_old_generation.py tests/generation/vectors

The models are tiny and random; their weights are not saved: `fill` makes the same numbers again in any release, by the
name of each parameter and without torch's random numbers.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

VOCABULARY = 61
IDS: dict[str, Any] = dict(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LLAMA = dict(
    IDS,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=37,
    max_position_embeddings=128,
    attn_implementation="eager",
)
BART = dict(
    IDS,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=37,
    decoder_ffn_dim=37,
    max_position_embeddings=64,
    decoder_start_token_id=2,
    forced_eos_token_id=None,
    attn_implementation="eager",
)
GPT2 = dict(IDS, n_embd=32, n_layer=4, n_head=4, n_positions=64, attn_implementation="eager")
T5 = dict(
    IDS, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0, attn_implementation="eager"
)
# name → (config class, model class, settings)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "llama": ("LlamaConfig", "LlamaForCausalLM", dict(LLAMA, num_hidden_layers=6, tie_word_embeddings=False)),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", dict(LLAMA, num_hidden_layers=5, tie_word_embeddings=True)),
    "llama-small": ("LlamaConfig", "LlamaForCausalLM", dict(LLAMA, num_hidden_layers=2, tie_word_embeddings=True)),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
}
DECODERS, ENCODER_DECODERS = ("gpt2", "llama"), ("bart", "t5")
CONTRASTIVE: list[dict[str, Any]] = [
    {"penalty_alpha": 0.6, "top_k": 4},
    {"penalty_alpha": 0.3, "top_k": 7},
    {"penalty_alpha": 0.85, "top_k": 3, "repetition_penalty": 1.2, "min_new_tokens": 8},
]
DOLA: list[dict[str, Any]] = [
    {"dola_layers": "low"},
    {"dola_layers": "high"},
    {"dola_layers": [1], "repetition_penalty": 1.2},
]
ENDS = [2, 7, 14, 17, 19, 26, 33, 37, 45, 55]  # many, so that answers end and compete
GROUPS: list[dict[str, Any]] = [
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 2.5, "length_penalty": 0.5, "num_return_sequences": 4},
    {"num_beams": 4, "num_beam_groups": 4, "diversity_penalty": 1.0, "early_stopping": True, "num_return_sequences": 4},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "early_stopping": "never", "length_penalty": 2.0},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "eos_token_id": ENDS, "num_return_sequences": 4},
    {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 1.5, "eos_token_id": ENDS, "length_penalty": 0.0},
    {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.3, "eos_token_id": ENDS, "early_stopping": True},
    {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 0.5,
        "eos_token_id": ENDS,
        "early_stopping": "never",
        "length_penalty": 1.5,
        "num_return_sequences": 3,
    },
]


def fill(model: Any, seed: int, std: float = 0.3) -> None:
    """Give every parameter its own numbers; norms stay near 1, and tied parameters are filled once."""
    done: set[int] = set()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if id(parameter) not in done:
                done.add(id(parameter))
                random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
                values = torch.from_numpy(random.standard_normal(tuple(parameter.shape)).astype(np.float32))
                near_one = parameter.dim() == 1 and name.endswith("weight")
                parameter.copy_(1 + 0.1 * values if near_one else std * values)


def make_model(name: str, seed: int) -> Any:
    """The reference's model of that name, in evaluation mode."""
    import transformers

    config_class, model_class, settings = MODELS[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
    fill(model, seed)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.zero_()
    return model.eval()


def make_prompt(length: int, seed: int) -> list[int]:
    random = np.random.Generator(np.random.PCG64([seed, 99]))
    ids: list[int] = random.integers(5, VOCABULARY, length).tolist()
    return ids


def record(names: tuple[str, ...], cases: list[dict[str, Any]], count: int, seeds: range) -> list[dict[str, Any]]:
    """Every case on every model: what went in, and the new tokens of each returned row."""
    found = []
    for name in names:
        for seed in seeds:
            model = make_model(name, seed)
            for number, options in enumerate(cases):
                prompt = make_prompt(3 + 4 * number, seed)
                with torch.no_grad():
                    out = model.generate(
                        torch.tensor([prompt]),
                        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                        max_new_tokens=count,
                        do_sample=False,
                        return_dict_in_generate=True,
                        output_scores=True,
                        **options,
                    )
                start = 1 if model.config.is_encoder_decoder else len(prompt)
                case = {"model": name, "seed": seed, "prompt": prompt, "options": options, "count": count}
                case["tokens"] = [row[start:] for row in out.sequences.tolist()]
                if getattr(out, "sequences_scores", None) is not None:
                    case["scores"] = out.sequences_scores.tolist()
                found.append(case)
    return found


def main(folder: Path) -> None:
    import transformers

    recorded = {
        "contrastive": record(DECODERS + ENCODER_DECODERS, CONTRASTIVE, 20, range(2)),
        "dola": record(("gpt2", "llama", "llama-tied", "llama-small"), DOLA, 20, range(2)),
        "diverse_beam": record(DECODERS + ENCODER_DECODERS, GROUPS, 12, range(4)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, cases in recorded.items():
        about = {"transformers": transformers.__version__, "torch": torch.__version__}
        lines = ",\n".join(json.dumps(case) for case in cases)
        (folder / f"{name}.json").write_text(f'{{"about": {json.dumps(about)}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
