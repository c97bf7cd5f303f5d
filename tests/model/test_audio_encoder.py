"""Speech features as the official code computes them, and windows that do not drift."""

import json

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from contract.video import SAMPLE_RATE, clips_of_frames, frames_of_speech
from model.parity.pipeline_cases import build_audio_encoder
from model.speech_features import (
    clip_features,
    encode_audio,
    feature_frame_count,
    official_clip_count,
)
from tests.model.official_parts import audio_weights, recorded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> Wav2Vec2Model:
    config = json.loads(recorded("audio_cases")[1]["config"])
    return build_audio_encoder(audio_weights(config), config)


def features(encoder, audio: np.ndarray, last_layer_normed: bool = True) -> torch.Tensor:
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    return encode_audio(encoder, extractor, audio, CPU, last_layer_normed=last_layer_normed)


def test_recorded_speech_gives_the_official_features(encoder):
    cases, _ = recorded("audio_cases")
    ours = features(encoder, cases["wav"].numpy(), last_layer_normed=False)
    official = cases["features_every_fourth"]
    assert ours.shape[:2] == (25, 182)
    assert (ours[:, ::4] - official).abs().max() <= 1e-5 * official.abs().max()


def test_only_the_last_layer_is_normed_as_in_training(encoder):
    audio = np.sin(np.arange(16_000) / 7).astype(np.float32)
    recorded_way, trained_way = features(encoder, audio, last_layer_normed=False), features(encoder, audio)
    assert torch.equal(recorded_way[:-1], trained_way[:-1])
    with torch.no_grad():
        # Interpolation in time commutes with nothing but averaging, so norm the 50 Hz states themselves.
        values = Wav2Vec2FeatureExtractor(do_normalize=True)(audio, sampling_rate=16_000, return_tensors="pt")
        states = encoder(**values, output_hidden_states=True).hidden_states[-1]
        normed = encoder.encoder.layer_norm(states)
    assert torch.allclose(trained_way[-1, 0], normed[0, 0], atol=1e-5)
    assert torch.allclose(trained_way[-1, -1], normed[0, -1], atol=1e-5)


@pytest.mark.parametrize("samples", [400, 719, 720, 1039, 1040, 16_000, 51_200, 51_520])
def test_the_number_of_feature_frames_is_known_before_encoding(encoder, samples):
    audio = np.sin(np.arange(samples) / 7).astype(np.float32)
    assert features(encoder, audio).shape[1] == feature_frame_count(encoder, samples)


def test_speech_too_short_for_the_encoder_is_refused(encoder):
    with pytest.raises(ValueError, match="399 samples"):
        features(encoder, np.zeros(399, np.float32))


def test_windows_of_80_follow_the_clips_and_those_of_81_run_ahead():
    ramp = torch.arange(400.0).view(1, 400, 1)
    for clip in range(3):
        assert clip_features(ramp, clip, 80)[0, 0, 0, 0] == 80 * clip
        assert clip_features(ramp, clip, 81)[0, 0, 0, 0] == 81 * clip


def test_windows_after_the_end_of_the_speech_are_zero():
    window = clip_features(torch.ones(25, 100, 4), 1, 80)
    assert window.shape == (1, 25, 4, 80)
    assert window[..., :20].all()
    assert not window[..., 20:].any()
    assert not clip_features(torch.ones(25, 80, 4), 1, 80).any()


@pytest.mark.parametrize(
    ("seconds", "frames", "clips"),
    [(0.01, 1, 1), (3.2, 80, 1), (3.21, 80, 1), (3.24, 81, 2), (6.4, 160, 2), (10.0, 250, 4)],
)
def test_a_video_is_as_long_as_its_speech_to_half_a_frame(seconds, frames, clips):
    samples = round(seconds * 16_000)
    assert frames_of_speech(samples, SAMPLE_RATE) == frames
    assert clips_of_frames(frames) == clips
    assert abs(min(frames, 80 * clips) / 25 - seconds) <= 0.5 / 25 or seconds < 0.02


def test_clips_of_the_official_code_are_one_more_than_full_windows():
    assert [official_clip_count(frames) for frames in (80, 81, 182)] == [1, 2, 3]
