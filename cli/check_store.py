"""`cointeract check`: reads all that is stored, and says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from rich.console import Console
from rich.text import Text

from contract.settings import Settings
from deploy.stack import StackError
from jobs.cards import CARD_RECORDS
from jobs.job_log import LOG_RECORDS
from jobs.journal import CHANGES_RECORDS
from jobs.storage import StoreRefusedError, open_store
from jobs.store_check import StoreCheck
from jobs.store_report import StoreReport
from jobs.usage import USAGE_RECORDS
from server.delivery.delivery_log import DELIVERY_RECORDS
from server.delivery.signing_secrets import SECRET_RECORDS
from server.delivery.webhooks import WEBHOOK_RECORDS
from server.idempotency import CLAIM_RECORDS
from server.keys import KEY_RECORDS
from workers.expiry import MARKER_RECORDS

RECORDS: Final = (
    *CARD_RECORDS,
    *WEBHOOK_RECORDS,
    KEY_RECORDS,
    CLAIM_RECORDS,
    USAGE_RECORDS,
    SECRET_RECORDS,
    MARKER_RECORDS,
)
JOB_RECORDS: Final = (CHANGES_RECORDS, LOG_RECORDS, DELIVERY_RECORDS)


def check_store(settings: Settings, say: Callable[[str], None]) -> StoreReport:
    """Check the store of the settings. Raises StackError if there is none or it does not answer."""
    if settings.storage_url is None and not settings.storage_dir.is_dir():
        raise StackError(f"{settings.storage_dir} is not there: name the data folder with --data.")
    try:
        store = open_store(settings, probe=False)
        check = StoreCheck(store, RECORDS, JOB_RECORDS)
        return check.run(lambda report: say(f"Reading … {_in_short(report)}"))
    except StoreRefusedError as error:
        raise StackError(str(error)) from error
    except OSError as error:
        raise StackError(f"The storage does not answer: {error}") from error


def _in_short(report: StoreReport) -> str:
    return f"{report.jobs} jobs, {report.files} files, {report.bytes / 1e9:.1f} GB"


def as_json(report: StoreReport) -> str:
    return json.dumps({"ok": report.is_whole, **asdict(report)})


def show(report: StoreReport, console: Console) -> None:
    """Print what is wrong, what is lost first, and how much was read."""
    for finding in sorted(report.findings, key=lambda each: not each.is_problem):
        style = "red" if finding.is_problem else "yellow"
        line = Text.assemble((f"{finding.kind:<8}", style), f" {finding.key}  {finding.message}")
        console.print(line, soft_wrap=True)  # names are to be copied: whole, whatever the terminal's width
    console.print(f"Read {_in_short(report)}, {report.kept_files} kept files, {report.records} records.")
    if report.is_whole:
        console.print("Everything that is stored is whole.", style="green")
    else:
        count = sum(finding.is_problem for finding in report.findings)
        words = "1 thing is" if count == 1 else f"{count} things are"
        console.print(f"{words} wrong; docs/operations.md says what to do.", style="red")
