"""One case for each value that changes a stack which reads tokens."""

from __future__ import annotations

from tests.support.cases import decoders, encoder_decoders, encoders
from tests.support.parity import Case

TOKEN_MODELS = [*decoders.LLAMA, *decoders.OTHERS, *encoders.ALL, *encoder_decoders.T5]
WHOLE_ROWS = ("ForSequenceClassification", "ForMultipleChoice")


def one_of_each(cases: list[Case]) -> list[Case]:
    """One case for each value that changes the stack, with the head that tells most of it."""
    found: dict[str, Case] = {}
    for case in cases:
        short = case.name.endswith("full-table")  # 9 positions, fewer than the longest document here
        if case.kind == "text" and not short and not case.model_class.endswith(WHOLE_ROWS):
            found.setdefault(case.name, case)
    return list(found.values())


CASES = one_of_each(TOKEN_MODELS)
