"""`cointeract fetch` against a local server that speaks the hub's API. No test reaches the real hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from model.checkpoints.fetch import AUDIO_ENCODER, BASE, COINTERACT, DownloadError, FetchRequest, fetch
from tests.checkpoints.local_hub import Hub

SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    large = os.urandom(70_000)
    repos = {
        BASE.repo: {
            "README.md": b"not needed",
            "assets/demo.mp4": os.urandom(2000),
            "config.json": b"{}",
            "diffusion_pytorch_model.safetensors.index.json": b"{}",
            "diffusion_pytorch_model-00001-of-00002.safetensors": large,
            SHARD: os.urandom(90_000),
            "models_t5_umt5-xxl-enc-bf16.pth": os.urandom(5000),
            "Wan2.1_VAE.pth": os.urandom(4000),
            "google/umt5-xxl/spiece.model": os.urandom(700),
            "google/umt5-xxl/tokenizer_config.json": b'{"a": 1}',
        },
        COINTERACT.repo: {
            "checkpoint.safetensors": os.urandom(3000),
            "checkpoint_pose.safetensors": os.urandom(3100),
        },
        AUDIO_ENCODER.repo: {
            "config.json": b"{}",
            "preprocessor_config.json": b'{"do_normalize": true}',
            "pytorch_model.bin": os.urandom(1500),
            "flax_model.msgpack": os.urandom(1500),
            "vocab.json": b"{}",
        },
    }
    with Hub(repos).running() as running:
        yield running


def request(hub: Hub, to: Path, **settings: Any) -> FetchRequest:
    return FetchRequest(to, endpoint=hub.url, **settings)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_exactly_the_needed_files_are_fetched_and_are_the_arguments_of_convert(
    hub: Hub, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    fetched = fetch(request(hub, tmp_path), lambda *report: seen.append(report))
    assert files_below(tmp_path) == {
        "fetch.json",
        "Wan2.2-S2V-14B/config.json",
        "Wan2.2-S2V-14B/diffusion_pytorch_model-00001-of-00002.safetensors",
        "Wan2.2-S2V-14B/diffusion_pytorch_model-00002-of-00002.safetensors",
        "Wan2.2-S2V-14B/models_t5_umt5-xxl-enc-bf16.pth",
        "Wan2.2-S2V-14B/Wan2.1_VAE.pth",
        "Wan2.2-S2V-14B/google/umt5-xxl/spiece.model",
        "Wan2.2-S2V-14B/google/umt5-xxl/tokenizer_config.json",
        "cointeract/checkpoint.safetensors",
        "wav2vec2-large-xlsr-53-chinese-zh-cn/config.json",
        "wav2vec2-large-xlsr-53-chinese-zh-cn/preprocessor_config.json",
        "wav2vec2-large-xlsr-53-chinese-zh-cn/pytorch_model.bin",
    }
    assert (fetched.base / SHARD).read_bytes() == hub.repos[BASE.repo][SHARD]
    assert fetched.cointeract.read_bytes() == hub.repos[COINTERACT.repo]["checkpoint.safetensors"]
    assert (fetched.audio_encoder / "pytorch_model.bin").is_file()
    assert [number for _, number, _ in seen] == list(range(1, 12))


def test_with_pose_only_the_pose_checkpoint_is_fetched(hub: Hub, tmp_path: Path) -> None:
    fetched = fetch(request(hub, tmp_path, pose=True))
    assert fetched.cointeract.read_bytes() == hub.repos[COINTERACT.repo]["checkpoint_pose.safetensors"]
    assert not (fetched.cointeract.parent / "checkpoint.safetensors").exists()


def test_safetensors_of_the_audio_encoder_are_preferred_to_a_pickle(hub: Hub, tmp_path: Path) -> None:
    hub.repos[AUDIO_ENCODER.repo]["model.safetensors"] = os.urandom(1400)
    fetched = fetch(request(hub, tmp_path))
    assert (fetched.audio_encoder / "model.safetensors").is_file()
    assert not (fetched.audio_encoder / "pytorch_model.bin").exists()


def test_a_second_run_downloads_nothing_and_asks_the_hub_nothing(hub: Hub, tmp_path: Path) -> None:
    fetch(request(hub, tmp_path))
    hub.requests.clear()
    assert fetch(request(hub, tmp_path)).downloaded_bytes == 0
    assert hub.requests == []


def test_a_download_that_breaks_off_continues_in_the_next_run_at_the_byte_where_it_stopped(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What arrived of the last chunk is lost; a real chunk is 10 MB.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.cut[SHARD] = 40_000
    with pytest.raises(DownloadError, match=r"diffusion_pytorch_model-00002.*503"):
        fetch(request(hub, tmp_path))
    assert not (tmp_path / BASE.folder / SHARD).exists()
    hub.cut.clear()
    hub.requests.clear()
    fetched = fetch(request(hub, tmp_path))
    assert (fetched.base / SHARD).read_bytes() == hub.repos[BASE.repo][SHARD]
    ranges = [span for method, path, span in hub.requests if method == "GET" and path.endswith(SHARD)]
    assert ranges == ["bytes=40000-"]
    assert "config.json" not in [name for name in hub.downloads() if "Wan" in name]
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_that_arrives_damaged_is_refused_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.corrupt.add("Wan2.1_VAE.pth")
    with pytest.raises(DownloadError, match=r"Wan2\.1_VAE\.pth arrived damaged"):
        fetch(request(hub, tmp_path))
    assert not list(tmp_path.rglob("Wan2.1_VAE.pth*"))
    hub.corrupt.clear()
    assert (fetch(request(hub, tmp_path)).base / "Wan2.1_VAE.pth").is_file()


def test_small_files_are_checked_too(hub: Hub, tmp_path: Path) -> None:
    hub.corrupt.add("preprocessor_config.json")
    with pytest.raises(DownloadError, match=r"preprocessor_config\.json arrived damaged"):
        fetch(request(hub, tmp_path))


def test_too_little_disk_space_is_said_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    with pytest.raises(DownloadError, match="GB are still to be downloaded"):
        fetch(request(hub, tmp_path))
    assert hub.downloads() == []


def test_the_first_run_pins_the_commit_and_later_ones_keep_to_it(hub: Hub, tmp_path: Path) -> None:
    fetch(request(hub, tmp_path))
    pins = json.loads((tmp_path / "fetch.json").read_text())
    assert {pin["commit"] for pin in pins.values()} == {"a" * 40}
    (tmp_path / BASE.folder / "config.json").unlink()
    hub.commit = "b" * 40  # main has moved on; the old commit is gone from this small server
    with pytest.raises(DownloadError, match=r"a{40}"):
        fetch(request(hub, tmp_path))
    fetch(request(hub, tmp_path, revisions={BASE.repo: "b" * 40}))
    assert json.loads((tmp_path / "fetch.json").read_text())[BASE.repo]["commit"] == "b" * 40


def test_a_revision_that_is_not_there_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"georgexin/cointeract has no revision v9"):
        fetch(request(hub, tmp_path, revisions={COINTERACT.repo: "v9"}))


def test_a_repository_that_is_not_there_is_named(hub: Hub, tmp_path: Path) -> None:
    del hub.repos[COINTERACT.repo]
    with pytest.raises(DownloadError, match=r"georgexin/cointeract does not exist, or is private"):
        fetch(request(hub, tmp_path))


def test_a_needed_file_that_the_repository_lacks_is_named(hub: Hub, tmp_path: Path) -> None:
    del hub.repos[BASE.repo]["Wan2.1_VAE.pth"]
    with pytest.raises(DownloadError, match=r"has no file Wan2\.1_VAE\.pth"):
        fetch(request(hub, tmp_path))
    assert hub.downloads() == []


def test_a_gated_repository_needs_the_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    with pytest.raises(DownloadError, match=r"gated.*HF_TOKEN"):
        fetch(request(hub, tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch(request(hub, tmp_path)).cointeract.is_file()


def test_a_hub_that_does_not_answer_is_an_error_that_says_what_to_check(tmp_path: Path) -> None:
    with Hub({}).running() as gone:
        url = gone.url
    with pytest.raises(DownloadError, match=r"check the network and HF_ENDPOINT"):
        fetch(FetchRequest(tmp_path, endpoint=url))


def test_offline_uses_what_is_there_and_names_what_is_not(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"offline.*never fetched here"):
        fetch(request(hub, tmp_path, offline=True))
    fetch(request(hub, tmp_path))
    hub.requests.clear()
    assert fetch(request(hub, tmp_path, offline=True)).downloaded_bytes == 0
    (tmp_path / BASE.folder / "Wan2.1_VAE.pth").unlink()
    with pytest.raises(DownloadError, match=r"offline.*Wan2\.1_VAE\.pth"):
        fetch(request(hub, tmp_path, offline=True))
    assert hub.requests == []


def test_a_damaged_pin_file_is_an_error_that_says_so(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "fetch.json").write_text("{]")
    with pytest.raises(DownloadError, match=r"fetch\.json is damaged"):
        fetch(request(hub, tmp_path))
