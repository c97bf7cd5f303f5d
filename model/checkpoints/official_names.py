"""The official transformer's tensor names and settings → ours. Pure functions that touch no tensor.

Every tensor keeps its shape, so a checkpoint is converted by renaming alone.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_HEADS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_FIRST_LAST = {"0": "net.0.proj", "2": "net.2"}
_FC = {"fc1": "net.0.proj", "fc2": "net.2"}

# Official prefix → ours; the tail (weight, bias or nothing) is kept.
_MODULES = {
    "patch_embedding": "patch_embedding",
    "cond_encoder": "pose_embedding",
    "trainable_cond_mask": "type_embedding",
    "frame_packer.proj": "motion_packer.packs.0",
    "frame_packer.proj_2x": "motion_packer.packs.1",
    "frame_packer.proj_4x": "motion_packer.packs.2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "casual_audio_encoder.weights": "audio_encoder.layer_weights",
    "casual_audio_encoder.encoder.conv1_local.conv": "audio_encoder.conv_in_local",
    "casual_audio_encoder.encoder.conv1_global.conv": "audio_encoder.conv_in_overall",
    "casual_audio_encoder.encoder.conv2.conv": "audio_encoder.conv_mid",
    "casual_audio_encoder.encoder.conv3.conv": "audio_encoder.conv_out",
    "casual_audio_encoder.encoder.final_linear": "audio_encoder.proj_overall",
    "casual_audio_encoder.encoder.padding_tokens": "audio_encoder.padding_token",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "depth_patch_embedding": "hoi_patch_embedding",
    "depth_cond_mask": "hoi_type_embedding",
    "depth_head.head": "hoi_proj_out",
    "depth_head.modulation": "hoi_scale_shift_table",
}

_BLOCK = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<rest>.+)")
_INJECTOR = re.compile(
    r"audio_injector\.(?P<part>injector|injector_adain_layers)\.(?P<index>\d+)\.(?P<rest>.+)"
)
_TAIL = re.compile(r"(weight|bias)|lora_[AB]\.(default\.)?weight")


def is_hoi_name(official: str) -> bool:
    """Whether a tensor belongs to the HOI branch, which serving checkpoints drop."""
    return "depth_" in official


def dit_name(official: str, audio_inject_layers: Sequence[int]) -> str:
    """Our name of an official transformer tensor.

    Args:
        official: name as in the base model's shards or the CoInteract file, without `diffusion_model.`;
            LoRA names (`….lora_A.default.weight`) map to their module's name with the same ending.
        audio_inject_layers: the blocks that the audio injectors belong to, in order.

    Raises:
        KeyError: the official network has no such tensor.
    """
    if match := _BLOCK.fullmatch(official):
        return f"blocks.{match['layer']}.{_block_name(match['rest'], official)}"
    if match := _INJECTOR.fullmatch(official):
        index = int(match["index"])
        if index >= len(audio_inject_layers):
            raise KeyError(f"{official}: there are {len(audio_inject_layers)} audio injectors")
        return f"blocks.{audio_inject_layers[index]}.audio_injection.{_injection_name(match, official)}"
    if official in _MODULES:
        return _MODULES[official]
    module, tail = _split(official, _MODULES, official)
    return f"{_MODULES[module]}.{tail}"


def _injection_name(match: re.Match[str], official: str) -> str:
    if match["part"] == "injector":
        head, tail = _split(match["rest"], _HEADS, official)
        return f"attn.{_HEADS[head]}.{tail}"
    _, tail = _split(match["rest"], {"linear": ""}, official)
    return f"norm_linear.{tail}"


def _block_name(rest: str, official: str) -> str:
    if rest == "modulation":
        return "scale_shift_table"
    if rest == "depth_modulation":
        return "hoi_scale_shift_table"
    module, _, inner = rest.partition(".")
    if module in ("self_attn", "cross_attn"):
        head, tail = _split(inner, _HEADS, official)
        return f"{'attn1' if module == 'self_attn' else 'attn2'}.{_HEADS[head]}.{tail}"
    if module == "norm3":  # before cross-attention; diffusers counts it as the second
        _, tail = _split(rest, {"norm3": ""}, official)
        return f"norm2.{tail}"
    if module != "ffn":
        raise KeyError(f"{official}: no such tensor in the official network")
    inner = inner.removeprefix("ffn_base.")
    expert, _, expert_inner = inner.partition(".")
    if expert in ("hand_expert", "face_expert"):
        layer, tail = _split(expert_inner, _FC, official)
        return f"moe.{expert}.{_FC[layer]}.{tail}"
    if expert == "router":
        _, tail = _split(expert_inner, {"0": "", "2": "", "3": ""}, official)
        return f"moe.{inner}"
    layer, tail = _split(inner, _FIRST_LAST, official)
    return f"ffn.{_FIRST_LAST[layer]}.{tail}"


def _split(name: str, modules: Mapping[str, str], official: str) -> tuple[str, str]:
    """The module that `name` starts with, and what follows it."""
    for module in modules:
        if name.startswith(f"{module}.") and _TAIL.fullmatch(name[len(module) + 1 :]):
            return module, name[len(module) + 1 :]
    raise KeyError(f"{official}: no such tensor in the official network")


def dit_config(official: Mapping[str, Any], hoi_branch: bool) -> dict[str, Any]:
    """Our constructor arguments from the official ones.

    Args:
        official: `config.json` of the base model, or the settings of an official instance. A setting that is
            absent gets the official default.
        hoi_branch: whether the HOI stream's tensors are available.
    """
    dim, heads = int(official.get("dim", 5120)), int(official.get("num_heads", 40))
    if dim % heads:
        raise ValueError(f"dim {dim} is not a multiple of num_heads {heads}")
    num_layers = int(official.get("num_layers", 40))
    injected = official.get("audio_inject_layers", (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39))
    return {
        "patch_size": tuple(official.get("patch_size", (1, 2, 2))),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": int(official.get("in_dim", 16)),
        "out_channels": int(official.get("out_dim", 16)),
        "text_dim": int(official.get("text_dim", 4096)),
        "freq_dim": int(official.get("freq_dim", 256)),
        "ffn_dim": int(official.get("ffn_dim", 13824)),
        "num_layers": num_layers,
        "eps": float(official.get("eps", 1e-6)),
        "audio_dim": int(official.get("audio_dim", 1024)),
        "num_audio_tokens": int(official.get("num_audio_token", 4)),
        # The official constructor ignores injection layers that the network does not have.
        "audio_inject_layers": tuple(int(layer) for layer in injected if int(layer) < num_layers),
        "expert_hidden_dim": int(official.get("expert_hidden_dim", 256)),
        "hoi_branch": hoi_branch,
    }
