"""A bucket in an S3 server of our own, in a process of its own, which fails when it is told to."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Final

import boto3

from chaos.s3_server import BUCKET, Fault, S3Server, s3_server
from chaos.storage import RemoteStorage

HARMS: Final[tuple[Fault, ...]] = (
    "500",
    "503",
    "reset",
    "torn upload",
    "lost answer",
    "late 500",
    "cut answer",
)
HARMED: Final = 0.3
"""Share of the requests that are harmed while the server fails."""


def _serve(parent: Connection, fails_until: Synchronized[float], seed: int) -> None:
    """Runs in a process of its own until the parent is gone."""
    chosen = random.Random(seed)
    with s3_server() as server:
        os.environ.update(server.environment)
        boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)

        def fault_of(method: str, path: str) -> Fault | None:
            if time.monotonic() > fails_until.value or chosen.random() > HARMED:
                return None
            return chosen.choice(HARMS)

        server.fault_of = fault_of
        parent.send(server.port)
        try:
            parent.recv()
        except EOFError:
            return


@contextmanager
def storage_of_our_own(seed: int) -> Iterator[RemoteStorage]:
    """A fresh bucket in a server that ends with the block. This process finds it, too."""
    context = multiprocessing.get_context("spawn")
    fails_until = context.Value("d", 0.0)
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, fails_until, seed), daemon=True)
    process.start()
    its.close()
    try:
        environment = S3Server(ours.recv()).environment
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)

        def fail(seconds: float) -> None:
            fails_until.value = time.monotonic() + seconds

        try:
            yield RemoteStorage(f"s3://{BUCKET}/chaos", environment, fail)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
    finally:
        ours.close()
        process.join(10)
        process.kill()
