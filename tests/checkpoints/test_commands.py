"""The commands as a user runs them: exit status, what they say, what they leave."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from cli.app import app
from model.checkpoints.card_file import read_card
from model.checkpoints.fetch import AUDIO_ENCODER, BASE, COINTERACT
from tests.checkpoints.local_hub import Hub
from tests.checkpoints.official_files import OfficialFiles, OfficialPaths

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def hub(good_paths: OfficialPaths, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that holds small but whole official repositories, set as HF_ENDPOINT is."""

    def content(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    repos = {
        BASE.repo: content(good_paths.base),
        COINTERACT.repo: {"checkpoint.safetensors": good_paths.cointeract.read_bytes()},
        AUDIO_ENCODER.repo: content(good_paths.audio_encoder),
    }
    with Hub(repos).running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield running


def test_two_commands_lead_from_nothing_to_a_checkpoint_folder(hub: Hub, tmp_path: Path) -> None:
    fetched = runner.invoke(app, ["fetch", "--to", str(tmp_path / "weights")])
    assert fetched.exit_code == 0, fetched.output
    command = re.search(r"^cointeract (convert .*)$", fetched.stdout, re.MULTILINE)
    assert command is not None, fetched.stdout
    converted = runner.invoke(app, command[1].split())
    assert converted.exit_code == 0, converted.output
    assert "52 pairs of rank 4 merged in fp32" in converted.stdout
    assert re.search(r"HOI branch, dropped\W+10\W+15,040", converted.stdout)
    card = read_card(tmp_path / "weights" / "cointeract-speech")
    assert f"georgexin/cointeract@{hub.commit}/checkpoint.safetensors" in card.sources
    assert f"Wan-AI/Wan2.2-S2V-14B@{hub.commit}/Wan2.1_VAE.pth" in card.sources


def test_fetch_explains_a_failure_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    del hub.repos[COINTERACT.repo]
    result = runner.invoke(app, ["fetch", "--to", str(tmp_path)])
    assert result.exit_code == 1
    assert "georgexin/cointeract does not exist, or is private" in result.stderr
    assert "Traceback" not in result.output


def test_fetch_refuses_a_revision_that_names_no_repository(tmp_path: Path) -> None:
    result = runner.invoke(app, ["fetch", "--to", str(tmp_path), "--revision", "main"])
    assert result.exit_code == 1
    assert "'main' is not REPOSITORY=REVISION" in result.stderr


def test_convert_names_the_tensor_that_is_wrong(files: OfficialFiles, tmp_path: Path) -> None:
    del files.base["head.head.bias"]
    paths = files.write(tmp_path)
    out = tmp_path / "out"
    arguments = [
        "--base",
        paths.base,
        "--cointeract",
        paths.cointeract,
        "--audio-encoder",
        paths.audio_encoder,
    ]
    result = runner.invoke(app, ["convert", *map(str, arguments), "--out", str(out)])
    assert result.exit_code == 1
    assert "missing tensor: head.head.bias: expected [64]" in result.stderr
    assert not out.exists()


def test_convert_does_not_overwrite(good_paths: OfficialPaths, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    arguments = ["--base", good_paths.base, "--cointeract", good_paths.cointeract]
    arguments += ["--audio-encoder", good_paths.audio_encoder, "--out", tmp_path]
    result = runner.invoke(app, ["convert", *map(str, arguments)])
    assert result.exit_code == 1
    assert "choose another folder" in result.stderr
    assert os.listdir(tmp_path) == ["kept"]
