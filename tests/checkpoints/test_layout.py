"""Every tensor of the official files, at full size, has exactly one place in our networks (all on the meta
device).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from model.checkpoints.layout import (
    Layout,
    audio_encoder_layout,
    is_lora_target,
    on_meta,
    split_transformer,
    text_encoder_layout,
    transformer_layout,
    vae_layout,
)
from model.checkpoints.official_components import t5_config, vae_config
from model.checkpoints.official_names import dit_config
from model.transformer import CoInteractTransformer3DModel

Shapes = dict[str, tuple[int, ...]]
LAYOUTS = Path(__file__).parent.parent / "data" / "official_layouts.json"


def official(name: str) -> Shapes:
    tensors: dict[str, list[int]] = json.loads(LAYOUTS.read_text())[name]["tensors"]
    return {key: tuple(shape) for key, shape in tensors.items()}


def shapes(layout: Layout) -> Shapes:
    return {name: place.shape for name, place in layout.items()}


def parameters(tensors: Shapes) -> int:
    return sum(math.prod(shape) for shape in tensors.values())


def assert_fills(layout: Layout, model: nn.Module, tied: frozenset[str] = frozenset()) -> None:
    """The layout's places are the model's tensors, each once, in its shapes."""
    places = [place.name for place in layout.values()]
    assert len(places) == len(set(places))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    assert {place.name: place.shape for place in layout.values()} == expected


@pytest.fixture(scope="module")
def transformer() -> tuple[CoInteractTransformer3DModel, Layout]:
    config = dit_config({}, hoi_branch=True)
    model = on_meta(lambda: CoInteractTransformer3DModel(**config))
    return model, transformer_layout(model, config["audio_inject_layers"])


def test_the_1260_base_tensors_are_exactly_those_the_transformer_has_besides_experts_and_hoi(
    transformer: tuple[CoInteractTransformer3DModel, Layout],
) -> None:
    base, _, _ = split_transformer(transformer[1])
    assert shapes(base) == official("wan2.2-s2v-14b")
    assert len(base) == 1260
    assert parameters(shapes(base)) == 16_295_755_609


def test_every_cointeract_tensor_is_lora_on_a_base_weight_or_has_its_own_place(
    transformer: tuple[CoInteractTransformer3DModel, Layout],
) -> None:
    base, moe, hoi = split_transformer(transformer[1])
    rank = 128
    expected = shapes(moe) | shapes(hoi)
    for name, place in base.items():
        if is_lora_target(name):
            stem = name.removesuffix(".weight").replace(".ffn.", ".ffn.ffn_base.")
            expected[f"{stem}.lora_A.default.weight"] = (rank, place.shape[1])
            expected[f"{stem}.lora_B.default.weight"] = (place.shape[0], rank)
    assert expected == official("cointeract-checkpoint")


def test_base_experts_and_hoi_fill_the_transformer_without_a_gap(
    transformer: tuple[CoInteractTransformer3DModel, Layout],
) -> None:
    model, layout = transformer
    assert_fills(layout, model)


def test_the_pruned_transformer_has_17_03_billion_parameters(
    transformer: tuple[CoInteractTransformer3DModel, Layout],
) -> None:
    base, moe, _ = split_transformer(transformer[1])
    pruned = on_meta(lambda: CoInteractTransformer3DModel(**dit_config({}, hoi_branch=False)))
    assert parameters(shapes(base) | shapes(moe)) == 17_030_803_409
    assert sum(tensor.numel() for tensor in pruned.state_dict().values()) == 17_030_803_409
    assert {place.name for place in (base | moe).values()} == set(pruned.state_dict())


def test_every_text_encoder_tensor_has_one_place() -> None:
    expected = official("umt5-xxl-encoder")
    model = on_meta(lambda: UMT5EncoderModel(UMT5Config(**t5_config(expected))))
    layout = text_encoder_layout(model)
    assert shapes(layout) == expected
    assert_fills(layout, model, tied=frozenset({"encoder.embed_tokens.weight"}))
    assert parameters(expected) == 5_680_910_336


def test_every_vae_tensor_has_one_place() -> None:
    expected = official("wan2.1-vae")
    config = vae_config(expected)
    model = on_meta(lambda: AutoencoderKLWan(**config))
    layout = vae_layout(model, config["num_res_blocks"])
    assert shapes(layout) == expected
    assert_fills(layout, model)


def test_every_audio_encoder_tensor_has_one_place_but_for_the_speech_recognisers_head() -> None:
    expected = official("wav2vec2-large-xlsr-53-chinese-zh-cn")
    settings: dict[str, Any] = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "conv_bias": True,
    }
    model = on_meta(lambda: Wav2Vec2Model(Wav2Vec2Config(**settings)))
    layout = audio_encoder_layout(model)
    assert set(expected) - set(layout) == {"lm_head.weight", "lm_head.bias"}
    assert shapes(layout) == {name: shape for name, shape in expected.items() if name in layout}
    assert_fills(layout, model)
