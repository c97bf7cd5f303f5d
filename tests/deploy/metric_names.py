"""The names of all metrics that our processes expose, asked of the registries themselves."""

from __future__ import annotations

import re

from prometheus_client.metrics_core import Metric

from server.metrics import Metrics
from workers.gpu_metrics import families
from workers.metrics import OF_REAPER, OF_WORKER


def _families() -> list[Metric]:
    registries = (Metrics().registry, OF_WORKER, OF_REAPER)
    found = [family for registry in registries for family in registry.collect()]
    return [family for family in (*found, *families("")) if family.name.startswith("cointeract_")]


def family_names() -> set[str]:
    """As people speak of them: a histogram has one name."""
    return {family.name + "_total" * (family.type == "counter") for family in _families()}


def exposed_names() -> set[str]:
    """As queries name them."""
    names = family_names()
    for family in _families():
        if family.type == "histogram":
            names |= {family.name + suffix for suffix in ("_bucket", "_sum", "_count")}
    return names


def metrics_in(text: str) -> set[str]:
    """The names of metrics in a query or a page."""
    return set(re.findall(r"(?<![\w./-])cointeract_[a-z_]+[a-z](?![\w.])", text))
