"""The CoInteract diffusion transformer (arXiv 2604.19636, section 3): Wan2.2-S2V, experts, HOI stream.

Read top to bottom: what a clip's conditioning holds, the ends of the network, then the model, whose `forward`
is five numbered stages. Shapes: B batch, F latent frames, h × w latent size, N tokens, D width.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from contract.sampling import ROUTING_LIMIT
from model.kernels.modulation import norm_modulate
from model.kernels.rotary import RotaryTable
from model.network.attention import KeyValue
from model.network.audio_injection import AudioEncoder, AudioTokens, InjectionInputs
from model.network.block import NOISY, BlockMode, CoInteractBlock, TokenLayout, Visibility
from model.network.rope import (
    GridRope,
    Positions,
    hoi_positions,
    motion_positions,
    person_positions,
    product_positions,
    rotary_table,
    target_positions,
)
from model.network.time_text_embedding import TimeTextEmbedding
from model.parallel.tokens import TokenSplit, held_by

TARGET_TYPE, REFERENCE_TYPE, MOTION_TYPE = 0, 1, 2  # rows of the type embedding
# Newest first: latent frames, patch. Together the 19 latent frames of the previous clip's last 73.
MOTION_PACKS = ((1, (1, 2, 2)), (2, (2, 4, 4)), (16, (4, 8, 8)))


@dataclass(frozen=True)
class ConditioningInputs:
    """What drives a clip, as the encoders give it; all tensors on the network's device."""

    person_latents: torch.Tensor  # (B, C, 1, h, w), clean
    encoder_hidden_states: torch.Tensor  # (B, L, text_dim) prompt; rows beyond it are zero
    audio_embeds: torch.Tensor  # (B, layers, audio_dim, T) speech features at 25 fps
    product_latents: torch.Tensor | None = None  # (B, C, 1, h, w), clean
    motion_latents: torch.Tensor | None = None  # (B, C, up to 19, h, w): the clip before, newest last
    pose_latents: torch.Tensor | None = None  # (B, C, F, h, w)
    product_scale: float = 1.0  # relative size in which the product is to appear
    hoi_encoder_hidden_states: torch.Tensor | None = None  # (B, L, text_dim): asks for HOI tokens


@dataclass(frozen=True)
class Conditioning:
    """Everything that does not change during the denoising steps of a clip; see `prepare_conditioning`."""

    latent_size: tuple[int, int, int]  # F, h, w of the target
    layout: TokenLayout  # of the tokens held here
    rotary_emb: RotaryTable  # of the same tokens, the HOI stream's last
    target_bias: torch.Tensor  # (B, N_target or 1, D): pose and type embedding, added to the noisy tokens
    reference_tokens: torch.Tensor  # (B, N_person + N_product + N_motion, D)
    encoder_hidden_states: torch.Tensor  # (B, L, D) projected prompt
    audio: AudioTokens
    hoi_encoder_hidden_states: torch.Tensor | None = None  # (B, L, D) projected HOI prompt
    # Keys and values of prompt and speech per block; if None, each forward computes them.
    text_key_values: tuple[KeyValue, ...] | None = None
    injections: tuple[InjectionInputs | None, ...] | None = None
    split: TokenSplit | None = None  # with the ranks that hold the other tokens

    def sharing(self, other: "Conditioning") -> "Conditioning":
        """This one without copies of what `other`, of the same clip and another prompt, holds as well."""
        return replace(
            self,
            target_bias=other.target_bias,
            reference_tokens=other.reference_tokens,
            rotary_emb=other.rotary_emb,
        )


@dataclass(frozen=True)
class TransformerOutput:
    """What one call predicts."""

    sample: torch.Tensor  # (B, C, F, h, w) velocity of the target latents
    conditioning: Conditioning  # for the next steps of the same clip
    hoi_sample: torch.Tensor | None = None  # (B, C, F, h, w) velocity of the HOI latents
    router_logits: tuple[torch.Tensor, ...] | None = None  # per block (B, N_target, 3): base, hand, face


class MotionPacker(nn.Module):
    """The previous clip's 19 latent frames → few tokens, fine for the newest and coarse for the oldest."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.packs = nn.ModuleList(
            [nn.Conv3d(in_channels, dim, kernel_size=patch, stride=patch) for _, patch in MOTION_PACKS]
        )

    def forward(self, motion_latents: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, up to 19, h, w) → grids (B, D, T, rows, columns), newest first."""
        lengths = [frames for frames, _ in MOTION_PACKS]
        missing = sum(lengths) - motion_latents.shape[2]
        if missing < 0:
            raise ValueError(f"motion latents hold {-missing} frames more than {sum(lengths)}")
        oldest_first = F.pad(motion_latents, (0, 0, 0, 0, missing, 0)).split(lengths[::-1], dim=2)
        convolutions = cast(list[nn.Conv3d], list(self.packs))
        return [
            _pack(conv, frames) for conv, frames in zip(convolutions, reversed(oldest_first), strict=True)
        ]


def _pack(conv: nn.Conv3d, frames: torch.Tensor) -> torch.Tensor:
    """One convolution of the motion packer, on CPUs always in fp32.

    On CPUs with AMX, oneDNN's bf16 convolution in three dimensions returns wrong numbers, at times NaN, where
    a strided output is one column wide (https://github.com/pytorch/pytorch/issues/169688). The coarsest pack
    is that narrow in videos of 64 to 127 pixels.
    """
    if frames.device.type != "cpu":
        packed: torch.Tensor = conv(frames)
        return packed
    bias = cast(torch.Tensor, conv.bias)
    with torch.autocast("cpu", enabled=False):
        exact = F.conv3d(frames.float(), conv.weight.float(), bias.float(), conv.stride)
    return exact.to(frames.dtype)


def _flatten_grid(grid: torch.Tensor) -> torch.Tensor:
    """(B, D, F, rows, columns) → (B, N, D)."""
    return grid.flatten(2).transpose(1, 2).contiguous()


class CoInteractTransformer3DModel(ModelMixin, ConfigMixin, CacheMixin, AttentionMixin, PeftAdapterMixin):
    """CoInteract's video transformer: predicts the velocity of the target latents of one clip.

    Args:
        num_attention_heads, attention_head_dim, num_layers, ffn_dim: size of the network.
        in_channels, out_channels: latent channels.
        text_dim, freq_dim: width of prompt embeddings and of the timestep's sinusoids.
        audio_dim, num_audio_layers, num_audio_tokens: width and layers of speech features, tokens per frame.
        audio_inject_layers: the blocks followed by an audio injection.
        expert_hidden_dim: hidden width of the hand and face experts.
        hoi_branch: build the HOI structure stream used in training (paper section 3; pruned for serving).
        fp8_ffn: the blocks' feed-forward weights are stored in 8 bits (`convert --fp8-ffn`).
    """

    part_tokens: int | None = None
    """So many tokens at a time pass a feed-forward; None: all, for which there must be memory."""

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = [
        "patch_embedding",
        "pose_embedding",
        "motion_packer",
        "condition_embedder",
        "audio_encoder",
        "type_embedding",
        "norm",
        "router",
    ]
    _no_split_modules: ClassVar[list[str]] = ["CoInteractBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["CoInteractBlock"]
    _keep_in_fp32_modules: ClassVar[list[str]] = [
        "time_embedder",
        "scale_shift_table",
        "hoi_scale_shift_table",
    ]

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
        fp8_ffn: bool = False,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        if tuple(patch_size) != (1, 2, 2):
            raise ValueError(f"motion packing is defined for patch size (1, 2, 2), got {tuple(patch_size)}")
        beyond = [layer for layer in audio_inject_layers if layer >= num_layers]
        if beyond:
            raise ValueError(f"audio_inject_layers {beyond} lie beyond the {num_layers} layers")

        # 1. Latents → tokens
        self.rope = GridRope(attention_head_dim)
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
                    fp8_ffn=fp8_ffn,
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
        self, inputs: ConditioningInputs, *, num_latent_frames: int, keep_key_values: bool = False
    ) -> Conditioning:
        """Compute once per clip (and per prompt) what its denoising steps share.

        Args:
            num_latent_frames: F of the target.
            keep_key_values: also compute the prompt's and the speech's keys and values for every block (per
                prompt 2 · layers · L · D values: 0.42 GB in bf16 at full size). The blocks' weights must be
                on the device; under block-level offloading pass the inputs to `forward` instead, and its
                output's conditioning to the next steps.

        Raises:
            ValueError: motion or pose latents differ in size from the person's, or pose or speech cover
                another number of frames.
        """
        size = (num_latent_frames, *inputs.person_latents.shape[-2:])
        layout, references, angles = self._lay_out(inputs, size)
        audio = self.audio_encoder(inputs.audio_embeds)
        if audio.local.shape[1] != num_latent_frames:
            raise ValueError(
                f"speech of {inputs.audio_embeds.shape[-1]} frames covers {audio.local.shape[1]} latent "
                f"frames, target {num_latent_frames}"
            )
        embed_text = self.condition_embedder.text_embedder
        text, hoi_text = embed_text(inputs.encoder_hidden_states), inputs.hoi_encoder_hidden_states
        keys = injections = None
        if keep_key_values:
            keys = tuple(block.attn2.key_value(text) for block in self._layers())
            injections = tuple(
                None if block.audio_injection is None else block.audio_injection.prepare(audio)
                for block in self._layers()
            )
        return Conditioning(
            latent_size=size,
            layout=layout,
            rotary_emb=rotary_table(
                torch.cat([grid.flatten(0, 2) for grid in angles]), inputs.person_latents.device
            ),
            target_bias=self._target_bias(inputs, num_latent_frames),
            reference_tokens=references,
            encoder_hidden_states=text,
            hoi_encoder_hidden_states=None if hoi_text is None else embed_text(hoi_text),
            audio=audio,
            text_key_values=keys,
            injections=injections,
        )

    def _lay_out(
        self, inputs: ConditioningInputs, size: tuple[int, int, int]
    ) -> tuple[TokenLayout, torch.Tensor, list[torch.Tensor]]:
        """The order of a clip's tokens: their counts, the clean ones (B, N, D), and every token's angles."""
        frames, height, width = size
        for name, latents in (("motion", inputs.motion_latents), ("pose", inputs.pose_latents)):
            if latents is not None and latents.shape[-2:] != (height, width):
                found = tuple(latents.shape[-2:])
                raise ValueError(f"{name} latents are {found}, person's {(height, width)}")
        rows, columns = height // 2, width // 2
        types = self.type_embedding.weight.to(inputs.person_latents.dtype)
        angles = [self.rope(target_positions(frames, rows, columns))]
        layout = TokenLayout(grid=(frames, rows, columns), person=0)
        references = []

        def add(grid: torch.Tensor, row: int, positions: Positions) -> int:
            references.append(_flatten_grid(grid) + types[row])
            angles.append(self.rope(positions))
            return references[-1].shape[1]

        person = self.patch_embedding(inputs.person_latents)
        layout = replace(layout, person=add(person, REFERENCE_TYPE, person_positions(rows, columns)))
        if inputs.product_latents is not None:
            product = self.patch_embedding(inputs.product_latents)
            positions = product_positions(product.shape[-2], product.shape[-1], inputs.product_scale)
            layout = replace(layout, product=add(product, REFERENCE_TYPE, positions))
        if inputs.motion_latents is not None and inputs.motion_latents.shape[2]:
            packed = motion_positions(
                [(height // patch[1], width // patch[2]) for _, patch in MOTION_PACKS], rows, columns
            )
            grids = zip(self.motion_packer(inputs.motion_latents), packed, strict=True)
            layout = replace(
                layout, motion=sum(add(grid, MOTION_TYPE, positions) for grid, positions in grids)
            )
        if inputs.hoi_encoder_hidden_states is not None:
            angles.append(self.rope(hoi_positions(frames, rows, columns)))
            layout = replace(layout, hoi=layout.target)
        return layout, torch.cat(references, dim=1), angles

    def _target_bias(self, inputs: ConditioningInputs, num_latent_frames: int) -> torch.Tensor:
        """Pose and type embedding of the noisy tokens, (B, N_target or 1, D)."""
        latents, dtype = inputs.pose_latents, inputs.person_latents.dtype
        if latents is None:  # the convolution of zeros is its bias
            pose = cast(torch.Tensor, self.pose_embedding.bias).to(dtype).view(1, 1, -1)
        elif latents.shape[2] != num_latent_frames:
            raise ValueError(f"pose covers {latents.shape[2]} latent frames, target {num_latent_frames}")
        else:
            pose = _flatten_grid(self.pose_embedding(latents))
        return pose + self.type_embedding.weight.to(dtype)[TARGET_TYPE]

    def _layers(self) -> list[CoInteractBlock]:
        return cast(list[CoInteractBlock], list(self.blocks))

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: float | torch.Tensor,
        conditioning: Conditioning | ConditioningInputs,
        *,
        hoi_latents: torch.Tensor | None = None,
        hoi_visibility: Visibility = "asymmetric",
        audio_face_mask: bool = False,
        return_router_logits: bool = False,
    ) -> TransformerOutput:
        """Predict velocities.

        Args:
            hidden_states: (B, C, F, h, w) noisy target latents.
            timestep: 0..1000, one number or one per sample (B,). Give a number or a CPU tensor: it decides
                whether the experts run, and the host would have to wait for a tensor on the GPU.
            conditioning: from `prepare_conditioning` or an earlier output, or the inputs to prepare it from.
            hoi_latents: (B, C, F, h, w) noisy HOI latents, together with an HOI prompt.
            hoi_visibility: "asymmetric": video tokens do not see the HOI stream, which sees itself, target
                and product; "mutual": all tokens see each other.
            audio_face_mask: weaken speech where the router sees no face.
            return_router_logits: also return each block's routing, at every timestep. Every rank gets that
                of all tokens.
        """
        batch, _, frames, height, width = hidden_states.shape
        if isinstance(conditioning, ConditioningInputs):
            conditioning = self.prepare_conditioning(conditioning, num_latent_frames=frames)
        layout, split = conditioning.layout, conditioning.split
        if (hoi_latents is not None) != bool(layout.hoi):
            raise ValueError("hoi_latents and the HOI prompt go together")
        if (frames, height, width) != conditioning.latent_size:
            raise ValueError(
                f"target latents are {(frames, height, width)}, conditioning fits {conditioning.latent_size}"
            )

        # 1. Tokens
        target = _flatten_grid(self.patch_embedding(hidden_states))
        target = held_by(split, target, frames) + conditioning.target_bias
        tokens = [target, conditioning.reference_tokens]
        if hoi_latents is not None:
            hoi_tokens = _flatten_grid(self.hoi_patch_embedding(hoi_latents))
            tokens.append(hoi_tokens + self.hoi_type_embedding.weight.to(hoi_tokens.dtype))
        states = torch.cat(tokens, dim=1)
        del target, tokens

        # 2. Timesteps: one row for the noisy tokens, one at timestep 0 for the clean ones
        timesteps = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1).expand(batch)
        routed = [t < ROUTING_LIMIT for t in timesteps.tolist()]
        expert_gate = None
        if any(routed) and not all(routed):
            expert_gate = torch.tensor(routed, device=states.device, dtype=states.dtype).view(-1, 1, 1)
        timesteps = torch.stack([timesteps, torch.zeros_like(timesteps)], dim=1).to(states.device)
        temb, modulation = self.condition_embedder(timesteps.flatten())
        temb = temb.unflatten(0, (batch, 2))
        modulation = modulation.float().unflatten(0, (batch, 2))  # (B, 2, 6, D)

        # 3. Blocks
        mode = BlockMode(
            visibility=hoi_visibility,
            experts=any(routed),
            audio_face_mask=audio_face_mask,
            return_router_logits=return_router_logits,
            part_tokens=self.part_tokens,
        )
        router_logits = []
        for index, block in enumerate(self._layers()):
            # Step caches subtract block outputs from one another, so all must have one length.
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
                None if split is None else split.exchange(mode.target_queries_only),
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

        if router_logits and split is not None:
            gathered = split.gather_target(torch.cat(router_logits, dim=-1))
            router_logits = list(gathered.split(router_logits[0].shape[-1], dim=-1))

        # 4. Heads
        sample = self._head(
            states[:, : layout.target], conditioning, temb[:, NOISY], self.scale_shift_table, self.proj_out
        )
        hoi_sample = None
        if layout.hoi:
            hoi_sample = self._head(
                states[:, -layout.hoi :],
                conditioning,
                temb[:, NOISY],
                self.hoi_scale_shift_table,
                self.hoi_proj_out,
            )
        return TransformerOutput(
            sample=sample,
            conditioning=conditioning,
            hoi_sample=hoi_sample,
            router_logits=tuple(router_logits) if return_router_logits else None,
        )

    def _head(
        self,
        states: torch.Tensor,
        conditioning: Conditioning,
        temb: torch.Tensor,
        table: torch.Tensor,
        projection: nn.Module,
    ) -> torch.Tensor:
        """5. Tokens (B, N, D) → latents (B, C, F, h, w)."""
        modulation = (table + temb.float().unsqueeze(1)).unsqueeze(1)  # (B, 1, 2, D): shift and scale
        normed = norm_modulate(states, modulation, 0, 1, states.shape[1], self.config.eps)
        patches: torch.Tensor = projection(normed)  # (B, N, patch · C)
        if conditioning.split is not None:
            patches = conditioning.split.gather_target(patches)
        frames, height, width = conditioning.latent_size
        p_t, p_h, p_w = self.config.patch_size
        grid = patches.unflatten(1, (frames, height // p_h, width // p_w)).unflatten(-1, (p_t, p_h, p_w, -1))
        latents = grid.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, C, F, p_t, rows, p_h, columns, p_w)
        merged: torch.Tensor = latents.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return merged
