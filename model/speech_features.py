"""Speech → audio features (1, layers, D, T) at 25 fps, one window per clip (official code)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from contract.video import FPS, SAMPLE_RATE

WAV2VEC2_RATE = 50
"""Nominal output rate of wav2vec2's convolutions at 16 kHz."""


OFFICIAL_AUDIO_WINDOW = 81
"""Feature frames that the official code takes for a clip of 80 frames."""


def official_clip_count(num_feature_frames: int) -> int:
    """Clips that the official code makes of this many feature frames (before its cap of `num_clips`)."""
    return num_feature_frames // OFFICIAL_AUDIO_WINDOW + 1


def feature_frame_count(encoder: Wav2Vec2Model, num_samples: int) -> int:
    """Feature frames at 25 fps that `encode_audio` makes of so many samples.

    Raises:
        ValueError: fewer samples than one output of the encoder needs (25 ms).
    """
    num_outputs = num_samples
    for kernel, stride in zip(encoder.config.conv_kernel, encoder.config.conv_stride, strict=True):
        num_outputs = (num_outputs - kernel) // stride + 1
        if num_outputs < 1:
            raise ValueError(f"speech of {num_samples} samples at 16 kHz is too short for the audio encoder")
    return max(1, int(num_outputs / float(WAV2VEC2_RATE) * FPS))


@torch.no_grad()
def encode_audio(
    encoder: Wav2Vec2Model,
    feature_extractor: Wav2Vec2FeatureExtractor,
    audio: np.ndarray,
    device: torch.device,
    *,
    last_layer_normed: bool = True,
) -> torch.Tensor:
    """All hidden states of the whole speech at 25 fps.

    Args:
        audio: (N,) float32, mono, 16 kHz, about -1..1.
        last_layer_normed: pass the last hidden state through the encoder's final LayerNorm, as transformers 4
            does. The official weights were trained with it. transformers 5 does not do it, and the official
            code's numbers were recorded so.

    Returns:
        (layers, T, D): layers = 1 + transformer layers, T = int(len / 50 · 25), in the encoder's dtype.

    Raises:
        ValueError: fewer samples than one output of the encoder needs (25 ms).
    """
    num_frames = feature_frame_count(encoder, len(audio))
    values = feature_extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values  # (1, N)
    output = encoder(values.to(device, encoder.dtype), output_hidden_states=True)
    hidden = list(output.hidden_states)
    if last_layer_normed:
        hidden[-1] = output.last_hidden_state
    features = torch.cat(hidden)  # (layers, T50, D)
    features = F.interpolate(features.transpose(1, 2), size=num_frames, mode="linear", align_corners=True)
    return features.transpose(1, 2)  # (layers, T, D)


def clip_features(features: torch.Tensor, clip: int, window_frames: int) -> torch.Tensor:
    """The window of one clip, (1, layers, D, window_frames), with zeros after the end of the speech.

    Windows of 80 frames match the 80 frames that each clip keeps. The official code takes 81, so its lips run
    40 ms further ahead of the sound with each clip.
    """
    window = features[:, clip * window_frames : (clip + 1) * window_frames]  # (layers, t, D)
    window = F.pad(window, (0, 0, 0, window_frames - window.shape[1]))
    return window.permute(0, 2, 1)[None]
