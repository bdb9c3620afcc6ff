"""How byte-level BPE tokenizers cut a text into words before merging, by the names that GGUF files give to it.

GGUF metadata does not hold the regular expressions of a tokenizer.json, only a name ("tokenizer.ggml.pre"). Each name
means a list of expressions applied one after the other, each isolating its matches in what the earlier ones
left. The expressions are those of the models' published tokenizer.json files, as llama.cpp (2025) assigns the names;
syntax is Oniguruma's.
"""

from __future__ import annotations

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE = rf"(?i:{_CONTRACTIONS})"
_SPACES = r"\s+(?!\S)|\s+"

# Radford et al. 2019 (GPT-2); what the library's ByteLevel cuts by itself.
BUILT_IN = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"


def _cl100k(digits: str, contractions: str = _ANY_CASE + "|", punctuation_tail: str = r"[\r\n]*") -> str:
    """Return the family of expressions that began with OpenAI's cl100k; they differ in how many digits make a word."""
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    return rf"{contractions}{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+{punctuation_tail}|\s*[\r\n]+|{_SPACES}"


def _cased(suffix: str, digits: str) -> str:
    """Words split at case changes, as in OpenAI's o200k."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    lead = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{lead}{upper}*{lower}+{suffix}|{lead}{upper}+{lower}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}"


_THREE = r"\p{N}{1,3}"
_LLAMA3 = _cl100k(_THREE)
_QWEN2 = _cl100k(r"\p{N}")
_QWEN35 = (
    rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_KANA_HAN = r"[一-龥\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}"
)
# DeepSeek's first tokenizer lists the cased letters one by one; these are the ones that it leaves out.
_UNLISTED = (
    r"\x{560}-\x{588}\x{10C7}\x{10CD}\x{10D0}-\x{10FF}\x{1C80}-\x{1C8A}\x{2D00}-\x{2D2D}\x{A790}-\x{A7FA}\x{AB30}-\x{AB68}"
    r"\x{10570}-\x{105BC}\x{10D50}-\x{10D85}\x{16E40}-\x{16EDF}\x{1D400}-\x{1D7CB}\x{1DF00}-\x{1DF2A}"
)
_CASED_LETTERS = rf"[[\p{{Lu}}\p{{Ll}}\p{{Lt}}]&&[^{_UNLISTED}]]"
_HAN_HANGUL = r"[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}]+"

_PATTERNS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", BUILT_IN, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (BUILT_IN,),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "qwen35": (_QWEN35,),
    "smollm": (r"\p{N}", BUILT_IN),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", BUILT_IN, r"[0-9][0-9][0-9]"),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?{_CASED_LETTERS}+",
        r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-\x{3002}]+",
        r"\s+$",
        _HAN_HANGUL,
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, r"\p{N}"),
    "deepseek-v3": (_THREE, _KANA_HAN, _DEEPSEEK3),
    "gpt-4o": (_cased(f"{_ANY_CASE}?", _THREE),),
    "tekken": (_cased("", r"\p{N}"),),
    "poro-chat": (_BLOOM,),
    "viking": (_BLOOM, r"\p{N}"),
    "seed-coder": (
        rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|{_SPACES}",
    ),
    "bailingmoe": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|{_SPACES}",
    ),
    "minicpm5": (_THREE, _cl100k(r"\p{N}+")),
    "ufakzeka": (_cl100k(r"\p{N}", contractions=""),),
    "gemma4": (),
}

_SAME_AS = {
    "gpt-2": "phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion "
    "granite-docling exaone4 jina-v1-en jina-v2-code roberta-bpe",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe chatglm-bpe "
    "glm4 glm5",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m",
    "poro-chat": "bloom gpt3-finnish",
    "bailingmoe": "bailingmoe2 llada-moe",
    "gemma4": "granite-embed-multi-311m sarvam-moe",
}
_ALIASES = {alias: name for name, aliases in _SAME_AS.items() for alias in aliases.split()}

# A word that is in the vocabulary is one token, even where the merges would not build it.
_LLAMA = "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken"
IGNORE_MERGES = frozenset(f"{_LLAMA} glm4 glm5 minicpm5 granite-embed-multi-97m".split())
# These begin a text with the bos token unless the file says otherwise.
ADDS_BOS = frozenset(_LLAMA.split())
# SentencePiece-like: spaces become ▁ and tokens are text, not bytes in disguise.
PLAIN_TEXT = frozenset(["gemma4", "granite-embed-multi-311m", "sarvam-moe"])
NAMES = frozenset(_PATTERNS) | frozenset(_ALIASES)


def patterns_for(name: str) -> tuple[str, ...] | None:
    """Return the expressions of a name, or None for a name that is not known."""
    return _PATTERNS.get(_ALIASES.get(name, name))
