"""Official networks' tensors by rule: names, shapes and seeded values, so that no test ships weights."""

from collections.abc import Mapping
from typing import Any

import torch

from model.bench.official_code import draw_weight

Shapes = dict[str, tuple[int, ...]]

TINY_DIT: dict[str, Any] = {
    "dim": 96,
    "in_dim": 16,
    "ffn_dim": 192,
    "out_dim": 16,
    "text_dim": 64,
    "freq_dim": 256,
    "eps": 1e-6,
    "patch_size": [1, 2, 2],
    "num_heads": 4,
    "num_layers": 4,
    "cond_dim": 16,
    "audio_dim": 32,
    "num_audio_token": 4,
    "audio_inject_layers": [0, 2, 3],
    "expert_hidden_dim": 16,
}
FULL_DIT: dict[str, Any] = {
    **TINY_DIT,
    "dim": 5120,
    "ffn_dim": 13824,
    "text_dim": 4096,
    "num_heads": 40,
    "num_layers": 40,
    "audio_dim": 1024,
    "audio_inject_layers": [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39],
    "expert_hidden_dim": 256,
}


def official_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """The rule behind every recorded number: tensors drawn in sorted name order from one seeded generator."""
    generator = torch.Generator().manual_seed(seed)
    return {name: draw_weight(name, shapes[name], generator) for name in sorted(shapes)}


def official_dit_shapes(
    config: Mapping[str, Any], hoi_branch: bool = False, ffn_base: str = "ffn_base."
) -> Shapes:
    """Every tensor of the official transformer with its experts.

    `ffn_base` is empty in the base model's own files, which know no experts.
    """
    dim, layers, in_dim = config["dim"], config["num_layers"], config["in_dim"]
    audio_dim, expert = config["audio_dim"], config["expert_hidden_dim"]
    shapes: Shapes = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def conv(name: str, inputs: int, outputs: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, *kernel)
        shapes[f"{name}.bias"] = (outputs,)

    def attention(name: str) -> None:
        for part in "qkvo":
            linear(f"{name}.{part}", dim, dim)
        shapes[f"{name}.norm_q.weight"] = shapes[f"{name}.norm_k.weight"] = (dim,)

    conv("patch_embedding", in_dim, dim, 1, 2, 2)
    conv("cond_encoder", in_dim, dim, 1, 2, 2)
    conv("frame_packer.proj", in_dim, dim, 1, 2, 2)
    conv("frame_packer.proj_2x", in_dim, dim, 2, 4, 4)
    conv("frame_packer.proj_4x", in_dim, dim, 4, 8, 8)
    shapes["trainable_cond_mask.weight"] = (3, dim)
    linear("text_embedding.0", config["text_dim"], dim)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", config["freq_dim"], dim)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", dim, 6 * dim)
    linear("head.head", dim, 4 * config["out_dim"])
    shapes["head.modulation"] = (1, 2, dim)

    encoder = "casual_audio_encoder.encoder"
    shapes["casual_audio_encoder.weights"] = (1, 25, 1, 1)
    shapes[f"{encoder}.padding_tokens"] = (1, 1, 1, dim)
    conv(f"{encoder}.conv1_local.conv", audio_dim, dim // 4 * config["num_audio_token"], 3)
    conv(f"{encoder}.conv1_global.conv", audio_dim, dim // 4, 3)
    conv(f"{encoder}.conv2.conv", dim // 4, dim // 2, 3)
    conv(f"{encoder}.conv3.conv", dim // 2, dim, 3)
    linear(f"{encoder}.final_linear", dim, dim)
    for index in range(len(config["audio_inject_layers"])):
        attention(f"audio_injector.injector.{index}")
        linear(f"audio_injector.injector_adain_layers.{index}.linear", dim, 2 * dim)

    for layer in range(layers):
        block = f"blocks.{layer}"
        attention(f"{block}.self_attn")
        attention(f"{block}.cross_attn")
        shapes[f"{block}.norm3.weight"] = shapes[f"{block}.norm3.bias"] = (dim,)
        shapes[f"{block}.modulation"] = (1, 6, dim)
        linear(f"{block}.ffn.{ffn_base}0", dim, config["ffn_dim"])
        linear(f"{block}.ffn.{ffn_base}2", config["ffn_dim"], dim)
        linear(f"{block}.ffn.router.0", dim, dim // 2)
        shapes[f"{block}.ffn.router.2.weight"] = shapes[f"{block}.ffn.router.2.bias"] = (dim // 2,)
        linear(f"{block}.ffn.router.3", dim // 2, 3)
        for name in ("hand_expert", "face_expert"):
            linear(f"{block}.ffn.{name}.fc1", dim, expert)
            linear(f"{block}.ffn.{name}.fc2", expert, dim)
        if hoi_branch:
            shapes[f"{block}.depth_modulation"] = (1, 6, dim)
    if hoi_branch:
        conv("depth_patch_embedding", in_dim, dim, 1, 2, 2)
        shapes["depth_cond_mask.weight"] = (1, dim)
        linear("depth_head.head", dim, 4 * config["out_dim"])
        shapes["depth_head.modulation"] = (1, 2, dim)
    return shapes
