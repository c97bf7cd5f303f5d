"""The CoInteract diffusion transformer (arXiv 2604.19636, section 3): Wan2.2-S2V, Human-Aware MoE, HOI stream.

Read top to bottom: what a clip's conditioning holds, one block, then the model, whose `forward` is six numbered
stages. Shapes: B batch, F latent frames, (rows, columns) the patch grid, N tokens, D width.

Token order is target, person, product, motion, and last the HOI stream. Only target tokens are noisy; the others
are clean and are modulated as at timestep 0, so every block works with two rows of modulation, never one per token.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from model.attention import CoInteractAttention, KeyValue, join, part
from model.audio_injection import AudioEncoder, AudioInjection, AudioTokens, InjectionInputs
from model.moe import ROUTING_LIMIT, HumanAwareMoE, face_weight
from model.rope import (
    RotaryTable,
    hoi_angles,
    motion_angles,
    person_angles,
    product_angles,
    rotary_table,
    select,
    target_angles,
)

Visibility = Literal["asymmetric", "mutual"]

TARGET_TYPE, REFERENCE_TYPE, MOTION_TYPE = 0, 1, 2  # rows of the type embedding
NOISY, CLEAN = 0, 1  # rows of the modulation
MOTION_LATENT_FRAMES = 19
MOTION_PACKS = ((1, (1, 2, 2)), (2, (2, 4, 4)), (16, (4, 8, 8)))  # newest first: latent frames, patch


@dataclass(frozen=True)
class TokenLayout:
    """How many tokens of each kind stand in the sequence, in order."""

    grid: tuple[int, int, int]  # latent frames, rows, columns of the target
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
class Conditioning:
    """Everything that stays the same through the denoising steps of one clip; made by `prepare_conditioning`."""

    layout: TokenLayout
    rotary_emb: RotaryTable  # (N, head_dim), HOI tokens last
    target_bias: torch.Tensor  # (B, N_target or 1, D): pose and type embedding, added to the noisy tokens
    reference_tokens: torch.Tensor  # (B, N_person + N_product + N_motion, D)
    encoder_hidden_states: torch.Tensor  # (B, L, D) projected prompt
    audio: AudioTokens
    hoi_encoder_hidden_states: torch.Tensor | None = None  # (B, L, D) projected HOI prompt
    # Keys and values of prompt and speech per block; computed in each forward where None.
    text_key_values: tuple[KeyValue, ...] | None = None
    injections: tuple[InjectionInputs | None, ...] | None = None


@dataclass(frozen=True)
class TransformerOutput:
    """What one call predicts."""

    sample: torch.Tensor  # (B, C, F, h, w) velocity of the target latents
    hoi_sample: torch.Tensor | None = None  # (B, C, F, h, w) velocity of the HOI latents
    router_logits: tuple[torch.Tensor, ...] | None = None  # per block (B, N_target, 3): base, hand, face


@dataclass(frozen=True)
class BlockMode:
    """The switches of one block call; all of them are known without looking at a tensor."""

    visibility: Visibility = "asymmetric"
    experts: bool = True  # False: no sample of the batch is below the routing limit
    audio_face_mask: bool = False
    target_queries_only: bool = False  # last block: nobody reads the reference tokens after it
    return_router_logits: bool = False


def timestep_features(timesteps: torch.Tensor, channels: int) -> torch.Tensor:
    """Sinusoidal embedding (B, channels), cosines first; float64 inside because timesteps reach 1000."""
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float64, device=timesteps.device) / half
    angles = torch.outer(timesteps.double(), 10000.0**-exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


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
        torch.addcmul(group, extra, gate[:, row]) for row, (group, extra) in enumerate(groups) if group.shape[1]
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
    ) -> None:
        super().__init__()
        self.eps = eps
        self.attn1 = CoInteractAttention(dim, heads, eps, is_cross_attention=False)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.attn2 = CoInteractAttention(dim, heads, eps, is_cross_attention=True)
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
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

        Returns:
            (B, N, D), without the reference tokens if `mode.target_queries_only`; a bare tensor, as diffusers'
            step caches expect. With `mode.return_router_logits` also (B, N_target, 3).
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
        attended = self.attn1(normed, key_value, video_rotary)
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
            target = video[:, : layout.target]
            spoken = self.audio_injection(target, inputs)
            if masks_audio and logits is not None:
                spoken = spoken * face_weight(logits).to(spoken.dtype)
            tail = [target + spoken, video[:, layout.target :], *tail]
        else:
            tail = [video, *tail]
        hidden_states = tail[0] if len(tail) == 1 else torch.cat(tail, dim=1)

        if mode.return_router_logits and logits is not None:
            return hidden_states, logits
        return hidden_states


class TimeTextEmbedding(nn.Module):
    """Timesteps → modulation; prompt embeddings → model width."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = TimestepEmbedding(freq_dim, dim)
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = PixArtAlphaTextProjection(text_dim, dim, act_fn="gelu_tanh")

    def forward(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) → temb (B, D) and modulation (B, 6, D)."""
        weight_dtype = self.time_embedder.linear_1.weight.dtype
        temb = self.time_embedder(timestep_features(timesteps, self.freq_dim).to(weight_dtype))
        projected = self.time_proj(F.silu(temb).to(self.time_proj.weight.dtype))
        return temb, projected.unflatten(-1, (6, -1))


class MotionPacker(nn.Module):
    """The previous clip's 19 latent frames → few tokens: the newest finely, the oldest coarsely."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.packs = nn.ModuleList(
            [nn.Conv3d(in_channels, dim, kernel_size=patch, stride=patch) for _, patch in MOTION_PACKS]
        )

    def forward(self, motion_latents: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """(B, C, ≤19, h, w) → tokens (B, N, D), newest first, and each resolution's (rows, columns)."""
        missing = MOTION_LATENT_FRAMES - motion_latents.shape[2]
        if missing < 0:
            raise ValueError(f"motion latents hold {-missing} frames more than {MOTION_LATENT_FRAMES}")
        oldest_first = F.pad(motion_latents, (0, 0, 0, 0, missing, 0)).split([16, 2, 1], dim=2)
        grids = [conv(frames) for conv, frames in zip(self.packs, reversed(oldest_first), strict=True)]
        tokens = torch.cat([_flatten_grid(grid) for grid in grids], dim=1)
        return tokens, [(grid.shape[3], grid.shape[4]) for grid in grids]


def _flatten_grid(grid: torch.Tensor) -> torch.Tensor:
    """(B, D, F, rows, columns) → (B, N, D)."""
    return grid.flatten(2).transpose(1, 2).contiguous()


class CoInteractTransformer3DModel(ModelMixin, ConfigMixin, CacheMixin, AttentionMixin, PeftAdapterMixin):
    """CoInteract's video transformer: predicts the velocity of the target latents of one clip.

    Args:
        num_attention_heads, attention_head_dim, num_layers, ffn_dim: size of the network.
        in_channels, out_channels: latent channels.
        text_dim, freq_dim: width of prompt embeddings and of the timestep's sinusoids.
        audio_dim, num_audio_layers, num_audio_tokens: speech features' width and layers, local tokens per frame.
        audio_inject_layers: the blocks followed by an audio injection.
        expert_hidden_dim: hidden width of the hand and face experts.
        hoi_branch: build the HOI structure stream used in training (paper section 3; pruned for serving).
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = (
        "patch_embedding",
        "pose_embedding",
        "motion_packer",
        "condition_embedder",
        "audio_encoder",
        "type_embedding",
        "norm",
        "router",
    )
    _no_split_modules = ("CoInteractBlock",)
    _repeated_blocks = ("CoInteractBlock",)
    _keep_in_fp32_modules = ("time_embedder", "scale_shift_table", "hoi_scale_shift_table")

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        eps: float = 1e-6,
        audio_dim: int = 1024,
        num_audio_layers: int = 25,
        num_audio_tokens: int = 4,
        audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39),
        expert_hidden_dim: int = 256,
        hoi_branch: bool = False,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        if tuple(patch_size) != (1, 2, 2):
            raise ValueError(f"motion packing is defined for patch size (1, 2, 2), got {tuple(patch_size)}")
        beyond = [layer for layer in audio_inject_layers if layer >= num_layers]
        if beyond:
            raise ValueError(f"audio_inject_layers {beyond} lie beyond the {num_layers} layers")

        # 1. Latents → tokens
        self.patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.pose_embedding = nn.Conv3d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.motion_packer = MotionPacker(in_channels, dim)
        self.type_embedding = nn.Embedding(3, dim)

        # 2. Timestep, prompt and speech
        self.condition_embedder = TimeTextEmbedding(dim, freq_dim, text_dim)
        self.audio_encoder = AudioEncoder(audio_dim, num_audio_layers, dim, num_audio_tokens)

        # 3. Blocks
        self.blocks = nn.ModuleList(
            [
                CoInteractBlock(
                    dim,
                    num_attention_heads,
                    ffn_dim,
                    expert_hidden_dim,
                    eps,
                    injects_audio=layer in audio_inject_layers,
                    hoi_branch=hoi_branch,
                )
                for layer in range(num_layers)
            ]
        )

        # 4. Tokens → velocity
        self.proj_out = nn.Linear(dim, out_channels * math.prod(patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

        # 5. The HOI stream's own ends
        if hoi_branch:
            self.hoi_patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
            self.hoi_type_embedding = nn.Embedding(1, dim)
            self.hoi_proj_out = nn.Linear(dim, out_channels * math.prod(patch_size))
            self.hoi_scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

        self.gradient_checkpointing = False

    def prepare_conditioning(
        self,
        *,
        num_latent_frames: int,
        person_latents: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        audio_embeds: torch.Tensor,
        product_latents: torch.Tensor | None = None,
        motion_latents: torch.Tensor | None = None,
        pose_latents: torch.Tensor | None = None,
        product_scale: float = 1.0,
        hoi_encoder_hidden_states: torch.Tensor | None = None,
        keep_key_values: bool = False,
    ) -> Conditioning:
        """Compute once per clip (and per prompt) what its denoising steps share.

        Args:
            num_latent_frames: F of the target.
            person_latents, product_latents: (B, C, 1, h, w), clean.
            motion_latents: (B, C, up to 19, h, w), the end of the previous clip, newest last.
            pose_latents: (B, C, F, h, w).
            encoder_hidden_states: (B, L, text_dim) prompt embeddings; rows beyond the prompt are zero.
            hoi_encoder_hidden_states: the same of the HOI prompt; asks for HOI tokens in the layout.
            audio_embeds: (B, layers, audio_dim, T) speech features at 25 fps.
            product_scale: relative size in which the product is to appear.
            keep_key_values: also compute the prompt's and the speech's keys and values for every block (per
                prompt 2 · layers · L · D values: 0.42 GB in bf16 at full size).

        Raises:
            ValueError: motion or pose latents differ in size from the person's, or the speech covers another number of frames.
        """
        head_dim: int = self.config.attention_head_dim
        device, dtype = person_latents.device, person_latents.dtype
        _, rows, columns = (
            size // patch
            for size, patch in zip(person_latents.shape[2:], self.config.patch_size, strict=True)
        )
        grid = (num_latent_frames, rows, columns)
        for name, latents in (("motion", motion_latents), ("pose", pose_latents)):
            if latents is not None and latents.shape[-2:] != person_latents.shape[-2:]:
                raise ValueError(
                    f"{name} latents are {tuple(latents.shape[-2:])}, person's {tuple(person_latents.shape[-2:])}"
                )
        types = self.type_embedding.weight.to(dtype)

        references = [_flatten_grid(self.patch_embedding(person_latents)) + types[REFERENCE_TYPE]]
        angles = [target_angles(*grid, head_dim), person_angles(rows, columns, head_dim)]
        layout = TokenLayout(grid, person=references[0].shape[1])
        if product_latents is not None:
            product_grid = self.patch_embedding(product_latents)
            references.append(_flatten_grid(product_grid) + types[REFERENCE_TYPE])
            angles.append(product_angles(*product_grid.shape[3:], product_scale, head_dim))
            layout = replace(layout, product=references[-1].shape[1])
        if motion_latents is not None and motion_latents.shape[2]:
            motion_tokens, motion_grids = self.motion_packer(motion_latents)
            references.append(motion_tokens + types[MOTION_TYPE])
            angles.append(motion_angles(motion_grids, rows, columns, head_dim))
            layout = replace(layout, motion=motion_tokens.shape[1])
        if hoi_encoder_hidden_states is not None:
            angles.append(hoi_angles(*grid, head_dim))
            layout = replace(layout, hoi=layout.target)

        if pose_latents is None:  # the convolution of zeros is its bias
            pose = self.pose_embedding.bias.to(dtype).expand(person_latents.shape[0], 1, -1)
        elif pose_latents.shape[2] != num_latent_frames:
            raise ValueError(f"pose covers {pose_latents.shape[2]} latent frames, target {num_latent_frames}")
        else:
            pose = _flatten_grid(self.pose_embedding(pose_latents))

        audio = self.audio_encoder(audio_embeds)
        if audio.local.shape[1] != num_latent_frames:
            raise ValueError(
                f"speech of {audio_embeds.shape[-1]} frames covers {audio.local.shape[1]} latent frames, "
                f"target {num_latent_frames}"
            )
        text = self.condition_embedder.text_embedder(encoder_hidden_states)
        return Conditioning(
            layout=layout,
            rotary_emb=rotary_table(torch.cat(angles), device),
            target_bias=pose + types[TARGET_TYPE],
            reference_tokens=torch.cat(references, dim=1),
            encoder_hidden_states=text,
            hoi_encoder_hidden_states=None
            if hoi_encoder_hidden_states is None
            else self.condition_embedder.text_embedder(hoi_encoder_hidden_states),
            audio=audio,
            text_key_values=tuple(block.attn2.key_value(text) for block in self.blocks)
            if keep_key_values
            else None,
            injections=tuple(
                None if block.audio_injection is None else block.audio_injection.prepare(audio)
                for block in self.blocks
            )
            if keep_key_values
            else None,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: float | torch.Tensor,
        conditioning: Conditioning | None = None,
        *,
        person_latents: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        product_latents: torch.Tensor | None = None,
        motion_latents: torch.Tensor | None = None,
        pose_latents: torch.Tensor | None = None,
        product_scale: float = 1.0,
        hoi_latents: torch.Tensor | None = None,
        hoi_encoder_hidden_states: torch.Tensor | None = None,
        hoi_visibility: Visibility = "asymmetric",
        audio_face_mask: bool = False,
        return_router_logits: bool = False,
    ) -> TransformerOutput:
        """Predict velocities.

        Args:
            hidden_states: (B, C, F, h, w) noisy target latents.
            timestep: 0..1000, one number or one per sample (B,). Give a number or a CPU tensor: whether the
                experts run is decided from it, and a tensor on the GPU has to be waited for.
            conditioning: from `prepare_conditioning`. Without it, the raw inputs (see there) are required.
            hoi_latents: (B, C, F, h, w) noisy HOI latents, together with an HOI prompt.
            hoi_visibility: "asymmetric": video tokens do not see the HOI stream, which sees itself, target and
                product; "mutual": all tokens see each other.
            audio_face_mask: weaken speech where the router sees no face.
            return_router_logits: also return each block's routing, at every timestep.
        """
        batch, _, frames, height, width = hidden_states.shape
        if conditioning is None:
            if person_latents is None or encoder_hidden_states is None or audio_embeds is None:
                raise ValueError("without conditioning, person_latents, encoder_hidden_states and audio_embeds are required")
            conditioning = self.prepare_conditioning(
                num_latent_frames=frames,
                person_latents=person_latents,
                encoder_hidden_states=encoder_hidden_states,
                audio_embeds=audio_embeds,
                product_latents=product_latents,
                motion_latents=motion_latents,
                pose_latents=pose_latents,
                product_scale=product_scale,
                hoi_encoder_hidden_states=hoi_encoder_hidden_states,
            )
        layout = conditioning.layout
        if (hoi_latents is not None) != bool(layout.hoi):
            raise ValueError("hoi_latents and the HOI prompt go together")
        if (height // 2, width // 2) != layout.grid[1:] or frames != layout.grid[0]:
            raise ValueError(f"target latents {(frames, height, width)} do not fit a conditioning of {layout.grid} tokens")

        # 1. Tokens
        target = _flatten_grid(self.patch_embedding(hidden_states)) + conditioning.target_bias
        tokens = [target, conditioning.reference_tokens]
        if hoi_latents is not None:
            hoi_tokens = _flatten_grid(self.hoi_patch_embedding(hoi_latents))
            tokens.append(hoi_tokens + self.hoi_type_embedding.weight.to(hoi_tokens.dtype))
        states = torch.cat(tokens, dim=1)

        # 2. Timesteps: one row for the noisy tokens, one at timestep 0 for the clean ones
        timesteps = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1).expand(batch)
        routed = [t < ROUTING_LIMIT for t in timesteps.tolist()]
        expert_gate = None
        if any(routed) and not all(routed):
            expert_gate = torch.tensor(routed, device=states.device, dtype=states.dtype).view(-1, 1, 1)
        timesteps = torch.stack([timesteps, torch.zeros_like(timesteps)], dim=1).to(states.device)
        temb, modulation = self.condition_embedder(timesteps.flatten())
        temb, modulation = temb.unflatten(0, (batch, 2)), modulation.unflatten(0, (batch, 2))  # (B, 2, 6, D)

        # 3. Blocks
        mode = BlockMode(
            visibility=hoi_visibility,
            experts=any(routed),
            audio_face_mask=audio_face_mask,
            return_router_logits=return_router_logits,
        )
        router_logits = []
        for index, block in enumerate(self.blocks):
            # Step caches subtract block outputs from one another and need them all of one length.
            if index == len(self.blocks) - 1 and not self.is_cache_enabled:
                mode = replace(mode, target_queries_only=True)
            text: torch.Tensor | KeyValue = conditioning.encoder_hidden_states
            if conditioning.text_key_values is not None:
                text = conditioning.text_key_values[index]
            audio: AudioTokens | InjectionInputs | None = conditioning.audio
            if conditioning.injections is not None:
                audio = conditioning.injections[index]
            arguments = (
                states,
                text,
                modulation,
                conditioning.rotary_emb,
                layout,
                audio,
                mode,
                expert_gate,
                conditioning.hoi_encoder_hidden_states,
            )
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                result = self._gradient_checkpointing_func(block, *arguments)
            else:
                result = block(*arguments)
            if return_router_logits:
                states, logits = result
                router_logits.append(logits)
            else:
                states = result

        # 4. Heads
        sample = self._head(states[:, : layout.target], temb[:, NOISY], self.scale_shift_table, self.proj_out)
        hoi_sample = None
        if layout.hoi:
            hoi_sample = self._head(
                states[:, -layout.hoi :], temb[:, NOISY], self.hoi_scale_shift_table, self.hoi_proj_out
            )

        # 5. Patches → latents
        return TransformerOutput(
            sample=self._unpatchify(sample, layout.grid),
            hoi_sample=None if hoi_sample is None else self._unpatchify(hoi_sample, layout.grid),
            router_logits=tuple(router_logits) if return_router_logits else None,
        )

    def _head(
        self, states: torch.Tensor, temb: torch.Tensor, table: torch.Tensor, projection: nn.Module
    ) -> torch.Tensor:
        """(B, N, D) → (B, N, patch · C)."""
        shift, scale = (table + temb.float().unsqueeze(1)).unsqueeze(2).unbind(1)  # (B, 1, D) each
        normed = modulated_norm(states, shift, scale, (states.shape[1],), self.config.eps)
        projected: torch.Tensor = projection(normed)
        return projected

    def _unpatchify(self, patches: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """(B, N, patch · C) → (B, C, F, h, w)."""
        p_t, p_h, p_w = self.config.patch_size
        patches = patches.reshape(patches.shape[0], *grid, p_t, p_h, p_w, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return patches.flatten(6, 7).flatten(4, 5).flatten(2, 3)


TransformerBlockRegistry.register(
    CoInteractBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)
