"""The version of this project, as its installed package declares it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "cointeract-server"


def installed_version() -> str:
    """The version in pyproject.toml at the time of installation; "uninstalled" for bare source files."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "uninstalled"
