"""Small files in the official formats, with weights drawn by the rule in tests/model/golden.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import ByT5Tokenizer, Wav2Vec2FeatureExtractor

from model.bench.official import JOB
from tests.model.golden import TINY_DIT, Shapes, official_dit_shapes, official_weights

Tensors = dict[str, torch.Tensor]

W2V_CONFIG: dict[str, Any] = dict(JOB.audio)


def t5_shapes(vocab: int, dim: int, ffn: int, layers: int, heads: int, buckets: int = 32) -> Shapes:
    """The official UMT5 encoder, heads of dim / heads."""
    shapes: Shapes = {"token_embedding.weight": (vocab, dim), "norm.weight": (dim,)}
    for n in range(layers):
        block = f"blocks.{n}"
        shapes |= {f"{block}.attn.{part}.weight": (dim, dim) for part in "qkvo"}
        shapes |= {f"{block}.norm1.weight": (dim,), f"{block}.norm2.weight": (dim,)}
        shapes[f"{block}.pos_embedding.embedding.weight"] = (buckets, heads)
        shapes[f"{block}.ffn.gate.0.weight"] = shapes[f"{block}.ffn.fc1.weight"] = (ffn, dim)
        shapes[f"{block}.ffn.fc2.weight"] = (dim, ffn)
    return shapes


def vae_shapes(base: int, z: int = 16, mult: tuple[int, ...] = (1, 2, 4, 4), res_blocks: int = 2) -> Shapes:
    """The official Wan 2.1 VAE: the first resampling leaves time alone, the others halve it."""
    shapes: Shapes = {}

    def conv(name: str, inputs: int, outputs: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, *kernel)
        shapes[f"{name}.bias"] = (outputs,)

    def residual(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.residual.0.gamma"] = (inputs, 1, 1, 1)
        conv(f"{name}.residual.2", inputs, outputs, 3, 3, 3)
        shapes[f"{name}.residual.3.gamma"] = (outputs, 1, 1, 1)
        conv(f"{name}.residual.6", outputs, outputs, 3, 3, 3)
        if inputs != outputs:
            conv(f"{name}.shortcut", inputs, outputs, 1, 1, 1)

    def middle(name: str, width: int) -> None:
        residual(f"{name}.0", width, width)
        shapes[f"{name}.1.norm.gamma"] = (width, 1, 1)
        conv(f"{name}.1.to_qkv", width, 3 * width, 1, 1)
        conv(f"{name}.1.proj", width, width, 1, 1)
        residual(f"{name}.2", width, width)

    def head(name: str, width: int, outputs: int) -> None:
        shapes[f"{name}.0.gamma"] = (width, 1, 1, 1)
        conv(f"{name}.2", width, outputs, 3, 3, 3)

    widths = [base, *(base * m for m in mult)]
    conv("encoder.conv1", 3, widths[0], 3, 3, 3)
    index = 0
    for stage, (inputs, outputs) in enumerate(pairwise(widths)):
        for _ in range(res_blocks):
            residual(f"encoder.downsamples.{index}", inputs, outputs)
            inputs, index = outputs, index + 1
        if stage < len(mult) - 1:
            conv(f"encoder.downsamples.{index}.resample.1", outputs, outputs, 3, 3)
            if stage > 0:
                conv(f"encoder.downsamples.{index}.time_conv", outputs, outputs, 3, 1, 1)
            index += 1
    middle("encoder.middle", widths[-1])
    head("encoder.head", widths[-1], 2 * z)
    conv("conv1", 2 * z, 2 * z, 1, 1, 1)
    conv("conv2", z, z, 1, 1, 1)

    widths = [base * m for m in (mult[-1], *reversed(mult))]
    conv("decoder.conv1", z, widths[0], 3, 3, 3)
    middle("decoder.middle", widths[0])
    index = 0
    for stage, (inputs, outputs) in enumerate(pairwise(widths)):
        inputs = inputs if stage == 0 else inputs // 2  # each upsampling halves the width
        for _ in range(res_blocks + 1):
            residual(f"decoder.upsamples.{index}", inputs, outputs)
            inputs, index = outputs, index + 1
        if stage < len(mult) - 1:
            conv(f"decoder.upsamples.{index}.resample.1", outputs, outputs // 2, 3, 3)
            if stage < len(mult) - 2:
                conv(f"decoder.upsamples.{index}.time_conv", outputs, 2 * outputs, 3, 1, 1)
            index += 1
    head("decoder.head", base, 3)
    return shapes


def w2v_shapes(config: Mapping[str, Any]) -> Shapes:
    """`Wav2Vec2ForCTC` of the large XLSR kind, as transformers saved it in 2021."""
    width, inner, channels = config["hidden_size"], config["intermediate_size"], config["conv_dim"][-1]
    shapes: Shapes = {
        "lm_head.weight": (config["vocab_size"], width),
        "lm_head.bias": (config["vocab_size"],),
    }

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"wav2vec2.{name}.weight"] = (outputs, inputs)
        shapes[f"wav2vec2.{name}.bias"] = (outputs,)

    def norm(name: str, size: int) -> None:
        shapes[f"wav2vec2.{name}.weight"] = shapes[f"wav2vec2.{name}.bias"] = (size,)

    inputs = 1
    for n, (outputs, kernel) in enumerate(zip(config["conv_dim"], config["conv_kernel"], strict=True)):
        name = f"feature_extractor.conv_layers.{n}"
        shapes[f"wav2vec2.{name}.conv.weight"] = (outputs, inputs, kernel)
        shapes[f"wav2vec2.{name}.conv.bias"] = (outputs,)
        norm(f"{name}.layer_norm", outputs)
        inputs = outputs
    norm("feature_projection.layer_norm", channels)
    linear("feature_projection.projection", channels, width)
    shapes["wav2vec2.masked_spec_embed"] = (width,)
    position = "wav2vec2.encoder.pos_conv_embed.conv"
    kernel, groups = config["num_conv_pos_embeddings"], config["num_conv_pos_embedding_groups"]
    shapes[f"{position}.bias"] = (width,)
    shapes[f"{position}.weight_g"] = (1, 1, kernel)
    shapes[f"{position}.weight_v"] = (width, width // groups, kernel)
    norm("encoder.layer_norm", width)
    for n in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{n}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.attention.{part}", width, width)
        norm(f"{layer}.layer_norm", width)
        linear(f"{layer}.feed_forward.intermediate_dense", width, inner)
        linear(f"{layer}.feed_forward.output_dense", inner, width)
        norm(f"{layer}.final_layer_norm", width)
    return shapes


@dataclass(frozen=True)
class Variant:
    """One way in which the official files may come."""

    prefix: str = ""
    infix: str = "default."
    ffn: str = "ffn.ffn_base."
    rank: int = 4
    hoi: bool = True
    drawn_with_hoi: bool = True
    """Whether the rule that draws the weights counts the HOI tensors, wherever they are then."""
    file: str = "checkpoint.safetensors"
    shards: int = 4
    dtype: torch.dtype = torch.float32
    seed: int = 0
    dit: Mapping[str, Any] = field(default_factory=lambda: dict(TINY_DIT))


@dataclass
class OfficialFiles:
    """Tensors of a set of official files. Tests change them, then `write`."""

    variant: Variant
    merged: Tensors
    """The transformer that base and CoInteract file amount to, in official names with `ffn.0` (with HOI,
    MoE).
    """
    base: Tensors
    cointeract: Tensors
    t5: Tensors
    vae: Tensors
    w2v: Tensors
    written: tuple[OfficialFiles, OfficialPaths] | None = None
    """The same files before they were changed, and where they lie: what did not change is copied from there.
    """

    @classmethod
    def draw(cls, variant: Variant | None = None) -> OfficialFiles:
        variant = variant or Variant()
        shapes = official_dit_shapes(variant.dit, hoi_branch=variant.drawn_with_hoi)
        drawn = official_weights(shapes, variant.seed)
        merged = {name.replace(".ffn.ffn_base.", ".ffn."): tensor for name, tensor in drawn.items()}
        base, cointeract = split_lora(merged, variant)
        t5 = t5_shapes(384, int(str(variant.dit["text_dim"])), 128, 3, 4)
        w2v_weights = official_weights(
            {f"model.{name}": shape for name, shape in w2v_shapes(W2V_CONFIG).items()}, 4
        )
        return cls(
            variant,
            merged,
            base,
            cointeract,
            official_weights(t5, 3),
            official_weights(vae_shapes(8), 5),
            {name.removeprefix("model."): tensor for name, tensor in w2v_weights.items()},
        )

    def write(self, folder: Path) -> OfficialPaths:
        paths = OfficialPaths(folder / "base", folder / self.variant.file, folder / "wav2vec2")
        if self.written is None:
            return self._write_all(paths)
        original, template = self.written
        shutil.copytree(template.base, paths.base)
        shutil.copytree(template.audio_encoder, paths.audio_encoder)
        shutil.copy(template.cointeract, paths.cointeract)
        if not _same(self.base, original.base):
            self._write_shards(paths.base)
        if not _same(self.t5, original.t5):
            torch.save(self.t5, paths.base / "models_t5_umt5-xxl-enc-bf16.pth")
        if not _same(self.vae, original.vae):
            torch.save(self.vae, paths.base / "Wan2.1_VAE.pth")
        if not _same(self.w2v, original.w2v):
            torch.save(self.w2v, paths.audio_encoder / "pytorch_model.bin")
        if not _same(self.cointeract, original.cointeract):
            save_file(self.cointeract, paths.cointeract)
        return paths

    def _write_shards(self, base: Path) -> None:
        names = sorted(self.base)
        count = self.variant.shards
        for n in range(count):
            stem = (
                f"diffusion_pytorch_model-{n + 1:05d}-of-{count:05d}"
                if count > 1
                else "diffusion_pytorch_model"
            )
            save_file({name: self.base[name] for name in names[n::count]}, base / f"{stem}.safetensors")

    def _write_all(self, paths: OfficialPaths) -> OfficialPaths:
        base, audio = paths.base, paths.audio_encoder
        for path in (base, audio):
            path.mkdir(parents=True)
        self._write_shards(base)
        config = {key: value for key, value in self.variant.dit.items() if key != "expert_hidden_dim"}
        (base / "config.json").write_text(json.dumps(config))
        torch.save(self.t5, base / "models_t5_umt5-xxl-enc-bf16.pth")
        torch.save(self.vae, base / "Wan2.1_VAE.pth")
        ByT5Tokenizer().save_pretrained(base / "google" / "umt5-xxl")
        save_file(self.cointeract, paths.cointeract)
        torch.save(self.w2v, audio / "pytorch_model.bin")
        (audio / "config.json").write_text(json.dumps(W2V_CONFIG))
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(audio)
        return paths


@dataclass(frozen=True)
class OfficialPaths:
    base: Path
    cointeract: Path
    audio_encoder: Path


def _same(tensors: Tensors, original: Tensors) -> bool:
    return tensors.keys() == original.keys() and all(
        tensor is original[name] for name, tensor in tensors.items()
    )


def split_lora(merged: Tensors, variant: Variant) -> tuple[Tensors, Tensors]:
    """Base and CoInteract tensors such that base + B·A is the given network."""
    generator = torch.Generator().manual_seed(variant.seed + 1000)
    base: Tensors = {}
    cointeract: Tensors = {}
    for name, weight in merged.items():
        moe = any(part in name for part in (".router.", ".hand_expert.", ".face_expert."))
        if "depth_" in name:
            if variant.hoi:
                cointeract[variant.prefix + name] = weight
        elif moe:
            cointeract[variant.prefix + name] = weight
        elif _has_lora(name):
            stem = name.removesuffix("weight").replace(".ffn.", f".{variant.ffn}")
            up = 0.05 * torch.randn(weight.shape[0], variant.rank, generator=generator)
            down = 0.05 * torch.randn(variant.rank, weight.shape[1], generator=generator)
            cointeract[f"{variant.prefix}{stem}lora_A.{variant.infix}weight"] = down
            cointeract[f"{variant.prefix}{stem}lora_B.{variant.infix}weight"] = up
            base[name] = weight - up @ down
        else:
            base[name] = weight.clone()
    return (
        {name: tensor.to(variant.dtype).contiguous() for name, tensor in base.items()},
        {name: tensor.to(variant.dtype).contiguous() for name, tensor in cointeract.items()},
    )


def _has_lora(name: str) -> bool:
    parts = name.split(".")
    in_block = len(parts) == 5 and parts[2] in ("self_attn", "cross_attn") and parts[3] in "qkvo"
    in_injector = parts[:2] == ["audio_injector", "injector"] and parts[3] in "qkvo"
    in_ffn = len(parts) == 5 and parts[2] == "ffn" and parts[3] in "02"
    return parts[-1] == "weight" and (in_block or in_injector or in_ffn)
