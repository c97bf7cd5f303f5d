"""Sample inputs for newcomers: photos, speech and prompts that come with the program."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import Request, Response

from server.access import ServicesOf
from server.delivery.conditional import conditional_file
from server.errors import ApiError
from server.openapi import PROBLEM, file_of
from server.routing import Router
from server.schemas import ExampleList, ExampleView

EXAMPLES: Final = Path(__file__).parents[2] / "deploy" / "inputs"
"""The samples lie with what the program is shipped with; `deploy.samples` says what they are."""
EXAMPLE_PROMPTS: Final = "prompts.txt"
EXAMPLE_TYPES: Final = {"person.png": "image/png", "product.png": "image/png", "speech.wav": "audio/wav"}
router = Router(prefix="/v1/examples", tags=["examples"], responses=PROBLEM)


@router.get("", response_model=ExampleList, summary="List examples")
def list_examples(services: ServicesOf) -> ExampleList:
    """Inputs to try the service with. Needs no key."""
    if not all((EXAMPLES / name).is_file() for name in (*EXAMPLE_TYPES, EXAMPLE_PROMPTS)):
        return ExampleList(data=[])
    at = f"{services.settings.base_url}/v1/examples"
    example = ExampleView(
        title="A presenter and a green can",
        prompts=(EXAMPLES / EXAMPLE_PROMPTS).read_text(encoding="utf-8").splitlines(),
        person_image=f"{at}/person.png",
        product_image=f"{at}/product.png",
        audio=f"{at}/speech.wav",
    )
    return ExampleList(data=[example])


@router.get(
    "/{name}",
    summary="Get an example's file",
    response_class=Response,
    responses=file_of(*dict.fromkeys(EXAMPLE_TYPES.values())),
)
def get_example_file(name: str, request: Request) -> Response:
    """A photo or the speech of an example. Needs no key."""
    path = EXAMPLES / name
    if name not in EXAMPLE_TYPES or not path.is_file():
        raise ApiError("not_found", "There is no such file.")
    headers = {"Cache-Control": "no-cache", "Cross-Origin-Resource-Policy": "cross-origin"}
    return conditional_file(path, request, path.stat(), EXAMPLE_TYPES[name], headers)
