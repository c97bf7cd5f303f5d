"""`cointeract keys`: API keys, kept as files in the data folder, with or without a running server.

Imports inside the commands: see `cli.app`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from cli.common import FAILED, DataOption, complaints, console

if TYPE_CHECKING:
    from jobs.artifacts import ArtifactStore

keys = typer.Typer(no_args_is_help=True, help="API keys. Once there is one, every request needs one.")


class KeyScope(StrEnum):
    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


class KeyPriority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


def _store(data: Path | None) -> ArtifactStore:
    from contract.settings import Settings
    from jobs.storage import StoreRefusedError, open_store

    try:
        return open_store(Settings() if data is None else Settings(data_dir=data))
    except StoreRefusedError as error:
        raise typer.BadParameter(str(error)) from error


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is; shown by `keys list`.")],
    scope: Annotated[
        list[KeyScope] | None,
        typer.Option(
            help="What it may do; repeat it. Default: submit and read. admin sees everybody's jobs."
        ),
    ] = None,
    highest_priority: Annotated[KeyPriority, typer.Option(help="Highest priority it may ask for.")] = (
        KeyPriority.NORMAL
    ),
    max_queued: Annotated[int | None, typer.Option(min=1, help="Jobs of it that may wait at once.")] = None,
    max_running: Annotated[int | None, typer.Option(min=1, help="Jobs of it that may run at once.")] = None,
    gpu_seconds_per_day: Annotated[
        float | None, typer.Option(min=0, help="GPU seconds it may use in 24 hours.")
    ] = None,
    max_stored_bytes: Annotated[
        int | None, typer.Option(min=0, help="Bytes that its jobs may occupy on disk.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Create a key and print it. Only its hash is stored, so this is the only time that it is shown."""
    from contract.job import Priority
    from server.keys import KeyLimits, Scope, create_key

    scopes = scope or [KeyScope.SUBMIT, KeyScope.READ]
    limits = KeyLimits(
        max_queued=max_queued,
        max_running=max_running,
        gpu_seconds_per_day=gpu_seconds_per_day,
        max_stored_bytes=max_stored_bytes,
    )
    try:
        new = create_key(
            _store(data),
            name,
            [Scope(each.value) for each in scopes],
            limits,
            Priority(highest_priority.value),
        )
    except ValueError as error:
        complaints.print(str(error), style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED) from error
    complaints.print(f"Key {new.key.id} for {name}. It is not shown again:", highlight=False, markup=False)
    # Only the key goes to stdout, so that a script can take it.
    console.print(new.token, highlight=False, markup=False, soft_wrap=True)


@keys.command("list")
def list_keys(data: DataOption = None) -> None:
    """Show all keys, revoked ones included."""
    from server.keys import list_keys as stored_keys

    table = Table(Column("id", no_wrap=True), "name", "scopes", "priority", "limits", "created", "revoked")
    for key in stored_keys(_store(data)):
        limits = key.limits.model_dump(exclude_none=True)
        table.add_row(
            key.id,
            key.name,
            ", ".join(key.scopes),
            key.highest_priority,
            "\n".join(f"{name} {value:g}" for name, value in limits.items()),
            f"{key.created_at:%Y-%m-%d %H:%M}",
            f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "",
        )
    console.print(table)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, from `keys list`.")],
    data: DataOption = None,
) -> None:
    """Make a key invalid at once. Its jobs stay."""
    from server.keys import revoke_key

    if not revoke_key(_store(data), key_id):
        complaints.print(f"There is no valid key {key_id}.", style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED)
    console.print(f"Revoked {key_id}.", highlight=False, markup=False)
