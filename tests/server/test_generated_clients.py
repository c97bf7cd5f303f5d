"""Clients that common generators make of the OpenAPI document submit, poll and download.

`make clients` installs the generators; without them the tests that need them are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from tests.server.conftest import Api, Live
from tests.server.inputs import audio_bytes, image_bytes
from tests.server.journals import VIDEO, succeed

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".clients"
PYTHON = TOOLS / "python" / "bin" / "python"
NODE_MODULES = TOOLS / "node_modules"

PYTHON_PROGRAM = """
import io, pathlib, sys
from generated.api.jobs import generate, get_job, get_video, list_jobs
from generated.client import Client
from generated.models import GenerateFilesGenerateFields, JobList, JobView, ProblemDocument
from generated.types import File

client, person, speech = Client(base_url=sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
def body(**more):
    return GenerateFilesGenerateFields(
        prompt=["She waves."],
        person_image=File(io.BytesIO(person.read_bytes()), "person.png", "image/png"),
        audio=File(io.BytesIO(speech.read_bytes()), "speech.wav", "audio/wav"),
        **more,
    )
job = generate.sync(client=client, body=body(seed=5), idempotency_key="one")
assert isinstance(job, JobView) and job.status.value == "queued" and job.seed == 5, job
print(job.id, flush=True)
sys.stdin.readline()
job = get_job.sync(job.id, client=client)
assert job.status.value == "succeeded" and job.params.width == 112, job
assert [each.id for each in list_jobs.sync(client=client, model="tiny").data] == [job.id]
pathlib.Path(sys.argv[4]).write_bytes(get_video.sync(job.id, client=client).payload.read())
refused = generate.sync(client=client, body=body(size="100x100"))
assert isinstance(refused, ProblemDocument) and refused.code == "unsupported_size", refused
missing = get_job.sync("job_nonsense", client=client)
assert isinstance(missing, ProblemDocument) and missing.status == 404, missing
"""

OVERRIDES = {
    "content_type_overrides": {
        "application/problem+json": "application/json",
        **dict.fromkeys(("video/mp4", "image/jpeg", "image/png", "audio/wav"), "application/octet-stream"),
    },
    "package_name_override": "generated",
}
"""openapi-python-client must be told which media types are bytes."""

TYPESCRIPT_PROGRAM = """
import createClient from "openapi-fetch";
import { readFileSync, writeFileSync } from "node:fs";
import type { components, paths } from "./api";

type Job = components["schemas"]["JobView"];
const [url, person, speech, target] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url });

async function main(): Promise<void> {
  const given = await client.POST("/v1/generate", {
    body: { prompt: ["She waves."], person_image: "", seed: 6 } as never,
    bodySerializer: () => {
      const form = new FormData();
      form.append("prompt", "She waves.");
      form.append("seed", "6");
      form.append("person_image", new Blob([readFileSync(person)]), "person.png");
      form.append("audio", new Blob([readFileSync(speech)]), "speech.wav");
      return form;
    },
  });
  if (!given.data) throw new Error(given.error.code + ": " + given.error.detail);
  let job: Job = given.data;
  console.log(job.id);
  while (job.status !== "succeeded") {
    await new Promise((resolve) => setTimeout(resolve, 100));
    const seen = await client.GET("/v1/jobs/{job_id}", { params: { path: { job_id: job.id } } });
    if (!seen.data) throw new Error(seen.error.detail);
    job = seen.data;
  }
  const file = await client.GET("/v1/jobs/{job_id}/video", {
    params: { path: { job_id: job.id } }, parseAs: "arrayBuffer",
  });
  if (!file.data) throw new Error("no file");
  writeFileSync(target, Buffer.from(file.data as unknown as ArrayBuffer));
  const missing = await client.GET("/v1/jobs/{job_id}", { params: { path: { job_id: "job_x" } } });
  if (missing.error?.code !== "job_not_found") throw new Error("no problem document");
}
void main();
"""


def document_of(live: Live, folder: Path) -> Path:
    path = folder / "openapi.json"
    path.write_bytes(httpx.get(f"{live.url}/openapi.json", timeout=60).content)
    return path


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd, capture_output=True, text=True, timeout=240, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def finish_when_told(live: Live, process: subprocess.Popen[str], tell: bool) -> None:
    """Let the job that a client has submitted succeed."""
    assert process.stdout is not None
    job_id = process.stdout.readline().strip()
    assert job_id.startswith("job_"), process.communicate()
    succeed(Api(live.app, None), job_id)  # type: ignore[arg-type]
    _, errors = process.communicate("\n" if tell else None, timeout=120)
    assert process.returncode == 0, errors


def inputs(folder: Path) -> tuple[Path, Path]:
    person, speech = folder / "person.png", folder / "speech.wav"
    person.write_bytes(image_bytes())
    speech.write_bytes(audio_bytes())
    return person, speech


@pytest.mark.skipif(not PYTHON.exists(), reason="openapi-python-client is not installed: make clients")
def test_the_client_that_openapi_python_client_makes_works(live: Live, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OVERRIDES))
    document_of(live, tmp_path)
    arguments = ("generate", "--path", "openapi.json", "--config", "config.json", "--output-path", "client")
    said = run(PYTHON.with_name("openapi-python-client"), *arguments, cwd=tmp_path)
    for route in ("/v1/generate", "/v1/jobs/{job_id} ", "/v1/jobs/{job_id}/video", "/v1/files"):
        assert f"{route} within" not in said, said
    program = [
        str(PYTHON),
        "-c",
        PYTHON_PROGRAM,
        live.url,
        *map(str, inputs(tmp_path)),
        str(tmp_path / "out.mp4"),
    ]
    process = subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "client")},
    )  # fmt: skip
    finish_when_told(live, process, tell=True)
    assert (tmp_path / "out.mp4").read_bytes() == VIDEO


@pytest.mark.skipif(not NODE_MODULES.exists(), reason="openapi-typescript is not installed: make clients")
def test_the_types_that_openapi_typescript_makes_work(live: Live, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    document_of(live, tmp_path)
    binaries = NODE_MODULES / ".bin"
    run(binaries / "openapi-typescript", "openapi.json", "-o", "api.ts", cwd=tmp_path)
    (tmp_path / "main.ts").write_text(TYPESCRIPT_PROGRAM)
    (tmp_path / "package.json").write_text('{"type": "commonjs"}')
    flags = ("--strict", "--target", "es2022", "--module", "node16", "--moduleResolution", "node16")
    run(binaries / "tsc", *flags, "--skipLibCheck", "--types", "node", "main.ts", cwd=tmp_path)
    program = ["node", "main.js", live.url, *map(str, inputs(tmp_path)), str(tmp_path / "out.mp4")]
    process = subprocess.Popen(
        program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    finish_when_told(live, process, tell=False)
    assert (tmp_path / "out.mp4").read_bytes() == VIDEO


def schemas_in(value: Any) -> list[dict[str, Any]]:
    """All objects inside a value."""
    if isinstance(value, list):
        return [found for each in value for found in schemas_in(each)]
    if isinstance(value, dict):
        return [value, *schemas_in(list(value.values()))]
    return []


def test_the_document_is_valid_and_says_what_is_really_answered(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    validate(document)
    assert "HTTPValidationError" not in json.dumps(document)
    names = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            names.append(operation["operationId"])
            assert operation["summary"], (method, path)
            error = operation["responses"]["default"]["content"]
            expected = "OpenAiError" if path.startswith("/v1/videos") else "ProblemDocument"
            (shape,) = [each["schema"]["$ref"] for each in error.values()]
            assert shape.endswith(f"/{expected}"), (method, path)
            for status, answer in operation["responses"].items():
                for media_type, content in answer.get("content", {}).items():
                    is_typed = content.get("schema") or media_type.startswith("text/")
                    assert is_typed, (method, path, status, media_type)
    assert len(set(names)) == len(names), "generated clients take these for their functions"
    assert all(name.isidentifier() for name in names)
    for path in ("/v1/jobs/job_x", "/v1/videos/job_x"):
        answer = api.client.get(path).json()
        assert answer.keys() == {"error"} if "videos" in path else {"code", "detail"} <= answer.keys()
