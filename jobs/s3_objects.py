"""Objects in an S3 bucket: the few requests that the store needs, and errors in the words of the store.

Only the oldest and commonest part of S3's interface is used, besides the conditional write: AWS, R2, MinIO
and Ceph have all of it. Where the bucket is and who we are comes from boto3's standard chain (AWS_*
variables, ~/.aws, the machine's role).
"""

from __future__ import annotations

import base64
import errno
import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from urllib3.exceptions import HTTPError as TransportError

from jobs.artifacts import LARGEST_READ, NoFileOfOurs

REQUEST_TIMEOUT_S: Final = 20.0
CONNECT_S: Final = 5.0
TRIES: Final = 4
"""Of one request, with pauses. Whoever cannot do without a write tries longer."""
POOLED_CONNECTIONS: Final = 64
PAGE_NAMES: Final = 1000
PART_BYTES: Final = 16 * 2**20
"""Larger files go in parts of this size: at most 10,000, so up to 156 GiB."""
_WRITER: Final = "writer"
_FULL: Final = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity", "TooManyBuckets"})
_BUSY: Final = frozenset({"SlowDown", "Throttling", "RequestTimeout", "RequestTimeTooSkewed"})
_BROKEN_OFF: Final = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, TransportError)
"""boto3 lets the last one through, when it reads the text of an error."""

Answer = TypeVar("Answer")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_missing(error: ClientError) -> bool:
    return _code(error) in ("NoSuchKey", "NoSuchUpload", "404")


def _number(error: ClientError | BotoCoreError | TransportError) -> int:
    """The errno that means the same; most belong to `STORAGE_AWAY`."""
    if isinstance(error, ClientError):
        code, status = _code(error), _status(error)
        if code in _FULL or status == HTTPStatus.INSUFFICIENT_STORAGE:
            return errno.ENOSPC
        if code == "NoSuchBucket":
            return errno.ENODEV
        if code in _BUSY or status >= 500:
            return errno.ENXIO
        # A key that was revoked, or a role that has expired: somebody will mend it, and no job is at fault.
        return errno.EROFS if status in (401, 403) or code == "ExpiredToken" else errno.EIO
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
        return errno.ETIMEDOUT
    if isinstance(error, NoCredentialsError | CredentialRetrievalError):
        return errno.EROFS
    away = (ConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError, TransportError)
    return errno.ENOTCONN if isinstance(error, away) else errno.EIO


def as_os_error(error: ClientError | BotoCoreError | TransportError, key: str) -> OSError:
    """The error as the users of a store know it."""
    if isinstance(error, ClientError):
        said = f"S3 answers {_status(error)} {_code(error)}: {error.response['Error'].get('Message', '')}"
    else:
        said = f"S3: {error}"
    return OSError(_number(error), said.rstrip(": "), key)


@contextmanager
def _understood(key: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError, TransportError) as error:
        raise as_os_error(error, key) from error


def _md5(data: bytes) -> str:
    """S3 refuses a body that does not have the hash that was sent with it."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


class NoConditionalWrites(Exception):
    """The store says that it cannot create an object only where there is none."""


class S3Objects:
    """The objects under a prefix of a bucket. Threads may share it. Whatever asks may raise OSError."""

    def __init__(self, bucket: str, prefix: str, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        config = Config(
            connect_timeout=min(CONNECT_S, timeout_s),
            read_timeout=timeout_s,
            retries={"mode": "standard", "total_max_attempts": TRIES},
            max_pool_connections=POOLED_CONNECTIONS,
            signature_version="s3v4",
            # The newer checksums are unknown to many stores that are otherwise fit.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._client = boto3.session.Session().client("s3", config=config)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._prefix + key}

    def _whole(self, key: str, get: Callable[[], Answer]) -> Answer:
        """Try again what broke off in the middle of a body; boto3 does so only before it."""
        for _ in range(TRIES - 1):
            with _understood(key):
                try:
                    return get()
                except _BROKEN_OFF:
                    continue
        with _understood(key):
            return get()

    def get(self, key: str) -> bytes | None:
        """The content, or None if there is no such object. Raises NoFileOfOurs if it is far too large."""

        def whole() -> bytes:
            answer = self._client.get_object(**self._at(key))
            with closing(answer["Body"]) as body:
                if answer["ContentLength"] > LARGEST_READ:
                    raise NoFileOfOurs(errno.EFBIG, f"larger than {LARGEST_READ} bytes", key)
                return bytes(body.read())

        return self._or_none(key, whole)

    def _or_none(self, key: str, get: Callable[[], Answer]) -> Answer | None:
        def found() -> Answer | None:
            try:
                return get()
            except ClientError as error:
                if _is_missing(error):
                    return None
                raise

        return self._whole(key, found)

    def exists(self, key: str) -> bool:
        """Asked with a GET: the answer to a HEAD cannot tell a missing object from a missing bucket."""

        def there() -> bool:
            self._client.get_object(**self._at(key))["Body"].close()
            return True

        return self._or_none(key, there) is not None

    def head(self, key: str) -> Mapping[str, Any] | None:
        """ETag, ContentLength, LastModified and Metadata of an object. None if there is none."""
        found = self._or_none(key, partial(self._client.head_object, **self._at(key)))
        if found is None:
            self.now()  # raises if the whole bucket is gone
            return None
        return dict(found)

    def now(self) -> float:
        """Unix time by the clock of S3, in whole seconds. Raises OSError if the bucket is not there."""
        try:
            headers = self._client.head_bucket(Bucket=self.bucket)["ResponseMetadata"]["HTTPHeaders"]
        except ClientError as error:
            if _status(error) == HTTPStatus.NOT_FOUND:
                raise OSError(errno.ENODEV, f"there is no bucket {self.bucket}", self.bucket) from error
            raise as_os_error(error, self.bucket) from error
        except (BotoCoreError, TransportError) as error:
            raise as_os_error(error, self.bucket) from error
        return parsedate_to_datetime(headers["date"]).timestamp()

    def download(self, key: str, target: Path) -> bool:
        """Write the content to the local file `target`. False if there is no such object."""

        def whole() -> bool:
            answer = self._client.get_object(**self._at(key))
            with closing(answer["Body"]) as body, target.open("wb") as file:
                for data in body.iter_chunks(2**20):
                    file.write(data)
            return True

        return self._or_none(key, whole) is not None

    def digest(self, key: str) -> tuple[str, int] | None:
        """SHA-256 and number of bytes of the content; None if there is no such object."""

        def whole() -> tuple[str, int]:
            digest, size = hashlib.sha256(), 0
            with closing(self._client.get_object(**self._at(key))["Body"]) as body:
                for data in body.iter_chunks(2**20):
                    digest.update(data)
                    size += len(data)
            return digest.hexdigest(), size

        return self._or_none(key, whole)

    def create(self, key: str, data: bytes) -> bool:
        """Create an object with a conditional write. False if there is one already.

        Raises NoConditionalWrites.
        """
        writer = secrets.token_hex(8)
        put = partial(
            self._client.put_object,
            **self._at(key),
            Body=data,
            ContentMD5=_md5(data),
            IfNoneMatch="*",
            Metadata={_WRITER: writer},
        )
        for _ in range(TRIES):
            try:
                put()
                return True
            except ClientError as error:
                if _status(error) == HTTPStatus.NOT_IMPLEMENTED:
                    raise NoConditionalWrites(_code(error)) from error
                if _status(error) == HTTPStatus.CONFLICT:  # it races with another one, and neither has won
                    continue
                if _status(error) != HTTPStatus.PRECONDITION_FAILED:
                    raise as_os_error(error, key) from error
                # Our first try may have reached S3, and only its answer got lost.
                found = self.head(key)
                return found is not None and found["Metadata"].get(_WRITER) == writer
            except (BotoCoreError, TransportError) as error:
                raise as_os_error(error, key) from error
        raise OSError(errno.ENXIO, "S3 answers 409 again and again", key)

    def put(self, key: str, data: bytes) -> str:
        """Create or replace an object. Returns its ETag."""
        with _understood(key):
            answer = self._client.put_object(**self._at(key), Body=data, ContentMD5=_md5(data))
        return str(answer["ETag"])

    def upload(self, source: Path, key: str) -> str:
        """Create or replace an object from a local file: it appears whole or not at all. Returns its ETag."""
        with source.open("rb") as file:
            data = file.read(PART_BYTES)
            if len(data) < PART_BYTES:
                return self.put(key, data)
            with _understood(key):
                upload = self._at(key) | {
                    "UploadId": self._client.create_multipart_upload(**self._at(key))["UploadId"]
                }
                try:
                    return self._upload_parts(iter(partial(file.read, PART_BYTES), b""), data, upload)
                except BaseException:
                    self._abort(upload)
                    raise

    def _upload_parts(self, rest: Iterator[bytes], data: bytes, upload: dict[str, str]) -> str:
        parts: list[dict[str, object]] = []
        while data:
            number = len(parts) + 1
            part = self._client.upload_part(**upload, PartNumber=number, Body=data, ContentMD5=_md5(data))
            parts.append({"ETag": part["ETag"], "PartNumber": number})
            data = next(rest, b"")
        done = self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        return str(done["ETag"])

    def _abort(self, upload: dict[str, str]) -> None:
        try:
            self._client.abort_multipart_upload(**upload)
        except (ClientError, BotoCoreError, TransportError):
            return  # abort_uploads does it later

    def abort_uploads(self, before: float) -> None:
        """Remove the parts of uploads that were begun before that Unix time and never ended."""
        with _understood(self._prefix):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._prefix):
                for upload in page.get("Uploads", []):
                    began: datetime = upload["Initiated"]
                    if began.timestamp() < before:
                        key = {"Bucket": self.bucket, "Key": upload["Key"]}
                        self._abort(key | {"UploadId": upload["UploadId"]})

    def copy(self, source: str, key: str) -> bool:
        """Copy an object within S3. False if there is no `source`."""
        copy = partial(self._client.copy_object, **self._at(key), CopySource=self._at(source))
        return self._or_none(key, copy) is not None

    def remove(self, key: str) -> None:
        """No error if there is no such object."""
        with _understood(key):
            self._client.delete_object(**self._at(key))

    def list_names(self, folder: str) -> list[str]:
        """Names directly under `folder` (the prefix itself, if it is empty), sorted."""
        names: set[str] = set()
        below = f"{folder}/" if folder else ""
        start = len(self._prefix) + len(below)
        for page in self._pages(below, Delimiter="/"):
            names |= {item["Key"][start:] for item in page.get("Contents", [])}
            names |= {item["Prefix"][start:-1] for item in page.get("CommonPrefixes", [])}
        return sorted(name for name in names if name)

    def list_keys(self, folder: str) -> Iterator[str]:
        """The keys of everything under `folder`, however deep, in order."""
        for page in self._pages(f"{folder}/"):
            yield from (item["Key"][len(self._prefix) :] for item in page.get("Contents", []))

    def _pages(self, prefix: str, **more: str) -> Iterator[Mapping[str, Any]]:
        with _understood(prefix):
            pages = self._client.get_paginator("list_objects_v2")
            page = {"PageSize": PAGE_NAMES}
            yield from pages.paginate(
                Bucket=self.bucket, Prefix=self._prefix + prefix, PaginationConfig=page, **more
            )

    def signed_url(self, key: str, seconds: int, **response: str) -> str:
        """A URL from which anybody may read the object for that long, with headers like `response`."""
        wanted = self._at(key) | response
        with _understood(key):
            return str(self._client.generate_presigned_url("get_object", wanted, ExpiresIn=seconds))
