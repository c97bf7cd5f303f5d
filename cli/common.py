"""Shared by the modules of the command line: error messages, settings and options.

Imports inside the commands: see `cli.app`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from contract.settings import Settings

console = Console()
complaints = Console(stderr=True)

FAILED = 1
INTERRUPTED = 130

MODEL_PACKAGES = {"torch", "diffusers", "transformers", "huggingface_hub", "safetensors", "accelerate"}
"""Packages that only hosts that render need. The API works without them."""

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Folder for jobs, results and the embedded Redis. Default: ./data"
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="COINTERACT_URL", help="Server to use, such as http://127.0.0.1:8000"),
]
ServerOption = Annotated[str, typer.Option("--url", envvar="COINTERACT_URL", help="Server to use.")]
ApiKeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="COINTERACT_API_KEY", help="API key, if the server asks for one."),
]


@contextmanager
def explained_errors() -> Iterator[None]:
    """Expected errors become a red sentence and exit status 1. Other errors keep their traceback."""
    from cointeract_client import CoInteractError
    from pydantic import ValidationError

    from cli.generate import GenerationFailed
    from cli.service import explained
    from cli.weights import WeightsError
    from contract.request import FieldError
    from deploy.stack import StackError

    try:
        yield
    except CoInteractError as error:
        complaints.print(explained(error), style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED) from error
    except (GenerationFailed, StackError, WeightsError, FieldError) as error:
        complaints.print(str(error), style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED) from error
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            complaints.print(f"Setting {name}: {problem['msg']}", style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED) from error
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in MODEL_PACKAGES:
            raise
        advice = "Run this where a worker runs, or install the project with its extra: pip install '.[model]'"
        complaints.print(f"{error.name} is not installed here. {advice}", style="red", markup=False)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        complaints.print("Interrupted.", style="yellow")
        raise typer.Exit(INTERRUPTED) from None


def settings_with(**given: Any) -> Settings:
    """Settings from the environment; what the command line gives takes precedence."""
    from contract.settings import Settings

    return Settings(**{name: value for name, value in given.items() if value is not None})


def connected(settings: Settings) -> tuple[Settings, str]:
    """The settings and the Redis that a part of the service needs. Raises StackError if none is set."""
    from deploy.stack import StackError

    if settings.redis_url is None:
        raise StackError("Set COINTERACT_REDIS_URL. (`cointeract up` brings a Redis of its own.)")
    return settings, settings.redis_url
