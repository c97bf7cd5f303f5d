"""A whole service for the client: API on a socket, reaper and worker as processes, a fast engine."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    stack = Stack.create(folder, FakeSettings(seconds_per_step=0.05, media=True), min_free_bytes=0)
    publish_card(stack.store, write_fake_checkpoint(stack.checkpoint_folder, "fake", FakeSettings()))
    sums = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(stack.checkpoint_folder.iterdir())]
    (stack.checkpoint_folder / MANIFEST).write_text("".join(sums))
    stack.start_reaper()
    stack.start_worker()
    person, speech = folder / "person.png", folder / "speech.wav"
    person.write_bytes(image_bytes())
    speech.write_bytes(audio_bytes(seconds=4.0))
    settings = stack.settings.model_copy(update={"redis_url": stack.redis.url})
    with serving(create_app(settings)) as live:
        yield Service(live, stack, person, speech)
    stack.close()


@pytest.fixture
def proxy(service: Service) -> Iterator[BreakingProxy]:
    with BreakingProxy(service.live.port) as running:
        yield running
