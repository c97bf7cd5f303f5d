"""`jobs.traces` by OpenTelemetry's SDK, whose own variables say where spans go (OTEL_EXPORTER_…)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from contract.version import installed_version
from jobs.traces import Span, Traces, Value

NAMESPACE = "cointeract."
OTHERS = {"model": "gen_ai.request.model", "method": "http.request.method", "route": "http.route"} | {
    "status": "http.response.status_code"
}
"""Attributes that have names in OpenTelemetry's conventions."""
SEND_PATIENCE_MS = 2000
"""How long the end of a process waits for a collector."""
_W3C = TraceContextTextMapPropagator()
_KEY = "traceparent"


def _context_of(parent: str | None) -> Context:
    return Context() if parent is None else _W3C.extract({_KEY: parent}, Context())


def _traceparent(span: trace.Span) -> str | None:
    """None without a context, as where OTEL_SDK_DISABLED is set."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get(_KEY)


def _attributes(facts: Mapping[str, Value]) -> dict[str, Value]:
    return {OTHERS.get(name, NAMESPACE + name): value for name, value in facts.items()}


@dataclass(frozen=True)
class OpenSpan:
    """A `Span` that is something."""

    span: trace.Span

    @property
    def context(self) -> str | None:
        return _traceparent(self.span)

    def note(self, **attributes: Value) -> None:
        self.span.set_attributes(_attributes(attributes))

    def rename(self, name: str) -> None:
        self.span.update_name(name)

    def end(self, error: str | None = None) -> None:
        if error is not None:
            self.span.set_status(Status(StatusCode.ERROR, error))
        self.span.end()


class OpenTelemetry(Traces):
    """Spans that a processor gets. Not registered globally: no library's own spans come along."""

    def __init__(self, processor: SpanProcessor, service: str, facts: Mapping[str, Value]) -> None:
        version = installed_version()
        about = {
            SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", service),
            "service.version": version,
            "process.pid": os.getpid(),
            **_attributes(facts),
        }
        resource = Resource.create(about)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("cointeract", version)

    @staticmethod
    def exporting(service: str, facts: Mapping[str, Value]) -> OpenTelemetry:
        """Send spans by OTLP over HTTP."""
        return OpenTelemetry(BatchSpanProcessor(OTLPSpanExporter()), service, facts)

    def start(self, name: str, parent: str | None = None, began_s: float | None = None) -> Span:
        began = None if began_s is None else int(began_s * 1e9)
        return OpenSpan(self._tracer.start_span(name, _context_of(parent), start_time=began))

    @contextmanager
    def around(self, name: str, parent: str | None = None) -> Iterator[Span]:
        context = None if parent is None else _context_of(parent)
        with self._tracer.start_as_current_span(name, context) as span:
            yield OpenSpan(span)

    def current(self) -> str | None:
        return _traceparent(trace.get_current_span())

    def close(self) -> None:
        self._provider.force_flush(SEND_PATIENCE_MS)
