"""The options of a `ChatSession`, for editors and type checkers: those of text generation, each or None."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

    from plainformer.generation.processors.context import Processor
    from plainformer.generation.stopping import TextStop


class ChatArgs(TypedDict, total=False):
    """Names and types as in `TextGenerationOptions`, which a test holds them to; None takes an option back.

    They are said a second time because a `ParamSpec` made of that dataclass allows no keyword (`system`) beside it.
    """

    max_new_tokens: int | None
    max_length: int | None
    eos_ids: Sequence[int] | None
    stop: TextStop | str | Sequence[str] | None
    stop_when: Callable[[list[int]], bool] | None
    max_time: float | None
    do_sample: bool | None
    seed: int | Sequence[int] | None
    num_beams: int | None
    num_beam_groups: int | None
    diversity_penalty: float | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    patience: float | None
    penalty_alpha: float | None
    draft_model: Any
    prompt_lookup: int | None
    num_draft_tokens: int | None
    dola_layers: str | Sequence[int] | None
    guidance_scale: float | None
    negative_ids: Tensor | None
    sequence_bias: Mapping[tuple[int, ...], float] | None
    encoder_repetition_penalty: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_breakers: Sequence[int] | None
    no_repeat_ngram_size: int | None
    encoder_no_repeat_ngram_size: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    min_length: int | None
    min_new_tokens: int | None
    allowed_tokens: Callable[[list[int]], Iterable[int]] | None
    grammar: Processor | str | None
    forced_bos_id: int | None
    forced_eos_id: int | Sequence[int] | None
    remove_invalid: bool | None
    exponential_decay: tuple[int, float] | None
    suppress: Sequence[int] | None
    suppress_first: Sequence[int] | None
    forced: Mapping[int, int | None] | None
    temperature: float | Sequence[float] | None
    top_n_sigma: float | None
    top_h: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    watermark: Processor | None
    renormalize: bool | None
    processors: Sequence[Processor] | None
    order: Sequence[str] | None
    cache_kind: str | None
    prefill_chunk: int | None
    output_scores: bool | None
    batch_size: int | None
    choices: Sequence[str] | None
    regex: str | None
    json_schema: Mapping[str, Any] | str | None
    defaults: str | None
    heal: bool | None
    tools: Sequence[Any] | None
    documents: Sequence[Mapping[str, Any]] | None
    template_variables: Mapping[str, Any] | None
    allow_control_tokens: bool | None
    truncate: bool | None
    answer_prefix: str | None
    negative_prompt: str | None
