"""Whether the service lives, whether it can work, and with which checkpoints."""

from __future__ import annotations

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse

from jobs.cards import read_cards
from server.access import Admin, Credentials, Reader, ServicesOf, is_asked_by_admin
from server.metrics import Now
from server.openapi import PROBLEM
from server.routing import Router
from server.schemas import Health, ModelList, Readiness
from server.submit.check import choose_card
from server.views import model_view

router = Router(responses=PROBLEM)


@router.get("/healthz", tags=["health"], response_model=Health, summary="Is the process alive?")
async def healthz() -> Health:
    return Health()


@router.get(
    "/readyz", tags=["health"], response_model=Readiness, summary="Would a job be rendered soon?",
    responses={503: {"model": Readiness, "description": "Something is missing."}},
)  # fmt: skip
def readyz(services: ServicesOf, credentials: Credentials) -> Response:
    """200 if Redis answers, storage can be written and has room, and a worker lives that can work.

    503 says which of these is missing. `problems` name files: they are for admins, or for everybody while
    there are no keys.
    """
    workers = services.hints.workers()
    failing = sum(worker.problem is not None for worker in workers or ())
    able = len(workers or ()) - failing
    storage = services.storage.problem() is None
    ready = able > 0 and storage
    state = Readiness(
        ready=ready,
        redis=workers is not None,
        storage=storage,
        workers=able,
        failing_workers=failing,
        problems=services.hints.problems() if is_asked_by_admin(services, credentials) else [],
    )
    headers = {} if ready else {"Retry-After": "5"}
    return JSONResponse(state.model_dump(), status_code=200 if ready else 503, headers=headers)


@router.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=Response, responses={
    200: {"description": "Prometheus text format.", "content": {"text/plain": {}}},
})  # fmt: skip
def metrics(services: ServicesOf, principal: Admin) -> Response:
    """Needs an admin's key, once there are keys."""
    try:
        free = services.store.free_bytes()
    except OSError:
        free = -1
    now = Now(
        jobs=services.index.counts(),
        unfinished=services.index.unfinished(),
        free_bytes=free,
        storage_works=services.storage.problem() is None,
        passed_over=services.store.passed_over.counts(),
        workers=services.hints.workers(),
        problems=services.hints.problems(),
    )
    return Response(services.metrics.render(now), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/v1/models", tags=["models"], response_model=ModelList, summary="List checkpoints")
def list_models(services: ServicesOf, principal: Reader) -> ModelList:
    """The checkpoints that workers have, and what each of them accepts."""
    cards = read_cards(services.store)
    default = choose_card(services, None).name if cards else None
    ordered = sorted(cards.values(), key=lambda card: card.name)
    voices = list(services.settings.speech_voices) if services.settings.speech_url else []
    return ModelList(data=[model_view(card, card.name == default) for card in ordered], voices=voices)
