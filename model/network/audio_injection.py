"""How speech enters the network: one encoder per clip, injections after some blocks (official code)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from contract.video import MOTION_FRAMES, MOTION_LATENT_FRAMES
from model.kernels.modulation import norm_modulate
from model.network.attention import CoInteractAttention, KeyValue

SHIFT, SCALE = 0, 1  # places in an injection's modulation
NORM_EPS = 1e-5


@dataclass(frozen=True)
class AudioTokens:
    """Speech of one clip, as the blocks read it."""

    local: torch.Tensor  # (B, F, tokens, D): what is said in each latent frame, last token is learned padding
    overall: torch.Tensor  # (B, F, D): one token per latent frame for the adaptive norm


class CausalConv1d(nn.Conv1d):
    """Convolution over (B, C, T) that sees only the past. The first value is repeated in front."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(states, (self.kernel_size[0] - 1, 0), mode="replicate"))


class AudioEncoder(nn.Module):
    """25 layers of wav2vec2 features at 25 fps → a few tokens per latent frame (6.25 fps)."""

    def __init__(self, audio_dim: int, num_audio_layers: int, dim: int, num_audio_tokens: int) -> None:
        super().__init__()
        self.num_audio_tokens = num_audio_tokens
        self.layer_weights = nn.Parameter(torch.full((1, num_audio_layers, 1, 1), 0.01))
        self.conv_in_local = CausalConv1d(audio_dim, dim // 4 * num_audio_tokens, 3)
        self.conv_in_overall = CausalConv1d(audio_dim, dim // 4, 3)
        self.conv_mid = CausalConv1d(dim // 4, dim // 2, 3, stride=2)
        self.conv_out = CausalConv1d(dim // 2, dim, 3, stride=2)
        self.proj_overall = nn.Linear(dim, dim)
        self.padding_token = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, audio_embeds: torch.Tensor) -> AudioTokens:
        """Encode `audio_embeds` (B, layers, C, T) of the target's frames."""
        weights = F.silu(self.layer_weights.to(audio_embeds.dtype)).flatten()
        mixed = torch.einsum("blct,l->bct", audio_embeds, weights / weights.sum())
        # The convolutions expect the previous clip in front. The first frame, repeated, stands for it.
        mixed = torch.cat([mixed[..., :1].expand(-1, -1, MOTION_FRAMES), mixed], dim=-1)

        heads = self.conv_in_local(mixed).unflatten(1, (self.num_audio_tokens, -1))  # (B, tokens, C/4, T)
        local = self._shorten(heads.flatten(0, 1)).unflatten(0, heads.shape[:2])  # (B, tokens, F, D)
        overall = self.proj_overall(self._shorten(self.conv_in_overall(mixed)))  # (B, F, D)

        local = local.transpose(1, 2)[:, MOTION_LATENT_FRAMES:]
        padding = self.padding_token.to(local.dtype).expand(*local.shape[:2], 1, -1)
        return AudioTokens(
            local=torch.cat([local, padding], dim=2), overall=overall[:, MOTION_LATENT_FRAMES:].contiguous()
        )

    def _shorten(self, states: torch.Tensor) -> torch.Tensor:
        """(B, C/4, T) → (B, T/4, D)."""
        states = _norm_silu(states)
        states = _norm_silu(self.conv_mid(states))
        return _norm_silu(self.conv_out(states)).transpose(1, 2)


def _norm_silu(states: torch.Tensor) -> torch.Tensor:
    """LayerNorm over the channels of (B, C, T), then SiLU."""
    channels_last = states.transpose(1, 2)
    return F.silu(F.layer_norm(channels_last, channels_last.shape[-1:], eps=1e-6)).transpose(1, 2)


@dataclass(frozen=True)
class InjectionInputs:
    """What one injection needs of a clip's speech. It does not change between steps."""

    key_value: KeyValue  # (B * F, tokens, heads, head_dim)
    modulation: torch.Tensor  # (B, F, 2, D): shift and scale of each latent frame


class AudioInjection(nn.Module):
    """Cross-attention of each latent frame's target tokens to that frame's speech."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_linear = nn.Linear(dim, 2 * dim)
        self.attn = CoInteractAttention(dim, heads, eps=1e-6, is_cross_attention=True)

    def prepare(self, audio: AudioTokens) -> InjectionInputs:
        modulation = self.norm_linear(F.silu(audio.overall)).unflatten(-1, (2, -1))
        return InjectionInputs(self.attn.key_value(audio.local.flatten(0, 1)), modulation)

    def forward(self, hidden_states: torch.Tensor, inputs: InjectionInputs) -> torch.Tensor:
        """What speech adds to the target tokens `hidden_states` (B, F * n, D)."""
        frames = inputs.modulation.shape[1]
        per_frame = hidden_states.shape[1] // frames
        modulated = norm_modulate(hidden_states, inputs.modulation, SHIFT, SCALE, per_frame, NORM_EPS)
        query = self.attn.query(modulated.unflatten(1, (frames, per_frame)).flatten(0, 1))  # (B * F, n, …)
        attended: torch.Tensor = self.attn(query, inputs.key_value)
        return attended.view_as(hidden_states)
