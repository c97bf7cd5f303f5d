"""Makes new jobs from stored ones: retry, extend, and redo from a clip on.

The new job has files of its own, with the content of those that both share, so either job can be deleted
without the other. Shared files are neither uploaded nor rendered again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from contract.choices import Preset
from contract.entries import ClipFinished
from contract.job import InputFiles, StoredFile, utcnow
from contract.params import RANDOM_SEED, GenerationParams, draw_seed
from contract.request import FILE_FIELDS, ExtendFields, RedoFields, RetryFields
from contract.state import Job
from contract.video import CLIP_FRAMES, video_length
from contract.warnings import JobWarning, warnings_about_frames, warnings_about_prompts
from jobs.journal import JobNotFound, file_key
from server.access import Principal
from server.delivery.files import finished_clip
from server.errors import ApiError
from server.idempotency import fingerprint
from server.services import Services
from server.submit.changes import receive_changes
from server.submit.check import (
    STORED_NAME,
    check_clips,
    check_prompts_fit,
    choose_card,
    highest_allowed,
)
from server.submit.kept import kept_file
from server.submit.longer_speech import AddedFile, join_speech, received_hash
from server.submit.prompt_tokens import warnings_about_length
from server.submit.receive import Scratch
from server.submit.save import MakeJob, NewJob, stored_file
from server.submit.submit import Order, place


@dataclass(frozen=True)
class Plan:
    """The differences between a job and the one that it is made from."""

    params: GenerationParams
    num_shared: int
    """How many clips, from the first on, the new job takes over."""
    warnings: tuple[JobWarning, ...]


@dataclass(frozen=True)
class JobsFrom:
    """Makes new jobs from the job `parent`."""

    parent: Job
    services: Services
    principal: Principal

    async def retry(self, request: Request, key: str | None) -> tuple[Job, bool]:
        """Repeat the request, and go on after the finished clips."""

        async def receive(space: Scratch) -> Order:
            await receive_changes(request, self.services, space, RetryFields)
            return self._order("retry", {}, {}, lambda: self._planned(self._plan_retry, space))

        return await place(request, key, self.services, self.principal, receive)

    async def redo(self, request: Request, key: str | None, clip: int) -> tuple[Job, bool]:
        """Render the clips from `clip` on again."""

        async def receive(space: Scratch) -> Order:
            changes, _ = await receive_changes(request, self.services, space, RedoFields)
            asked = {"clip": clip, **changes.model_dump(exclude_unset=True)}
            plan = partial(self._plan_redo, clip, changes)
            return self._order("redo", asked, {}, lambda: self._planned(plan, space))

        return await place(request, key, self.services, self.principal, receive)

    async def extend(self, request: Request, key: str | None) -> tuple[Job, bool]:
        """Make a longer video, with more speech after the job's own."""

        async def receive(space: Scratch) -> Order:
            changes, files = await receive_changes(request, self.services, space, ExtendFields, ["audio"])
            given, owner = files["audio"], self.principal.owner
            added: AddedFile
            if isinstance(given, str):
                added = await asyncio.to_thread(kept_file, "audio", given, self.services, owner)
            else:
                added = given
            asked, hashes = changes.model_dump(exclude_unset=True), {"audio": received_hash(added)}
            return self._order("extend", asked, hashes, lambda: self._extended(changes, added, space))

        return await place(request, key, self.services, self.principal, receive)

    def _order(
        self,
        action: str,
        asked: dict[str, object],
        hashes: dict[str, str],
        check: Callable[[], Awaitable[MakeJob]],
    ) -> Order:
        settings = {"action": action, "parent": self.parent.id, **asked}
        return Order(fingerprint(settings, hashes), check)

    # What becomes of the job

    async def _planned(self, plan: Callable[[], Plan], space: Scratch) -> MakeJob:
        return partial(self._new_job, await asyncio.to_thread(plan), space)

    def _plan_retry(self) -> Plan:
        job = self.parent
        if not job.state.is_terminal:
            raise ApiError("job_not_finished", f"The job {job.state.in_words}.", retry_after_s=2)
        return Plan(job.submitted.params, len(job.clips), job.submitted.warnings)

    def _plan_redo(self, clip: int, changes: RedoFields) -> Plan:
        params = self.parent.submitted.params
        if clip >= params.num_clips:
            raise ApiError("not_found", "The job has no such clip.")
        if clip > 0:
            finished_clip(self.parent, clip - 1)
        seed = changes.seed
        if seed is None and changes.prompt:
            seed = params.seed
        params = params.model_copy(
            update={
                "seed": draw_seed() if seed is None or seed == RANDOM_SEED else seed,
                "prompts": _replaced(params, clip, changes.prompt),
            }
        )
        about_rest = [warning for warning in self.parent.submitted.warnings if warning.field != "prompt"]
        return Plan(params, clip, (*about_rest, *self._about_prompts(params)))

    async def _extended(self, changes: ExtendFields, added: AddedFile, space: Scratch) -> MakeJob:
        job, services = self.parent, self.services
        if job.video is None:
            code = "no_result" if job.state.is_terminal else "job_not_finished"
            raise ApiError(code, f"Only a video can be extended: the job {job.state.in_words}.")
        params = job.submitted.params
        # A clip that the speech's end cut short is rendered again: no pause may stand before what follows.
        whole = min(params.num_frames // CLIP_FRAMES, len(job.clips))
        try:
            await space.on_disk(space.make_folder)
            before = await asyncio.to_thread(
                services.store.local_path, file_key(job.id, job.submitted.inputs.audio)
            )
            decoded = await join_speech(before, params, added, services, space)
        except FileNotFoundError as error:
            raise JobNotFound(job.id) from error
        speech = decoded.speech_length
        dropped = 0 if params.preset is Preset.PARITY else services.settings.max_dropped_frames
        num_clips, num_frames = video_length(speech, None, dropped)
        check_clips(num_clips, services.settings)
        prompts = _replaced(params, whole, changes.prompt)
        params = params.model_copy(
            update={"num_clips": num_clips, "num_frames": num_frames, "prompts": prompts}
        )

        def plan() -> Plan:
            about_photos = [w for w in job.submitted.warnings if w.field not in ("prompt", "audio")]
            about_speech = [*decoded.warnings, *warnings_about_frames(params, speech, dropped)]
            return Plan(params, whole, (*about_photos, *about_speech, *self._about_prompts(params)))

        return await self._planned(plan, space)

    def _about_prompts(self, params: GenerationParams) -> list[JobWarning]:
        """Check the prompts of the new job. Raises ApiError, FieldError."""
        check_prompts_fit(params.prompts, self.services.settings)
        prompts = [("prompt", prompt) for prompt in params.prompts]
        checkpoint = self.parent.submitted.checkpoint
        too_long = warnings_about_length(prompts, checkpoint, self.services.store)
        return [*warnings_about_prompts(params), *too_long]

    # Making it

    def _new_job(self, plan: Plan, space: Scratch) -> NewJob:
        """Raises ApiError, JobNotFound."""
        before, settings, principal = self.parent.submitted, self.services.settings, self.principal
        choose_card(self.services, before.checkpoint)
        space.make_folder()
        clips = self._shared_clips(plan, space)
        inputs = {
            field: stored_file(space.folder, *STORED_NAME[field])
            or self._shared(getattr(before.inputs, field), space)
            for field in FILE_FIELDS
        }
        changes = {
            "at": utcnow(),
            "owner": principal.owner,
            "params": plan.params,
            "inputs": InputFiles.model_validate(inputs),
            "thumbnail": self._shared(before.thumbnail, space),
            "priority": highest_allowed(before.priority, principal),
            "retention_s": min(before.retention_s, settings.retention_s),
            "cost": plan.params.cost(),
            "max_running": principal.limits.max_running,
            "received": {
                field: digest
                for field, digest in before.received.items()
                if inputs[field] == getattr(before.inputs, field)
            },
            "speech": before.speech if inputs["audio"] == before.inputs.audio else None,
            "warnings": plan.warnings,
            "keep_motion": settings.keep_motion,
            "parent": self.parent.id,
            "clips": clips,
        }
        return NewJob(space.folder, before.model_copy(update=changes))

    def _shared_clips(self, plan: Plan, space: Scratch) -> tuple[ClipFinished, ...]:
        """The clips that are taken over, with all their files, and the kept frames as far as needed."""
        clips, store = list(self.parent.clips[: plan.num_shared]), self.services.store
        for index, clip in enumerate(clips):
            motion, is_last = clip.motion, index == plan.num_shared - 1
            kept = motion is not None and store.exists(file_key(self.parent.id, motion))
            is_needed = is_last and plan.num_shared < plan.params.num_clips
            if is_needed and not kept:
                raise ApiError(
                    "motion_not_kept",
                    "The frames from which the next clip could continue were not kept with this job: see "
                    "COINTERACT_KEEP_MOTION. A job can be made anew from clip 0.",
                )
            if not kept or not (is_needed or self.services.settings.keep_motion):
                clip = clip.model_copy(update={"motion": None})
            for file in (*clip.shown_files, clip.motion):
                self._shared(file, space)
            seed = self.parent.submitted.params.seed + index if clip.seed is None else clip.seed
            clips[index] = clip.model_copy(update={"attempt": 0, "gpu_seconds": 0.0, "seed": seed})
        return tuple(clips)

    def _shared(self, file: StoredFile | None, space: Scratch) -> StoredFile | None:
        if file is None:
            return None
        try:
            self.services.store.share(file_key(self.parent.id, file), space.folder / file.name)
        except FileNotFoundError as error:
            raise JobNotFound(self.parent.id) from error
        return file


def _replaced(params: GenerationParams, clip: int, prompts: list[str]) -> tuple[str, ...]:
    """The prompts of a video, with the given ones in place of those from `clip` on."""
    if not prompts:
        return params.prompts
    before = [params.prompt_of(index) for index in range(clip)]
    return (*before, *prompts, *params.prompts[clip + len(prompts) :])
