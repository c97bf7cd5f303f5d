"""Which package may import which, and that the API never loads torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contract.settings import Settings

ROOT = Path(__file__).parent.parent
SETTINGS = ROOT / "contract" / "settings.py"
ALLOWED = {
    "contract": {"contract"},
    "jobs": {"jobs", "contract"},
    "model": {"model", "contract"},
    "server": {"server", "jobs", "contract"},
    "workers": {"workers", "jobs", "model", "contract"},
    "training": {"training", "model", "contract"},
    "deploy": {"deploy", "jobs", "contract"},
    "chaos": {"chaos", "deploy", "workers", "jobs", "contract"},
    "cli": {"cli", "chaos", "deploy", "server", "workers", "training", "model", "jobs", "contract"},
    "tools": {"tools", "cli", "deploy", "training", "model", "contract"},
}
HEAVY = ("torch", "diffusers", "transformers")


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_modules(source: Path) -> set[str]:
    """The modules that a file imports by their full names, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_packages(source: Path) -> set[str]:
    """The top-level names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:  # a relative one stays in its package
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_the_arrows_allow(package: str) -> None:
    assert sources(package)
    for source in sources(package):
        forbidden = (imported_packages(source) & ALLOWED.keys()) - ALLOWED[package]
        assert not forbidden, f"{source.relative_to(ROOT)} imports {sorted(forbidden)}"


def test_no_route_module_imports_another() -> None:
    routes = [source for source in sources("server/routes") if source.name != "__init__.py"]
    modules = {f"server.routes.{source.stem}" for source in routes}
    assert len(modules) > 2
    for source in routes:
        assert not imported_modules(source) & modules, f"{source.relative_to(ROOT)} imports another route"


@pytest.mark.parametrize("package", [*(package for package in ALLOWED if package != "jobs"), "tests"])
def test_only_the_journal_makes_jobs_and_reads_their_entries(package: str) -> None:
    for source in sources(package):
        text = source.read_text(encoding="utf-8")
        tests_the_parts = source.is_relative_to(ROOT / "tests" / "jobs") or source == Path(__file__)
        if package != "contract" and not tests_the_parts:
            assert not re.search(r"adopt_folder\(|JOURNAL_ENTRY|entry_key", text), source.relative_to(ROOT)


@pytest.mark.parametrize("package", ["server", "jobs", "contract"])
def test_server_jobs_and_contract_never_name_a_model_library(package: str) -> None:
    for source in sources(package):
        assert not imported_packages(source) & set(HEAVY), source


@pytest.mark.parametrize(
    "module", ["server.app", "workers.supervisor", "workers.reaper", "deploy.up", "cli.app", "jobs.queue"]
)
def test_a_process_without_a_model_starts_without_torch(module: str) -> None:
    program = f"import sys, {module}; print(*set({HEAVY}) & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True
    )
    assert done.stdout.strip() == ""


def test_no_source_file_grows_beyond_what_one_reads_at_a_sitting() -> None:
    for package in ALLOWED:
        for source in sources(package):
            limit = 700 if source == ROOT / "model" / "transformer.py" else 500
            lines = len(source.read_text(encoding="utf-8").splitlines())
            assert lines <= limit, f"{source.relative_to(ROOT)} has {lines} lines"


def constants_of(source: Path) -> dict[str, str]:
    """What a module's own constants are set to, by their names."""
    found: dict[str, str] = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id.isupper() and isinstance(node, Assignment):
                found[target.id] = ast.unparse(node.value) if node.value else ""
    return found


Assignment = ast.Assign | ast.AnnAssign


def test_each_constant_is_defined_once() -> None:
    """A public one has its name for itself; a private one may not repeat another's name and value."""
    seen: dict[str, str] = {}
    for package in ALLOWED:
        for source in sources(package):
            where = str(source.relative_to(ROOT))
            for name, value in constants_of(source).items():
                key = f"{name} = {value}" if name.startswith("_") else name
                assert key not in seen, f"{name} is defined in {seen[key]} and in {where}"
                seen[key] = where


def test_each_setting_is_read_in_one_place() -> None:
    names = {f"COINTERACT_{field}".upper() for field in Settings.model_fields} | {"REDIS_URL"}
    for package in ALLOWED:
        for source in sources(package):
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
                is_name = isinstance(node, ast.Constant) and node.value in names
                assert not is_name or source == SETTINGS, f"{source.relative_to(ROOT)} reads {node.value}"


LONGEST_FUNCTION = 70
MOST_PARAMETERS = 10
Function = ast.FunctionDef | ast.AsyncFunctionDef


def decorators_of(function: Function) -> set[str]:
    return {ast.unparse(decorator).partition("(")[0] for decorator in function.decorator_list}


def is_command(function: Function) -> bool:
    """A command has a parameter for each of its options."""
    return any(name.endswith(".command") for name in decorators_of(function))


def may_take_many(function: Function) -> bool:
    """diffusers calls and configures by keywords; a GPU program takes plain numbers."""
    settings = {"register_to_config", "triton.jit"}
    return function.name == "__call__" or bool(settings & decorators_of(function))


def parameters_of(function: Function) -> int:
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    named = [name for name in named if name.arg not in ("self", "cls")]
    return len(named) + (given.vararg is not None) + (given.kwarg is not None)


@pytest.mark.parametrize("package", ALLOWED)
def test_no_function_is_longer_or_takes_more_than_one_keeps_in_mind(package: str) -> None:
    for source in sources(package):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(node, Function) or is_command(node):
                continue
            where = f"{source.relative_to(ROOT)}:{node.lineno} {node.name}"
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            # A network reads best from top to bottom.
            assert lines <= LONGEST_FUNCTION or node.name == "forward", f"{where} has {lines} lines"
            parameters = parameters_of(node)
            assert parameters <= MOST_PARAMETERS or may_take_many(node), (
                f"{where} has {parameters} parameters"
            )
