"""The S3 server of the tests, and an empty bucket in it."""

from __future__ import annotations

import http.client

import boto3
import pytest

from chaos.s3_server import BUCKET, FAULTS, HANG_S, Fault, S3Server, s3_server

__all__ = ["BUCKET", "FAULTS", "HANG_S", "Fault", "S3Server", "empty_bucket", "s3_server"]


def empty_bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process find the server, which has nothing but one empty bucket."""
    server.fault_of, server.dropped_headers = (lambda method, path: None), frozenset()
    server.requests.clear()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/moto-api/reset")
    assert connection.getresponse().status == 200
    boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)
