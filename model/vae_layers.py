"""The layers of diffusers' Wan VAE with fewer passes over memory. Weights and names stay as they are.

What they save: the norm's upcasts and its six passes, copies around each causal convolution (its past, its
padding), casts around upsampling, and on a CPU torch's slow convolution, which it takes for few channels.
Only for inference: with gradients each layer is diffusers' own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResidualBlock,
    WanRMS_norm,
    WanUpsample,
)
from torch import nn

from model.kernels.vae_norm import norm_silu

Cache = list[torch.Tensor | str | None]
"""What each causal convolution remembers, in the order of their calls; diffusers' `feat_cache`."""

REMEMBERED = 2
"""Frames before the present ones that a causal convolution of length 3 sees."""


def use_fast_layers(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Let `vae` compute with the layers of this file from now on; returns it."""
    for module in vae.modules():
        faster = FASTER.get(type(module))
        if faster is not None:
            module.__class__ = faster
    return vae


def convolve(conv: nn.Conv2d | nn.Conv3d, states: torch.Tensor, padding: tuple[int, ...]) -> torch.Tensor:
    """A convolution with `padding` zeros around each dimension instead of its own padding."""
    if states.device.type == "cpu" and states.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        # torch's own choice for few channels is many times slower.
        return torch.mkldnn_convolution(
            states, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups
        )
    call = F.conv3d if isinstance(conv, nn.Conv3d) else F.conv2d
    return call(states, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)


def _past(remembered: torch.Tensor | str | None, frames: torch.Tensor) -> torch.Tensor:
    """The two frames before `frames`; zeros in front of a video's first."""
    if isinstance(remembered, torch.Tensor):
        return remembered
    return frames.new_zeros(1).expand(*frames.shape[:2], REMEMBERED, *frames.shape[3:])


def normed_conv(
    norm: WanRMS_norm, conv: WanCausalConv3d, states: torch.Tensor, cache: Cache, index: list[int]
) -> torch.Tensor:
    """conv(SiLU(norm(states))) over a chunk (B, C, T, H, W), with the convolution's place in the cache."""
    place = index[0]
    index[0] += 1
    window = norm_silu(states, norm.gamma.flatten(), _past(cache[place], states), True)
    cache[place] = window[:, :, -REMEMBERED:].clone()
    return convolve(conv, window, (0, *_spatial_padding(conv)))


def _spatial_padding(conv: WanCausalConv3d) -> tuple[int, int]:
    return conv._padding[2], conv._padding[0]


class FastRMSNorm(WanRMS_norm):
    """Over the channels of frames, (B, C, T, H, W), or of pictures, (B, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or not self.channel_first or isinstance(self.bias, torch.Tensor):
            plain: torch.Tensor = super().forward(x)
            return plain
        frames = x if x.ndim == 5 else x.unsqueeze(2)
        normed = norm_silu(frames, self.gamma.flatten(), frames[:, :, :0], False)
        return normed if x.ndim == 5 else normed.squeeze(2)


class FastCausalConv3d(WanCausalConv3d):
    """Padded by the convolution itself, not by copies; only a past is put in front."""

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        if torch.is_grad_enabled():
            plain: torch.Tensor = super().forward(x, cache_x)
            return plain
        missing = self._padding[4]
        if cache_x is not None and missing > 0:
            x = torch.cat([cache_x, x], dim=2)
            missing -= cache_x.shape[2]
        if missing:
            x = F.pad(x, (0, 0, 0, 0, missing, 0))
        return convolve(self, x, (0, *_spatial_padding(self)))


class FastResidualBlock(WanResidualBlock):
    """Two convolutions, each behind norm and SiLU, and a shortcut."""

    def forward(
        self, x: torch.Tensor, feat_cache: Cache | None = None, feat_idx: list[int] | None = None
    ) -> torch.Tensor:
        if torch.is_grad_enabled() or feat_cache is None or feat_idx is None:
            plain: torch.Tensor = super().forward(x, feat_cache, feat_idx)
            return plain
        shortcut = self.conv_shortcut(x)
        states = normed_conv(self.norm1, self.conv1, x, feat_cache, feat_idx)
        states = normed_conv(self.norm2, self.conv2, states, feat_cache, feat_idx)
        return states.add_(shortcut)


class FastUpsample(WanUpsample):
    """Copies of the nearest pixel have its bits: nothing to compute in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Upsample.forward(self, x)


class FastConv2d(nn.Conv2d):
    """Of resampling and attention, picture by picture."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or isinstance(self.padding, str):
            return super().forward(input)
        return convolve(self, input, self.padding)


FASTER: dict[type[nn.Module], type[nn.Module]] = {
    WanRMS_norm: FastRMSNorm,
    WanCausalConv3d: FastCausalConv3d,
    WanResidualBlock: FastResidualBlock,
    WanUpsample: FastUpsample,
    nn.Conv2d: FastConv2d,
}
