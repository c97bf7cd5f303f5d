"""A complete checkpoint folder of small, seeded random networks: all of the code in seconds on any machine.

Its videos are noise. It serves the tests, and users who want to see every part run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import (
    ByT5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from contract.card import OFFICIAL_DEFAULTS, CheckpointCard, CheckpointDefaults
from model.checkpoints.card_file import write_card
from model.pipeline import CoInteractPipeline
from model.transformer import CoInteractTransformer3DModel

TINY_TEXT_DIM = 64
TINY_AUDIO_DIM = 32

CARD = CheckpointCard(
    name="tiny-random",
    trained=False,
    sizes=("112x192", "192x112", "96x160", "160x96", "128x128"),
    min_side=64,
    max_pixels=256 * 256,
    defaults=CheckpointDefaults(
        num_inference_steps=4,
        guidance_scale=3.0,
        flow_shift=5.0,
        negative_prompt=OFFICIAL_DEFAULTS.negative_prompt,
    ),
    pose=True,
    license="Apache-2.0",
    sources={"weights": "seeded random numbers"},
)


def write_tiny_checkpoint(folder: str | Path, seed: int = 0) -> None:
    """Write the folder that `load_pipeline` reads. It needs no network."""
    tiny_pipeline(seed).save_pretrained(folder)
    write_card(CARD, folder)


def tiny_pipeline(seed: int = 0) -> CoInteractPipeline:
    """The networks of the tiny checkpoint, fp32, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    transformer = CoInteractTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=24,
        ffn_dim=192,
        num_layers=4,
        text_dim=TINY_TEXT_DIM,
        audio_dim=TINY_AUDIO_DIM,
        audio_inject_layers=(0, 2, 3),
        expert_hidden_dim=16,
    )
    vae = AutoencoderKLWan(
        base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=0
    )  # nearly all of the time goes here
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=384,
            d_model=TINY_TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    audio_encoder = Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=TINY_AUDIO_DIM,
            num_hidden_layers=24,
            num_attention_heads=4,
            intermediate_size=64,
            conv_dim=(16,) * 7,
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            apply_spec_augment=False,
            layerdrop=0.0,
        )
    )
    for model in (transformer, vae, text_encoder, audio_encoder):
        _randomise(model, generator)
        model.eval().requires_grad_(False)
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 0.2  # greyer noise compresses to a tenth of the bytes
    return CoInteractPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=ByT5Tokenizer(),
        audio_encoder=audio_encoder,
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


@torch.no_grad()
def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight from one generator in the order of names, so that no library version matters."""
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim < 2 or name.endswith("gamma"):
            gain = name.endswith(
                ("norm.weight", "norm1.weight", "norm2.weight", "gamma", "norm_q.weight", "norm_k.weight")
            )
            weight.copy_(1 + 0.1 * noise if gain else 0.05 * noise)
        elif name.endswith("layer_weights"):
            weight.copy_(0.5 + 0.1 * noise)
        else:
            weight.copy_(noise * min(0.3, weight[0].numel() ** -0.5))
