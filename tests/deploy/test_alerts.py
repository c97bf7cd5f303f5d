"""Alerts: rules that Prometheus accepts, about metrics that exist."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Histogram

from server.loop_lag import measure_lag
from tests.deploy.metric_names import exposed_names, family_names, metrics_in

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULE_TESTS = RULES.with_name("alerts.test.yml")
HANDBOOK = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def needs_promtool() -> str:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    return promtool


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_every_metric_in_an_alert_exists() -> None:
    known = exposed_names()
    assert len(rules()) >= 15
    for rule in rules():
        names = metrics_in(rule["expr"])
        assert names or "up{" in rule["expr"], rule
        assert names <= known, rule


def test_the_handbook_says_of_each_alert_what_to_do() -> None:
    told = re.findall(r"^\| `(CoInteract\w+)` \| (\w+) \| .{10,} \| .{20,} \|$", HANDBOOK, re.MULTILINE)
    assert sorted(told) == sorted((rule["alert"], rule["labels"]["severity"]) for rule in rules())


def test_the_handbook_tells_each_metric_and_no_other() -> None:
    told = re.findall(r"^\| `(cointeract_\w+)` \| [\w, ∗]+ \| .+ \|$", HANDBOOK, re.MULTILINE)
    assert len(told) == len(set(told)) > 25
    assert set(told) == family_names()
    assert metrics_in(HANDBOOK) <= exposed_names()


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    cases = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    fired = {
        case["alertname"] for test in cases for case in test["alert_rule_test"] if case.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in rules()}


def test_the_alerts_fire_on_what_they_are_for_and_on_nothing_less() -> None:
    promtool = needs_promtool()
    done = subprocess.run(
        [promtool, "test", "rules", str(RULE_TESTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_rules() -> None:
    promtool = needs_promtool()
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
