"""The whole pipeline and its parts against the official numbers, through the command that users run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2FeatureExtractor

from model.parity.__main__ import main
from model.parity.pipeline_cases import build_audio_encoder, build_pipeline, inputs_of, params_of
from model.parity.result import compare, compare_frames
from model.speech_features import encode_audio
from tests.model.official_parts import (
    audio_weights,
    pipeline_weights,
    recorded,
    text_weights,
    vae_weights,
)

pytestmark = pytest.mark.slow

FULL_FILES = Path(__file__).parents[2] / ".." / "shared" / "golden"


def parity(capsys, *arguments: object) -> tuple[int, dict[str, dict]]:
    status = main([str(argument) for argument in arguments])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return status, {line["case"]: line for line in lines}


def with_weights(path: Path, cases: dict[str, torch.Tensor], metadata: dict[str, str], weights) -> Path:
    """A file of one part's cases and its weights, as they are recorded."""
    save_file({**cases, **{f"w.{name}": tensor for name, tensor in weights.items()}}, path, metadata)
    return path


def text_file(path: Path) -> Path:
    cases, metadata = recorded("text_cases")
    padded = {}
    for key, tensor in cases.items():
        name, kind = key.split(".")
        padded[key] = torch.zeros(1, 512, *tensor.shape[2:], dtype=tensor.dtype)
        padded[key][:, : tensor.shape[1]] = tensor
        if kind == "ids":
            padded[f"{name}.mask"] = (torch.arange(512) < tensor.shape[1]).long()[None]
    return with_weights(path, padded, metadata, text_weights())


def pipeline_cases(clips: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The recorded video, or the beginning of it."""
    cases, metadata = recorded("pipeline_cases")
    cases = {key: tensor for key, tensor in cases.items() if key[:4] != "clip" or int(key[4]) < clips}
    cases["in.wav"] = recorded("audio_cases")[0]["wav"]
    return cases, {"meta": json.dumps(json.loads(metadata["meta"]) | {"clips": clips})}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    _, metadata = pipeline_cases(clips=2)
    path = tmp_path_factory.mktemp("pipeline") / "weights.safetensors"
    save_file(pipeline_weights(metadata), path, metadata)
    return path


def test_the_official_video_is_reproduced_clip_by_clip(weights, tmp_path, capsys):
    cases, metadata = pipeline_cases(clips=2)
    save_file(cases, tmp_path / "cases.safetensors", metadata)
    status, lines = parity(capsys, "--weights", weights, "--cases", tmp_path / "cases.safetensors")
    assert status == 0
    assert list(lines) == ["clip0.latents", "clip0.frames", "clip1.latents", "clip1.frames"]
    assert lines["clip0.latents"]["max_abs_diff"] <= 1e-3
    assert lines["clip1.latents"]["max_abs_diff"] <= 2e-2
    for clip in ("clip0", "clip1"):
        assert lines[f"{clip}.frames"]["frames_differing"] <= 1e-3
        assert lines[f"{clip}.latents"]["max_abs_ref"] > 1


def test_a_checkpoint_folder_of_the_same_weights_reproduces_it_too(tmp_path, capsys):
    cases, metadata = pipeline_cases(clips=1)
    build_pipeline(pipeline_weights(metadata), metadata).save_pretrained(tmp_path / "folder")
    save_file(cases, tmp_path / "cases.safetensors", metadata)
    status, lines = parity(
        capsys, "--checkpoint", tmp_path / "folder", "--cases", tmp_path / "cases.safetensors"
    )
    assert status == 0, lines
    assert list(lines) == ["clip0.latents", "clip0.frames"]


def test_a_video_that_differs_is_reported(weights, tmp_path, capsys):
    cases, metadata = pipeline_cases(clips=1)
    cases["in.product"] = 255 - cases["in.product"]
    save_file(cases, tmp_path / "cases.safetensors", metadata)
    status, lines = parity(capsys, "--weights", weights, "--cases", tmp_path / "cases.safetensors")
    assert status == 1
    assert not lines["clip0.latents"]["passed"]


def test_what_a_file_leaves_out_is_left_out_of_the_request():
    cases, metadata = recorded("pipeline_cases")
    meta = json.loads(metadata["meta"]) | {"cfg": 1.0, "clips": 3}
    cases = {"in.person": cases["in.person"], "in.wav": torch.zeros(160_000)}
    inputs, params = inputs_of(cases), params_of(cases, {"meta": json.dumps(meta)})
    assert inputs.product is None
    assert inputs.pose_frames is None
    assert inputs.noise is None
    assert (params.num_clips, params.guidance_scale, params.parity) == (3, 1.0, True)


def test_recorded_pose_and_noise_are_used():
    cases, _ = recorded("pipeline_cases")
    cases |= {
        "in.wav": torch.zeros(160_000),
        "in.pose": torch.zeros(90, 96, 64, 3, dtype=torch.uint8),
        "in.noise1": torch.ones(1, 16, 21, 12, 8),
        "in.noise0": torch.zeros(1, 16, 21, 12, 8),
    }
    inputs = inputs_of(cases)
    assert inputs.pose_frames.shape == (90, 96, 64, 3)
    assert [noise.mean().item() for noise in inputs.noise] == [0.0, 1.0]
    assert inputs.pose_latents is None


def test_schedules_pass(capsys):
    file = Path(__file__).parent.parent / "data" / "scheduler_cases.safetensors"
    status, lines = parity(capsys, "--cases", file)
    assert status == 0
    assert len(lines) == 12


def test_text_cases_pass(tmp_path, capsys):
    status, lines = parity(capsys, "--cases", text_file(tmp_path / "text.safetensors"))
    assert status == 0
    assert {f"prompt{i}.{kind}" for i in range(3) for kind in ("ids", "mask", "embeds")} == lines.keys()


def test_audio_cases_pass_and_a_wrong_weight_does_not(tmp_path, capsys):
    cases, metadata = recorded("audio_cases")
    config = json.loads(metadata["config"])
    weights = audio_weights(config)
    # Only every fourth frame is recorded, which test_audio_encoder.py compares; the command wants them all.
    features = encode_audio(
        build_audio_encoder(weights, config),
        Wav2Vec2FeatureExtractor(),
        cases["wav"].numpy(),
        torch.device("cpu"),
        last_layer_normed=False,
    )
    assert torch.allclose(features[:, ::4], cases["features_every_fourth"], atol=1e-4)
    cases = {"wav": cases["wav"], "features_25fps": features.contiguous()}
    file = with_weights(tmp_path / "audio.safetensors", cases, metadata, weights)
    assert parity(capsys, "--weights", file, "--cases", file)[0] == 0
    weights["wav2vec2.encoder.layers.0.layer_norm.weight"] += 0.01
    file = with_weights(tmp_path / "other.safetensors", cases, metadata, weights)
    assert parity(capsys, "--weights", file, "--cases", file)[0] == 1


def test_vae_cases_pass(tmp_path, capsys):
    cases, metadata = recorded("vae_cases")
    file = with_weights(tmp_path / "vae.safetensors", cases, metadata, vae_weights())
    status, lines = parity(capsys, "--cases", file)
    assert status == 0
    assert lines.keys() == {"latents_normalised", "decoded"}


def test_differences_are_measured():
    result = compare("case", torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), limit=0.4)
    assert (result.max_abs_diff, result.max_abs_ref, result.passed) == (0.5, 2.0, False)
    assert compare("case", torch.tensor([2.5]), torch.tensor([2.0]), limit=0.3, relative=True).passed
    assert not compare("case", torch.tensor([float("nan")]), torch.tensor([2.0]), limit=1.0).passed
    with pytest.raises(ValueError, match="shape"):
        compare("case", torch.zeros(2), torch.zeros(3), limit=1.0)


def test_frames_may_differ_by_one_level_anywhere_and_by_more_almost_nowhere():
    official = torch.full((1, 100, 100, 3), 100, dtype=torch.uint8)
    assert compare_frames("case", official + 1, official, limit=1e-3).passed
    few = official.clone()
    few[0, 0, :10] = 200
    assert compare_frames("case", few, official, limit=1e-3).passed
    few[0, 0, :11] = 200
    assert not compare_frames("case", few, official, limit=1e-3).passed


@pytest.mark.skipif(not FULL_FILES.is_dir(), reason="the full recorded files are not at ../shared/golden")
@pytest.mark.parametrize(
    "name", ["pipeline_tiny", "text_encoder_tiny", "audio_encoder_tiny", "vae_tiny", "scheduler"]
)
def test_the_full_recorded_files_pass(name, capsys):
    cases = FULL_FILES / f"{name}.safetensors"
    arguments = ["--cases", cases]
    if not cases.is_file():
        weights, cases = (FULL_FILES / f"{name}_{kind}.safetensors" for kind in ("weights", "cases"))
        arguments = ["--weights", weights, "--cases", cases]
    status, lines = parity(capsys, *arguments)
    assert status == 0
    assert lines
