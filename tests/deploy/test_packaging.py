from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli.app import app
from contract.settings import Settings
from contract.version import installed_version
from deploy.sbom import sbom
from server.app import create_app
from tests.deploy.test_dependencies import normal
from tests.test_architecture import ALLOWED, imported_packages, sources

OURS_ELSEWHERE = {"cointeract_client"}
"""Ours, but not at the top of the repository."""

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {normal(line): line for line in lines if line and not line.startswith("#")}


def test_every_pin_is_exact() -> None:
    for line in pins().values():
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line


def test_every_declared_dependency_is_pinned() -> None:
    declared = [
        *PROJECT["dependencies"],
        *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
    ]
    assert {normal(requirement) for requirement in declared} - pins().keys() == set()


def test_nothing_drags_in_a_gpu_build_or_a_library_without_a_cpu_build() -> None:
    assert pins()["torch"] == "torch==2.13.0"
    assert pins()["triton"] == "triton==3.7.1", "what this torch's CUDA build asks for; tests interpret it"
    unwanted = [name for name in pins() if name.startswith("nvidia") or name in ("torchvision", "torchaudio")]
    assert unwanted == []


def test_package_command_and_api_say_one_version(tmp_path: Path) -> None:
    declared = PROJECT["version"]
    assert installed_version() == declared, "installed before the version changed: run make"
    said = CliRunner().invoke(app, ["--version"])
    assert said.stdout.split() == ["cointeract", declared]
    settings = Settings(data_dir=tmp_path, redis_url="unix:///nonexistent/redis.sock")
    assert create_app(settings).openapi()["info"]["version"] == declared


def test_exactly_our_packages_are_installed_and_all_are_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    find = project["tool"]["setuptools"]["packages"]["find"]
    folders = [path for where in find["where"] for path in (ROOT / where).iterdir() if path.is_dir()]
    installed = [path for path in folders if any(fnmatch(path.name, pattern) for pattern in find["include"])]
    assert {path.name for path in installed} == {*ALLOWED, "cointeract_client"}
    assert [path.name for path in installed if not (path / "py.typed").is_file()] == []


def test_the_license_is_the_one_declared() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_the_compose_file_runs_every_part(compose: dict[str, Any]) -> None:
    assert compose["services"].keys() == {"redis", "api", "reaper", "worker"}
    assert "--appendonly" in compose["services"]["redis"]["command"]


def test_only_the_api_is_published_and_only_to_this_machine(compose: dict[str, Any]) -> None:
    published = {
        name: service["ports"] for name, service in compose["services"].items() if service.get("ports")
    }
    assert published.keys() == {"api"}
    assert all(port.startswith("127.0.0.1:") for port in published["api"])


def override(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / f"deploy/compose.{name}.yml").read_text(encoding="utf-8"))
    return loaded


def test_overrides_change_services_that_exist_or_bring_whole_ones(compose: dict[str, Any]) -> None:
    for name in ("gpu", "s3", "monitoring"):
        for service, body in override(name)["services"].items():
            assert service in compose["services"] or "image" in body, f"{name}: {service}"


def test_gpus_are_given_by_count_and_each_worker_is_like_the_first(compose: dict[str, Any]) -> None:
    services = override("gpu")["services"]
    first = {**compose["services"]["worker"], **services["worker"]}
    of_count = {
        count: [name for name, body in services.items() if f"gpus-{count}" in body.get("profiles", ())]
        for count in (2, 4, 8)
    }
    assert {count: len(names) + 1 for count, names in of_count.items()} == {2: 2, 4: 4, 8: 8}
    taken = ["0"]
    for name in of_count[8]:
        body = services[name]
        kept = ("command", "volumes", "restart", "read_only", "tmpfs", "cap_drop", "security_opt", "image")
        assert {key: body[key] for key in kept} == {key: first[key] for key in kept}, name
        assert body["environment"].items() >= compose["services"]["worker"]["environment"].items(), name
        assert body["networks"]["inside"]["aliases"] == ["worker"], "Prometheus finds it by that name"
        (device,) = body["deploy"]["resources"]["reservations"]["devices"]
        taken += device["device_ids"]
    assert taken == [str(number) for number in range(8)]


def test_containers_share_no_volume_where_jobs_are_in_s3() -> None:
    services = override("s3")["services"]
    volumes = [volume for body in services.values() for volume in body["volumes"]]
    assert services.keys() == {"api", "reaper", "worker"}
    assert len(set(volumes)) == 3
    assert {volume.partition(":")[2] for volume in volumes} == {"/data"}


def test_prometheus_scrapes_the_ports_that_processes_are_given(compose: dict[str, Any]) -> None:
    monitoring = override("monitoring")
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    ports = {
        config["dns_sd_configs"][0]["names"][0]: config["dns_sd_configs"][0]["port"]
        for config in scraped["scrape_configs"]
    }
    given = {
        name: int(value)
        for name, body in monitoring["services"].items()
        for key, value in body.get("environment", {}).items()
        if key.endswith("_METRICS_PORT")
    }
    assert ports == {"api": 8000, **given}
    for name, body in monitoring["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in body.get("ports", ())), name
        for volume in body.get("volumes", ()):
            source = volume.partition(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), volume


def test_an_image_says_what_it_is_made_of() -> None:
    made_of = sbom()
    components = made_of["components"]
    assert isinstance(components, list)
    named = {component["name"].lower(): component for component in components}
    assert named["redis"]["purl"].startswith("pkg:pypi/redis@")
    assert len({component["purl"] for component in components}) == len(components) > 50
    assert made_of == sbom()
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert text.count("RUN python -m deploy.sbom > sbom.json") == 2


def test_the_images_hold_every_package_that_the_command_line_can_reach() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    held = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert ALLOWED["cli"] <= held
    paths = re.search(r"PYTHONPATH=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert paths is not None
    folders = [path.removeprefix("/app").lstrip("/") for path in paths[1].split(":")]
    held_names = {
        found.name
        for folder in folders
        for found in (ROOT / folder).iterdir()
        if not folder or folder in held
    }
    imported = {
        name
        for package in ALLOWED["cli"]
        for source in sources(package)
        for name in imported_packages(source)
    }
    assert imported & OURS_ELSEWHERE <= held_names
    assert {"pyproject.toml", "constraints.txt", "LICENSE"} <= held


def test_the_gpu_file_takes_the_cuda_build_of_the_torch_that_is_pinned(compose: dict[str, Any]) -> None:
    arguments = override("gpu")["services"]["worker"]["build"]["args"]
    # `===` takes the version literally: a CPU build, which is called 2.13.0+cpu, does not count.
    assert arguments["TORCH"].replace("===", "==") == pins()["torch"]
    declared = re.findall(
        r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert arguments.keys() <= set(declared)
    assert any("exec" in mount for mount in compose["services"]["worker"]["tmpfs"]), "Triton loads from there"


@pytest.mark.parametrize("target", ["api", "worker"])
def test_images_do_not_run_as_root_and_report_their_health(target: str) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stage = re.search(rf"^FROM \S+ AS {target}\n(.*?)(?=^FROM |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert stage is not None
    instructions = [line.split()[0] for line in stage[1].splitlines() if re.match(r"[A-Z]+ ", line)]
    assert instructions.count("USER") == 1
    assert "USER cointeract" in stage[1]
    assert "HEALTHCHECK" in instructions


def test_the_api_image_has_no_torch() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    assert "torch" not in stages["api-dependencies"] + stages["api"]
    assert "COPY --from=api-dependencies" in stages["api"]
