"""The documentation says what the code does, or a test fails."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tools.reference import cli_page, settings_page, with_file_map

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listing.stdout.splitlines()


def test_the_settings_page_is_up_to_date() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == settings_page(), "run: make docs"


def test_the_command_page_is_up_to_date() -> None:
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == cli_page(), "run: make docs"


def test_every_command_and_option_explains_itself() -> None:
    rows = [line for line in cli_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    for row in rows:
        assert re.fullmatch(r"\| .+ \| .* \| .{10,} \|", row), row


def test_the_readme_maps_every_source_file_in_one_line() -> None:
    assert with_file_map(README) == README, "run: make docs"
    for row in re.findall(r"^\| `[\w/]+\.py` \| (.*) \|$", README, flags=re.MULTILINE):
        assert 10 < len(row) < 160, row


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
