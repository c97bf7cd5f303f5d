"""One layer of the transformer: self-attention, prompt, feed-forward with experts, speech (paper section 3).

Token order is target, person, product, motion, and last the HOI stream. Only target tokens are noisy; the
others are clean and modulated as at timestep 0, so a layer works with two rows of modulation for all.
Shapes: B batch, N tokens, L prompt tokens, D width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import FeedForward
from torch import nn

from model.network.attention import CoInteractAttention, KeyValue, join, part
from model.network.audio_injection import AudioInjection, AudioTokens, InjectionInputs
from model.network.fp8_linear import Fp8Linear
from model.network.moe import HumanAwareMoE, face_weight
from model.network.rope import RotaryTable, select
from model.parallel.exchange import HeadExchange

Visibility = Literal["asymmetric", "mutual"]
NOISY, CLEAN = 0, 1  # rows of the modulation


@dataclass(frozen=True)
class TokenLayout:
    """How many tokens of each kind stand in the sequence, in order."""

    # Latent frames, rows, columns of the target; if ranks share it: latent frames, 1, this rank's of a frame.
    grid: tuple[int, int, int]
    person: int
    product: int = 0
    motion: int = 0
    hoi: int = 0

    @property
    def target(self) -> int:
        return math.prod(self.grid)

    @property
    def video(self) -> int:
        """All tokens but the HOI stream's."""
        return self.target + self.person + self.product + self.motion

    @property
    def product_tokens(self) -> slice:
        start = self.target + self.person
        return slice(start, start + self.product)


@dataclass(frozen=True)
class BlockMode:
    """The switches of one block call; all of them are known without looking at a tensor."""

    visibility: Visibility = "asymmetric"
    experts: bool = True  # False: no sample of the batch is below the routing limit
    audio_face_mask: bool = False
    target_queries_only: bool = False  # last block: nobody reads the reference tokens after it
    return_router_logits: bool = False


def modulated_norm(
    states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, rows: tuple[int, ...], eps: float
) -> torch.Tensor:
    """LayerNorm of (B, N, D), then scale and shift, in one pass per group of tokens.

    `shift` and `scale` are (B, R, D); the first rows[0] tokens take row 0, the next rows[1] row 1 and so on.
    """
    gain = (1 + scale).to(states.dtype)
    shift = shift.to(states.dtype)
    samples = []
    for sample, sample_gain, sample_shift in zip(states.split(1), gain, shift, strict=True):
        groups = sample.split(rows, dim=1)
        parts = [
            F.layer_norm(group, group.shape[-1:], sample_gain[row], sample_shift[row], eps)
            for row, group in enumerate(groups)
            if group.shape[1]
        ]
        samples.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def gated_sum(
    states: torch.Tensor, added: torch.Tensor, gate: torch.Tensor, rows: tuple[int, ...]
) -> torch.Tensor:
    """states + gate · added over (B, N, D), with one row of `gate` (B, R, D) per group of tokens."""
    gate = gate.to(states.dtype).unsqueeze(2)
    groups = zip(states.split(rows, dim=1), added.split(rows, dim=1), strict=True)
    parts = [
        torch.addcmul(group, extra, gate[:, row])
        for row, (group, extra) in enumerate(groups)
        if group.shape[1]
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class CoInteractBlock(nn.Module):
    """One of the 40 layers: self-attention, prompt, feed-forward with experts, speech."""

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn_dim: int,
        expert_hidden_dim: int,
        eps: float,
        injects_audio: bool,
        hoi_branch: bool,
        fp8_ffn: bool = False,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.attn1 = CoInteractAttention(dim, heads, eps, is_cross_attention=False)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.attn2 = CoInteractAttention(dim, heads, eps, is_cross_attention=True)
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        if fp8_ffn:
            self.ffn.net[0].proj, self.ffn.net[2] = Fp8Linear(dim, ffn_dim), Fp8Linear(ffn_dim, dim)
        self.moe = HumanAwareMoE(dim, expert_hidden_dim)
        self.audio_injection = AudioInjection(dim, heads) if injects_audio else None
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.hoi_scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5) if hoi_branch else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | KeyValue,
        temb: torch.Tensor,
        rotary_emb: RotaryTable,
        layout: TokenLayout,
        audio: AudioTokens | InjectionInputs | None,
        mode: BlockMode,
        expert_gate: torch.Tensor | None = None,
        hoi_encoder_hidden_states: torch.Tensor | None = None,
        exchange: HeadExchange | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Run the layer.

        Args:
            hidden_states: (B, N, D), all tokens.
            encoder_hidden_states: the prompt, (B, L, D) or its keys and values.
            temb: (B, 2, 6, D), modulation of noisy and clean tokens.
            rotary_emb: tables of all N tokens.
            audio: the clip's speech, as tokens or prepared for this block.
            expert_gate: (B, 1, 1), 0 for the samples at or above the routing limit; None when the whole batch
                is on one side of it (`mode.experts` says which).
            hoi_encoder_hidden_states: (B, L, D), the prompt of the HOI stream.
            exchange: with the ranks that hold the video's other tokens; without it all are here.

        Returns:
            (B, N, D), without the reference tokens if `mode.target_queries_only`; a bare tensor, as step
            caches expect. With `mode.return_router_logits` also (B, N_target, 3).
        """
        video, hoi = hidden_states[:, : layout.video], None
        video_rotary = select(rotary_emb, slice(0, layout.video))
        # (B, rows, D) each
        shift_msa, scale_msa, gate_msa, shift_ffn, scale_ffn, gate_ffn = (
            self.scale_shift_table.unsqueeze(1) + temb.float()
        ).unbind(2)
        rows = (layout.target, layout.video - layout.target)

        # 1. Self-attention. The video runs in calls of its own, so the HOI stream cannot change a bit of it
        #    unless both see each other.
        normed = modulated_norm(video, shift_msa, scale_msa, rows, self.eps)
        key_value = self.attn1.key_value(normed, video_rotary)
        if layout.hoi:
            if self.hoi_scale_shift_table is None or hoi_encoder_hidden_states is None:
                raise ValueError("HOI tokens need a model built with hoi_branch=True and an HOI prompt")
            hoi_rotary = select(rotary_emb, slice(layout.video, None))
            hoi_rows = self.hoi_scale_shift_table.unsqueeze(1) + temb[:, CLEAN:].float()
            hoi = hidden_states[:, layout.video :]
            hoi_normed = modulated_norm(hoi, hoi_rows[:, :, 0], hoi_rows[:, :, 1], (layout.hoi,), self.eps)
            hoi_key_value = self.attn1.key_value(hoi_normed, hoi_rotary)
            if mode.visibility == "mutual":
                key_value = visible = join(key_value, hoi_key_value)
            else:
                target, product = slice(0, layout.target), layout.product_tokens
                visible = join(hoi_key_value, part(key_value, target), part(key_value, product))
            hoi_attended = self.attn1(hoi_normed, visible, hoi_rotary)
            hoi = gated_sum(hoi, hoi_attended, hoi_rows[:, :, 2], (layout.hoi,))
        if mode.target_queries_only:
            rows = (layout.target, 0)
            video, normed = video[:, : layout.target], normed[:, : layout.target]
            video_rotary = select(video_rotary, slice(0, layout.target))
        attended = self.attn1(normed, key_value, video_rotary, exchange)
        video = gated_sum(video, attended, gate_msa, rows)

        # 2. The prompt
        if isinstance(encoder_hidden_states, torch.Tensor):
            encoder_hidden_states = self.attn2.key_value(encoder_hidden_states)
        video = video + self.attn2(self.norm2(video), encoder_hidden_states)

        # 3. Feed-forward, and experts on target tokens
        normed = modulated_norm(video, shift_ffn, scale_ffn, rows, self.eps)
        added = self.ffn(normed)
        target_normed = normed[:, : layout.target]
        masks_audio = mode.audio_face_mask and self.audio_injection is not None
        logits = None
        if mode.experts or masks_audio or mode.return_router_logits:
            logits = self.moe.route(target_normed)
        if mode.experts and logits is not None:
            expert_added = self.moe(target_normed, logits)
            if expert_gate is not None:
                expert_added = expert_added * expert_gate.to(expert_added.dtype)
            expert_added = added[:, : layout.target] + expert_added
            added = torch.cat([expert_added, added[:, layout.target :]], dim=1)
        video = gated_sum(video, added, gate_ffn, rows)

        if hoi is not None and hoi_encoder_hidden_states is not None:
            hoi = hoi + self.attn2(self.norm2(hoi), self.attn2.key_value(hoi_encoder_hidden_states))
            hoi_normed = modulated_norm(hoi, hoi_rows[:, :, 3], hoi_rows[:, :, 4], (layout.hoi,), self.eps)
            hoi = gated_sum(hoi, self.ffn(hoi_normed), hoi_rows[:, :, 5], (layout.hoi,))

        # 4. Speech, on target tokens
        tail = [] if hoi is None else [hoi]
        if self.audio_injection is not None and audio is not None:
            inputs = self.audio_injection.prepare(audio) if isinstance(audio, AudioTokens) else audio
            listening = video[:, : layout.target]
            spoken = self.audio_injection(listening, inputs)
            if masks_audio and logits is not None:
                spoken = spoken * face_weight(logits).to(spoken.dtype)
            tail = [listening + spoken, video[:, layout.target :], *tail]
        else:
            tail = [video, *tail]
        hidden_states = tail[0] if len(tail) == 1 else torch.cat(tail, dim=1)

        if mode.return_router_logits and logits is not None:
            return hidden_states, logits
        return hidden_states


# Step caches (first block, MagCache, …) look blocks up here.
TransformerBlockRegistry.register(
    CoInteractBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)
