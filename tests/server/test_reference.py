"""docs/api.md and docs/errors.md are complete."""

from __future__ import annotations

import re
from pathlib import Path

from contract.choices import WarningCode
from contract.request import FILE_FIELDS, GenerateFields
from server.errors import STATUS_OF_CODE, TITLE_OF_STATUS, ApiError
from tests.server.conftest import Api

ROOT = Path(__file__).parents[2]


def rows(file: str) -> dict[str, list[str]]:
    """First cell of each table row of a document, and the others."""
    text = (ROOT / "docs" / file).read_text()
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in cells}


def test_every_route_is_documented_and_no_other(api: Api) -> None:
    paths = api.app.openapi()["paths"]
    routes = {f"`{method.upper()} {path}`" for path, methods in paths.items() for method in methods}
    assert routes == {name for name in rows("api.md") if re.match(r"`(GET|POST|PATCH|DELETE) ", name)}


def test_every_field_of_a_submit_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", " ".join(rows("api.md"))))
    assert {*GenerateFields.model_fields, *FILE_FIELDS} <= documented


def test_every_error_code_is_documented_with_its_status() -> None:
    documented = {name.strip("`"): row[0] for name, row in rows("errors.md").items() if name.startswith("`")}
    assert documented == {code: str(status) for code, status in STATUS_OF_CODE.items()}


def test_every_warning_is_documented_and_no_other() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    section = page.partition("`warnings` of a job")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, flags=re.MULTILINE)) == {str(code) for code in WarningCode}


def test_every_error_code_is_used_and_every_one_used_is_known() -> None:
    sources = "\n".join(
        path.read_text()
        for folder in ("server", "contract")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "errors.py"
    )
    own = (ROOT / "server" / "errors.py").read_text()
    used = set(re.findall(r'(?:ApiError|FieldError|RejectedFileError)\(\s*"(\w+)"', sources + own))
    assert used <= set(STATUS_OF_CODE)
    for code in STATUS_OF_CODE:
        assert code in used or f'"{code}"' in sources, f"nothing ever answers {code}"


def test_every_status_has_a_title_and_a_problem_document_of_the_standard_form() -> None:
    for code, status in STATUS_OF_CODE.items():
        body = ApiError(code, "detail", field="seed", limit=3).body()
        assert body["title"] == TITLE_OF_STATUS[status]
        assert (body["type"], body["status"]) == (f"urn:cointeract:error:{code}", status)
        assert (body["field"], body["limit"]) == ("seed", 3)
