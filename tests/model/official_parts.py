"""Official T5, VAE and wav2vec2 tensors by the rule in `golden.py`, and the recorded numbers of each."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.checkpoints.official_files import vae_shapes
from tests.model.golden import TINY_DIT, Shapes, official_dit_shapes, official_weights

DATA = Path(__file__).parent.parent / "data"

TEXT = {"vocab": 384, "dim": 64, "dim_attn": 64, "dim_ffn": 128, "heads": 4, "layers": 3, "buckets": 32}


def recorded(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file in tests/data."""
    path = DATA / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata() or {}


def t5_shapes() -> Shapes:
    dim, attn, ffn = TEXT["dim"], TEXT["dim_attn"], TEXT["dim_ffn"]
    shapes: Shapes = {"token_embedding.weight": (TEXT["vocab"], dim), "norm.weight": (dim,)}
    for layer in range(TEXT["layers"]):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.attn.{part}.weight": (attn, dim) for part in "qkv"}
        shapes |= {
            f"{block}.attn.o.weight": (dim, attn),
            f"{block}.ffn.gate.0.weight": (ffn, dim),
            f"{block}.ffn.fc1.weight": (ffn, dim),
            f"{block}.ffn.fc2.weight": (dim, ffn),
            f"{block}.norm1.weight": (dim,),
            f"{block}.norm2.weight": (dim,),
            f"{block}.pos_embedding.embedding.weight": (TEXT["buckets"], TEXT["heads"]),
        }
    return shapes


def wav2vec2_shapes(config: dict[str, Any]) -> Shapes:
    dim, ffn, groups = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_conv_pos_embedding_groups"],
    )
    shapes: Shapes = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    linear("lm_head", dim, config["vocab_size"])
    shapes["wav2vec2.masked_spec_embed"] = (dim,)
    inputs = 1
    for i, (outputs, kernel) in enumerate(zip(config["conv_dim"], config["conv_kernel"], strict=True)):
        layer = f"wav2vec2.feature_extractor.conv_layers.{i}"
        shapes[f"{layer}.conv.weight"], shapes[f"{layer}.conv.bias"] = (outputs, inputs, kernel), (outputs,)
        norm(f"{layer}.layer_norm", outputs)
        inputs = outputs
    norm("wav2vec2.feature_projection.layer_norm", inputs)
    linear("wav2vec2.feature_projection.projection", inputs, dim)
    conv, kernel = "wav2vec2.encoder.pos_conv_embed.conv", config["num_conv_pos_embeddings"]
    shapes[f"{conv}.bias"] = (dim,)
    shapes[f"{conv}.parametrizations.weight.original0"] = (1, 1, kernel)
    shapes[f"{conv}.parametrizations.weight.original1"] = (dim, dim // groups, kernel)
    norm("wav2vec2.encoder.layer_norm", dim)
    for i in range(config["num_hidden_layers"]):
        layer = f"wav2vec2.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.attention.{part}", dim, dim)
        linear(f"{layer}.feed_forward.intermediate_dense", dim, ffn)
        linear(f"{layer}.feed_forward.output_dense", ffn, dim)
        norm(f"{layer}.layer_norm", dim)
        norm(f"{layer}.final_layer_norm", dim)
    return shapes


def text_weights() -> dict[str, torch.Tensor]:
    return official_weights(t5_shapes(), seed=3)


def audio_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return official_weights(wav2vec2_shapes(config), seed=4)


def vae_weights() -> dict[str, torch.Tensor]:
    return official_weights(vae_shapes(base=8), seed=5)


def pipeline_weights(metadata: dict[str, str]) -> dict[str, torch.Tensor]:
    """All four networks of the recorded pipeline under its prefixes."""
    parts = {
        "dit": official_weights(official_dit_shapes(TINY_DIT), seed=1),
        "t5": text_weights(),
        "w2v": audio_weights(json.loads(metadata["meta"])["w2v_config"]),
        "vae": vae_weights(),
    }
    return {f"{prefix}.{name}": tensor for prefix, part in parts.items() for name, tensor in part.items()}
