"""Jobs made from jobs, in the studio: redo from a clip on, extend, try again, and speech as a text."""

from __future__ import annotations

import pytest

from tests.server import test_speech_from_text
from tests.server.inputs import PERSON, audio_bytes
from tests.server.studio.conftest import THREE_CLIPS, Studio
from tools.browser import CONTROL, Page

pytestmark = pytest.mark.slow
Speaker = test_speech_from_text.Speaker
speaker = test_speech_from_text.speaker


async def opened(page: Page, job: str) -> None:
    await page.run(f"location.hash = 'job={job}'")
    await page.until("document.querySelectorAll('.clip').length > 0")


async def made_from(page: Page, studio: Studio, job: str) -> str:
    """The job that the studio has opened, once it is another one."""
    await page.until(f"/job_/.test(location.hash) && !location.hash.includes('{job}')")
    (new,) = [one for one in studio.jobs() if one != job]
    assert str(await page.run("location.hash")) == f"#job={new}"
    return new


@pytest.mark.parametrize("prompt", ["She drops it.", None])
def test_a_clip_is_redone_with_another_prompt_or_another_seed(studio: Studio, prompt: str | None) -> None:
    job = studio.submit(audio=THREE_CLIPS, prompt=["She lifts it.", "She turns it.", "She waves."], seed=7)
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await opened(page, job)
        await page.click("[aria-label='Redo from clip 2']")
        await page.until("document.activeElement.dataset.field === 'redo'")
        await page.says(".derive", "1 clip after it follows")
        if prompt is not None:
            await page.write("[data-field=redo]", prompt)
        await page.run("document.querySelector('[data-field=redo]').focus()")
        await page.press("Enter", CONTROL)
        new = await made_from(page, studio, job)
        state = studio.live.services.journal.read(new)
        assert state.submitted.params.prompt_of(0) == "She lifts it."
        assert state.submitted.params.prompt_of(1) == (prompt or "She turns it.")
        assert len(state.clips) == 1, "the first clip is shared"
        assert (state.submitted.params.seed == 7) is (prompt is not None)
        await page.says(".clip:nth-child(1)", "Ready")
        await page.click(".details summary")
        await page.says(".details", "She lifts it.")
        await page.says(f".row-job[data-id={new}]", "another take")
        assert "take" not in await page.text(f".row-job[data-id={job}]")

    studio.visit(visit)


def test_a_video_is_extended_by_a_recording(studio: Studio) -> None:
    job = studio.submit(audio=THREE_CLIPS)
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await opened(page, job)
        await page.click(".extend")
        await page.until("document.activeElement.dataset.field === 'extend'")
        await page.click("#record")
        await page.says("#record", "Stop · 1.")
        await page.click("#record")
        await page.says(".adding", "recording.wav")
        await page.write(".adding textarea", "She bows.")
        await page.click(".adding .primary")
        new = await made_from(page, studio, job)
        state = studio.live.services.journal.read(new)
        before = studio.live.services.journal.read(job).submitted.params.num_frames
        assert state.submitted.params.num_frames > before
        assert state.submitted.params.prompts[-1] == "She bows."
        await page.says(f".row-job[data-id={new}]", "extended")

    studio.visit(visit)


def test_a_long_video_can_be_extended_without_looking_for_the_button(studio: Studio) -> None:
    job = studio.submit(audio=audio_bytes(seconds=25))
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await opened(page, job)
        await page.until("document.querySelector('.extend')")
        for width in (1440, 768):
            await page.resize(width, 900)
            timeline = "document.querySelector('.timeline')"
            assert await page.run(f"{timeline}.scrollWidth > {timeline}.clientWidth"), (
                "more than there is room for"
            )
            box = "document.querySelector('.extend').getBoundingClientRect()"
            assert await page.run(f"{box}.right <= {timeline}.getBoundingClientRect().right"), width

    studio.visit(visit)


def test_a_refused_extension_says_why_and_a_lost_answer_is_found_again(studio: Studio) -> None:
    job = studio.submit(audio=THREE_CLIPS)
    studio.succeed(job)
    text = studio.file("notes.wav", b"not a sound at all" * 9)
    speech = studio.file("more.wav", audio_bytes(seconds=2))

    async def visit(page: Page) -> None:
        await opened(page, job)
        await page.click(".extend")
        await page.choose_file("[data-field=extend]", text)
        await page.says("#error-extend", "Choose WAV")
        await page.choose_file("[data-field=extend]", speech)
        await page.says(".adding", "more.wav")
        await page.lose_answers()
        page.lost.append("*/extend")
        await page.click(".adding .primary")
        await page.says("#error-extend", "cannot be reached")
        await page.click(".adding .primary")
        await made_from(page, studio, job)

    studio.visit(visit)


def test_a_failed_job_is_tried_again(studio: Studio) -> None:
    job = studio.submit(audio=THREE_CLIPS)
    studio.start(job)
    studio.finish_clip(job, 0)
    studio.fail(job, started=True)

    async def visit(page: Page) -> None:
        await opened(page, job)
        await page.says(".panel", "The finished clips can still be watched.")
        await page.click("[data-field=retry]")
        new = await made_from(page, studio, job)
        assert len(studio.live.services.journal.read(new).clips) == 1

    studio.visit(visit)


def test_where_the_server_can_speak_the_speech_may_be_a_text(
    studio: Studio, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = studio.live.services

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('[data-field=size]')")
        assert await page.run("document.querySelector('.ways') === null"), "this server cannot"
        speaking = {"speech_url": speaker.url, "speech_voices": ("anna", "ben")}
        monkeypatch.setattr(services, "settings", services.settings.model_copy(update=speaking))
        await page.call("Page.reload")
        await page.click(".ways button:nth-child(2)")
        await page.choose_file("[name=person_image]", studio.file("person.png", PERSON))
        await page.write(".speech textarea", "Look at this can. " * 3)
        await page.write(".speech select", "ben")
        await page.write(".slice textarea", "She lifts it.")
        await page.says("footer", "5.4 s · 2 clips")
        await page.write(".slice:nth-child(2) textarea", "She waves.")
        assert await page.run("document.querySelectorAll('.slice textarea').length") == 2, (
            "while it is checked"
        )
        await page.click("[data-field=make]")
        await page.until("location.hash.startsWith('#job=')")
        assert studio.prompts_of(studio.jobs()[0]) == ["She lifts it.", "She waves."]

    studio.visit(visit)
    assert speaker.asked[-1]["voice"] == "ben"
    assert speaker.asked[-1]["input"].startswith("Look at this can.")


def test_the_example_fills_everything_and_makes_a_video(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await page.click(".invitation .try")
        await page.until("document.querySelectorAll('.ingredient img').length === 2")
        await page.says("footer", "9.6 s · 3 clips")
        await page.until("document.activeElement.dataset.field === 'make'")
        await page.press("Enter")
        await page.until("location.hash.startsWith('#job=')")
        assert len(studio.prompts_of(studio.jobs()[0])) == 3
        assert page.complaints == []

    studio.visit(visit)


def test_a_video_gets_a_name_and_keeps_the_focus(studio: Studio) -> None:
    job = studio.submit()
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await opened(page, job)
        await page.click("[data-field=rename]")
        await page.until("document.activeElement.dataset.field === 'title'")
        await page.write("[data-field=title]", "Green can, take two")
        await page.press("Enter")
        await page.says(".row-title", "Green can, take two")
        await page.until("document.activeElement.dataset.field === 'rename'")
        await page.call("Page.reload")
        await page.says(".row-title", "Green can, take two")

    studio.visit(visit)
