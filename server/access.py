"""Who is asking, and what they may do. Every route of a job goes through `owned_job`, for which other
people's jobs do not exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Path, Query, Request, Security
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from contract.job import JOB_ID, Priority
from contract.network import is_loopback, network_of
from contract.settings import Settings
from contract.state import Job
from jobs.journal import JobNotFound, UnreadableJob
from server.errors import ApiError
from server.keys import ANONYMOUS_OWNER, KeyLimits, Scope, any_keys, authenticate
from server.services import Services

_bearer = HTTPBearer(
    auto_error=False, description="An API key (`cointeract keys create`). Not needed while there is none."
)


@dataclass(frozen=True)
class Principal:
    """Who is asking. `owner` marks the jobs they submit."""

    owner: str
    scopes: frozenset[Scope]
    limits: KeyLimits
    highest_priority: Priority

    @property
    def is_admin(self) -> bool:
        return Scope.ADMIN in self.scopes

    def may_see(self, job: Job) -> bool:
        return self.is_admin or job.submitted.owner == self.owner


def tenant_of(principal: Principal, request: Request) -> str:
    """Whose share of the capacity a request takes: the key's or, without keys, the client's address."""
    if principal.owner != ANONYMOUS_OWNER or request.client is None:
        return principal.owner
    return f"{ANONYMOUS_OWNER} {network_of(request.client.host)}"


ANONYMOUS: Final = Principal(ANONYMOUS_OWNER, frozenset(Scope), KeyLimits(), Priority.HIGH)


async def services_of(request: Request) -> Services:  # async: not worth a thread
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(services_of)]


Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def identified(services: Services, credentials: HTTPAuthorizationCredentials | None) -> Principal:
    """The owner of the key in the request, or anybody while no key exists. Raises ApiError (401)."""
    if credentials is None:
        if any_keys(services.store):
            raise ApiError("unauthorized", "Send an API key: `Authorization: Bearer ck_…`.")
        return ANONYMOUS
    key = authenticate(services.store, credentials.credentials)
    if key is None:
        if not any_keys(services.store):
            return ANONYMOUS  # clients such as OpenAI's always send some key
        raise ApiError("unauthorized", "This API key is not valid.")
    services.loop_shares.recognise(credentials.credentials, key.id)
    return Principal(key.id, frozenset(key.scopes), key.limits, key.highest_priority)


def is_asked_by_admin(services: Services, credentials: HTTPAuthorizationCredentials | None) -> bool:
    """Whether an admin asks, on a route that answers everybody."""
    try:
        return identified(services, credentials).is_admin
    except ApiError:
        return False


async def principal_of(services: ServicesOf, credentials: Credentials) -> Principal:
    return await services.look(identified, services, credentials)


def with_scope(principal: Principal, scope: Scope) -> Principal:
    """The principal, if it has `scope`. Raises ApiError (403) otherwise."""
    if scope not in principal.scopes and not principal.is_admin:
        raise ApiError("insufficient_scope", f"This key lacks the scope {scope.value!r}.", limit=scope.value)
    return principal


def requires(scope: Scope) -> Callable[[Principal], Awaitable[Principal]]:
    """`with_scope` as a dependency."""

    async def check(principal: Annotated[Principal, Depends(principal_of)]) -> Principal:
        return with_scope(principal, scope)

    return check


Submitter = Annotated[Principal, Depends(requires(Scope.SUBMIT))]
Reader = Annotated[Principal, Depends(requires(Scope.READ))]
Admin = Annotated[Principal, Depends(requires(Scope.ADMIN))]
SignedQuery = Annotated[str | None, Query(description="Of a signed URL.")]
JobId = Annotated[str, Path(description="Id of a job: `job_` and 36 letters and digits.")]


def stored_job(job_id: str, services: Services) -> Job:
    """The job. Raises JobNotFound; what is no id at all names no job either."""
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(job_id)
    return services.journal.read(job_id)


def owned_job(job_id: str, services: Services, principal: Principal) -> Job:
    """The job, if the principal may see it. Otherwise raises JobNotFound, as if there were no such job; to
    its owner also UnreadableJob.
    """
    try:
        job = stored_job(job_id, services)
    except UnreadableJob as error:
        if principal.is_admin or (error.submitted is not None and error.submitted.owner == principal.owner):
            raise
        raise JobNotFound(job_id) from error
    if not principal.may_see(job):
        raise JobNotFound(job_id)
    return job


def read_job(job_id: JobId, services: ServicesOf, principal: Reader) -> Job:
    return owned_job(job_id, services, principal)


def writable_job(job_id: JobId, services: ServicesOf, principal: Submitter) -> Job:
    return owned_job(job_id, services, principal)


def downloadable_job(
    request: Request,
    job_id: JobId,
    services: ServicesOf,
    credentials: Credentials,
    expires: SignedQuery = None,
    signature: SignedQuery = None,
) -> Job:
    """The job whose file is asked for, either with a key or by a signed URL."""
    if signature is None:
        return owned_job(job_id, services, with_scope(identified(services, credentials), Scope.READ))
    if not services.signer.verify(request.url.path, expires or "", signature):
        raise ApiError("bad_signature", "The link is forged or has expired; ask for a new one.")
    return stored_job(job_id, services)


def watcher_of(
    request: Request,
    job: Annotated[Job, Depends(downloadable_job)],
    services: ServicesOf,
    credentials: Credentials,
) -> Principal:
    """Who watches `job`: by a signed URL, its owner, whose share of the capacity this takes."""
    if "signature" in request.query_params:
        return Principal(job.submitted.owner, frozenset({Scope.READ}), KeyLimits(), Priority.LOW)
    return identified(services, credentials)


ReadableJob = Annotated[Job, Depends(read_job)]
WritableJob = Annotated[Job, Depends(writable_job)]
DownloadableJob = Annotated[Job, Depends(downloadable_job)]
Watcher = Annotated[Principal, Depends(watcher_of)]


def why_not_to_start(settings: Settings, keys_exist: bool) -> str | None:
    """Why this configuration would let strangers in, or None if it does not."""
    if keys_exist or settings.allow_anonymous or is_loopback(settings.host):
        return None
    return (
        f"Refusing to listen on {settings.host} without API keys: anybody who reaches this machine could "
        "use it. Create a key (`cointeract keys create`), listen on 127.0.0.1, or set "
        "COINTERACT_ALLOW_ANONYMOUS=true if the network is closed by other means."
    )
