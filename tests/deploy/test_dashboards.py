"""The dashboards: JSON that is up to date, queries that Prometheus understands, metrics that exist."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.metric_names import exposed_names, metrics_in
from tools.dashboards import DASHBOARDS, FOLDER, RATE, dashboard

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_files_are_what_the_tables_say(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert text == dashboard(name), "run: python -m tools.dashboards"
    panels = json.loads(text)["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels) >= 12
    assert {path.stem for path in FOLDER.glob("*.json")} == DASHBOARDS.keys()


def queries() -> dict[str, str]:
    """By what they are of."""
    return {
        f"{name}_{index}_{number}": query.expr
        for name, (_, panels) in DASHBOARDS.items()
        for index, panel in enumerate(panels)
        for number, query in enumerate(panel.queries)
    }


def test_every_metric_in_a_panel_exists() -> None:
    for place, query in queries().items():
        names = metrics_in(query)
        assert names, place
        assert names <= exposed_names(), place


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    rules = [{"record": place, "expr": query.replace(RATE, "1m")} for place, query in queries().items()]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_its_configuration_and_its_jobs_are_those_of_the_alerts() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    config = ROOT / "deploy/prometheus/prometheus.yml"
    done = subprocess.run(
        [promtool, "check", "config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = yaml.safe_load(config.read_text())["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["cointeract-api", "cointeract-worker", "cointeract-reaper"]
