"""A whole service for the client: API on a socket, reaper and worker as processes, a fast engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from contract.card import MANIFEST
from jobs.cards import publish_card
from model.checkpoints.writer import sha256_of
from server.app import create_app
from tests.client.breaking_proxy import BreakingProxy
from tests.faults.stack import Stack
from tests.server.conftest import Live, serving
from tests.server.inputs import audio_bytes, image_bytes
from workers.engines.fake import FakeSettings, write_fake_checkpoint


@dataclass
class Service:
    """A running service and files to send to it."""

    live: Live
    stack: Stack
    person: Path
    speech: Path

    @property
    def url(self) -> str:
        return self.live.url


@contextmanager
def running_service(folder: Path, seconds_per_step: float = 0.05, **settings: object) -> Iterator[Service]:
    """A service of its own in `folder`."""
    fake = FakeSettings(seconds_per_step=seconds_per_step, media=True)
    stack = Stack.create(folder, fake, **{"min_free_bytes": 0, **settings})
    publish_card(stack.store, write_fake_checkpoint(stack.checkpoint_folder, "fake", FakeSettings()))
    sums = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(stack.checkpoint_folder.iterdir())]
    (stack.checkpoint_folder / MANIFEST).write_text("".join(sums))
    stack.start_reaper()
    stack.start_worker()
    person, speech = folder / "person.png", folder / "speech.wav"
    person.write_bytes(image_bytes())
    speech.write_bytes(audio_bytes(seconds=4.0))
    changed = stack.settings.model_copy(update={"redis_url": stack.redis.url})
    try:
        with serving(create_app(changed)) as live:
            yield Service(live, stack, person, speech)
    finally:
        stack.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def proxy(service: Service) -> Iterator[BreakingProxy]:
    with BreakingProxy(service.live.port) as running:
        yield running
