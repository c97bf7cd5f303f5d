"""What an image is made of, as a CycloneDX document: its Python packages and its Debian packages.

    python -m deploy.sbom > sbom.json

The Dockerfile writes one into each image, where `cointeract` and scanners find it: /app/sbom.json.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from urllib.parse import quote

from contract.version import installed_version

Component = dict[str, str]


def python_packages() -> Iterator[Component]:
    """The installed distributions of this Python."""
    seen: set[str] = set()
    for distribution in distributions():
        name, version = distribution.metadata["Name"], distribution.version
        key = f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version, safe='+')}"
        if key not in seen:
            seen.add(key)
            yield _component(name, version, key)


def debian_packages() -> Iterator[Component]:
    """The installed Debian packages; none where there is no dpkg."""
    if shutil.which("dpkg-query") is None:
        return
    form = "${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n"
    listing = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={form}"], capture_output=True, text=True, check=True
    ).stdout
    for line in listing.splitlines():
        status, name, version, architecture = line.split("\t")
        if status.startswith("ii"):
            key = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}"
            yield _component(name, version, key)


def _component(name: str, version: str, key: str) -> Component:
    return {"type": "library", "bom-ref": key, "name": name, "version": version, "purl": key}


def sbom() -> dict[str, object]:
    """The document. Two images of the same packages have the same one."""
    components = sorted((*python_packages(), *debian_packages()), key=lambda component: component["purl"])
    about = {"type": "application", "name": "cointeract-server", "version": installed_version()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": about},
        "components": components,
    }


if __name__ == "__main__":
    json.dump(sbom(), sys.stdout, indent=1)
