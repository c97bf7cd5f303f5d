"""docs/settings.md, docs/cli.md and the README's file map, written from the code by `make docs`.

A test fails while they differ from it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import AliasChoices

from cli.app import app
from contract.settings import Settings

ROOT = Path(__file__).parent.parent

PACKAGES = {
    "server": "the HTTP API. Imports jobs, never torch",
    "jobs": "the contract between server and workers. Imports nothing of ours",
    "workers": "everything that turns jobs into videos. Imports jobs and model",
    "model": "the network, its pipeline, checkpoints and training. Imports nothing of ours",
    "deploy": "the command line and the one-machine stack. Imports all of it",
}

SETTINGS_INTRODUCTION = """\
# Settings

Every setting is an environment variable, read once when a process starts and checked before anything else
happens; what makes no sense stops the process and is named. This page is written from
`contract/settings.py` by `make docs`.

| variable | default | meaning |
|---|---|---|
"""

CLI_INTRODUCTION = """\
# The `cointeract` command

Exit status: 0 done, 1 failed (a sentence on stderr says why), 2 wrong usage, 130 interrupted. This page is
written from `cli/app.py` by `make docs`; `cointeract COMMAND --help` says the same. `cointeract --version`
prints the version, which is also the one in the API's OpenAPI document.
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


def file_map() -> str:
    """The README's section: a line per source file, the first sentence of its docstring."""
    parts = ["## Every file\n"]
    for package, title in PACKAGES.items():
        files = [path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
        files.sort(key=lambda path: (len(path.parts), path))
        rows = [f"| `{path.relative_to(ROOT).as_posix()}` | {_first_sentence(path)} |\n" for path in files]
        parts.append(f"### {package}/: {title}\n\n| file | what is in it |\n|---|---|\n" + "".join(rows))
    return "\n".join(parts)


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"\.(?=\s|$)|\n\n", docstring, maxsplit=1)[0]
    return " ".join(sentence.split())


def with_file_map(readme: str) -> str:
    """The README's text with its section on files written anew."""
    before, _, rest = readme.partition("## Every file\n")
    _, heading, after = rest.partition("\n## ")
    return f"{before}{file_map()}{heading}{after}"


def main() -> None:
    """Write all of it."""
    (ROOT / "docs/settings.md").write_text(settings_page(), encoding="utf-8")
    (ROOT / "docs/cli.md").write_text(cli_page(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(with_file_map(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
