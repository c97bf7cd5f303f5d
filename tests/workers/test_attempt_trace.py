"""The spans of an attempt, kept in memory."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from contract.job import Stage
from jobs.open_telemetry import OpenTelemetry
from tests.faults.stack import Stack
from workers.attempt_trace import AttemptTrace
from workers.engines.fake import FakeSettings


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def test_each_stage_lies_in_its_clip_however_often_it_is_told(
    tmp_path_factory: pytest.TempPathFactory, exporter: InMemorySpanExporter
) -> None:
    stack = Stack.create(tmp_path_factory.mktemp("stack"), FakeSettings())
    try:
        job = stack.job(stack.submit())
    finally:
        stack.close()
    traces = OpenTelemetry(SimpleSpanProcessor(exporter), "test", {"device": "cpu"})
    trace = AttemptTrace(traces, job.model_copy(update={"attempt": 1}), "w")
    for stage, clip in (
        (Stage.LOADING, 0), (Stage.ENCODING, 0), (Stage.ENCODING, 0), (Stage.DENOISING, 0),
        (Stage.DENOISING, 0), (Stage.DECODING, 0), (Stage.DENOISING, 1), (Stage.DECODING, 1),
        (Stage.MUXING, 2),
    ):  # fmt: skip
        trace.stage(stage, clip)
    stored = trace.storing(0)
    stored.end()
    trace.end("failed", "the disk is gone")
    spans = exporter.get_finished_spans()
    names = [span.name for span in spans]
    assert names == [
        "wait", "loading", "encoding", "denoising", "decoding", "clip", "denoising", "decoding", "clip",
        "store", "muxing", "attempt",
    ]  # fmt: skip
    clips = [span for span in spans if span.name == "clip"]
    parents = {span.name: [] for span in spans}
    for span in spans:
        assert span.parent is None or span.context is not None
        parents[span.name].append(span.parent and span.parent.span_id)
    ids = [clip.context.span_id for clip in clips if clip.context]
    assert parents["denoising"] == parents["decoding"] == ids
    assert parents["store"] == [ids[0]]
    attempt = spans[-1]
    assert attempt.status.description == "the disk is gone"
    assert parents["clip"] == [attempt.context.span_id] * 2 if attempt.context else False
    assert attempt.resource.attributes["cointeract.device"] == "cpu"


@pytest.mark.parametrize(
    "parent", ["", "x", "00-zz-1-01", "00-" + 32 * "0" + "-b7ad6b7169203331-01", "é" * 9]
)
def test_a_parent_that_makes_no_sense_begins_a_new_trace(parent: str, exporter: InMemorySpanExporter) -> None:
    traces = OpenTelemetry(SimpleSpanProcessor(exporter), "test", {})
    with traces.around("POST", parent) as span:
        assert traces.current() == span.context
        traces.start("below", traces.current()).end()
    below, post = exporter.get_finished_spans()
    assert post.parent is None
    assert below.parent is not None
    assert post.context is not None
    assert below.parent.span_id == post.context.span_id
    assert traces.current() is None
