"""Grammars against brute force: a token is allowed if and only if some text of the language goes on with it."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plainformer.errors import UsageError
from plainformer.families import CONVENTIONS
from plainformer.generation.constraints.grammar import Grammar, Vocabulary
from plainformer.generation.constraints.healing import Heal, TokenIndex, heal
from plainformer.generation.processors.context import Context
from plainformer.inputs.text.token_bytes import token_bytes
from plainformer.inputs.text.tokenizer import Tokenizer
from tests.support.tokenizers import byte_level, minilm, sentencepiece, smollm2, unigram
from tests.support.vocabularies import save_bytes

EOS, PAD, CALL = 0, 1, 2
LETTERS = "abé"
# Letters by their bytes, some longer tokens, and two that write the same.
SMALL = [
    b"</s>",
    b"<pad>",
    b"<call>",
    b"a",
    b"b",
    b"\xc3",
    b"\xa9",
    "é".encode(),
    b"ab",
    b"ba",
    b"aa",
    b"a",
    b"",
    b" a",
    b" ",
]


@lru_cache
def small() -> Vocabulary:
    return Vocabulary(SMALL, [EOS], [PAD, CALL])


@lru_cache
def vocabulary_of(make: Callable[[], Tokenizer]) -> tuple[Vocabulary, str]:
    """The vocabulary of a tokenizer, and the text that a first token loses."""
    table, tokenizer = token_bytes(make()), make()
    end = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.sep_id
    assert end is not None
    return Vocabulary(table.tokens, [end], table.special_ids), table.lead


def step(grammar: Grammar, rows: Sequence[Sequence[int]], size: int, prompt: Sequence[int] = (9, 9)) -> list[set[int]]:
    """The ids that a step allows for each row."""
    ids = torch.tensor([[*prompt, *row] for row in rows])
    logits_RV = torch.randn(len(rows), size)
    kept_RV = logits_RV.clone()
    changed_RV = grammar(logits_RV, Context(ids, len(prompt)))
    assert torch.equal(logits_RV, kept_RV)
    allowed_RV = changed_RV > float("-inf")
    assert torch.equal(changed_RV[allowed_RV], logits_RV[allowed_RV])
    return [set(row.nonzero().flatten().tolist()) for row in allowed_RV]


def expected(language: Iterable[str], tokens: Sequence[bytes], row: Sequence[int], special: Iterable[int]) -> set[int]:
    """By brute force over all texts and tokens. Special tokens in the row are passed over."""
    texts, hidden = {text.encode() for text in language}, set(special)
    before = b"".join(tokens[i] for i in row if i not in hidden)
    going_on = {
        i for i, t in enumerate(tokens) if t and i not in hidden and any(x.startswith(before + t) for x in texts)
    }
    return going_on | ({EOS} if before in texts else set())


def check_all_rows(grammar: Grammar, language: Iterable[str], depth: int = 3) -> None:
    """Every row of up to `depth` allowed tokens, a step of them at a time."""
    rows: list[list[int]] = [[]]
    for _ in range(depth + 1):
        found = step(grammar, rows, len(SMALL))
        for row, allowed in zip(rows, found, strict=True):
            assert allowed == expected(language, SMALL, row, [EOS, PAD, CALL]), row
        rows = [[*row, i] for row, allowed in zip(rows, found, strict=True) for i in sorted(allowed) if i != EOS][:60]
        if not rows:
            return


TEXTS = st.text(st.sampled_from(LETTERS), max_size=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_choices(texts: list[str]) -> None:
    check_all_rows(Grammar.choices(texts, small()), texts)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_a_lead_is_written_first(texts: list[str]) -> None:
    check_all_rows(Grammar.choices(texts, small(), lead=" "), [" " + text for text in texts])


Expression = tuple[str, set[str]]  # a regular expression, and all that it matches


def joined(parts: list[Expression]) -> Expression:
    pattern = "".join(f"(?:{pattern})" for pattern, _ in parts)
    return pattern, {"".join(texts) for texts in product(*(texts for _, texts in parts))}


def repeated(inner: Expression, least: int, more: int) -> Expression:
    counts = range(least, least + more + 1)
    texts = {"".join(texts) for count in counts for texts in product(inner[1], repeat=count)}
    return f"(?:{inner[0]}){{{least},{least + more}}}", texts


EXPRESSIONS: st.SearchStrategy[Expression] = st.recursive(
    st.one_of(TEXTS.map(lambda text: (text, {text})), st.just((f"[{LETTERS}]", set(LETTERS)))),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(joined),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: ("|".join(f"(?:{p})" for p, _ in parts), set().union(*(texts for _, texts in parts)))
        ),
        st.tuples(inner, st.integers(0, 1), st.integers(0, 2)).map(lambda given: repeated(*given)),
    ),
    max_leaves=4,
).filter(lambda expression: len(expression[1]) < 300)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(EXPRESSIONS)
def test_expressions(expression: Expression) -> None:
    pattern, texts = expression
    assert all(re.fullmatch(pattern, text) for text in texts)
    check_all_rows(Grammar.regex(pattern, small()), texts)


def test_lark() -> None:
    grammar = Grammar.lark('start: pair+\npair: "a" pair "b" | "é"', small())
    nested = ["a" * depth + "é" + "b" * depth for depth in range(8)]
    texts = {"".join(parts) for count in range(1, 5) for parts in product(nested, repeat=count)}
    check_all_rows(grammar, texts, depth=2)


def test_special_tokens_of_a_lark_grammar() -> None:
    # "<" begins a token's name in a grammar; llguidance looks the name up among the special tokens.
    grammar = Grammar.lark('start: "a" <[2]> "b"', small())
    assert step(grammar, [[3]], len(SMALL)) == [{CALL}]
    assert step(grammar, [[3, CALL]], len(SMALL)) == [{4}]
    assert step(grammar, [[3, CALL, 4]], len(SMALL)) == [{EOS}]


@pytest.mark.parametrize("pattern", ["", "()", "a{0}"])
def test_the_empty_text_ends_at_once(pattern: str) -> None:
    assert step(Grammar.regex(pattern, small()), [[]], len(SMALL)) == [{EOS}]
    assert step(Grammar.choices([""], small()), [[]], len(SMALL)) == [{EOS}]


def test_rows_that_ended_left_or_have_special_tokens() -> None:
    grammar = Grammar.regex("ab*", small())
    many = [[EOS, EOS], [3, EOS], [EOS, PAD], [4, 4], [99, 3], [PAD, 3], [PAD, CALL]]
    goes_on, begins = {4, EOS}, {3, 8, 11}
    assert step(grammar, many, len(SMALL)) == [{EOS}] * 5 + [goes_on, begins]


def test_end_tokens_and_sizes() -> None:
    two = Vocabulary(SMALL, [EOS, 20], [PAD, CALL])
    grammar = Grammar.regex("a", two)
    assert step(grammar, [[3]], 32) == [{EOS, 20}]  # beyond the tokenizer: padding of the head
    assert step(grammar, [[3]], 16) == [{EOS}]  # a head smaller than the vocabulary
    assert step(grammar, [[]], 32) == [{3, 11}]
    half = grammar(torch.zeros(1, 32, dtype=torch.bfloat16), Context(torch.tensor([[9]]), 1))
    assert half.dtype == torch.bfloat16 and (half == 0).sum() == 2


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_rows_may_be_reordered_shared_and_dropped(chance: random.Random) -> None:
    pattern = "(a|bé)+ ?|é{2,}"
    grammar = Grammar.regex(pattern, small())
    rows: list[list[int]] = [[] for _ in range(3)]
    for _ in range(8):
        together = step(grammar, rows, len(SMALL))
        alone = [step(Grammar.regex(pattern, small()), [row], len(SMALL))[0] for row in rows]
        assert together == alone
        following = [[*row, i] for row, allowed in zip(rows, together, strict=True) for i in sorted(allowed)]
        rows = chance.choices(following, k=chance.randint(1, 6))


def test_memory_stays_bounded() -> None:
    grammar = Grammar.regex("a*", small())
    row: list[int] = []
    for _ in range(300):
        step(grammar, [row] * 3, len(SMALL))
        row = [*row, 3]
    assert len(grammar._states) <= 64
    assert step(grammar, [row[:100]], len(SMALL)) == [{EOS, 3, 10, 11}]  # forgotten: read again


# ---- tokenizers -------------------------------------------------------------------------------------------------------


def written(grammar: Grammar, size: int, ends: Iterable[int], chance: random.Random, most: int = 300) -> list[int]:
    """A random row that the grammar allows, without its end token. The end is likelier than anything else."""
    row: list[int] = []
    for _ in range(most):
        (allowed,) = step(grammar, [row], size)
        if stops := allowed & set(ends):
            if len(allowed) == len(stops) or chance.random() < 0.3:
                return row
            allowed -= stops
        row = [*row, chance.choice(sorted(allowed))]
    raise AssertionError("no end")


def tiny_bytes() -> Tokenizer:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        save_bytes(Path(folder))
        return Tokenizer.from_folder(Path(folder), {"model_type": "gpt2"}, CONVENTIONS)


TOKENIZERS = [byte_level, sentencepiece, unigram, minilm, smollm2, tiny_bytes]


@pytest.mark.parametrize("make", TOKENIZERS)
def test_every_token_of_a_tokenizer(make: Callable[[], Tokenizer]) -> None:
    (vocabulary, lead), tokenizer = vocabulary_of(make), make()
    words = ["the", "world", "the world", "two words", "train"]
    grammar, chance = Grammar.choices(words, vocabulary, lead=lead), random.Random(0)
    texts = [(lead + word).encode() for word in words]
    for _ in range(10):
        row: list[int] = []
        while True:
            before = b"".join(vocabulary.tokens[i] for i in row)
            (allowed,) = step(grammar, [row], vocabulary.size + 3)
            brute = {
                i
                for i, token in enumerate(vocabulary.tokens)
                if token and i not in vocabulary.special_ids and any(t.startswith(before + token) for t in texts)
            }
            assert allowed == brute | (set(vocabulary.eos_ids) if before in texts else set())
            if not brute:
                break
            row.append(chance.choice(sorted(brute)))
        assert tokenizer.decode(row) in words


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("pattern", [r"(the|token){1,3}( [a-z]{1,4})?", r"[a-z]{2,9}|x", "(word )*(s|language)"])
def test_random_texts_match_the_expression(make: Callable[[], Tokenizer], pattern: str) -> None:
    (vocabulary, lead), tokenizer, chance = vocabulary_of(make), make(), random.Random(1)
    grammar = Grammar.regex(pattern, vocabulary, lead=lead)
    for _ in range(10):
        text = tokenizer.decode(written(grammar, vocabulary.size, vocabulary.eos_ids, chance))
        assert re.fullmatch(pattern, text), text


def test_characters_split_over_tokens() -> None:
    for make in (byte_level, sentencepiece, tiny_bytes):
        (vocabulary, lead), tokenizer, chance = vocabulary_of(make), make(), random.Random(2)
        grammar = Grammar.regex("[日本😀é☃]{1,6}", vocabulary, lead=lead)
        for _ in range(20):
            text = tokenizer.decode(written(grammar, vocabulary.size, vocabulary.eos_ids, chance))
            assert re.fullmatch("[日本😀é☃]{1,6}", text), text


# ---- JSON -------------------------------------------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["x", 'é"\\', None, 1.5]}, "maxItems": 3},
        "tree": {"$ref": "#/$defs/tree"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {
        "tree": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}]}
    },
}


def is_tree(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) <= 2 and all(map(is_tree, value)))


def is_person(value: Any) -> bool:
    return (
        {"name", "age"} <= set(value) <= set(PERSON["properties"])  # type: ignore[call-overload]
        and isinstance(value["name"], str)
        and len(value["name"]) <= 8
        and type(value["age"]) is int
        and 0 <= value["age"] <= 130
        and len(value.get("tags", [])) <= 3
        and all(tag in ("x", 'é"\\', None, 1.5) for tag in value.get("tags", []))
        and is_tree(value.get("tree"))
    )


SCHEMAS: list[tuple[Any, Callable[[Any], bool]]] = [
    (PERSON, is_person),
    ({"enum": ["a", 1, None, {"b": [True]}]}, lambda value: value in ("a", 1, None, {"b": [True]})),
    ({"type": "string", "pattern": "^[0-9]{4}-x$"}, lambda value: re.fullmatch("[0-9]{4}-x", value) is not None),
    ({"type": "number", "minimum": -2, "maximum": 7.5}, lambda value: -2 <= value <= 7.5),
    ('{"const": [1, {"a": "\\u00e9"}]}', lambda value: value == [1, {"a": "é"}]),
]


@pytest.mark.parametrize("make", [byte_level, sentencepiece, smollm2, tiny_bytes])
@pytest.mark.parametrize(("schema", "fits"), SCHEMAS)
def test_random_json_fits_its_schema(make: Callable[[], Tokenizer], schema: Any, fits: Callable[[Any], bool]) -> None:
    (vocabulary, lead), tokenizer, chance = vocabulary_of(make), make(), random.Random(3)
    grammar = Grammar.json_schema(schema, vocabulary, lead=lead)
    for _ in range(5):
        text = tokenizer.decode(written(grammar, vocabulary.size, vocabulary.eos_ids, chance, most=2000))
        value = json.loads(text)
        assert fits(value), text
        if importlib.util.find_spec("jsonschema") is not None:
            import jsonschema  # type: ignore[import-untyped, unused-ignore]

            jsonschema.validate(value, json.loads(schema) if isinstance(schema, str) else schema)


def test_json_by_brute_force() -> None:
    vocabulary, _ = vocabulary_of(tiny_bytes)
    schema = {"enum": ["ab", [1], [12], None], "x-guidance": {"whitespace_flexible": False, "item_separator": ", "}}
    grammar = Grammar.json_schema(schema, vocabulary)
    texts = [b'"ab"', b"[1]", b"[12]", b"null"]
    rows: list[list[int]] = [[]]
    while rows:
        found = step(grammar, rows, vocabulary.size)
        for row, allowed in zip(rows, found, strict=True):
            before = b"".join(vocabulary.tokens[i] for i in row)
            following = {text[len(before) : len(before) + 1] for text in texts if text.startswith(before)} - {b""}
            plain = {vocabulary.tokens[i] for i in allowed - set(vocabulary.eos_ids)}
            assert plain == following and bool(allowed & set(vocabulary.eos_ids)) == (before in texts)
        rows = [[*row, i] for row, allowed in zip(rows, found, strict=True) for i in allowed - set(vocabulary.eos_ids)]


def test_properties_keep_their_order_and_spaces_end() -> None:
    vocabulary, _ = vocabulary_of(tiny_bytes)
    place = {token: i for i, token in enumerate(vocabulary.tokens)}
    schema = {"properties": {"b": {"type": "null"}, "a": {"type": "null"}}, "required": ["a", "b"]}
    grammar = Grammar.json_schema(schema, vocabulary)
    row = [place[bytes([byte])] for byte in b'{"']
    assert step(grammar, [row], vocabulary.size) == [{place[b"b"]}]
    spaces = [*row[:1], *[place[b" "]] * 40]
    assert step(grammar, [spaces], vocabulary.size) == [{place[b'"']}]
    anything: Any
    for anything in (True, {}, "true"):
        assert place[b"["] in step(Grammar.json_schema(anything, vocabulary), [[]], vocabulary.size)[0]


# ---- together with token healing --------------------------------------------------------------------------------------


def test_a_healed_prompt_is_completed_first() -> None:
    vocabulary, _ = vocabulary_of(smollm2)
    tokenizer = smollm2()
    index = TokenIndex(vocabulary.tokens, vocabulary.special_ids)
    prompts = [tokenizer.encode(text).input_ids for text in ("The sky is ", "Grass is gre", "Answer: yes")]
    healed = [heal(ids, index) for ids in prompts]
    assert [taken for _, taken in healed[:2]] == [b" ", b" gre"]
    healing = Heal(index, healed)
    grammar = Grammar.regex("(en|blue)", vocabulary, healing=healing)
    longest = max(len(ids) for ids, _ in healed)
    chance = random.Random(4)
    rows: list[list[int]] = [[] for _ in healed]
    for _ in range(12):
        width = longest + len(rows[0])
        ids, real = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
        for place, ((prompt, _), row) in enumerate(zip(healed, rows, strict=True)):
            ids[place, width - len(prompt) - len(row) :] = torch.tensor([*prompt, *row])
            real[place, width - len(prompt) - len(row) :] = True
        context = Context(ids, longest, real)
        logits_RV: Tensor = torch.zeros(len(rows), vocabulary.size)
        for processor in (healing, grammar):
            logits_RV = processor(logits_RV, context)
        choices = [(row > float("-inf")).nonzero().flatten().tolist() for row in logits_RV]
        rows = [[*row, chance.choice(ids)] for row, ids in zip(rows, choices, strict=True)]
    for text, (prompt, _), row in zip(("The sky is ", "Grass is gre", "Answer: yes"), healed, rows, strict=True):
        whole = tokenizer.decode([*prompt, *row], skip_special_tokens=True)
        assert re.fullmatch(re.escape(text) + "(en|blue)", whole), whole


# ---- what cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: Grammar.choices([], v), "not a list"),
        (lambda v: Grammar.choices("yes", v), "not a list"),
        (lambda v: Grammar.choices(["a", 3], v), "choice 3"),
        (lambda v: Grammar.choices(["a", "xyz"], v), "cannot write the choice 'xyz'"),
        (lambda v: Grammar.choices(["a\ud800"], v), "surrogate"),
        (lambda v: Grammar.regex("(a", v), "unclosed group"),
        (lambda v: Grammar.regex("(?=a)b", v), "look-around"),
        (lambda v: Grammar.regex(r"(a)\1", v), "backreferences"),
        (lambda v: Grammar.regex(3, v), "int"),
        (lambda v: Grammar.regex(r"[^\s\S]", v), "no token"),
        (lambda v: Grammar.regex("x", v), "no token"),
        (lambda v: Grammar.regex("a" * 300_000, v), "300000 characters"),
        (lambda v: Grammar.json_schema("{", v), "not valid JSON"),
        (lambda v: Grammar.json_schema("[]", v), "is an object"),
        (lambda v: Grammar.json_schema(False, v), "allows nothing"),
        (lambda v: Grammar.json_schema({"a": object}, v), "JSON"),
        (lambda v: Grammar.json_schema({"type": "strin"}, v), "Invalid type"),
        (lambda v: Grammar.json_schema({"not": {"type": "null"}}, v), "Unimplemented"),
        (lambda v: Grammar.json_schema({"enum": []}, v), "Unsatisfiable"),
        (lambda v: Grammar.json_schema({"$ref": "http://localhost/x"}, v), "cannot be used"),
        (lambda v: Grammar.json_schema('{"items":' * 5000 + "{}" + "}" * 5000, v), "recursion"),
        (lambda v: Grammar.lark("start: (", v), "Expected"),
        (lambda v: Grammar.lark('begin: "a"', v), "no start"),
        (lambda v: Grammar.lark('start: "a" <|nothing|>', v), "special token"),
        (lambda v: Vocabulary(SMALL, []), "end"),
    ],
)
def test_what_cannot_work_says_why(make: Callable[[Vocabulary], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(small())


def test_definitions_that_refer_to_each_other_do_not_end_the_process() -> None:
    count = 3000
    chain: dict[str, Any] = {f"d{i}": {"properties": {"p": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(count)}
    vocabulary, _ = vocabulary_of(tiny_bytes)
    schema = {"$ref": "#/$defs/d0", "$defs": {**chain, f"d{count}": {"type": "null"}}}
    assert len(step(Grammar.json_schema(schema, vocabulary), [[]], vocabulary.size)[0]) > 1
    rules = "\n".join(f"r{i}: r{i + 1}" for i in range(10_000))
    assert step(Grammar.lark(f'start: r0\n{rules}\nr10000: "a"', small()), [[]], len(SMALL)) == [{3, 11}]


def test_a_text_that_the_tokens_cannot_finish() -> None:
    grammar = Grammar.regex("a(xy)", small())
    with pytest.raises(UsageError, match="no token of this model continues"):
        step(grammar, [[3]], len(SMALL))


def test_a_choice_that_only_its_lead_makes_writable() -> None:
    vocabulary = Vocabulary([b"</s>", b" yes", b"no"], [EOS])
    assert step(Grammar.choices(["yes"], vocabulary, lead=" "), [[]], 3) == [{1}]
    with pytest.raises(UsageError, match="cannot write the choice 'no'"):
        Grammar.choices(["yes", "no"], vocabulary, lead=" ")


def test_many_choices() -> None:
    words = [f"{n:05d}" for n in range(20_000)]
    vocabulary, _ = vocabulary_of(tiny_bytes)
    assert len(step(Grammar.choices(words, vocabulary), [[]], vocabulary.size)[0]) == 2
    odd = ["a.b", "[x]", "\n\t\0\x7f\u2028", "\\d+", "(", "|", "/", '"', "😀"]
    for word in odd:
        grammar = Grammar.choices([word, "zzz"], vocabulary, lead=word)
        row = [vocabulary.tokens.index(bytes([byte])) for byte in (word + word).encode()]
        assert step(grammar, [row], vocabulary.size) == [set(vocabulary.eos_ids)]
