"""The async client. Written from sync.py by tools/async_client.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from cointeract_client import wire
from cointeract_client.admin_types import KeyUse, Owner, OwnerList, Queue, QueueList, Worker, WorkerList
from cointeract_client.download import Download
from cointeract_client.errors import ApiError, ConnectionFailed, JobFailed, WaitTimeout
from cointeract_client.events import Event, EventReader
from cointeract_client.types import (
    Delivery,
    DeliveryList,
    Job,
    JobLog,
    JobPage,
    JobStatus,
    KeptFile,
    KeptFileList,
    LogLine,
    Model,
    ModelList,
    SignedUrls,
    Validation,
)
from cointeract_client.wire import Call, FileInput, Retries

Progress = Callable[[Job], None]


class AsyncClient:
    """A client of one server.

    Args:
        url: where the server is, such as `http://localhost:8000`.
        api_key: `ck_…`, where the server asks for one.
        max_retries: how often a request is repeated when the server does not answer, is busy or overloaded.
        timeout_s: seconds without a byte after which a connection counts as lost.
        transport: another way to the server, for tests and proxies (see httpx).
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        api_key: str | None = None,
        *,
        max_retries: int = 5,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/")
        self._max_retries = max_retries
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=timeout_s,
            transport=transport,
            follow_redirects=True,  # files may lie elsewhere; the key stays here
            trust_env=not wire.is_this_machine(self.url),
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    # Jobs

    async def submit(
        self,
        *,
        person_image: FileInput,
        audio: FileInput | None = None,
        prompt: str | Sequence[str] | None = None,
        product_image: FileInput | None = None,
        pose_video: FileInput | None = None,
        idempotency_key: str | None = None,
        **settings: Any,
    ) -> Job:
        """Queue a job and return at once.

        `settings` are the other fields of `POST /v1/generate`: size, seed, num_inference_steps, preset,
        metadata, webhook_url, … `params` of another job apply to all fields that are not given. The request
        can be repeated safely, because it carries an Idempotency-Key.

        Raises ApiError, ConnectionFailed.
        """
        files: dict[str, FileInput | None] = {"person_image": person_image, "audio": audio}
        files |= {"product_image": product_image, "pose_video": pose_video}
        return await self._submit("/v1/generate", Job, files, {"prompt": prompt, **settings}, idempotency_key)

    async def generate(
        self,
        *,
        person_image: FileInput,
        audio: FileInput | None = None,
        prompt: str | Sequence[str] | None = None,
        on_progress: Progress | None = None,
        timeout_s: float | None = None,
        **settings: Any,
    ) -> Job:
        """`submit`, then `wait`. Canceling the task cancels the job.

        Raises ApiError, ConnectionFailed, JobFailed, WaitTimeout.
        """
        job = await self.submit(person_image=person_image, audio=audio, prompt=prompt, **settings)
        try:
            return await self.wait(job, on_progress=on_progress, timeout_s=timeout_s)
        except asyncio.CancelledError:
            await self.cancel(job)
            raise

    async def validate(
        self,
        *,
        person_image: FileInput,
        audio: FileInput | None = None,
        prompt: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> Validation:
        """Check what `submit` would check, and resolve settings. Raises ApiError, ConnectionFailed."""
        names = ("product_image", "pose_video")
        files = {name: settings.pop(name) for name in names if name in settings}
        files |= {"person_image": person_image, "audio": audio}
        return await self._submit("/v1/validate", Validation, files, {"prompt": prompt, **settings}, None)

    async def job(self, job: Job | str) -> Job:
        """The present state of a job. Raises ApiError, ConnectionFailed."""
        return Job.model_validate_json((await self._send(Call("GET", _path(job)))).content)

    async def jobs(
        self,
        *,
        status: JobStatus | Sequence[JobStatus] = (),
        model: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[Job]:
        """The jobs that match all given filters, newest first. Pages are fetched as needed.

        Raises ApiError, ConnectionFailed.
        """
        params: dict[str, str | list[str]] = {"limit": str(page_size)}
        params |= {"status": [status] if isinstance(status, str) else list(status)}
        params |= {"metadata": [f"{key}:{value}" for key, value in (metadata or {}).items()]}
        times = {"created_after": created_after, "created_before": created_before}
        params |= {name: at.astimezone().isoformat() for name, at in times.items() if at is not None}
        if model is not None:
            params["model"] = model
        while True:
            page = JobPage.model_validate_json(
                (await self._send(Call("GET", "/v1/jobs", params=params))).content
            )
            for job in page.data:
                yield job
            if not page.has_more or page.last_id is None:
                return
            params["after"] = page.last_id

    async def wait(
        self, job: Job | str, *, on_progress: Progress | None = None, timeout_s: float | None = None
    ) -> Job:
        """Wait until a job has succeeded, and return it. `on_progress` is called with each change before.

        Raises JobFailed, WaitTimeout, ApiError, ConnectionFailed.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        last = await self.job(job)
        async for event in self.events(last, until=until):
            if event.job is not None:
                last = event.job
                if on_progress is not None:
                    on_progress(last)
        last = await self.job(last)  # events carry the job as it was when each of them happened
        if not last.is_final:
            raise WaitTimeout(last, timeout_s or 0.0)
        if last.status != "succeeded":
            raise JobFailed(last)
        return last

    async def events(
        self, job: Job | str, *, after: str | None = None, until: float | None = None
    ) -> AsyncIterator[Event]:
        """A job's events until it is over. After a lost connection, the events go on without a gap.

        Args:
            after: the id of the last event that was seen; None: from the beginning.
            until: a time of `time.monotonic()` at which to stop.

        Raises ApiError, ConnectionFailed.
        """
        reader, retries = EventReader(after), Retries(self._max_retries)
        while until is None or time.monotonic() < until:
            headers = {"Accept": "text/event-stream"}
            if reader.last_id is not None:
                headers["Last-Event-ID"] = reader.last_id
            failure: httpx.Response | httpx.TransportError
            try:
                async with self._http.stream("GET", f"{_path(job)}/events", headers=headers) as response:
                    if response.is_error:
                        await response.aread()
                        failure = response
                    elif response.status_code == 204:
                        return
                    else:
                        async for line in response.aiter_lines():
                            event = reader.line(line)
                            if event is not None:
                                retries = Retries(self._max_retries)
                                yield event
                            if until is not None and time.monotonic() >= until:
                                return
                        if (await self.job(job)).is_final:
                            return
                        continue  # the server has stopped, or a proxy between has had enough
            except httpx.TransportError as error:
                failure = error
            await self._pause(retries, failure)

    async def manifest(self, job: Job | str) -> dict[str, Any]:
        """How the video was made: settings, seeds, hashes, versions. Raises ApiError, ConnectionFailed."""
        found: dict[str, Any] = (await self._send(Call("GET", f"{_path(job)}/manifest"))).json()
        return found

    async def log(self, job: Job | str) -> list[LogLine]:
        """A job's history, with its workers' messages. Raises ApiError, ConnectionFailed."""
        return JobLog.model_validate_json((await self._send(Call("GET", f"{_path(job)}/log"))).content).data

    async def cancel(self, job: Job | str) -> Job:
        """Stop a job for good. Finished clips stay. Raises ApiError (409 if it is over), ConnectionFailed."""
        return Job.model_validate_json((await self._send(Call("POST", f"{_path(job)}/cancel"))).content)

    async def change(
        self, job: Job | str, *, metadata: Mapping[str, str | None] | None = None, priority: str | None = None
    ) -> Job:
        """Set metadata (None removes a key), or move a waiting job in the queue.

        Raises ApiError, ConnectionFailed.
        """
        body = {"metadata": dict(metadata) if metadata else None, "priority": priority}
        return Job.model_validate_json((await self._send(Call("PATCH", _path(job), json=body))).content)

    async def retry(self, job: Job | str) -> Job:
        """Make a new job that goes on after the finished clips of a failed or canceled one.

        Raises ApiError, ConnectionFailed.
        """
        return await self._submit(f"{_path(job)}/retry", Job, {}, {}, None)

    async def redo(
        self,
        job: Job | str,
        clip: int,
        *,
        prompt: str | Sequence[str] | None = None,
        seed: int | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Make a new job that renders this clip and all later ones again. Clips count from 0.

        Raises ApiError, ConnectionFailed.
        """
        path = f"{_path(job)}/clips/{clip}/redo"
        return await self._submit(path, Job, {}, {"prompt": prompt, "seed": seed}, idempotency_key)

    async def extend(
        self,
        job: Job | str,
        *,
        audio: FileInput,
        prompt: str | Sequence[str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Make a new job that adds speech to a finished one. Raises ApiError, ConnectionFailed."""
        path = f"{_path(job)}/extend"
        return await self._submit(path, Job, {"audio": audio}, {"prompt": prompt}, idempotency_key)

    async def delete(self, job: Job | str) -> None:
        """Remove a job and its files; cancel it first if need be. Raises ApiError, ConnectionFailed."""
        await self._send(Call("DELETE", _path(job)))

    async def signed_urls(self, job: Job | str, expires_in_s: int = 900) -> SignedUrls:
        """Links to the job's files and events that need no key. Raises ApiError, ConnectionFailed."""
        call = Call("POST", f"{_path(job)}/signed-urls", json={"expires_in": expires_in_s})
        return SignedUrls.model_validate_json((await self._send(call)).content)

    # Kept files

    async def keep(self, file: FileInput, *, kind: str | None = None) -> KeptFile:
        """Send a file once. Any number of submits can then use its `id`.

        Args:
            kind: image, audio or video. By default the file's type decides.

        Raises ApiError, ConnectionFailed.
        """
        call = Call("POST", "/v1/files", form={"kind": [kind]} if kind else None, files={"file": file})
        return KeptFile.model_validate_json((await self._send(call)).content)

    async def kept_files(self) -> list[KeptFile]:
        """All kept files. Raises ApiError, ConnectionFailed."""
        return KeptFileList.model_validate_json((await self._send(Call("GET", "/v1/files"))).content).data

    async def forget(self, file: KeptFile | str) -> None:
        """Delete a kept file. Jobs that used it have copies. Raises ApiError, ConnectionFailed."""
        await self._send(Call("DELETE", f"/v1/files/{file if isinstance(file, str) else file.id}"))

    # Webhooks

    async def deliveries(self, job: Job | str) -> list[Delivery]:
        """The messages to a job's webhook, with every try. Raises ApiError, ConnectionFailed."""
        call = Call("GET", f"{_path(job)}/deliveries")
        return DeliveryList.model_validate_json((await self._send(call)).content).data

    async def redeliver(self, job: Job | str, sequence: int) -> Delivery:
        """Send the message with the given number again. Raises ApiError, ConnectionFailed."""
        call = Call("POST", f"{_path(job)}/deliveries/{sequence}/redeliver")
        return Delivery.model_validate_json((await self._send(call)).content)

    async def webhook_secret(self, *, renew: bool = False) -> str:
        """The key's own webhook secret (404 if it has none). `renew` makes or replaces it.

        Raises ApiError, ConnectionFailed.
        """
        secret: str = (await self._send(Call("POST" if renew else "GET", "/v1/webhooks/secret"))).json()[
            "secret"
        ]
        return secret

    # Files

    async def download(self, job: Job | str, target: str | PathLike[str]) -> Path:
        """Save the finished video as `target`, which appears only once it is complete.

        Raises ApiError, ConnectionFailed, DownloadDamaged, OSError.
        """
        return await self._download(f"{_path(job)}/video", Path(target))

    async def download_clip(self, job: Job | str, clip: int, target: str | PathLike[str]) -> Path:
        """Save one finished clip, without sound. Clips count from 0. Raises the errors of `download`."""
        return await self._download(f"{_path(job)}/clips/{clip}", Path(target))

    async def _download(self, path: str, target: Path) -> Path:
        download, retries = Download(target), Retries(self._max_retries)
        while True:
            failure: httpx.Response | httpx.TransportError
            try:
                async with self._http.stream("GET", path, headers=download.headers()) as response:
                    if response.is_error:
                        await response.aread()
                        failure = response
                    else:
                        with download.begin(response.status_code, response.headers) as file:
                            file.seek(download.received)
                            async for block in response.aiter_bytes():
                                download.received += file.write(block)
                        return download.finish()
            except httpx.TransportError as error:
                failure = error
            await self._pause(retries, failure)

    # Server

    async def models(self) -> list[Model]:
        """The checkpoints that the server renders with. Raises ApiError, ConnectionFailed."""
        return ModelList.model_validate_json((await self._send(Call("GET", "/v1/models"))).content).data

    async def usage(self) -> KeyUse:
        """The key's use. Raises ApiError, ConnectionFailed."""
        return KeyUse.model_validate_json((await self._send(Call("GET", "/v1/usage"))).content)

    # For admins

    async def workers(self) -> WorkerList:
        """All live workers. Raises ApiError (403 without an admin's key), ConnectionFailed."""
        return WorkerList.model_validate_json((await self._send(Call("GET", "/v1/admin/workers"))).content)

    async def queue(self) -> list[Queue]:
        """The waiting jobs of each checkpoint. Raises ApiError, ConnectionFailed."""
        return QueueList.model_validate_json((await self._send(Call("GET", "/v1/admin/queue"))).content).data

    async def owners(self) -> list[Owner]:
        """All keys with their use. Raises ApiError, ConnectionFailed."""
        return OwnerList.model_validate_json((await self._send(Call("GET", "/v1/admin/owners"))).content).data

    async def drain(self, worker: str) -> Worker:
        """Let a worker finish its job and take no other. Raises ApiError, ConnectionFailed."""
        call = Call("POST", f"/v1/admin/workers/{worker}/drain")
        return Worker.model_validate_json((await self._send(call)).content)

    async def resume(self, worker: str) -> Worker:
        """Let a drained worker take jobs again. Raises ApiError, ConnectionFailed."""
        call = Call("POST", f"/v1/admin/workers/{worker}/resume")
        return Worker.model_validate_json((await self._send(call)).content)

    # Requests

    async def _submit(
        self,
        path: str,
        answer: type[wire.Answer],
        files: Mapping[str, FileInput | None],
        settings: Mapping[str, Any],
        idempotency_key: str | None,
    ) -> wire.Answer:
        call = wire.submit_call(path, files, settings, idempotency_key)
        return answer.model_validate_json((await self._send(call)).content)

    async def _send(self, call: Call) -> httpx.Response:
        retries = Retries(self._max_retries)
        while True:
            failure: httpx.Response | httpx.TransportError
            try:
                with ExitStack() as opened:
                    response = await self._http.send(call.build(self._http, opened))
                if response.is_success:
                    return response
                failure = response
            except httpx.TransportError as error:
                failure = error
            await self._pause(retries, failure)

    async def _pause(self, retries: Retries, failure: httpx.Response | httpx.TransportError) -> None:
        """Pause before the next try. Raises ApiError or ConnectionFailed if there is none."""
        pause = retries.pause_after(failure)
        if pause is None:
            raise self._error(failure)
        await asyncio.sleep(pause)

    def _error(self, failure: httpx.Response | httpx.TransportError) -> ApiError | ConnectionFailed:
        if isinstance(failure, httpx.Response):
            return wire.error_of(failure)
        return wire.unreachable(self.url, failure)


def _path(job: Job | str) -> str:
    return f"/v1/jobs/{job if isinstance(job, str) else job.id}"
