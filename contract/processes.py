"""How one of our processes starts another."""

from __future__ import annotations

import sys


def own_process(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line that runs one of our modules with this very Python.

    `-P` keeps the working directory off the import path: a user's own `jobs.py`, `model.py` or `random.py`
    there would otherwise be imported instead of what we mean.
    """
    return (sys.executable, "-P", "-m", module, *arguments)
