"""The documentation says what the code does, or a test fails."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.test_architecture import ALLOWED
from tools.reference import MAPPED_PACKAGES, cli_page, files_page, prometheus_rules, settings_page

ROOT = Path(__file__).parent.parent


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listing.stdout.splitlines()


def test_the_settings_page_is_up_to_date() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == settings_page(), "run: make docs"


def test_the_command_page_is_up_to_date() -> None:
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == cli_page(), "run: make docs"


def test_the_operators_rules_are_those_of_prometheus() -> None:
    rules = (ROOT / "deploy/prometheus/rules.yaml").read_text(encoding="utf-8")
    assert rules == prometheus_rules(), "run: make docs"


def test_every_command_and_option_explains_itself() -> None:
    rows = [line for line in cli_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    for row in rows:
        assert re.fullmatch(r"\| .+ \| .* \| .{10,} \|", row), row


def test_every_source_file_is_told_in_one_line() -> None:
    page = (ROOT / "docs/files.md").read_text(encoding="utf-8")
    assert page == files_page(), "run: make docs"
    assert MAPPED_PACKAGES.keys() == {*ALLOWED, "client/cointeract_client"}
    for row in re.findall(r"^\| `[\w/]+\.py` \| (.*) \|$", page, flags=re.MULTILINE):
        assert 10 < len(row) < 160, row


def test_a_newcomer_reads_the_readme_at_a_sitting() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_readmes_map_names_every_page() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Documents")[2]
    linked = set(re.findall(r"\]\(([^)#]+)", table))
    pages = {name for name in tracked_files() if re.fullmatch(r"(docs/)?[\w-]+\.md", name)}
    assert pages - linked == {"README.md"}


@pytest.mark.parametrize("page", [name for name in tracked_files() if name.endswith(".md")])
def test_the_modules_that_pages_run_exist(page: str) -> None:
    for module in re.findall(r"python -m ([a-z][\w.]*\w)", (ROOT / page).read_text(encoding="utf-8")):
        path = ROOT / module.replace(".", "/")
        ours = (ROOT / module.partition(".")[0]).is_dir()
        assert not ours or path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_readmes_memory_is_that_of_the_weights_page() -> None:
    weights = (ROOT / "docs/weights.md").read_text(encoding="utf-8")
    row = r"^\| `(?:resident|text-offload|offload)` \|.*\| ([\d.]+ GB)(?: \([\d.]+\))? \| \d+ GB \|$"
    modes = re.findall(row, weights, re.MULTILINE)
    assert len(modes) == 3
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = readme.partition("GPU memory at 720×1280, computed, not yet measured:")[2].partition(
        " of main memory"
    )[0]
    assert re.findall(r"[\d.]+ GB", told)[:3] == modes


def names_in(source: Path) -> set[str]:
    """What a file defines: functions, classes and constants, and `Class.method`."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    found.add(prefix + node.name)
                case ast.ClassDef():
                    found.add(prefix + node.name)
                    collect(node.body, f"{prefix}{node.name}.")
                case ast.Assign():
                    found.update(prefix + name.id for name in node.targets if isinstance(name, ast.Name))
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(prefix + name)

    collect(ast.parse(source.read_text(encoding="utf-8")).body, "")
    return found


def test_each_decision_is_made_where_contributing_says() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.partition("## Where is it decided?")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) >= 10
    for row in rows:
        places = re.findall(r"`([\w/]+\.py):([\w.]+)`", row)
        assert places, f"names no place: {row}"
        for file, name in places:
            assert name in names_in(ROOT / file), f"{file} defines no {name}: {row}"


def test_files_that_contributing_names_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|toml|md|txt|yml))[:`]", page)
    assert len(named) > 40
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", [name for name in tracked_files() if name.endswith(".md")])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_documented_environment_variables_exist() -> None:
    known = set(re.findall(r"`([A-Z_]+)`", settings_page() + cli_page()))
    for page in [name for name in tracked_files() if name.endswith((".md", ".yml"))]:
        for variable in re.findall(r"\bCOINTERACT_[A-Z_]+\b", (ROOT / page).read_text(encoding="utf-8")):
            if page.endswith(".yml") and variable == "COINTERACT_CHECKPOINT":
                continue  # the compose file's own
            assert variable in known, f"{page} names {variable}"


def test_the_threat_model_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/security.md").read_text(encoding="utf-8")))
    sources = [ROOT / name for name in tracked_files() if name.startswith("tests/") and name.endswith(".py")]
    defined = set(
        re.findall(r"def (test_\w+)", "\n".join(path.read_text(encoding="utf-8") for path in sources))
    )
    assert len(named) > 25
    assert named <= defined, named - defined
