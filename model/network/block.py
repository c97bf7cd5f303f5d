"""One layer of the transformer: self-attention, prompt, feed-forward with experts, speech (paper section 3).

Tokens come in the order target, person, product, motion, HOI stream. Only target tokens are noisy. The others
are clean and modulated as at timestep 0, so a layer has two rows of modulation.
Shapes: B batch, N tokens, L prompt tokens, D width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import FeedForward
from torch import nn

from model.kernels.modulation import add_norm_modulate, norm_modulate
from model.kernels.residual import gated_add, gated_add_norm
from model.kernels.rotary import RotaryTable
from model.network.attention import CoInteractAttention, KeyValue, join, part
from model.network.audio_injection import AudioInjection, AudioTokens, InjectionInputs
from model.network.feed_forward import feed_forward
from model.network.fp8_linear import Fp8Linear
from model.network.moe import HumanAwareMoE, face_weight
from model.parallel.exchange import HeadExchange

Visibility = Literal["asymmetric", "mutual"]
NOISY, CLEAN = 0, 1  # rows of the modulation
# Its vectors: of self-attention and of the feed-forward.
SHIFT_MSA, SCALE_MSA, GATE_MSA, SHIFT_FFN, SCALE_FFN, GATE_FFN = range(6)


@dataclass(frozen=True)
class TokenLayout:
    """How many tokens of each kind the sequence has, in order."""

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
    """The switches of one block call. All are known without looking at a tensor."""

    visibility: Visibility = "asymmetric"
    experts: bool = True  # False: no sample of the batch is below the routing limit
    audio_face_mask: bool = False
    target_queries_only: bool = False  # for the last block: nobody reads the reference tokens after it
    return_router_logits: bool = False
    part_tokens: int | None = None  # so many at a time pass the feed-forward; None: all


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
        rotary = rotary_emb[: layout.video]
        modulation = self.scale_shift_table.unsqueeze(1) + temb.float()  # (B, rows, 6, D)
        group = layout.target  # so many tokens take the noisy row, the others the clean one

        # 1. Self-attention. The video runs in calls of its own, so the HOI stream cannot change a bit of it
        #    unless both see each other.
        normed = norm_modulate(video, modulation, SHIFT_MSA, SCALE_MSA, group, self.eps)
        asking = layout.target if mode.target_queries_only else layout.video
        query, key_value = self.attn1.query_key_value(normed, rotary, asking, exchange)
        if layout.hoi:
            if self.hoi_scale_shift_table is None or hoi_encoder_hidden_states is None:
                raise ValueError("HOI tokens need a model built with hoi_branch=True and an HOI prompt")
            hoi = hidden_states[:, layout.video :]
            hoi_modulation = self.hoi_scale_shift_table.unsqueeze(1) + temb[:, CLEAN:].float()
            hoi_normed = norm_modulate(hoi, hoi_modulation, SHIFT_MSA, SCALE_MSA, layout.hoi, self.eps)
            hoi_query, hoi_key_value = self.attn1.query_key_value(hoi_normed, rotary_emb[layout.video :])
            if mode.visibility == "mutual":
                key_value = visible = join(key_value, hoi_key_value)
            else:
                target, product = slice(0, layout.target), layout.product_tokens
                visible = join(hoi_key_value, part(key_value, target), part(key_value, product))
            hoi_attended = self.attn1(hoi_query, visible)
            hoi, hoi_normed = gated_add_norm(
                hoi,
                hoi_attended,
                hoi_modulation,
                GATE_MSA,
                layout.hoi,
                self.norm2.weight,
                self.norm2.bias,
                self.norm2.eps,
            )
        del normed  # a name keeps tokens · width bytes alive that nobody reads again
        attended = self.attn1.attend(query, key_value)
        del query, key_value
        attended = self.attn1.project(attended, exchange)
        video, normed = gated_add_norm(
            video[:, :asking],
            attended,
            modulation,
            GATE_MSA,
            group,
            self.norm2.weight,
            self.norm2.bias,
            self.norm2.eps,
        )
        del attended

        # 2. The prompt
        if isinstance(encoder_hidden_states, torch.Tensor):
            encoder_hidden_states = self.attn2.key_value(encoder_hidden_states)
        query = self.attn2.query(normed)
        del normed
        attended = self.attn2(query, encoder_hidden_states)
        del query
        video, normed = add_norm_modulate(video, attended, modulation, SHIFT_FFN, SCALE_FFN, group, self.eps)
        del attended

        # 3. Feed-forward, and experts on target tokens
        masks_audio = mode.audio_face_mask and self.audio_injection is not None
        routes = mode.experts or masks_audio or mode.return_router_logits
        feed = self._feed_in_parts if mode.part_tokens else self._feed
        video, logits = feed(video, normed, modulation, layout.target, mode, expert_gate, routes)
        del normed

        if hoi is not None and hoi_encoder_hidden_states is not None:
            hoi_key_value = self.attn2.key_value(hoi_encoder_hidden_states)
            hoi_attended = self.attn2(self.attn2.query(hoi_normed), hoi_key_value)
            hoi, hoi_normed = add_norm_modulate(
                hoi, hoi_attended, hoi_modulation, SHIFT_FFN, SCALE_FFN, layout.hoi, self.eps
            )
            hoi = gated_add(hoi, feed_forward(self.ffn, hoi_normed), hoi_modulation, GATE_FFN, layout.hoi)

        # 4. Speech, on target tokens
        if self.audio_injection is not None and audio is not None:
            inputs = self.audio_injection.prepare(audio) if isinstance(audio, AudioTokens) else audio
            listening = video[:, : layout.target]
            spoken = self.audio_injection(listening, inputs)
            if masks_audio and logits is not None:
                spoken = spoken * face_weight(logits).to(spoken.dtype)
            if torch.is_grad_enabled():
                video = torch.cat([listening + spoken, video[:, layout.target :]], dim=1)
            else:
                listening += spoken  # in place, as nobody else has this block's own sum
        hidden_states = video if hoi is None else torch.cat([video, hoi], dim=1)

        if mode.return_router_logits and logits is not None:
            return hidden_states, logits
        return hidden_states

    def _feed(
        self,
        video: torch.Tensor,
        normed: torch.Tensor,
        modulation: torch.Tensor,
        target: int,
        mode: BlockMode,
        expert_gate: torch.Tensor | None,
        routes: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`video` (B, N, D) and the feed-forward of `normed`, with experts on its first `target` tokens.

        Returns also the router's logits (B, target, 3) if `routes`.
        """
        added = feed_forward(self.ffn, normed)
        target_normed = normed[:, :target]
        logits = self.moe.route(target_normed) if routes else None
        if not mode.experts or not target:
            return gated_add(video, added, modulation, GATE_FFN, target or video.shape[1]), logits
        hand, face = self.moe(target_normed)
        if expert_gate is not None:
            hand, face = hand * expert_gate, face * expert_gate
        return gated_add(video, added, modulation, GATE_FFN, target, logits, hand, face), logits

    def _feed_in_parts(
        self,
        video: torch.Tensor,
        normed: torch.Tensor,
        modulation: torch.Tensor,
        target: int,
        mode: BlockMode,
        expert_gate: torch.Tensor | None,
        routes: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same for `mode.part_tokens` tokens at a time, so that what lies between is small."""
        fed = torch.empty_like(video)
        logits = []
        for row, start, end in ((NOISY, 0, target), (CLEAN, target, video.shape[1])):
            for first in range(start, end, mode.part_tokens or end):
                span = slice(first, min(first + (mode.part_tokens or end), end))
                fed[:, span], routed = self._feed(
                    video[:, span],
                    normed[:, span],
                    modulation[:, row, None],
                    span.stop - span.start if row == NOISY else 0,
                    mode,
                    expert_gate,
                    routes and row == NOISY,
                )
                if routed is not None:
                    logits.append(routed)
        return fed, torch.cat(logits, dim=1) if logits else None


# Step caches (first block, MagCache, …) look blocks up here.
TransformerBlockRegistry.register(
    CoInteractBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)
