"""The embedding of an input, a sequence of vectors: tokens, image patches, a waveform, or a mel spectrogram → (B, T, D).

Shapes: B batch, T positions, D hidden size, W width of the token vectors, C channels, M mel channels, N samples or frames.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainformer.config import Dropout, MelFrontend, PatchFrontend, StackConfig, TokenFrontend, WaveFrontend
from plainformer.errors import InputError
from plainformer.model.dropout import drop
from plainformer.model.empty import Conv1d, Conv2d, Embedding, GroupNorm, LayerNorm
from plainformer.model.linear import Linear
from plainformer.model.norm import ACTIVATION_FUNCTIONS, make_norm
from plainformer.model.position import sinusoid


def require(fits: bool, name: str, x: Tensor, wanted: str, fix: str) -> None:
    """Refuse an input of another shape or type than the one that is `wanted`."""
    if not fits:
        raise InputError(f"{name} of shape {tuple(x.shape)} and type {x.dtype}: not {wanted}", fix)


def may_look(x: Tensor, training: bool) -> bool:
    """Whether the values of an input are checked: on a CPU always, on a GPU not in training.

    To look at a value there is to wait until everything before it has been computed, and who makes the batches of a
    training run has checked them.
    """
    return x.device.type == "cpu" or not training


Count = TypeVar("Count", int, Tensor)


def frames_of(config: WaveFrontend, samples: Count) -> Count:
    """Return how many frames that many samples of a wave become."""
    for kernel, stride in zip(config.kernels, config.strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def samples_for_one_frame(config: WaveFrontend) -> int:
    """Return the shortest wave that becomes a frame."""
    needed = 1
    for kernel, stride in zip(reversed(config.kernels), reversed(config.strides), strict=True):
        needed = (needed - 1) * stride + kernel
    return needed


class TokenEmbedding(nn.Module):
    """ids → vectors: token + position + token type, then norm and projection where the model has them.

    Attributes:
        noise: what training adds to the token vectors that `embed` gives, (B, T, W); None: nothing.
    """

    noise: Tensor | None = None

    def __init__(self, config: TokenFrontend, hidden_size: int, dropout: Dropout) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        size = config.embedding_size
        self.tokens = Embedding(config.vocab_size, size)
        self.positions = Embedding(config.max_positions, size) if config.positions == "learned" else None
        self.token_types = Embedding(config.token_types, size) if config.token_types else None
        self.before_norm = nn.Identity() if config.projection_place == "after_norm" else self._project(hidden_size)
        norm_size = size if config.projection_place == "after_norm" else hidden_size
        self.norm = make_norm(norm_size, config.norm)
        self.after_norm = self._project(hidden_size) if config.projection_place == "after_norm" else nn.Identity()

    def _project(self, hidden_size: int) -> nn.Module:
        if self.config.projection == "none":
            return nn.Identity()
        return Linear(self.config.embedding_size, hidden_size, self.config.projection == "affine")

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the token vectors alone, (B, T, W), scaled: what `inputs_embeds` replaces."""
        vectors: Tensor = self.tokens(input_ids)
        vectors = vectors * self.config.scale if self.config.scale != 1.0 else vectors
        return vectors if self.noise is None else vectors + self.noise.to(vectors.dtype)

    def forward(
        self, embeds_BTW: Tensor, positions_BT: Tensor, token_type_ids: Tensor | None, real_BT: Tensor | None
    ) -> Tensor:
        x = embeds_BTW
        if self.token_types is not None:
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(positions_BT)
            x = x + self.token_types(token_type_ids)
        if self.positions is not None:
            x = x + self.positions(positions_BT)
        elif self.config.positions == "sinusoidal":
            at = positions_BT + self.config.sinusoid_start
            x = x + sinusoid(at, x.size(-1), self.config.sinusoid).to(x.dtype)
        x = self.norm(self.before_norm(x))
        x = self.after_norm(drop(x, self.dropout.embedding, self.training))
        if real_BT is not None and self.config.padding == "zeroed":
            x = x * real_BT[..., None].to(x.dtype)
        return x


class PatchEmbedding(nn.Module):
    """An image → class tokens and one vector for each patch (Dosovitskiy et al. 2021); positions stretch to other sizes."""

    def __init__(self, config: PatchFrontend, hidden_size: int, dropout: Dropout) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        self.patches = Conv2d(config.channels, hidden_size, config.patch_size, config.patch_size, bias=config.bias)
        self.class_tokens = nn.ParameterList(torch.empty(hidden_size) for _ in range(config.class_tokens))
        rows = config.class_tokens + config.grid[0] * config.grid[1]
        self.positions = nn.Parameter(torch.empty(rows, hidden_size))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, height, width) → (B, T, D)."""
        grid = self.patches(pixels.to(self.patches.weight.dtype))
        x_BTD = grid.flatten(2).transpose(1, 2)
        class_tokens = [token.expand(x_BTD.size(0), 1, -1) for token in self.class_tokens]
        x_BTD = torch.cat((*class_tokens, x_BTD), dim=1) + self._positions_for(grid.shape[-2:])
        return drop(x_BTD, self.dropout.embedding, self.training)

    def _positions_for(self, grid: torch.Size) -> Tensor:
        """Return the learned positions, interpolated bicubically if the image has another number of patches."""
        if tuple(grid) == self.config.grid:
            return self.positions
        fixed, patches = self.positions.split(
            [self.config.class_tokens, len(self.positions) - self.config.class_tokens]
        )
        table = patches.unflatten(0, self.config.grid).permute(2, 0, 1)[None]
        stretched = F.interpolate(table.float(), size=tuple(grid), mode="bicubic", align_corners=False)
        return torch.cat((fixed, stretched[0].flatten(1).T.to(fixed.dtype)))


class _ConvStep(nn.Module):
    """One convolution of the wave frontend with its norm; (B, C, N) → (B, C', N')."""

    def __init__(self, config: WaveFrontend, index: int) -> None:
        super().__init__()
        before = config.channels[index - 1] if index else 1
        channels = config.channels[index]
        self.conv = Conv1d(before, channels, config.kernels[index], config.strides[index], bias=config.conv_bias)
        self.norm = LayerNorm(channels) if config.conv_norm == "layer" else None
        self.time_norm = GroupNorm(channels, channels) if config.conv_norm == "group" and index == 0 else None
        self.activation = ACTIVATION_FUNCTIONS[config.conv_activation]

    def forward(self, x_BCN: Tensor) -> Tensor:
        x_BCN = self.conv(x_BCN)
        if self.norm is not None:
            x_BCN = self.norm(x_BCN.transpose(1, 2)).transpose(1, 2)
        if self.time_norm is not None:
            x_BCN = self.time_norm(x_BCN)
        return self.activation(x_BCN)


class ConvPositions(nn.Module):
    """A grouped convolution over time that encodes positions, weight-normalised (Salimans & Kingma 2016)."""

    def __init__(self, config: WaveFrontend, size: int) -> None:
        super().__init__()
        self.kernel, self.groups = config.position_kernel, config.position_groups
        self.magnitude = nn.Parameter(torch.empty(1, 1, self.kernel))
        self.direction = nn.Parameter(torch.empty(size, size // self.groups, self.kernel))
        self.bias = nn.Parameter(torch.empty(size))
        self.activation = ACTIVATION_FUNCTIONS[config.conv_activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        weight = torch._weight_norm(self.direction, self.magnitude, 2)
        x_BDT = F.conv1d(x_BTD.transpose(1, 2), weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return self.activation(x_BDT[..., : x_BTD.size(1)]).transpose(1, 2)


class WaveEmbedding(nn.Module):
    """A waveform → one vector for each ~20 ms frame, padding zeroed, convolutional positions added."""

    def __init__(self, config: WaveFrontend, hidden_size: int, dropout: Dropout) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        self.steps = nn.ModuleList(_ConvStep(config, index) for index in range(len(config.channels)))
        last = config.channels[-1]
        self.projection_norm = make_norm(last, config.projection_norm)
        self.project = Linear(last, hidden_size)
        self.positions = ConvPositions(config, hidden_size)
        self.hidden = nn.Parameter(torch.empty(hidden_size)) if config.hidden_vector else None
        self.norm = make_norm(hidden_size, config.norm)

    def forward(
        self,
        wave_BN: Tensor,
        real_BT: Tensor | None = None,
        hidden_frames: Tensor | None = None,
        hidden_features: Tensor | None = None,
    ) -> Tensor:
        """(B, N) → (B, T, D). `real_BT`: which frames are real; None: all.

        Of `hidden_frames`, (B, T) bool, the model sees one vector alone, and of `hidden_features`, (B, D) bool, zeros.
        """
        x_BCN = wave_BN[:, None].to(self.positions.direction.dtype)
        for step in self.steps:
            x_BCN = step(x_BCN)
        x_BTD = self.project(self.projection_norm(x_BCN.transpose(1, 2)))
        x_BTD = drop(x_BTD, self.dropout.projection, self.training)
        if hidden_frames is not None:
            instead_D = x_BTD.new_zeros(()) if self.hidden is None else self.hidden.to(x_BTD.dtype)
            x_BTD = torch.where(hidden_frames[..., None], instead_D, x_BTD)
        if hidden_features is not None:
            x_BTD = x_BTD.masked_fill(hidden_features[:, None], 0)
        if real_BT is not None:
            x_BTD = x_BTD.masked_fill(~real_BT[..., None], 0)
        x_BTD = self.norm(x_BTD + self.positions(x_BTD))
        return drop(x_BTD, self.dropout.embedding, self.training)


class MelEmbedding(nn.Module):
    """A log-mel spectrogram → one vector for every second frame, learned positions added."""

    def __init__(self, config: MelFrontend, hidden_size: int, dropout: Dropout) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        self.conv1 = Conv1d(config.mels, hidden_size, 3, padding=1)
        self.conv2 = Conv1d(hidden_size, hidden_size, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.empty(config.max_positions, hidden_size))
        self.activation = ACTIVATION_FUNCTIONS[config.activation]

    def forward(self, mels_BMN: Tensor) -> Tensor:
        x_BDT = self.activation(self.conv1(mels_BMN.to(self.conv1.weight.dtype)))
        x_BTD = self.activation(self.conv2(x_BDT)).transpose(1, 2)
        return drop(x_BTD + self.positions[: x_BTD.size(1)], self.dropout.embedding, self.training)


def make_frontend(config: StackConfig) -> nn.Module:
    """Return the frontend that the stack's configuration names."""
    frontend, rest = config.frontend, (config.hidden_size, config.dropout)
    if isinstance(frontend, TokenFrontend):
        return TokenEmbedding(frontend, *rest)
    if isinstance(frontend, PatchFrontend):
        return PatchEmbedding(frontend, *rest)
    if isinstance(frontend, WaveFrontend):
        return WaveEmbedding(frontend, *rest)
    return MelEmbedding(frontend, *rest)
