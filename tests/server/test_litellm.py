"""LiteLLM's videos provider for servers of vLLM-Omni's kind (hosted_vllm) makes a video with this server.

`make clients` installs LiteLLM in an environment of its own; without it the test is skipped.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.artifacts import FolderStore
from jobs.cards import publish_card
from server.app import create_app
from tests.server.conftest import CARD, Api, Live, make_settings, serving
from tests.server.inputs import PERSON, PRODUCT, SPEECH
from tests.server.journals import VIDEO, start, succeed
from tests.server.test_submit import data_url

pytestmark = pytest.mark.slow

PYTHON = Path(__file__).parents[2] / ".clients" / "litellm" / "bin" / "python"
PROGRAM = """
import pathlib, sys
import litellm

server = {"api_base": sys.argv[1], "api_key": "none", "custom_llm_provider": "hosted_vllm"}
video = litellm.video_generation(
    model="hosted_vllm/tiny",
    prompt="She lifts it.",
    input_reference=open(sys.argv[2], "rb"),
    seconds="3",
    size="112x192",
    extra_body={
        "audio_reference": {"audio_url": sys.argv[3]},
        "image_reference": {"image_url": sys.argv[4]},
        "seed": 5,
        "num_inference_steps": 2,
        "extra_params": {"product_scale": 0.5},
    },
    **server,
)
assert video.status == "queued", video
print("created", flush=True)
sys.stdin.readline()
assert litellm.video_status(video_id=video.id, **server).status == "in_progress"
print("seen", flush=True)
sys.stdin.readline()
done = litellm.video_status(video_id=video.id, **server)
assert (done.status, done.progress, done.seconds, done.size) == ("completed", 100, "1", "112x192"), done
pathlib.Path(sys.argv[5]).write_bytes(litellm.video_content(video_id=video.id, **server))
assert [each["status"] for each in litellm.video_list(**server)["data"]] == ["completed"]
"""


@pytest.fixture
def patient(tmp_path: Path, redis_url: str) -> Iterator[Live]:
    """A server that lets a client take as long to send its request as it does by default."""
    settings = make_settings(tmp_path / "data", redis_url)
    publish_card(FolderStore(settings.storage_dir), CARD)
    with serving(create_app(settings)) as running:
        yield running


@pytest.mark.skipif(not PYTHON.exists(), reason="LiteLLM is not installed: make clients")
def test_a_video_is_made_listed_and_downloaded_by_litellm(patient: Live, tmp_path: Path) -> None:
    person = tmp_path / "person.png"
    person.write_bytes(PERSON)
    api = Api(patient.app, None)  # type: ignore[arg-type]
    references = (data_url(SPEECH, "audio/wav"), data_url(PRODUCT, "image/jpeg"))
    command = [PYTHON, "-c", PROGRAM, f"{patient.url}/v1", person, *references, tmp_path / "out.mp4"]
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "created\n", process.communicate()
    (job_id,) = patient.services.store.list_names("jobs")
    submitted = patient.services.journal.read(job_id).submitted
    assert (submitted.params.prompts, submitted.params.seed) == (("She lifts it.",), 5)
    assert (submitted.params.num_inference_steps, submitted.params.product_scale) == (2, 0.5)
    assert submitted.inputs.product_image is not None
    start(api, job_id)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "seen\n", process.communicate()
    succeed(api, job_id, started=True)
    _, errors = process.communicate("\n", timeout=120)
    assert process.returncode == 0, errors
    assert (tmp_path / "out.mp4").read_bytes() == VIDEO
