"""The Grafana dashboards, written down once: `python -m tools.dashboards` writes their JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[1] / "deploy" / "prometheus" / "dashboards"
PER_ROW: Final = 3
HEIGHT: Final = 8
GRID: Final = 24
RATE: Final = "$__rate_interval"
"""Grafana's own variable: a window that suits the scrape interval."""


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A diagram over time. `unit` is Grafana's name of it."""

    title: str
    unit: str
    queries: tuple[Query, ...]


def _quantiles(metric: str, by: str = "") -> tuple[Query, ...]:
    """Half and 95 of 100 of a histogram, for each value of the label `by`."""
    labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    rates = f"sum by ({labels}) (rate({metric}_bucket[{RATE}]))"
    return tuple(
        Query(f"histogram_quantile({share}, {rates})", f"{name}{legend}")
        for share, name in ((0.5, "half"), (0.95, "95 %"))
    )


def _rate(metric: str, *by: str) -> Query:
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return Query(f"sum by ({', '.join(by)}) (rate({metric}[{RATE}]))", legend)


SERVICE: Final = (
    Panel("Jobs that wait or are rendered", "short", (
        Query("sum by (state) (max by (checkpoint, state) (cointeract_unfinished_jobs))", "{{state}}"),
    )),
    Panel("Work left, for one worker", "s", (
        Query(
            "sum by (checkpoint) (max by (checkpoint, state) (cointeract_remaining_gpu_seconds))",
            "{{checkpoint}}",
        ),
    )),
    Panel("Workers", "short", (
        Query("max(cointeract_workers)", "live"),
        Query("max(cointeract_failing_workers)", "cannot work"),
    )),
    Panel("Wait from submit to start", "s", _quantiles("cointeract_queue_wait_seconds")),
    Panel("Attempts by how they ended", "ops", (_rate("cointeract_attempts_total", "outcome"),)),
    Panel("Stored jobs", "short", (Query("max by (state) (cointeract_jobs)", "{{state}}"),)),
    Panel("Requests by status", "reqps", (_rate("cointeract_http_requests_total", "status"),)),
    Panel("Seconds until an answer starts", "s", _quantiles("cointeract_http_request_seconds")),
    Panel("Refusals by code", "reqps", (_rate("cointeract_refused_requests_total", "code"),)),
    Panel("Event loop held up", "s", _quantiles("cointeract_loop_lag_seconds")),
    Panel("Webhooks", "ops", (_rate("cointeract_webhook_deliveries_total", "outcome"),)),
    Panel("Free space", "bytes", (Query("min by (instance) (cointeract_free_bytes >= 0)", "{{instance}}"),)),
)  # fmt: skip

RENDERING: Final = (
    Panel("Seconds per clip", "s", _quantiles("cointeract_clip_seconds")),
    Panel("Seconds per step", "s", _quantiles("cointeract_step_seconds")),
    Panel("Seconds in each stage", "s", (
        Query(
            f"sum by (stage) (rate(cointeract_stage_seconds_sum[{RATE}]))"
            f" / sum by (stage) (rate(cointeract_stage_seconds_count[{RATE}]))",
            "{{stage}}",
        ),
    )),
    Panel("Time taken / time expected", "none", _quantiles("cointeract_estimate_ratio")),
    Panel("Share of time that workers render", "percentunit", (
        Query(f"sum by (instance) (rate(cointeract_stage_seconds_sum[{RATE}]))", "{{instance}}"),
    )),
    Panel("GPU in use", "percentunit", (
        Query("max by (instance, gpu) (cointeract_gpu_utilisation_ratio)", "{{instance}} {{gpu}}"),
    )),
    Panel("GPU memory in use", "percentunit", (
        Query(
            "max by (instance, gpu) (cointeract_gpu_memory_used_bytes)"
            " / max by (instance, gpu) (cointeract_gpu_memory_total_bytes)",
            "{{instance}} {{gpu}}",
        ),
    )),
    Panel("Falls to slower memory modes in an hour", "short", (
        Query(
            "sum by (instance, mode) (increase(cointeract_memory_falls_total[1h]))", "{{instance}} {{mode}}"
        ),
    )),
    Panel("Deaths of rendering processes in an hour", "short", (
        Query("sum by (instance) (increase(cointeract_child_deaths_total[1h]))", "{{instance}}"),
    )),
    Panel("Attempts lost with their workers in an hour", "short", (
        Query("sum(increase(cointeract_lost_attempts_total[1h]))", "lost"),
    )),
    Panel("Repairs of hints in Redis", "ops", (_rate("cointeract_repairs_total", "kind"),)),
    Panel("Age of the reaper's last round", "s", (
        Query("time() - max(cointeract_reaper_last_round_timestamp_seconds)", "age"),
    )),
)  # fmt: skip

DASHBOARDS: Final = {
    "service": ("CoInteract: the service", SERVICE),
    "rendering": ("CoInteract: rendering", RENDERING),
}
PROMETHEUS: Final = {"type": "prometheus", "uid": "${source}"}


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    width = GRID // PER_ROW
    targets = [
        {
            "datasource": PROMETHEUS,
            "expr": query.expr,
            "legendFormat": query.legend,
            "refId": chr(ord("A") + number),
        }
        for number, query in enumerate(panel.queries)
    ]
    place = {"h": HEIGHT, "w": width, "x": index % PER_ROW * width, "y": index // PER_ROW * HEIGHT}
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": PROMETHEUS,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def dashboard(name: str) -> str:
    """The JSON text that Grafana imports or is provisioned with."""
    title, panels = DASHBOARDS[name]
    variable = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    body = {
        "uid": f"cointeract-{name}",
        "title": title,
        "tags": ["cointeract"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": [_panel(index, panel) for index, panel in enumerate(panels)],
    }
    return json.dumps(body, indent=1) + "\n"


def main() -> None:
    """Write all dashboards."""
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(dashboard(name), encoding="utf-8")


if __name__ == "__main__":
    main()
