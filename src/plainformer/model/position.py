"""Position encodings and masks: rotary angles, sinusoids, T5's distance buckets, masks for direction and windows.

Shapes: B batch, T positions (queries), S keys, H heads, E channels of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plainformer.config import RelativeBias, RopeConfig, RopeScaling

# cos and sin of each channel's angle, (B, 1, T, dim); the sines of the first half carry a minus sign, see `rotate`.
Rotation = tuple[Tensor, Tensor]


def positions_from_mask(attention_mask_BS: Tensor, past: int) -> Tensor:
    """Return each real token's index among the real tokens of its row, (B, S - past): padding on either side changes nothing.

    Padding gets the position of the real token before it, or 0.
    """
    return (attention_mask_BS.long().cumsum(-1) - 1).clamp_min(0)[:, past:]


def rope_frequencies(rope: RopeConfig) -> Tensor:
    """Return radians per position for each pair of channels, (dim / 2,), fp32 (Su et al. 2021).

    Of longrope, both those of short inputs and of long ones, (2, dim / 2).
    """
    frequencies = _plain_frequencies(rope.theta, rope.dim)
    scaling = rope.scaling
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "longrope":
        return frequencies / torch.tensor([scaling.short_factors, scaling.long_factors], device="cpu")
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3_frequencies(frequencies, scaling)
    return _yarn_frequencies(rope, scaling)


def _plain_frequencies(theta: float, dim: int) -> Tensor:
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim
    return 1.0 / (theta**exponents)


def _llama3_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow long wavelengths down by `factor`, keep short ones, blend linearly between (Llama 3.1)."""
    length = scaling.original_max_positions
    wavelengths = 2 * math.pi / frequencies
    slowed = torch.where(wavelengths > length / scaling.low_freq_factor, frequencies / scaling.factor, frequencies)
    blend = (length / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - blend) * slowed / scaling.factor + blend * slowed
    is_short = wavelengths < length / scaling.high_freq_factor
    is_long = wavelengths > length / scaling.low_freq_factor
    return torch.where(~is_short & ~is_long, blended, slowed)


def _yarn_frequencies(rope: RopeConfig, scaling: RopeScaling) -> Tensor:
    """Interpolate the slow channels, keep the fast ones, ramp between (Peng et al. 2023, section 3.2)."""

    def channel(rotations: float) -> float:
        length = scaling.original_max_positions
        return rope.dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001  # as in the paper's code: a ramp of width zero would divide by it
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    powers = rope.theta ** (torch.arange(0, rope.dim, 2, device="cpu").float() / rope.dim)
    return (1.0 / (scaling.factor * powers)) * ramp + (1.0 / powers) * (1 - ramp)


class Rotary(nn.Module):
    """positions (B, T) → cos and signed sin, each (B, 1, T, dim), computed in fp32."""

    def __init__(self, config: RopeConfig) -> None:
        super().__init__()
        self.config = config
        self.amplitude = config.scaling.attention_factor if config.scaling is not None else 1.0
        self.by_length = config.scaling is not None and config.scaling.kind in ("dynamic", "longrope")
        # Computed constants, not weights; kept off state_dict, and off the meta device while the model is built.
        self.frequencies = rope_frequencies(config)  # for longrope, those of short and of long inputs

    def forward(self, positions_BT: Tensor, dtype: torch.dtype, lengths_BT: Tensor | None = None) -> Rotation:
        """Return the rotation of each position. `lengths_BT`: of the document that it belongs to; None if rows are one each."""
        if self.frequencies.device != positions_BT.device:
            self.frequencies = self.frequencies.to(positions_BT.device)
        frequencies = self.frequencies
        if self.by_length:
            length = positions_BT.max() + 1 if lengths_BT is None else lengths_BT[:, None]
            frequencies = self._frequencies_for(length[..., None])
        angles = positions_BT[:, None, :, None].float() * frequencies
        cos, sin = angles.cos() * self.amplitude, angles.sin() * self.amplitude
        return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)

    def _frequencies_for(self, length: Tensor) -> Tensor:
        """Return the frequencies, (..., dim / 2), of the two kinds that depend on the length so far, (..., 1)."""
        scaling = self.config.scaling
        assert scaling is not None
        limit, dim = scaling.original_max_positions, self.config.dim
        if scaling.kind == "longrope":
            short, long = self.frequencies
            return torch.where(length > limit, long, short)
        stretched = scaling.factor * length.clamp_min(limit).double() / limit - (scaling.factor - 1)
        base = (self.config.theta * stretched ** (dim / (dim - 2))).float()
        return 1.0 / base ** (torch.arange(0, dim, 2, device=length.device).float() / dim)


def rotate(x_BHTE: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the first `dim` channels of each head by their angles, half-split layout; the rest passes unchanged.

    (x1, x2) becomes (x1 cos - x2 sin, x2 cos + x1 sin): with the halves swapped and the signs in the sines, one fused
    multiply-add instead of four products, which counts when each of 30 layers turns one token.
    """
    cos, sin = rotation
    dim = cos.size(-1)
    if dim == x_BHTE.size(-1):
        return _rotate_all(x_BHTE, cos, sin)
    return torch.cat((_rotate_all(x_BHTE[..., :dim], cos, sin), x_BHTE[..., dim:]), dim=-1)


def _rotate_all(x_BHTE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(x_BHTE * cos, x_BHTE.roll(cos.size(-1) // 2, -1), sin)


def sinusoid(positions: Tensor, size: int, style: str) -> Tensor:
    """Return fixed position vectors, (..., size) fp32: sines first, then cosines (Vaswani et al. 2017).

    "paper" spaces wavelengths by 2i / size; "tensor2tensor" by i / (size / 2 - 1), as fairseq does.
    """
    half = size // 2
    steps = torch.arange(half, device=positions.device, dtype=torch.float64)
    if style == "paper":
        frequencies = 1.0 / 10000 ** (2 * steps / size)
        half_sin = size - half  # an odd size has one sine more
        if half_sin != half:
            frequencies = 1.0 / 10000 ** (2 * torch.arange(half_sin, device=positions.device).double() / size)
        angles = positions[..., None].double() * frequencies
        return torch.cat((angles.sin(), angles.cos()[..., :half]), dim=-1).float()
    rates = torch.exp(steps.float() * -(math.log(10000) / (half - 1)))
    angles32 = positions[..., None].float() * rates
    table = torch.cat((angles32.sin(), angles32.cos()), dim=-1)
    return table if size % 2 == 0 else torch.nn.functional.pad(table, (0, 1))


class BucketBias(nn.Module):
    """T5's bias: a learned number for each head and bucket of distance (Raffel et al. 2020). → (1, H, T, S)."""

    def __init__(self, config: RelativeBias, heads: int, causal: bool) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.weight = nn.Parameter(torch.empty(config.buckets, heads))

    def forward(self, queries: int, keys: int) -> Tensor:
        bias_TSH = self.weight[self.bucket(-distances(queries, keys, self.weight.device))]
        return bias_TSH.permute(2, 0, 1)[None].contiguous()  # or the fused kernel would copy it in every layer

    def bucket(self, distance: Tensor) -> Tensor:
        """Return bucket numbers: half of them exact, the others logarithmic up to `max_distance`; two-sided unless causal."""
        buckets = self.config.buckets
        offset = torch.zeros_like(distance)
        if self.causal:
            distance = (-distance).clamp_min(0)
        else:
            buckets //= 2
            offset = (distance > 0).long() * buckets
            distance = distance.abs()
        exact = buckets // 2
        ratio = torch.log(distance.clamp_min(1).float() / exact) / math.log(self.config.max_distance / exact)
        logarithmic = (exact + (ratio * (buckets - exact)).long()).clamp_max(buckets - 1)
        return offset + torch.where(distance < exact, distance, logarithmic)


def distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return how far each key is before each query, (T, S); the queries are the last of the positions."""
    return torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)


def visible(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Return which keys each query may see by direction and window, (T, S) bool; None if it sees all."""
    if (not causal or queries == 1) and (window is None or (causal and window >= keys)):
        return None
    distance_TS = distances(queries, keys, device)
    seen = distance_TS >= 0 if causal else torch.ones_like(distance_TS, dtype=torch.bool)
    if window is not None:
        seen = seen & (distance_TS.abs() < window)
    return seen
