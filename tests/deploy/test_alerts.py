"""Alerts: rules that Prometheus accepts, about metrics that exist."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, Histogram

from server.loop_lag import measure_lag
from server.metrics import Metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"


def test_every_metric_in_an_alert_exists_and_the_handbook_says_what_to_do() -> None:
    metrics = Metrics()
    metrics.requests.labels("/", "GET", "500").inc()
    exposed = metrics.render({}, 0, {}, [], []).decode()
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    handbook = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert len(rules) >= 5
    for rule in rules:
        names = re.findall(r"\bcointeract_\w+", rule["expr"])
        assert names
        for name in names:
            assert re.search(rf"^{name}[ {{]", exposed, re.MULTILINE), name
        assert f"| `{rule['alert']}` |" in handbook


def test_prometheus_accepts_the_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    done = subprocess.run(
        [promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_blocked_event_loop_shows_in_the_metrics() -> None:
    lag = Histogram("lag", "", registry=CollectorRegistry(), buckets=(0.2, 10))

    async def hold_up() -> None:
        measuring = asyncio.create_task(measure_lag(lag))
        await asyncio.sleep(0.05)
        time.sleep(0.6)
        await asyncio.sleep(0.05)
        measuring.cancel()

    asyncio.run(hold_up())
    (family,) = lag.collect()
    assert sum(sample.value for sample in family.samples if sample.name == "lag_sum") > 0.4
