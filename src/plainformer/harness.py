"""Models of this library in lm-eval, EleutherAI's evaluation harness (extra `harness`).

    python -m plainformer.harness --model plainformer --model_args pretrained=REF --tasks arc_easy     (lm-eval's own options)

    import plainformer.harness                                     # registers "plainformer"
    lm_eval.simple_evaluate("plainformer", model_args="pretrained=REF,batch_size=16", tasks=["arc_easy"])

Answers are those of lm-eval's backend for transformers, but for one thing: where a tokenizer puts a beginning-of-sequence token
before every text, that backend also asks, for a perplexity, how likely this token is after itself. Here it is there once, as
what the first token is predicted from.

Shapes: B batch, T positions, D hidden size, V vocabulary, N tokens of a continuation.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from plainformer.errors import MissingDependencyError, UsageError, opt, to_install
from plainformer.generation.constraints.stop_strings import StopStrings
from plainformer.generation.search import generate
from plainformer.loading import load_model, load_tokenizer

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise MissingDependencyError(f"lm-eval is needed for this: {error}", to_install("harness")) from None

log = logging.getLogger(__name__)
BATCH_SIZE, LONGEST, NEW_TOKENS = 8, 2048, 256  # the last two: lm-eval's, where nothing is said
_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
Request = tuple[Any, list[int], list[int]]  # whatever it was, ids of the context, ids of the continuation


@register_model("plainformer")
class PlainformerLM(TemplateLM):  # type: ignore[misc]
    """A decoder of this library, as lm-eval asks for it: log-likelihoods of continuations and of documents, and answers.

    Args:
        pretrained: a local folder, a `.gguf` file, a bundled name or a Hub id.
        batch_size: rows at a time; "auto" is 8. Results do not depend on it.
        max_length: tokens of context and continuation; default: the model's own.
        dtype, device, revision, adapter, quantize: see `load_model`.
        max_batch_size: lm-eval passes it on; nothing depends on it.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        **load: Any,
    ) -> None:
        super().__init__()
        self.batch_size = _size(batch_size)
        self.model = load_model(pretrained, **load)
        if self.model.config.head.kind != "causal_lm":
            what = f"{pretrained} has a {self.model.config.head.kind!r} head, which predicts no next token"
            raise UsageError(what, "give a causal language model")
        where = {name: load[name] for name in ("revision", "token") if name in load}
        self.tokenizer = load_tokenizer(pretrained, **where)
        self.pretrained = str(pretrained)
        self.max_length = self._longest(max_length)

    def _longest(self, asked: int | None) -> int:
        """Return how many tokens the model reads at a time."""
        config = self.model.config
        most = config.main_stack.max_positions
        if asked is not None and (asked < 2 or (most is not None and asked > most)):
            raise UsageError(
                f"{opt('max_length', asked)} of {most or 'any number of'} positions", "give 2 or more of them"
            )
        return int(asked or most or config.trained_positions or self.tokenizer.max_length or LONGEST)

    # ---- text to ids

    @property
    def tokenizer_name(self) -> str:
        """Return what lm-eval's cache of prompts goes by."""
        return self.pretrained.replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        """Return the id that ends a text."""
        found = self.tokenizer.eos_id if self.tokenizer.eos_id is not None else self.tokenizer.bos_id
        if found is None:
            raise UsageError("the tokenizer has neither an end nor a beginning of a text", "give another model")
        return int(found)

    @property
    def prefix_token_id(self) -> int:
        """Return the id that the first token of a text is predicted from."""
        return int(self.tokenizer.bos_id) if self.tokenizer.bos_id is not None else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text; with special tokens as the tokenizer adds them, unless the text begins with them."""
        if add_special_tokens is None:
            begins = self.tokenizer.id_to_token(self.prefix_token_id)
            add_special_tokens = not (begins and string.startswith(begins))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens, max_length=None).input_ids)

    def tok_decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return messages as the model's template writes them."""
        return str(self.tokenizer.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt))

    # ---- log-likelihoods: `loglikelihood` is lm-eval's own, on top of these

    def _loglikelihood_tokens(self, requests: list[Request], **_: Any) -> list[tuple[float, bool]]:
        """Return, of each continuation, the log-probability after its context, and whether it is what greedy search gives."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        found: dict[int, tuple[float, bool]] = {}
        for part in _batched(order, self.batch_size):
            found.update(zip(part, self._scored([requests[i] for i in part]), strict=True))
            for i in part:
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
        return [found[i] for i in range(len(requests))]

    @torch.inference_mode()
    def _scored(self, requests: list[Request]) -> Iterator[tuple[float, bool]]:
        rows = [(context + continuation)[-self.max_length - 1 :] for _, context, continuation in requests]
        for (_, context, continuation), row in zip(requests, rows, strict=True):
            if len(continuation) > self.max_length:
                what = f"a continuation of {len(continuation):,} tokens is longer than the {self.max_length:,} that are read"
                raise UsageError(what, f"give a larger {opt('max_length')}, or leave this task out")
            if len(row) < len(context) + len(continuation):
                log.warning("a context of %d tokens is cut on the left", len(context))
        ids_BT, mask_BT = self._padded([row[:-1] for row in rows], left=False)
        states_BTD = self.model.states(ids_BT, mask_BT).last_hidden_state
        results = []
        for (_, _, continuation), row, states_TD in zip(requests, rows, states_BTD, strict=True):
            first = len(row) - 1 - len(continuation)
            logits_NV = self.model.score(states_TD[first : len(row) - 1]).float()
            labels_N = torch.tensor(continuation, device=logits_NV.device)
            chosen_N = logits_NV.log_softmax(-1).gather(-1, labels_N[:, None])[:, 0]
            results.append((float(chosen_N.sum()), bool((logits_NV.argmax(-1) == labels_N).all())))
        return iter(results)

    def _padded(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor | None]:
        """Return rows as one tensor, (B, T), and which of it is real; None where all is."""
        width = max(map(len, rows))
        ids_BT, mask_BT = (
            torch.zeros(len(rows), width, dtype=torch.long),
            torch.zeros(len(rows), width, dtype=torch.long),
        )
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids_BT[i, place], mask_BT[i, place] = torch.tensor(row), 1
        device = self.model.device
        return ids_BT.to(device), None if bool(mask_BT.all()) else mask_BT.to(device)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each document: every token once, in windows of `max_length`.

        The first is predicted from the beginning-of-sequence token; the last window reaches back as far as it can.
        """
        windows: list[Request] = []
        counts = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            if ids[:1] == [self.prefix_token_id]:
                ids = ids[1:]  # a text that is written with it
            own = get_rolling_token_windows(
                token_list=ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            own = [(None, *make_disjoint_window(window)) for window in own]
            windows += own
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows))
        sums = [sum(score for score, _ in itertools.islice(scores, count)) for count in counts]
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return [float(total) for total in sums]

    # ---- answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each prompt, up to a stop string, the end of the text, or a number of tokens."""
        asked = [request.args for request in requests]
        alike: dict[str, list[int]] = {}
        for i, (_, options) in enumerate(asked):
            alike.setdefault(json.dumps(options, sort_keys=True, default=str), []).append(i)
        found: dict[int, str] = {}
        for places in alike.values():
            places.sort(key=lambda i: -len(asked[i][0]))
            for part in _batched(places, self.batch_size):
                answers = self._answers([asked[i][0] for i in part], asked[part[0]][1])
                found.update(zip(part, answers, strict=True))
                for i in part:
                    self.cache_hook.add_partial("generate_until", asked[i], found[i])
        return [found[i] for i in range(len(asked))]

    def _answers(self, prompts: Sequence[str], given: dict[str, Any]) -> Iterator[str]:
        """Return the answers to prompts that go by the same options."""
        options = dict(normalize_gen_kwargs(given, NEW_TOKENS))
        end = self.tokenizer.id_to_token(self.eot_token_id)
        stops = [stop for stop in handle_stop_sequences(options.pop("until", None), eos=end) if stop]
        new = options.pop("max_gen_toks")
        if new >= self.max_length:
            what = f"{opt('max_gen_toks', new)} leaves no room for a prompt: {self.max_length:,} tokens are read"
            raise UsageError(what, "ask for fewer")
        if not options.get("do_sample"):
            options = {name: value for name, value in options.items() if name not in _OF_SAMPLING}
        rows = [self.tok_encode(prompt) or [self.prefix_token_id] for prompt in prompts]
        if max(map(len, rows)) > self.max_length - new:
            log.warning("prompts of up to %d tokens are cut on the left", max(map(len, rows)))
        ids_BT, mask_BT = self._padded([row[new - self.max_length :] for row in rows], left=True)
        stop = StopStrings(stops, self.tok_decode) if stops else None
        found = generate(self.model, ids_BT, mask_BT, max_new_tokens=new, stop=stop, **options)
        return (postprocess_generated_text(self.tok_decode(row), stops, None) for row in found.token_ids)


def _size(asked: int | str | None) -> int:
    """Return the rows of a batch: lm-eval's option is a number, a text with one, or "auto"."""
    text = str(asked or BATCH_SIZE)
    if text.partition(":")[0] == "auto":
        return BATCH_SIZE
    if not text.isdecimal() or not int(text):
        raise UsageError(f"{opt('batch_size', asked)} is not a number of rows", "give 1 or more, or auto")
    return int(text)


def _batched(places: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    """Yield places, that many at a time."""
    left = iter(places)
    while part := tuple(itertools.islice(left, size)):
        yield part


def main() -> None:
    """Run lm-eval's command line, which then knows `--model plainformer`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
