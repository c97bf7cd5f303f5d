"""Receives the changes for a job that is made from another."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request

from contract.form import REPEATABLE, values_of_form
from contract.request import Changes, FieldError, changes_of
from server.body import has_body
from server.services import Services
from server.submit.multipart import FormRules
from server.submit.receive import (
    GivenFile,
    Scratch,
    body_type,
    file_limits,
    from_urls,
    receive_form,
    receive_json,
    take_urls,
)


async def receive_changes(
    request: Request,
    services: Services,
    scratch: Scratch,
    model: type[Changes],
    files: Collection[str] = (),
) -> tuple[Changes, Mapping[str, GivenFile]]:
    """The changes, and the files of the fields `files`, all of which are required.

    A request without a body changes nothing. Raises ApiError, FieldError, ClientDisconnect.
    """
    values: dict[str, Any] = {}
    received: Mapping[str, GivenFile] = {}
    if "content-type" not in request.headers and not await has_body(request):
        pass
    elif body_type(request) == "multipart/form-data":
        limits = {field: limit for field, limit in file_limits(services).items() if field in files}
        names = frozenset({*model.model_fields, *files})
        rules = FormRules(limits, names, REPEATABLE & names)
        form = await receive_form(request, scratch, rules, services.settings)
        given = {name: form.texts[name][0] for name in form.texts if name in files and form.texts[name][0]}
        values = values_of_form({name: form.texts[name] for name in form.texts if name not in files})
        received = {**form.files, **await from_urls(given, services, scratch)}
    else:
        values, received = await receive_json(request, services, scratch, partial(take_urls, fields=files))
    for field in files:
        if field not in received:
            raise FieldError("missing_field", "The request has no file in this field; send one.", field)
    return changes_of(values, model), received
