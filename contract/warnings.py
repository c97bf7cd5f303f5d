"""What the sender of a request should know about it although it was accepted."""

from __future__ import annotations

from contract.choices import WarningCode
from contract.frozen import Frozen
from contract.params import GenerationParams
from contract.video import FPS, SpeechLength, frames_of_speech


class JobWarning(Frozen):
    """Something in the request is probably not what its sender meant, or was changed.

    `code` is one of `WarningCode` (a text, so that a newer server's journal can be read), `message` is for
    people, `field` names the field to look at.
    """

    code: str
    message: str
    field: str | None = None


def warnings_about_frames(
    params: GenerationParams, speech: SpeechLength, max_dropped_frames: int
) -> list[JobWarning]:
    """A warning if the end of the speech was dropped, because it is not worth a clip of its own."""
    dropped = frames_of_speech(speech.samples, speech.rate) - params.num_frames
    if not 0 < dropped <= max_dropped_frames:
        return []
    message = f"The last {dropped / FPS:.2f} s of the speech are dropped: they would take a whole clip more."
    return [JobWarning(code=WarningCode.FRAMES_DROPPED, message=message, field="audio")]


def warnings_about_prompts(params: GenerationParams) -> list[JobWarning]:
    """A warning if some prompts drive no clip."""
    unused = len(params.prompts) - params.num_clips
    if unused <= 0:
        return []
    clips = "1 clip" if params.num_clips == 1 else f"{params.num_clips} clips"
    message = f"The video has {clips}, so the last {unused} of {len(params.prompts)} prompts are not used."
    return [JobWarning(code=WarningCode.PROMPTS_UNUSED, message=message, field="prompt")]
