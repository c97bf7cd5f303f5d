"""Names and dims of the official T5, VAE and wav2vec2 files, as maps to diffusers' and transformers' names.

These are pure functions of names and shapes. `python -m model.parity` and the checkpoint conversion share
them, so a tensor can be renamed in one way only. The transformer's map is in `official_names.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Shapes = Mapping[str, Sequence[int]]

# T5: (official pattern, transformers' UMT5EncoderModel name)
_T5_BLOCK: tuple[tuple[str, str], ...] = (
    ("norm1.weight", "layer.0.layer_norm.weight"),
    ("attn.q.weight", "layer.0.SelfAttention.q.weight"),
    ("attn.k.weight", "layer.0.SelfAttention.k.weight"),
    ("attn.v.weight", "layer.0.SelfAttention.v.weight"),
    ("attn.o.weight", "layer.0.SelfAttention.o.weight"),
    ("pos_embedding.embedding.weight", "layer.0.SelfAttention.relative_attention_bias.weight"),
    ("norm2.weight", "layer.1.layer_norm.weight"),
    ("ffn.gate.0.weight", "layer.1.DenseReluDense.wi_0.weight"),
    ("ffn.fc1.weight", "layer.1.DenseReluDense.wi_1.weight"),
    ("ffn.fc2.weight", "layer.1.DenseReluDense.wo.weight"),
)
_T5_TOP = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}

_VAE_TOP = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_VAE_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_VAE_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_VAE_HEAD = {"0": "norm_out", "2": "conv_out"}

_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}


class UnknownTensor(KeyError):
    """A tensor name that the official layout does not have."""

    def __init__(self, component: str, key: str) -> None:
        super().__init__(f"{component}: tensor {key!r} is not in the official layout")


def t5_name(key: str) -> str | None:
    """Official UMT5 encoder key → `UMT5EncoderModel` key. The tied embedding is stored once, as `shared`."""
    if key in _T5_TOP:
        return _T5_TOP[key]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if match:
        names = dict(_T5_BLOCK)
        if match[2] in names:
            return f"encoder.block.{match[1]}.{names[match[2]]}"
    raise UnknownTensor("text_encoder", key)


def vae_name(key: str, num_res_blocks: int = 2) -> str | None:
    """Official Wan 2.1 VAE key → `AutoencoderKLWan` key.

    The official decoder numbers its up layers in one flat list; diffusers groups each `num_res_blocks + 1`
    residual blocks with the upsampler that follows them.
    """
    key = key.removeprefix("model.")
    match = re.fullmatch(r"(conv1|conv2)\.(weight|bias)", key)
    if match:
        return f"{_VAE_TOP[match[1]]}.{match[2]}"
    match = re.fullmatch(r"(encoder|decoder)\.(conv1|middle|head|downsamples|upsamples)\.(.+)", key)
    if not match:
        raise UnknownTensor("vae", key)
    side, part, rest = match.groups()
    if part == "conv1":
        return f"{side}.conv_in.{rest}"
    index, _, tail = rest.partition(".")
    if part == "head" and index in _VAE_HEAD:
        return f"{side}.{_VAE_HEAD[index]}.{tail}"
    if part == "middle" and index in _VAE_MIDDLE:
        return f"{side}.mid_block.{_VAE_MIDDLE[index]}.{_vae_layer(tail)}"
    if part == "downsamples" and side == "encoder":
        return f"encoder.down_blocks.{index}.{_vae_layer(tail)}"
    if part == "upsamples" and side == "decoder":
        block, layer = divmod(int(index), num_res_blocks + 2)
        place = "upsamplers.0" if layer == num_res_blocks + 1 else f"resnets.{layer}"
        return f"decoder.up_blocks.{block}.{place}.{_vae_layer(tail)}"
    raise UnknownTensor("vae", key)


def _vae_layer(tail: str) -> str:
    for official, ours in _VAE_RESIDUAL.items():
        if tail.startswith(official + "."):
            return ours + tail[len(official) :]
    return tail  # norm, to_qkv, proj, resample.1 and time_conv have the same names in both


def wav2vec2_name(key: str) -> str | None:
    """Official `Wav2Vec2ForCTC` key → `Wav2Vec2Model` key; None for the CTC head, which is not used."""
    key = key.removeprefix("model.")
    if key.startswith("lm_head."):
        return None
    if not key.startswith("wav2vec2."):
        raise UnknownTensor("audio_encoder", key)
    key = key.removeprefix("wav2vec2.")
    stem, _, leaf = key.rpartition(".")
    return f"{stem}.{_WEIGHT_NORM[leaf]}" if leaf in _WEIGHT_NORM else key


def rename(tensors: Mapping[str, torch.Tensor], name: Callable[[str], str | None]) -> dict[str, torch.Tensor]:
    """Rename a whole state dict; ValueError if two tensors get the same name."""
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        ours = name(key)
        if ours is None:
            continue
        if ours in renamed:
            raise ValueError(f"two tensors map to {ours!r}; the second is {key!r}")
        renamed[ours] = tensor
    return renamed


def t5_config(shapes: Shapes) -> dict[str, Any]:
    """`UMT5Config` arguments that fit official tensors of these shapes."""
    vocab_size, d_model = shapes["token_embedding.weight"]
    num_buckets, num_heads = shapes["blocks.0.pos_embedding.embedding.weight"]
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": shapes["blocks.0.attn.q.weight"][0] // num_heads,
        "d_ff": shapes["blocks.0.ffn.fc1.weight"][0],
        "num_layers": 1 + max(int(k.split(".")[1]) for k in shapes if k.startswith("blocks.")),
        "num_heads": num_heads,
        "relative_attention_num_buckets": num_buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "is_gated_act": True,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.0,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """`AutoencoderKLWan` arguments that fit official tensors of these shapes."""
    shapes = {key.removeprefix("model."): shape for key, shape in shapes.items()}
    resamples = sorted(
        int(k.split(".")[2])
        for k in shapes
        if re.fullmatch(r"encoder\.downsamples\.\d+\.resample\.1\.weight", k)
    )
    num_res_blocks = resamples[0]
    base_dim = shapes["encoder.conv1.weight"][0]
    stride = num_res_blocks + 1
    dims = [
        shapes[f"encoder.downsamples.{s * stride}.residual.2.weight"][0] for s in range(len(resamples) + 1)
    ]
    return {
        "base_dim": base_dim,
        "z_dim": shapes["conv2.weight"][0],
        "dim_mult": [dim // base_dim for dim in dims],
        "num_res_blocks": num_res_blocks,
        "temperal_downsample": [f"encoder.downsamples.{i}.time_conv.weight" in shapes for i in resamples],
    }
