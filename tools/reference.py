"""Writes docs/settings.md, docs/cli.md and docs/files.md from the code: `make docs`.

A test fails while the pages differ from the code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

import typer
from pydantic import AliasChoices

from cli.app import app
from contract.settings import Settings
from tools import ROOT

MAPPED_PACKAGES = {
    "contract": "the words that everybody uses. Imports nothing of ours",
    "jobs": "where jobs live and wait. Imports contract",
    "server": "the HTTP API. Imports jobs and contract, never torch",
    "workers": "what turns jobs into videos. Imports jobs, model and contract",
    "model": "the network, its pipeline and checkpoints. Imports contract",
    "training": "training, evaluation, and the world of the small checkpoint. Imports model and contract",
    "cli": "the `cointeract` command. Imports everything",
    "deploy": "what puts it on machines, with the bundled checkpoint. Imports jobs and contract",
    "chaos": "load and faults, for `cointeract chaos`. Imports deploy, workers, jobs and contract",
    "client/cointeract_client": "the client, a package of its own. Imports nothing of ours",
    "tools": "what makes the repository itself. Imported by nobody",
}
"""Each of our packages, and the heading of its part of docs/files.md."""

FILES_INTRODUCTION = """\
# Every file

A line for each source file: the first sentence of its docstring. `make docs` writes this page from the code.
Imports go one way only, and `tests/test_architecture.py` keeps it so.

"""

SETTINGS_INTRODUCTION = """\
# Settings

Every setting with its default and its meaning. A setting is an environment variable. A process reads and
checks all of them once, when it starts. One that makes no sense is named and stops the process. `make docs`
writes this page from `contract/settings.py`.

| variable | default | meaning |
|---|---|---|
"""

CLI_INTRODUCTION = """\
# The `cointeract` command

Every command with its options; `cointeract COMMAND --help` says the same. The exit status is 0 for done, 1
for failed (a sentence on stderr says why), 2 for wrong usage, 130 for interrupted. `cointeract --version`
prints the version, which is also the one in the API's OpenAPI document. `make docs` writes this page from
`cli/app.py`.
"""

PROMETHEUS_RULE = """\
# The rules of alerts.yml, from which `make docs` writes this file.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: cointeract, labels: {app.kubernetes.io/part-of: cointeract}}
spec:
"""


def settings_page() -> str:
    """A table row per field of `Settings`."""
    prefix = Settings.model_config["env_prefix"]
    rows = []
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names = alias.choices if isinstance(alias, AliasChoices) else [f"{prefix}{name}".upper()]
        variables = " or ".join(f"`{each}`" for each in names)
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| {variables} | {default} | {field.description} |\n")
    return SETTINGS_INTRODUCTION + "".join(rows)


def cli_page() -> str:
    """A section per command, with its arguments and options."""
    sections = [CLI_INTRODUCTION]
    for name, command in _commands(typer.main.get_command(app), "cointeract"):
        usage = " ".join(command.collect_usage_pieces(typer.Context(command, info_name=name)))
        sections.append(f"## `{name}`\n\n{command.help}\n\n```\n{name} {usage}\n```\n")
        rows = [_row(parameter) for parameter in command.params]
        if rows:
            sections.append("| option | default | meaning |\n|---|---|---|\n" + "".join(rows))
    return "\n".join(sections)


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command under `command` with its full name. Typer's own command classes carry no public types."""
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _commands(child, f"{path} {name}")
        else:
            yield f"{path} {name}", child


def _row(parameter: Any) -> str:
    names = parameter.opts if parameter.param_type_name == "option" else [str(parameter.name).upper()]
    default = "required" if parameter.required else ""
    if not parameter.required and parameter.default is not None and parameter.default is not False:
        default = f"`{parameter.default}`"
    meaning = parameter.help + (f" Environment: `{parameter.envvar}`." if parameter.envvar else "")
    meaning += " May be repeated." if parameter.multiple and "repeat" not in meaning else ""
    return f"| {', '.join(f'`{name}`' for name in names)} | {default} | {meaning} |\n"


def files_page() -> str:
    """A line per source file, the first sentence of its docstring."""
    parts = []
    for package, title in MAPPED_PACKAGES.items():
        files = [path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
        files.sort(key=lambda path: (len(path.parts), path))
        rows = [f"| `{path.relative_to(ROOT).as_posix()}` | {_first_sentence(path)} |\n" for path in files]
        parts.append(f"## {package}/: {title}\n\n| file | what is in it |\n|---|---|\n" + "".join(rows))
    return FILES_INTRODUCTION + "\n".join(parts)


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"\.(?=\s|$)|\n\n", docstring, maxsplit=1)[0]
    return " ".join(sentence.split())


def prometheus_rules() -> str:
    """The alerts as an object of the Prometheus operator."""
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
    _, _, groups = alerts.partition("groups:\n")
    return PROMETHEUS_RULE + indent("groups:\n" + groups, "  ")


def main() -> None:
    """Write all pages."""
    (ROOT / "deploy/prometheus/rules.yaml").write_text(prometheus_rules(), encoding="utf-8")
    (ROOT / "docs/settings.md").write_text(settings_page(), encoding="utf-8")
    (ROOT / "docs/cli.md").write_text(cli_page(), encoding="utf-8")
    (ROOT / "docs/files.md").write_text(files_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
