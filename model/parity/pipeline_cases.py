"""Whole-pipeline cases: the official settings and inputs, in parity mode, clip by clip."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import (
    ByT5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from contract.choices import Fit, Preset
from contract.params import GenerationParams
from contract.video import SAMPLE_RATE, SpeechLength, video_length
from model.checkpoints.official_components import (
    rename,
    t5_config,
    t5_name,
    vae_config,
    vae_name,
    wav2vec2_name,
)
from model.checkpoints.official_names import dit_config, dit_name, is_hoi_name
from model.inputs import FramedInputs
from model.parity.result import CaseResult, compare, compare_frames
from model.pipeline import CoInteractPipeline
from model.speech_features import OFFICIAL_AUDIO_WINDOW, clip_features, encode_audio
from model.transformer import CoInteractTransformer3DModel

FIRST_CLIP_LIMIT = 1e-3
LATER_CLIP_LIMIT = 2e-2
"""It is looser, because the previous clip's frames come back as motion after rounding to uint8."""
FRAMES_LIMIT = 1e-3

Tensors = Mapping[str, torch.Tensor]


def is_pipeline_case(cases: Tensors) -> bool:
    """Whether a cases file is of this kind."""
    return "in.person" in cases and "in.wav" in cases


def build_text_encoder(official: Tensors) -> UMT5EncoderModel:
    """The text encoder of official T5 tensors; dims are read from their shapes."""
    encoder = UMT5EncoderModel(UMT5Config(**t5_config(_shapes(official)))).eval()
    tensors = rename(official, t5_name)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    encoder.load_state_dict(tensors, strict=True)
    return encoder


def build_vae(official: Tensors) -> AutoencoderKLWan:
    """The VAE of official Wan tensors; dims are read from their shapes."""
    config = vae_config(_shapes(official))
    vae = AutoencoderKLWan(**config).eval()
    vae.load_state_dict(rename(official, lambda key: vae_name(key, config["num_res_blocks"])), strict=True)
    return vae


def build_audio_encoder(official: Tensors, config: Mapping[str, Any]) -> Wav2Vec2Model:
    """wav2vec2 of official `Wav2Vec2ForCTC` tensors."""
    encoder = Wav2Vec2Model(Wav2Vec2Config(**config)).eval()
    tensors = rename(official, wav2vec2_name)
    if not hasattr(encoder, "masked_spec_embed"):  # for training; some configurations have none
        tensors.pop("masked_spec_embed", None)
    encoder.load_state_dict(tensors, strict=True)
    return encoder


def build_transformer(official: Tensors, config: Mapping[str, Any]) -> CoInteractTransformer3DModel:
    """The RGB-only network of official tensors."""
    ours = dit_config(config, hoi_branch=False)
    layers = ours["audio_inject_layers"]
    transformer: CoInteractTransformer3DModel = CoInteractTransformer3DModel(**ours)
    kept = {key: tensor for key, tensor in official.items() if not is_hoi_name(key)}
    transformer.load_state_dict(rename(kept, lambda key: dit_name(key, layers)), strict=True)
    transformer.eval()
    return transformer


def build_pipeline(weights: Tensors, metadata: Mapping[str, str]) -> CoInteractPipeline:
    """A pipeline from one file of official tensors prefixed `dit.`, `vae.`, `t5.` and `w2v.`."""
    meta = json.loads(metadata["meta"])
    dit = {**meta["dit_config"], "expert_hidden_dim": meta.get("expert_hidden_dim", 256)}
    return CoInteractPipeline(
        transformer=build_transformer(_part(weights, "dit."), dit),
        vae=build_vae(_part(weights, "vae.")),
        text_encoder=build_text_encoder(_part(weights, "t5.")),
        tokenizer=ByT5Tokenizer(),
        audio_encoder=build_audio_encoder(_part(weights, "w2v."), meta["w2v_config"]),
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def inputs_of(cases: Tensors) -> FramedInputs:
    """What the official run that a cases file records was made from."""
    pose = next(
        (v for k, v in sorted(cases.items()) if k.startswith("in.pose") and v.dtype == torch.uint8), None
    )
    product = cases.get("in.product")
    return FramedInputs(
        person=cases["in.person"].numpy(),
        product=None if product is None else product.numpy(),
        audio=cases["in.wav"].float().numpy(),
        pose_frames=None if pose is None else pose.numpy(),
        noise=_per_clip(cases, r"in\.noise(\d+)"),
        pose_latents=_per_clip(cases, r"in\.pose(?:_latents)?(\d+)|clip(\d+)\.pose_latents"),
    )


def params_of(cases: Tensors, metadata: Mapping[str, str]) -> GenerationParams:
    """The settings of that run."""
    meta = json.loads(metadata["meta"])
    height, width = cases["in.person"].shape[:2]
    speech = SpeechLength(len(cases["in.wav"]), SAMPLE_RATE)
    num_clips, num_frames = video_length(speech, meta.get("clips"), max_dropped_frames=0)
    return GenerationParams(
        prompts=tuple(meta["prompts"]),
        negative_prompt=meta.get("negative_prompt", ""),
        width=width,
        height=height,
        num_inference_steps=meta["steps"],
        guidance_scale=meta.get("cfg", 1.0),
        flow_shift=meta["shift"],
        product_scale=meta.get("product_scale", 1.0),
        seed=0,
        num_clips=num_clips,
        num_frames=num_frames,
        fit=Fit.STRETCH,
        audio_face_mask=meta.get("audio_face_mask", False),
        preset=Preset.PARITY,
    )


def _per_clip(cases: Tensors, pattern: str) -> tuple[torch.Tensor, ...] | None:
    """Tensors whose name holds the clip's number, in order; None if there are none."""
    found = {}
    for key, tensor in cases.items():
        if (match := re.fullmatch(pattern, key)) and tensor.is_floating_point():
            found[int(next(group for group in match.groups() if group))] = tensor
    return tuple(found[index] for index in sorted(found)) or None


def run_pipeline_cases(
    pipeline: CoInteractPipeline, cases: Tensors, metadata: Mapping[str, str]
) -> Iterator[CaseResult]:
    """Run the recorded video and compare each clip: audio features, latents, frames."""
    inputs = inputs_of(cases)
    features = encode_audio(
        pipeline.audio_encoder,
        pipeline.feature_extractor,
        inputs.audio,
        pipeline.transformer.device,
        last_layer_normed=False,
    )
    clips = 0
    for clip in pipeline.run(inputs, params_of(cases, metadata)):
        clips += 1
        name = f"clip{clip.index}"
        if (official := cases.get(f"{name}.audio_features")) is not None:
            ours = clip_features(features, clip.index, OFFICIAL_AUDIO_WINDOW)
            yield compare(f"{name}.audio_features", ours, official, limit=1e-5, relative=True)
        if (official := cases.get(f"{name}.latents")) is not None:
            limit = FIRST_CLIP_LIMIT if clip.index == 0 else LATER_CLIP_LIMIT
            yield compare(f"{name}.latents", clip.latents, official, limit=limit)
        if (official := cases.get(f"{name}.frames")) is not None:
            # A file may hold only every n-th frame, to be small enough to come with the tests.
            frames = torch.from_numpy(clip.frames)[:: len(clip.frames) // len(official)]
            yield compare_frames(f"{name}.frames", frames, official, limit=FRAMES_LIMIT)
    recorded = {key.split(".")[0] for key in cases if key.startswith("clip")}
    if len(recorded) != clips:
        raise ValueError(f"the file records {len(recorded)} clips, {clips} were generated")


def _part(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
