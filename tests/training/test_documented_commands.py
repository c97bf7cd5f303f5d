"""Every command of docs/training.md runs, at a small size, in the order of the page."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import accelerate
import pytest

from model.checkpoints.tiny import write_tiny_checkpoint
from tests.faults.stack import eventually
from training.recipe import TrainRecipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/training.md").read_text(encoding="utf-8")
SMALL_RUN = {"steps": 1, "samples": 1, "window": 1, "width": 64, "height": 64, "lora_rank": 2}
SMALL_WORLD = """
width = 64
height = 64
clips = 2
audio_steps = 2
num_inference_steps = 1
[vae]
crop = 16
batches = [[5, 1]]
steps = 2
decoder_steps = 1
measured_videos = 1
[transformer]
heads = 2
head_dim = 12
layers = 1
ffn_dim = 24
[training]
steps = 2
batch = 1
window = 2
"""


def commands(page: str = PAGE) -> list[str]:
    """The commands in code blocks and in running text, without comments."""
    parts = re.split(r"^```(\w*)$", page, flags=re.MULTILINE)  # text, language, block, "", text, …
    blocks = [block for language, block in zip(parts[1::4], parts[2::4], strict=True) if not language]
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    text = "\n".join(parts[::4])
    lines += [re.sub(r"\s+", " ", found) for found in re.findall(r"`(python -m [^`]*)`", text)]
    programs = r"(cointeract|python -m|accelerate|tensorboard|make)\b"
    return [re.sub(r"\s+#.*| +$", "", line) for line in lines if re.match(programs, line)]


def small_recipe(text: str, base: Path) -> str:
    """A recipe of the page for the tiny checkpoint."""
    values = {**tomllib.loads(text), **SMALL_RUN, "base": base.as_posix()}

    def written(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else repr(value)

    return "".join(f"{name} = {written(value)}\n" for name, value in values.items())


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a reader follows the page."""
    folder = tmp_path_factory.mktemp("desk")
    write_tiny_checkpoint(folder / "tiny")
    (folder / "training").mkdir()
    (folder / "training/procedural-world.toml").write_text(SMALL_WORLD)
    (folder / "deploy").mkdir()
    shutil.copytree(folder / "tiny", folder / "deploy/checkpoint")
    (recipe,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "recipe.toml").write_text(small_recipe(recipe, folder / "tiny"))
    return folder


def environment() -> dict[str, str]:
    installed = Path(accelerate.__file__).parents[4] / "bin"  # where its commands are, if not beside Python
    path = os.pathsep.join([str(Path(sys.executable).parent), str(installed), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"}


def run(desk: Path, command: str) -> str:
    done = subprocess.run(
        command, shell=True, cwd=desk, env=environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def serve(desk: Path, command: str) -> None:
    """`cointeract up …` until it serves the checkpoint that was trained."""
    port = free_port()
    with (desk / "up.log").open("w") as output:
        stack = subprocess.Popen(
            [*command.split(), "--port", str(port), "--data", str(desk / "data")],
            cwd=desk, env=environment(), stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/v1/examples"

        def answers() -> bool:
            try:
                return urllib.request.urlopen(url, timeout=5).status == 200
            except OSError:
                return stack.poll() is not None

        eventually(answers, 400, "the API")
        assert stack.poll() is None, (desk / "up.log").read_text()
    finally:
        stack.send_signal(signal.SIGINT)
        stack.wait(60)


def test_a_person_follows_the_page(desk: Path) -> None:
    """Commands that write into the repository, or take a GPU, get the options that make them small."""
    said: dict[str, str] = {}
    for command in commands():
        small = command
        if command.startswith("cointeract up"):
            serve(desk, command)
            continue
        if command.startswith("cointeract train --config recipe.toml"):
            (desk / "recipe.toml").touch()
        if command.startswith("accelerate launch"):
            shutil.rmtree(desk / "runs/my-products")
            small = re.sub(r" --num_processes \d", "", command).replace("launch", "launch --cpu")
        elif command.startswith("tensorboard"):
            small += " --inspect"
        elif command.startswith("make demo"):
            continue  # tests/deploy/test_stack.py makes it; tests/tools/test_ship.py draws the picture of it
        elif command.startswith("python -m tools.ship checkpoint"):
            small += " --recipe training/procedural-world.toml --to installed"
        elif command.startswith("python -m tools.ship inputs"):
            small += " --to inputs"
        elif command.startswith("python -m training.evaluate"):
            small = re.sub(r"DIR|deploy/checkpoint", "deploy/checkpoint", command)
            small = re.sub(r" --videos \d+|$", " --videos 1 --clips 1", small, count=1)
        elif command.startswith("python -m training.full_size_memory"):
            small = command.replace("WIDTHxHEIGHT", "480x720")
        said[command] = run(desk, small)
        if command.startswith("cointeract train-example"):
            recipe = desk / "clips/recipe.toml"
            recipe.write_text(small_recipe(recipe.read_text(), desk / "tiny"))
    assert "all can be used" in said["cointeract train --config recipe.toml --check"]
    for made in (
        "clips/run/checkpoint/cointeract.json",
        "clips/run/best/cointeract.json",
        "runs/my-products/checkpoint/cointeract.json",
        "runs/small/procedural-world/checkpoint/cointeract.json",
        "installed/TRAINING.md",
        "inputs",
        "docs/images/hoi-stream.webp",
    ):
        assert (desk / made).exists(), made


def test_the_recipe_of_the_page_can_be_read(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe.toml").write_text(recipe)
    read = TrainRecipe.read(tmp_path / "recipe.toml")
    assert (read.lora_rank, read.mixed_precision, read.frozen_weights) == (128, "bf16", "bf16")


def test_commands_are_found_in_blocks_and_text() -> None:
    block, text = "```\nmake demo   # it\ncointeract \\\n  up\n```\n", "Then `python -m a.b --c\nd`.\n"
    page = f"{block}{text}```toml\nmake = 1\n```\n"
    assert commands(page) == ["make demo", "cointeract   up", "python -m a.b --c d"]
