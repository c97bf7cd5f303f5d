"""A job copied as a curl command or as a Python program: both are run, and ask for the same video."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.inputs import PERSON, PRODUCT
from tests.server.studio.conftest import THREE_CLIPS, Studio
from tools.browser import Page

pytestmark = pytest.mark.slow
PROMPTS = ['She says "it\'s here" 🎉', "היא מרימה את הכוס $HOME `ls`"]
SETTINGS = {
    "prompt": PROMPTS,
    "audio": THREE_CLIPS,
    "negative_prompt": "grey",
    "audio_face_mask": "true",
    "router_maps": "true",
    "label": "AI-generated",
    "preset": "fast",
    "seed": 7,
}


def recipe(studio: Studio, job: str, name: str) -> str:
    """What the page would copy."""
    found = []

    async def visit(page: Page) -> None:
        found.append(
            await page.run(
                f"(async () => {{ const recipes = await import('/static/studio/recipes.js');"
                f"return recipes.{name}(await (await fetch('/v1/jobs/{job}')).json()); }})()"
            )
        )

    studio.visit(visit)
    return str(found[0])


def files(folder: Path) -> Path:
    for name, data in (("person.png", PERSON), ("product.png", PRODUCT), ("speech.wav", THREE_CLIPS)):
        (folder / name).write_bytes(data)
    return folder


def without_key() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("COINTERACT")}


def same_request(studio: Studio, one: str, other: str) -> None:
    first, second = (studio.live.services.journal.read(job).submitted for job in (one, other))
    assert first.params == second.params
    assert first.checkpoint == second.checkpoint
    assert (first.inputs.product_image is None) == (second.inputs.product_image is None)


@pytest.mark.parametrize("product", [True, False])
def test_the_curl_command_asks_for_the_same_video(studio: Studio, tmp_path: Path, product: bool) -> None:
    job = studio.submit(**SETTINGS, **({} if product else {"product_image": None}))
    command = recipe(studio, job, "asCurl")
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=files(tmp_path),
        env=without_key(),
        capture_output=True,
        text=True,
        check=True,
    )
    same_request(studio, job, json.loads(done.stdout)["id"])


def test_the_python_program_asks_for_the_same_video_and_saves_it(studio: Studio, tmp_path: Path) -> None:
    job = studio.submit(**SETTINGS, product_image=None)
    program = recipe(studio, job, "asPython")
    running = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=files(tmp_path),
        env=without_key(),
        stderr=subprocess.PIPE,
        text=True,
    )

    async def another() -> str:
        for _ in range(200):
            if others := [one for one in studio.jobs() if one != job]:
                return others[0]
            assert running.poll() is None, running.communicate()[1]
            await asyncio.sleep(0.1)
        raise AssertionError("nothing was submitted")

    made = asyncio.run(another())
    same_request(studio, job, made)
    studio.succeed(made)
    assert running.wait(60) == 0
    assert (tmp_path / "presenter.mp4").stat().st_size > 0
