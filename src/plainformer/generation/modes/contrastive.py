"""Contrastive search: of the k likeliest tokens, the one that is likely and says something new (Su et al. 2022).

score = (1 - alpha) * probability - alpha * (the largest cosine between the candidate's hidden state and any before it),
the states after the final norm, as in transformers 4.49. All k candidates go through the model in one
step, each as a row of its prompt; what is picked is then the past of all k.

Shapes: B prompts, k candidates each, R = B * k rows, S positions so far, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from plainformer.generation.modes.token_loop import Rows, Watcher, log_probability_of, process
from plainformer.generation.options import GenerationOptions
from plainformer.generation.processors.context import Context, Processor
from plainformer.generation.prompt import Prompt, take_rows
from plainformer.generation.result import Search
from plainformer.generation.sessions.session import Session
from plainformer.generation.stopping import Stops
from plainformer.model.transformer import Transformer

CANDIDATES = 4  # where top_k is not given


class StateSession(Session):
    """A session that keeps the direction of the hidden state of every position it has run.

    Attributes:
        latest_RTD: of what was run last, unit vectors.
        seen_BSD: of the prompt and all that was picked since.
    """

    latest_RTD: Tensor
    seen_BSD: Tensor

    def run(self, tokens_RT: Tensor, real_RS: Tensor | None) -> Tensor:
        output = self.forward(tokens_RT, real_RS)
        assert output.logits is not None and output.last_hidden_state is not None
        self.latest_RTD = normalize(output.last_hidden_state.float(), dim=-1)
        return output.logits[:, -1]

    def prefill(self) -> Tensor:
        logits_RV = super().prefill()
        self.seen_BSD = self.latest_RTD
        return logits_RV

    def penalties(self) -> Tensor:
        """Return how much each candidate that was just run is like what came before it: (B, k) cosines."""
        latest_BkD = self.latest_RTD[:, -1].unflatten(0, (-1, self.copies))
        cosines_BkS = latest_BkD @ self.seen_BSD.transpose(1, 2)
        if self.real is not None:
            real_BS = self.real[:: self.copies, : self.length - 1]
            cosines_BkS = cosines_BkS.masked_fill(~real_BS[:, None], -torch.inf)
        return cosines_BkS.amax(-1)

    def keep(self, chosen_B: Tensor) -> Tensor:
        """Make the chosen candidate of each prompt the past of all its rows; return which row it was, (B,)."""
        row_B = torch.arange(len(chosen_B), device=chosen_B.device) * self.copies + chosen_B
        self.seen_BSD = torch.cat((self.seen_BSD, self.latest_RTD[row_B]), dim=1)
        self.reorder(row_B.repeat_interleave(self.copies))
        return row_B

    def prompt_context(self) -> Context:
        """Return the context of processors: one row for each prompt, since its k rows are alike between two steps."""
        ids_BS, real_RS = self.ids[:: self.copies, : self.length], self._real(self.length)
        real_BS = take_rows(real_RS, slice(None, None, self.copies))
        encoder_ids, encoder_real = self.prompt.encoder_ids, self.prompt.encoder_real
        return Context(ids_BS, self.prompt_columns, real_BS, encoder_ids, encoder_real, self.ended)


def search_contrastively(
    model: Transformer,
    prompt: Prompt,
    options: GenerationOptions,
    stops: Stops,
    processors: Sequence[Processor],
    *,
    watcher: Watcher | None = None,
) -> Search:
    """Yield steps until every row has ended; the generator's return value is the `Generation`.

    Raises:
        UsageError: every token is banned.
    """
    assert options.penalty_alpha is not None
    alpha, k = options.penalty_alpha, min(options.top_k or CANDIDATES, model.config.head.out_size)
    session = StateSession(model, prompt, copies=k, budget=max(stops.limits))
    logits_BV = session.prefill()[::k]
    rows = Rows(stops, len(prompt))
    while not all(rows.reasons):
        logits_BV = process(logits_BV, session.prompt_context, processors, watcher)
        likely_Bk = logits_BV.float().softmax(-1).topk(k, dim=-1)
        logits_RV = session.decode_step(likely_Bk.indices.flatten())
        scores_Bk = (1 - alpha) * likely_Bk.values - alpha * session.penalties()
        # Where fewer than k are left, banned tokens are among the k; transformers could pick one.
        banned_Bk = logits_BV.gather(1, likely_Bk.indices).isneginf()
        chosen_B = scores_Bk.masked_fill(banned_Bk, -torch.inf).argmax(-1)
        picked_B = likely_Bk.indices.gather(1, chosen_B[:, None])[:, 0]
        if watcher is not None:
            session.length -= 1  # the watcher sees the step's beginning
            watcher.picked(logits_BV, picked_B, None, session)
            session.length += 1
        scored = log_probability_of(logits_BV, picked_B).tolist() if options.output_scores else None
        logits_BV = logits_RV[session.keep(chosen_B)]
        step = rows.record(picked_B.tolist(), banned_Bk.all(-1).tolist(), scored)
        session.ended = rows.ended
        yield step
    return rows.generation(output_scores=options.output_scores)
