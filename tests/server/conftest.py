"""A server under test, with a real Redis and a real sandbox: behind a test client, or behind a socket."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import uvicorn
from fastapi import FastAPI
from redis import Redis
from starlette.testclient import TestClient

from contract.card import CheckpointCard, CheckpointDefaults
from contract.settings import Settings
from jobs.artifacts import FolderStore
from jobs.cards import publish_card
from jobs.redis_server import RedisServer
from server.app import create_app, uvicorn_config
from server.services import Services

BASE_URL = "http://127.0.0.1"
CARD = CheckpointCard(
    name="tiny",
    trained=False,
    sizes=("112x192", "192x112"),
    min_side=64,
    max_pixels=512 * 512,
    defaults=CheckpointDefaults(
        num_inference_steps=4, guidance_scale=7.0, flow_shift=7.0, negative_prompt="blurry"
    ),
    note="It draws toys.",
)


@dataclass
class Api:
    """An application, a client for it, and its insides."""

    app: FastAPI
    client: TestClient

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    @property
    def store(self) -> FolderStore:
        assert isinstance(self.services.store, FolderStore)
        return self.services.store

    def leftovers(self) -> list[str]:
        """Every submit that lies in the scratch folder, and every job that is stored."""
        scratch = [name for name in self.store.list_names("scratch") if not name.startswith("write-")]
        return scratch + self.store.list_names("jobs")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


def make_settings(folder: Path, redis: str, **changes: object) -> Settings:
    """Settings for a server of its own in `folder`. No watermark: test machines may be nearly full."""
    values: dict[str, object] = {"data_dir": folder, "redis_url": redis, "min_free_bytes": 0}
    return Settings.model_validate({**values, **changes})


ApiFactory = Callable[..., Api]


@contextmanager
def running(settings: Settings) -> Iterator[Api]:
    """An application with one checkpoint known, started."""
    publish_card(FolderStore(settings.storage_dir), CARD)
    app = create_app(settings)
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:
        yield Api(app, client)


@pytest.fixture
def make_api(tmp_path: Path, redis_url: str) -> Iterator[ApiFactory]:
    """Starts applications with changed settings, on an emptied Redis."""
    Redis.from_url(redis_url).flushall()
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(running(make_settings(tmp_path, redis_url, **changes)))


@pytest.fixture(scope="session")
def shared_api(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Api]:
    with running(make_settings(tmp_path_factory.mktemp("shared"), redis_url)) as api:
        yield api


STORED: Final = (
    *("jobs", "files", "keys", "idempotency", "usage", "webhooks", "farewells"),
    *("webhook-secrets", "scratch", "checkpoints"),
)
"""Folders of a store."""


def empty(services: Services, redis_url: str) -> None:
    """Remove everything that is stored, but for one checkpoint."""
    Redis.from_url(redis_url).flushall()
    assert isinstance(services.store, FolderStore)
    for folder in STORED:
        for name in services.store.list_names(folder):
            path = services.store.root / folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    publish_card(services.store, CARD)
    services.index.refresh()


@pytest.fixture
def api(shared_api: Api, redis_url: str) -> Api:
    """An application with default settings and nothing stored. Shared: starting one takes a second."""
    empty(shared_api.services, redis_url)
    shared_api.client.headers.pop("Authorization", None)
    return shared_api


@dataclass
class Live:
    """An application behind a real socket."""

    app: FastAPI
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services


@contextmanager
def serving(app: FastAPI) -> Iterator[Live]:
    """Run an application under uvicorn on a free port."""
    server = uvicorn.Server(uvicorn_config(app, "127.0.0.1", 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), 60)
        yield Live(app, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def live(tmp_path: Path, redis_url: str) -> Iterator[Live]:
    Redis.from_url(redis_url).flushall()
    settings = make_settings(tmp_path, redis_url, upload_timeout_s=4.0)
    publish_card(FolderStore(settings.storage_dir), CARD)
    with serving(create_app(settings)) as running:
        yield running


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Poll until `condition` holds; fails the test if it does not in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.02)
