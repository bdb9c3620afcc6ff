"""Processors: small functions between a model's logits and the pick, composed in one documented order."""

from plainformer.generation.processors.base import as_token_ids as as_token_ids
from plainformer.generation.processors.context import Context as Context, Processor as Processor
from plainformer.generation.processors.control import (
    AllowedTokens as AllowedTokens,
    ExponentialDecay as ExponentialDecay,
    Forced as Forced,
    ForcedBos as ForcedBos,
    ForcedEos as ForcedEos,
    MinLength as MinLength,
    MinNewTokens as MinNewTokens,
    RemoveInvalid as RemoveInvalid,
    Renormalize as Renormalize,
    Suppress as Suppress,
    SuppressFirst as SuppressFirst,
)
from plainformer.generation.processors.penalties import (
    BadWords as BadWords,
    Dry as Dry,
    EncoderNoRepeatNgram as EncoderNoRepeatNgram,
    EncoderRepetitionPenalty as EncoderRepetitionPenalty,
    FrequencyPenalty as FrequencyPenalty,
    NoRepeatNgram as NoRepeatNgram,
    PresencePenalty as PresencePenalty,
    RepetitionPenalty as RepetitionPenalty,
    SequenceBias as SequenceBias,
)
from plainformer.generation.processors.sampling import (
    Epsilon as Epsilon,
    Eta as Eta,
    MinP as MinP,
    Mirostat as Mirostat,
    Temperature as Temperature,
    TopH as TopH,
    TopK as TopK,
    TopNSigma as TopNSigma,
    TopP as TopP,
    Typical as Typical,
    Xtc as Xtc,
)
from plainformer.generation.processors.timestamps import WhisperTimestamps as WhisperTimestamps
from plainformer.generation.processors.watermark import (
    Watermark as Watermark,
    WatermarkDetector as WatermarkDetector,
    WatermarkResult as WatermarkResult,
)
