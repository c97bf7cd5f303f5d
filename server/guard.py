"""The outermost layer: refuses requests of foreign sites, adds security headers, measures answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract.network import network_of
from jobs.traces import NO_SPAN, Span
from server.errors import ApiError, printable
from server.loop_shares import CHUNK, REQUEST
from server.origins import host_name, is_known_host, is_known_origin, with_cors
from server.services import Services

SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),  # files say otherwise: a page elsewhere may show them
)
CONTENT_SECURITY_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    b"media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Those that metrics tell apart: a client may make up any number of others."""

PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})

Use = Callable[[float], Awaitable[float]]
"""Counts work of some weight for a request, before it is done. Returns how many seconds it had to wait."""


def in_time(receive: Receive, seconds: float, use: Use) -> Receive:
    """`receive` for a request whose body must be complete within so many seconds.

    Raises ApiError when it is not. What comes after the body, the end of the connection, may take for ever.
    Each chunk of the body counts. The time that it has to wait is not the client's fault, who gets as much
    more, but no more than twice the time in all.
    """
    until = time.monotonic() + seconds
    latest = until + seconds
    complete = False

    async def bounded() -> Message:
        nonlocal complete, until
        if complete:
            return await receive()
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                message = await receive()
        except TimeoutError as error:
            detail = f"The request was not complete after {seconds:g} seconds."
            raise ApiError("upload_timeout", detail, limit=seconds, close=True) from error
        complete = not message.get("more_body", False)
        if message.get("body"):
            until = min(until + await use(CHUNK), latest)
        return message

    return bounded


class Guard:
    """Plain ASGI middleware: a layer built on Response objects would gather a stream before passing it on."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = with_cors(app, services.settings), services

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        # Of several, a proxy before us may have read another one: together they are no name.
        host = b",".join(value for name, value in scope["headers"] if name == b"host").decode("latin-1")
        settings = self._services.settings
        if not is_known_host(host, settings):
            detail = (
                f"This server is not known as {printable(host_name(host), 100)!r}: name it in "
                "COINTERACT_ALLOWED_HOSTS, or in COINTERACT_PUBLIC_URL."
            )
            return ApiError("misdirected_host", detail, field="Host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        reads_only = scope["method"] in ("GET", "HEAD", "OPTIONS")
        if origin and not reads_only and not is_known_origin(origin, host, settings):
            detail = "Requests from other web sites are not accepted (COINTERACT_ALLOWED_ORIGINS)."
            return ApiError("cross_origin", detail)
        return None

    def _use(self, scope: Scope) -> Use:
        """How the work for this request is counted.

        That for a probe is not: nobody keeps it waiting, and it is no company to a tenant who is alone.
        """
        shares, waits = self._services.loop_shares, self._services.metrics.loop_waits
        credentials = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        token = credentials.decode("latin-1").partition(" ")[2]
        tenant = shares.tenant(token, network_of(scope["client"][0]) if scope["client"] else "")
        is_probe = scope["path"] in PROBES

        async def use(weight: float) -> float:
            waited = 0.0 if is_probe else await shares.use(tenant, weight)
            if waited:
                waits.inc()
            return waited

        return use

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] != "POST":  # only a submit begins a trace
            await self._serve(scope, receive, send, NO_SPAN)
            return
        parent = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")
        with self._services.traces.around("POST", parent or None) as span:
            span.note(method="POST")
            await self._serve(scope, receive, send, span)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, span: Span) -> None:
        started, metrics, use = time.perf_counter(), self._services.metrics, self._use(scope)
        await use(REQUEST)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                present = {name.lower() for name, _ in headers}
                headers.extend(pair for pair in SECURITY_HEADERS if pair[0] not in present)
                if b"content-security-policy" not in present:
                    headers.append((b"content-security-policy", CONTENT_SECURITY_POLICY))
                if b"cache-control" not in present:
                    headers.append((b"cache-control", b"no-store"))
                route = getattr(scope.get("route"), "path", "unknown")
                method = scope["method"] if scope["method"] in METHODS else "other"
                span.rename(f"{method} {route}")
                span.note(route=route, status=message["status"])
                metrics.requests.labels(route, method, str(message["status"])).inc()
                metrics.seconds.labels(route, method).observe(time.perf_counter() - started)
            elif message.get("body"):
                await use(CHUNK)
            await send(message)

        refusal = self._refusal(scope)
        receive = in_time(receive, self._services.settings.upload_timeout_s, use)
        if refusal is not None:
            metrics.refused.labels(refusal.code).inc()
            await refusal.response()(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)
