"""Cases of one part: schedule, text encoder, audio encoder, VAE. Their limits are relative."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    UMT5EncoderModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from model.checkpoints.load import load_model
from model.parity.pipeline_cases import build_audio_encoder, build_text_encoder, build_vae
from model.parity.result import CaseResult, compare
from model.sampling import set_schedule
from model.speech_features import clip_features, encode_audio
from model.text_encoder import encode_tokens, tokenize
from model.training_schedule import training_schedule
from model.vae import decode_latents, encode_pixels
from model.vae_layers import use_fast_layers

COMPONENT_LIMIT = 1e-5

Tensors = Mapping[str, torch.Tensor]
Metadata = Mapping[str, str]


def is_component_case(cases: Tensors) -> bool:
    """Whether a cases file is of this kind."""
    return any(
        key in ("features_25fps", "latents_normalised") or key.startswith(("prompt0.", "sigmas.", "train."))
        for key in cases
    )


def run_component_cases(
    cases: Tensors,
    metadata: Metadata,
    weights: tuple[Tensors, Metadata] | None,
    checkpoint: Path | None,
) -> Iterator[CaseResult]:
    """Compare the parts that the file holds.

    Weights are taken from `checkpoint`, else from `weights`, else from the cases file itself, under official
    names after a prefix (`w.`, or `t5.`, `w2v.` and `vae.` where one file holds several parts).
    """
    official, settings = weights or (cases, metadata)
    if any(re.match(r"(sigmas|timesteps|train)\.", key) for key in cases):
        yield from _schedule(cases)
    if any(re.fullmatch(r"prompt\d+\.embeds", key) for key in cases):
        text_encoder = (
            load_model(UMT5EncoderModel, checkpoint / "text_encoder", torch.device("cpu"), torch.float32)
            if checkpoint
            else build_text_encoder(_weights(official, "t5."))
        )
        yield from _text(text_encoder, cases, metadata, checkpoint)
    if "features_25fps" in cases:
        audio_encoder = (
            load_model(Wav2Vec2Model, checkpoint / "audio_encoder", torch.device("cpu"), torch.float32)
            if checkpoint
            else build_audio_encoder(_weights(official, "w2v."), _audio_config(settings))
        )
        yield from _audio(audio_encoder, cases)
    if "latents_normalised" in cases:
        vae = (
            load_model(AutoencoderKLWan, checkpoint / "vae", torch.device("cpu"), torch.float32)
            if checkpoint
            else build_vae(_weights(official, "vae."))
        )
        yield from _vae(use_fast_layers(vae), cases)


def _schedule(cases: Tensors) -> Iterator[CaseResult]:
    for key in sorted(cases):
        if match := re.fullmatch(r"(sigmas|timesteps)\.steps(\d+)\.shift([\d.]+)", key):
            scheduler = FlowMatchEulerDiscreteScheduler()
            set_schedule(scheduler, int(match[2]), float(match[3]), torch.device("cpu"))
            ours = scheduler.sigmas[:-1] if match[1] == "sigmas" else scheduler.timesteps
            yield compare(key, ours, cases[key], limit=COMPONENT_LIMIT, relative=True)
        elif match := re.fullmatch(r"train\.(timesteps|weights)\.shift([\d.]+)", key):
            schedule = training_schedule(float(match[2]), len(cases[key]))
            ours = schedule.timesteps if match[1] == "timesteps" else schedule.weights
            yield compare(key, ours, cases[key], limit=COMPONENT_LIMIT, relative=True)


def _text(
    encoder: UMT5EncoderModel, cases: Tensors, metadata: Metadata, checkpoint: Path | None
) -> Iterator[CaseResult]:
    prompts = json.loads(metadata.get("prompts", "[]"))
    if checkpoint is None or "ByT5" in metadata.get("tokenizer", ""):
        tokenizer = ByT5Tokenizer()
    else:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer", local_files_only=True)
    for key in sorted(key for key in cases if re.fullmatch(r"prompt\d+\.embeds", key)):
        name = key.removesuffix(".embeds")
        index = int(name.removeprefix("prompt"))
        if index < len(prompts):
            ids, mask = tokenize(tokenizer, [prompts[index]])
            if f"{name}.ids" in cases:
                yield compare(f"{name}.ids", ids, cases[f"{name}.ids"], limit=0.0)
                yield compare(f"{name}.mask", mask, cases[f"{name}.mask"], limit=0.0)
        else:
            ids, mask = cases[f"{name}.ids"], cases[f"{name}.mask"]
        yield compare(
            key, encode_tokens(encoder, ids, mask), cases[key], limit=COMPONENT_LIMIT, relative=True
        )


def _audio(encoder: Wav2Vec2Model, cases: Tensors) -> Iterator[CaseResult]:
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    features = encode_audio(
        encoder, extractor, cases["wav"].float().numpy(), torch.device("cpu"), last_layer_normed=False
    )
    yield compare("features_25fps", features, cases["features_25fps"], limit=COMPONENT_LIMIT, relative=True)
    for key in sorted(key for key in cases if key.startswith("clips.batch")):
        window = int(key.removeprefix("clips.batch"))
        clips = [clip_features(features, clip, window) for clip in range(len(cases[key]))]
        yield compare(key, torch.cat(clips), cases[key], limit=COMPONENT_LIMIT, relative=True)


def _vae(vae: AutoencoderKLWan, cases: Tensors) -> Iterator[CaseResult]:
    latents = cases["latents_normalised"]
    if "video" in cases:
        yield compare(
            "latents_normalised",
            encode_pixels(vae, cases["video"]),
            latents,
            limit=COMPONENT_LIMIT,
            relative=True,
        )
    if "decoded" in cases:
        yield compare(
            "decoded", decode_latents(vae, latents), cases["decoded"], limit=COMPONENT_LIMIT, relative=True
        )


def _weights(official: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors after `prefix` or, in a file of one part, after `w.` or bare."""
    for start in (prefix, "w."):
        found = {key.removeprefix(start): tensor for key, tensor in official.items() if key.startswith(start)}
        if found:
            return found
    return dict(official)


def _audio_config(metadata: Metadata) -> dict[str, object]:
    config: dict[str, object] = json.loads(metadata["config"]) if "config" in metadata else {}
    return config or json.loads(metadata["meta"])["w2v_config"]
