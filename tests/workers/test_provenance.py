"""Content credentials in videos, read with c2pa's own reader."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from contract.job import JobState
from contract.settings import Settings
from contract.state import Job
from jobs.artifacts import FolderStore
from model.media import encode_clip, with_label
from tests.faults.stack import Stack, eventually
from workers.engines.fake import FakeSettings
from workers.provenance import JOB_ASSERTION, SOURCE_TYPE, Provenance, credentials_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    stack = Stack.create(folder, FakeSettings(seconds_per_step=0.0, media=True))
    stack.start_reaper()
    stack.start_worker()
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def done(stack: Stack) -> Job:
    """A finished job of two clips."""
    job_id = stack.submit("one", "two", consent="Anna signed on 1 May.", received={"audio": "ab" * 32})
    eventually(lambda: stack.job(job_id).state is JobState.SUCCEEDED, 60, "the video")
    return stack.job(job_id)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(c2pa.Reader(str(path)).json())
    return found


def active(found: dict[str, Any]) -> dict[str, Any]:
    manifest: dict[str, Any] = found["manifests"][found["active_manifest"]]
    return manifest


def assertion(found: dict[str, Any], label: str) -> dict[str, Any]:
    (data,) = [each["data"] for each in active(found)["assertions"] if each["label"] == label]
    return dict(data)


def files_of(stack: Stack, job: Job) -> dict[str, Path]:
    assert job.video is not None
    folder = stack.store.root / "jobs" / job.id
    clips = {f"clip {clip.clip}": folder / clip.video.name for clip in job.clips}
    return {"video": folder / job.video.name, **clips}


def test_the_video_and_each_clip_say_that_a_model_made_them_and_from_what(stack: Stack, done: Job) -> None:
    files = files_of(stack, done)
    assert files.keys() == {"video", "clip 0", "clip 1"}
    for what, path in files.items():
        found = read(path)
        assert found["validation_state"] == "Valid", found
        assert {problem["code"] for problem in found["validation_status"]} == {"signingCredential.untrusted"}
        (action,) = assertion(found, "c2pa.actions.v2")["actions"]
        assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", SOURCE_TYPE)
        told = assertion(found, JOB_ASSERTION)
        assert (told["job"], told["file"], told["model"]) == (done.id, what, "fake")
        assert told["consent"] == "Anna signed on 1 May."
        assert told["inputs"]["audio"] == {
            "sha256": done.submitted.inputs.audio.sha256, "received_sha256": "ab" * 32
        }  # fmt: skip
        assert told["params"]["prompts"] == ["one", "two"]
    with av.open(str(files["video"])) as container:
        assert sum(1 for _ in container.decode(video=0)) == done.submitted.params.num_frames
    assert done.content_sha256 is not None
    assert done.video is not None
    assert done.content_sha256 != done.video.sha256


def test_a_changed_file_no_longer_verifies(stack: Stack, done: Job, tmp_path: Path) -> None:
    data = bytearray(files_of(stack, done)["video"].read_bytes())
    data[data.rindex(b"mdat") + 40] ^= 1
    changed = tmp_path / "changed.mp4"
    changed.write_bytes(data)
    found = read(changed)
    assert found["validation_state"] == "Invalid"
    assert "assertion.bmffHash.mismatch" in {problem["code"] for problem in found["validation_status"]}


def test_the_key_is_made_once_and_nobody_else_can_read_it(stack: Stack, done: Job) -> None:
    path = stack.store.root / "provenance.secret"
    assert path.stat().st_mode & 0o077 == 0
    assert credentials_of(stack.store, stack.settings) == credentials_of(stack.store, stack.settings)


def test_nothing_is_signed_where_a_setting_says_so_or_what_is_no_video(
    stack: Stack, done: Job, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    encode_clip(np.zeros((5, 64, 64, 3), np.uint8), path)
    before = path.read_bytes()
    off = Provenance(stack.store, stack.settings.model_copy(update={"provenance": False}))
    assert off.sign(path, done, "video") is None
    assert path.read_bytes() == before
    other = tmp_path / "other"
    other.write_bytes(b"clip 0 abcdef")
    assert Provenance(stack.store, stack.settings).sign(other, done, "video") is None


def operators(folder: Path, expired: bool = False) -> dict[str, Path]:
    """An operator's key with a certificate, and the authority that vouches for it."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    until = now + datetime.timedelta(days=-1 if expired else 30)

    def certificate(subject: str, public: Any, is_authority: bool) -> x509.Certificate:
        def name(text: str) -> x509.Name:
            return x509.Name(
                [
                    x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Example Ltd"),
                    x509.NameAttribute(x509.NameOID.COMMON_NAME, text),
                ]
            )

        usage = x509.KeyUsage(True, False, False, False, False, is_authority, is_authority, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("Example CA"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=10))
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
        )
        if not is_authority:
            purpose = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, False)
        return builder.sign(authority, hashes.SHA256())

    pem = serialization.Encoding.PEM
    chain = certificate("Example signer", key.public_key(), False).public_bytes(pem)
    chain += certificate("Example CA", authority.public_key(), True).public_bytes(pem)
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "chain.pem").write_bytes(chain)
    return {"provenance_key": folder / "key.pem", "provenance_certificate": folder / "chain.pem"}


def test_an_operators_own_certificate_signs(stack: Stack, done: Job, tmp_path: Path) -> None:
    own = Provenance(stack.store, stack.settings.model_copy(update=operators(tmp_path)))
    own.check()
    path = tmp_path / "clip.mp4"
    encode_clip(np.zeros((5, 64, 64, 3), np.uint8), path)
    assert own.sign(path, done, "clip 0") is not None
    signature = active(read(path))["signature_info"]
    assert (signature["issuer"], signature["common_name"]) == ("Example Ltd", "Example signer")


def test_a_worker_reads_its_key_once_when_it_starts(tmp_path: Path) -> None:
    files = operators(tmp_path)
    stack = Stack.create(tmp_path / "stack", FakeSettings(seconds_per_step=0.0), **files)
    try:
        stack.start_reaper()
        stack.start_worker()
        eventually(lambda: any(worker.ready for worker in stack.queue.workers()), what="a ready worker")
        files["provenance_key"].unlink()
        job = stack.wait(stack.submit("one"))
        signature = active(read(files_of(stack, job)["video"]))["signature_info"]
    finally:
        stack.close()
    assert signature["common_name"] == "Example signer"


def test_a_key_that_cannot_sign_is_found_before_a_video_is_made(stack: Stack, tmp_path: Path) -> None:
    files = operators(tmp_path)
    files["provenance_key"].write_text("no key")
    with pytest.raises(ValueError, match=r"(?i)pem|key"):
        Provenance(stack.store, stack.settings.model_copy(update=files)).check()
    late = tmp_path / "late"
    late.mkdir()
    expired = stack.settings.model_copy(update=operators(late, expired=True))
    with pytest.raises(ValueError, match="not valid"):
        Provenance(stack.store, expired).check()
    with pytest.raises(ValueError, match="belong together"):
        Settings(provenance_key=tmp_path / "key.pem")


def test_a_label_is_drawn_for_viewers_and_leaves_the_rest_of_the_picture() -> None:
    frames = np.full((3, 640, 384, 3), 90, np.uint8)
    labelled = with_label(frames, "AI-generated")
    assert (frames == 90).all(), "the frames that the next clip continues from stay as they are"
    changed = (labelled != frames).any(axis=(0, 3))
    rows, columns = np.nonzero(changed)
    assert rows.min() > 560
    assert columns.min() < 4
    assert (labelled > 230).any(), "white letters"
    assert (labelled < 60).any(), "on a dark box"
    assert changed.mean() < 0.1
    assert with_label(frames, "") is frames
    long = with_label(frames, "x" * 60)
    assert long.shape == frames.shape


def test_a_store_of_its_own_makes_a_key_of_its_own(tmp_path: Path) -> None:
    keys = {credentials_of(FolderStore(tmp_path / name), Settings()).key for name in ("a", "b")}
    assert len(keys) == 2
