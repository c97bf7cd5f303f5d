"""The Kubernetes manifests: rendered by kubectl, valid by published schemas, and true to the program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from cli.app import app
from contract.settings import ENV_PREFIX, Settings
from server.app import create_app
from tests.deploy.metric_names import exposed_names, metrics_in

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("trial", "fleet")
OURS = "cointeract-(api|reaper|worker)"
CUSTOM = json.loads((ROOT / "tests/data/custom_resources.json").read_text(encoding="utf-8"))
CONFINED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
Object = dict[str, Any]


@cache
def rendered(overlay: str) -> list[Object]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed (Debian's package kubernetes-client has it)")
    done = subprocess.run(
        [kubectl, "kustomize", str(FOLDER / "overlays" / overlay)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(overlay: str, kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in rendered(overlay) if each["kind"] == kind}


def pods(overlay: str) -> Iterator[tuple[str, Object, Object]]:
    """Name, pod and its one container of each deployment."""
    for name, deployment in of_kind(overlay, "Deployment").items():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        yield name, pod, container


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str) -> None:
    assert len(rendered(overlay)) > 12
    for each in rendered(overlay):
        if each["kind"] in CUSTOM:
            schema = {**CUSTOM[each["kind"]], "$defs": CUSTOM["$defs"]}
            jsonschema.validate(each["spec"], schema)
        else:
            for version in ("1.29", kubernetes_validate.latest_version().rpartition(".")[0]):
                kubernetes_validate.validate(each, version, strict=True)


def test_the_validation_refuses_what_is_misspelt() -> None:
    deployment = json.loads(json.dumps(of_kind("trial", "Deployment")["cointeract-api"]))
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.29", strict=True)
    scaled = of_kind("fleet", "ScaledObject")["cointeract-worker"]["spec"]
    schema = {**CUSTOM["ScaledObject"], "$defs": CUSTOM["$defs"]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**scaled, "minReplicas": 0}, schema)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_setting_exists_and_the_whole_of_them_is_accepted(overlay: str) -> None:
    config = next(
        each for name, each in of_kind(overlay, "ConfigMap").items() if name.startswith("cointeract")
    )
    given = {name: value for name, value in config["data"].items() if name.startswith(ENV_PREFIX)}
    assert len(given) >= 5
    known = {name.upper() for name in Settings.model_fields}
    assert {name.removeprefix(ENV_PREFIX) for name in given} <= known
    Settings(**{name.removeprefix(ENV_PREFIX).lower(): value for name, value in given.items()})
    assert {name for name in config["data"] if not name.startswith(ENV_PREFIX)} <= {"AWS_DEFAULT_REGION"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_confined(overlay: str) -> None:
    found = list(pods(overlay))
    assert len(found) == 4
    for name, pod, container in found:
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert container["securityContext"] == CONFINED, name
        assert container["resources"]["limits"]["memory"], name
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted >= ({"/data", "/tmp"} if re.fullmatch(OURS, name) else {"/data"}), name
        assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    user = re.search(r"--uid (\d+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert user is not None
    assert {pod["securityContext"]["runAsUser"] for name, pod, _ in found if re.fullmatch(OURS, name)} == {
        int(user[1])
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_command_is_one_of_ours(overlay: str) -> None:
    commands = []
    for name, _, container in pods(overlay):
        if re.fullmatch(OURS, name):
            commands.append(container["args"])
            commands += [
                each["exec"]["command"][1:]
                for each in (
                    container.get("readinessProbe", {}),
                    container.get("lifecycle", {}).get("preStop", {}),
                )
                if each.get("exec", {}).get("command", [""])[0] == "cointeract"
            ]
    assert len(commands) == 5
    for command in commands:
        options = {word for word in command if word.startswith("--")}
        helped = CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert helped.exit_code == 0, command
        assert all(option in helped.output for option in options), command


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_routes_that_exist_and_need_no_worker(overlay: str, tmp_path: Path) -> None:
    routes = create_app(Settings(data_dir=tmp_path, redis_url="redis://nowhere")).openapi()["paths"].keys()
    asked = set()
    for name, _, container in pods(overlay):
        ports = {port["name"] for port in container["ports"]}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if get := container.get(kind, {}).get("httpGet"):
                assert get["port"] in ports, name
                asked.add(get["path"])
    assert asked == {"/healthz", "/metrics"}
    assert asked <= routes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_worker_is_given_the_time_of_a_clip_and_of_its_end(overlay: str) -> None:
    (worker,) = [(pod, box) for name, pod, box in pods(overlay) if name == "cointeract-worker"]
    pod, container = worker
    drain = container["lifecycle"]["preStop"]["exec"]["command"]
    config = next(iter(of_kind(overlay, "ConfigMap").values()))["data"]
    grace = float(config["COINTERACT_STOP_GRACE_S"])
    assert drain[:2] == ["cointeract", "drain"]
    assert pod["terminationGracePeriodSeconds"] > float(drain[-1]) + grace


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_referred_to_is_there_or_the_handbook_says_how_to_make_it(overlay: str) -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in rendered(overlay)}
    handbook = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    for kind, name in set(references(rendered(overlay))):
        made = f"create secret generic {name} " in handbook
        assert (kind, name) in names or (kind == "Secret" and made), (kind, name)
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for name, each in of_kind(overlay, kind).items():
            spec = each["spec"]
            selector = spec["selector"] if kind == "Service" else spec.get("selector") or spec["podSelector"]
            wanted = selector if kind == "Service" else selector.get("matchLabels")
            labels = [
                deployment["spec"]["template"]["metadata"]["labels"]
                for deployment in of_kind(overlay, "Deployment").values()
            ]
            assert wanted is None or any(wanted.items() <= each.items() for each in labels), name


def references(part: Any) -> Iterator[tuple[str, str]]:
    """Names of other objects, anywhere in an object."""
    kinds = {
        "configMapRef": "ConfigMap",
        "secretRef": "Secret",
        "secretKeyRef": "Secret",
        "credentials": "Secret",
    }
    if isinstance(part, dict):
        for key, value in part.items():
            if key in kinds:
                yield kinds[key], value["name"]
            elif key == "claimName":
                yield "PersistentVolumeClaim", value
            elif key == "serviceAccountName":
                yield "ServiceAccount", value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def test_workers_are_scaled_by_metrics_that_exist() -> None:
    spec = of_kind("fleet", "ScaledObject")["cointeract-worker"]["spec"]
    queries = [trigger["metadata"]["query"] for trigger in spec["triggers"]]
    assert {"cointeract_remaining_gpu_seconds", "cointeract_unfinished_jobs"} == {
        name for query in queries for name in metrics_in(query)
    } & exposed_names()
    assert spec["scaleTargetRef"]["name"] in of_kind("fleet", "Deployment")
    assert spec["minReplicaCount"] == 0


def test_no_secret_but_that_of_the_trial_is_written_down() -> None:
    assert of_kind("fleet", "Secret") == {}
    for path in FOLDER.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "password=" not in text or path.parent.name == "trial", path


def test_monitors_find_the_pods_and_give_the_alerts_their_job_names() -> None:
    labels = {
        deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for deployment in of_kind("fleet", "Deployment").values()
    }
    found = set()
    for monitor in of_kind("fleet", "PodMonitor").values():
        selector = monitor["spec"]["selector"]
        assert monitor["spec"]["jobLabel"] == "app.kubernetes.io/name"
        found |= set(selector.get("matchLabels", {}).values())
        for expression in selector.get("matchExpressions", ()):
            found |= set(expression["values"])
    assert found == {name for name in labels if re.fullmatch(OURS, name)}
