"""Faults that the page before the studio had: each was seen in a browser, and none may come back."""

from __future__ import annotations

import asyncio
import json

import pytest

from contract.choices import Preset
from jobs.cards import publish_card
from server.keys import Scope
from tests.server.conftest import CARD, Live
from tests.server.inputs import PERSON, audio_bytes, image_bytes, video_bytes
from tests.server.studio.conftest import Studio
from tools.browser import CONTROL, Page

pytestmark = pytest.mark.slow

# Everything that the microphone gives out, so that a test can see whether it is still on.
WATCH_MICROPHONE = """
window.streams = [];
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
  const stream = await ask(wanted);
  window.streams.push(stream);
  return stream;
};
"""
MICROPHONE_IS_ON = "streams.some((stream) => stream.getTracks().some((track) => track.readyState === 'live'))"


def use_key(token: str) -> str:
    return f"sessionStorage.setItem('key', {json.dumps(token)});"


def go(job_id: str) -> str:
    return f"location.hash = 'job={job_id}'"


async def make(page: Page) -> None:
    await page.click("[data-field=make]")


# --- one job's things never appear under another -----------------------------------------------------------


def test_a_late_answer_never_shows_one_jobs_video_under_another(studio: Studio) -> None:
    token = studio.key()
    made, canceled = studio.submit(token), studio.submit(token)
    studio.succeed(made)

    async def visit(page: Page) -> None:
        held = asyncio.Event()
        late: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def hold(details: dict[str, str]) -> None:
            late.set_result(details["requestId"])
            held.set()

        page.on("Fetch.requestPaused", hold)  # type: ignore[arg-type]
        address = f"*{made}/signed-urls"
        await page.call("Fetch.enable", patterns=[{"urlPattern": address, "requestStage": "Response"}])
        await page.run(go(made))
        await asyncio.wait_for(held.wait(), 10)
        await page.run(go(canceled))
        await page.click("footer button:not(.primary)")
        await page.says(".panel h2", "Canceled")
        await page.call("Fetch.continueRequest", requestId=await late)
        await asyncio.sleep(0.5)
        assert await page.run("document.querySelectorAll('.stage video').length") == 0
        await page.run(go(made))
        await page.until(f"document.querySelector('video')?.dataset.job === {json.dumps(made)}")

    studio.visit(visit, script=use_key(token))


def test_a_rendering_job_is_never_called_waiting(studio: Studio) -> None:
    job = studio.submit()

    async def visit(page: Page) -> None:
        await page.says(".row-job .meta", "Waiting")
        studio.start(job)
        await page.says(".row-job .meta", "Making")
        await page.run(go(job))
        await page.says(".panel h2", "Making your video")
        assert "Waiting" not in await page.text(".row-job")

    studio.visit(visit)


def test_a_finished_jobs_video_comes_although_one_request_for_it_fails(studio: Studio) -> None:
    token = studio.key()
    job = studio.submit(token)
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await page.lose_answers()
        page.lost.append("*/signed-urls")
        await page.run(go(job))
        await page.says(".veil", "Trying again")
        await page.until("document.querySelector('video')?.readyState >= 2")
        assert page.lost == []

    studio.visit(visit, script=use_key(token))


def test_an_answer_that_breaks_off_is_no_answer(studio: Studio) -> None:
    cut = (
        "(async () => { const { call } = await import('/static/studio/api.js'); const real = window.fetch;"
        "const body = new ReadableStream({ start: (stream) => stream.error(new TypeError('cut')) });"
        "window.fetch = async () => new Response(body, { status: 200 });"
        "try { return await call('/v1/jobs/x'); } catch (error) { return error.constructor.name; }"
        "finally { window.fetch = real; } })()"
    )

    async def visit(page: Page) -> None:
        assert await page.run(cut) == "NoAnswer"

    studio.visit(visit)


# --- sending -----------------------------------------------------------------------------------------------


def test_a_lost_answer_is_found_again_under_its_key(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await studio.fill(page)
        await page.lose_answers()
        page.lost.append("*/v1/generate")
        await make(page)
        await page.until("location.hash.startsWith('#job=')")
        assert page.lost == []
        assert len(studio.jobs()) == 1

    studio.visit(visit)


@pytest.mark.parametrize("change", ["chosen", "dropped", "recorded", "removed"])
def test_after_a_lost_answer_a_changed_request_is_a_new_one(studio: Studio, change: str) -> None:
    other = studio.file("other.png", image_bytes(size=(80, 120)))

    async def visit(page: Page) -> None:
        await studio.fill(page)
        await page.lose_answers()
        page.lost.extend(["*/v1/generate"] * 20)
        await make(page)
        await page.says(".outlook", "No connection")
        await page.click("footer button")  # stop
        page.lost.clear()
        match change:
            case "chosen":
                await page.choose_file(".ingredient input[data-field=person_image]", other)
                await page.until("document.querySelector('.ingredient img').alt.includes('other.png')")
            case "dropped":
                await page.run(
                    "(async () => { const data = new DataTransfer();"
                    "const canvas = new OffscreenCanvas(90, 140);"
                    "canvas.getContext('2d').fillRect(0, 0, 9, 9);"
                    "data.items.add(new File([await canvas.convertToBlob()], 'dropped.png'));"
                    "document.querySelector('[data-drop=person_image] .frame').dispatchEvent("
                    "new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })); })()"
                )
                await page.until("document.querySelector('.ingredient img').alt.includes('dropped.png')")
            case "recorded":
                await page.click("#record")
                await page.says("#record", "Stop")
                await asyncio.sleep(0.7)
                await page.click("#record")
                await page.says(".file-name", "recording.wav")
            case "removed":
                await page.click("[aria-label='Remove the photo: Product']")
        await make(page)
        await page.until("location.hash.startsWith('#job=')")
        assert len(studio.jobs()) == 2, "the first one had arrived"

    studio.visit(visit)


def test_an_empty_second_prompt_leaves_the_third_in_its_place(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await studio.fill(page, prompts=("She lifts it.", "", "She waves."))
        assert await page.run("document.querySelectorAll('.slice textarea')[1].placeholder") == "As before"
        await make(page)
        await page.until("location.hash.startsWith('#job=')")
        assert studio.prompts_of(studio.jobs()[0]) == ["She lifts it.", "She lifts it.", "She waves."]
        await page.says(".clip:nth-child(2)", "As before")

    studio.visit(visit)


def test_while_offline_the_draft_stays_and_is_sent_once_when_the_connection_is_back(studio: Studio) -> None:
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}

    async def visit(page: Page) -> None:
        await studio.fill(page)
        await page.call("Network.enable")
        await page.call("Network.emulateNetworkConditions", **offline)
        await make(page)
        await page.says(".banner", "No connection")
        await page.says(".outlook", "sent again")
        await page.call("Network.emulateNetworkConditions", **{**offline, "offline": False})
        await page.until("location.hash.startsWith('#job=')")
        assert len(studio.jobs()) == 1
        await page.until("document.querySelector('.banner') === null")

    studio.visit(visit)


# --- the microphone ----------------------------------------------------------------------------------------


def test_a_double_click_on_record_does_not_leave_the_microphone_on(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await page.says("#record", "Record")
        await page.run(
            "(() => { const button = document.querySelector('#record'); button.click(); button.click(); })()"
        )
        await page.until("streams.length === 1")
        await page.until(f"!({MICROPHONE_IS_ON})")
        await page.says("#record", "Record")

    studio.visit(visit, script=WATCH_MICROPHONE)


def test_a_recording_becomes_the_speech_and_the_microphone_is_released(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await page.click("#record")
        await page.says("#record", "Stop · 0.")
        assert await page.run(MICROPHONE_IS_ON)
        await asyncio.sleep(0.8)
        await page.click("#record")
        await page.says(".file-name", "recording.wav")
        assert not await page.run(MICROPHONE_IS_ON)
        await page.until("document.querySelector('.trim canvas').width > 0")

    studio.visit(visit, script=WATCH_MICROPHONE)


@pytest.mark.parametrize("leave", ["to another video", "by giving up an extension"])
def test_a_recording_that_nobody_waits_for_any_more_ends(studio: Studio, leave: str) -> None:
    job = studio.submit()
    studio.succeed(job)

    async def visit(page: Page) -> None:
        if leave == "by giving up an extension":
            await page.run(go(job))
            await page.click(".extend")
        await page.click("#record")
        await page.says("#record", "Stop")
        assert await page.run(MICROPHONE_IS_ON)
        if leave == "by giving up an extension":
            await page.click(".adding .row:last-child button:not(.primary)")
        else:
            await page.run(go(job))
        await page.until("document.querySelector('#record') === null")
        await page.until(f"!({MICROPHONE_IS_ON})")
        await page.run("location.hash = ''")
        await page.says("#record", "Record")
        assert await page.run("document.querySelector('.file-name') === null")

    studio.visit(visit, script=WATCH_MICROPHONE)


@pytest.mark.parametrize("where", [".speech", ".adding"])
def test_without_permission_the_microphone_is_explained_beside_the_button(studio: Studio, where: str) -> None:
    job = studio.submit()
    studio.succeed(job)
    refuse = "navigator.mediaDevices.getUserMedia = async () => { throw new Error('not allowed'); };"

    async def visit(page: Page) -> None:
        if where == ".adding":
            await page.run(go(job))
            await page.click(".extend")
        await page.click(f"{where} #record")
        await page.says(f"{where} .error", "Allow it in the browser, or choose a file.")
        await page.says("#record", "Record")

    studio.visit(visit, script=refuse)


# --- what is told, and when --------------------------------------------------------------------------------


def test_a_page_opened_before_any_worker_fills_itself_when_one_comes(studio: Studio) -> None:
    folder = studio.api.store.root / "checkpoints"
    for path in folder.iterdir():
        path.unlink()

    async def visit(page: Page) -> None:
        await page.says(".panel", "no model yet")
        await page.says("footer", "Waiting for a worker")
        publish_card(studio.live.services.store, CARD)
        await page.until("document.querySelector('[data-field=size]')?.options.length === 2")
        assert await page.run("document.querySelector('[data-field=preset]').options.length") > 1

    studio.visit(visit)


def test_a_text_file_is_refused_before_anything_is_sent_and_never_shown_as_a_picture(studio: Studio) -> None:
    text = studio.file("notes.png", b"These are notes, not a picture. " * 20)

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('[name=person_image]')")
        await page.choose_file("[name=person_image]", text)
        await page.says("#error-person_image", "Choose JPEG, PNG, WebP, HEIC or AVIF.")
        await page.choose_file("[name=audio]", text)
        await page.says("#error-audio", "Choose WAV")
        assert await page.run("document.querySelectorAll('.ingredient img').length") == 0
        field = "document.querySelector('[name=person_image]')"
        assert await page.run(f"{field}.getAttribute('aria-invalid')") == "true"
        assert await page.run(f"{field}.getAttribute('aria-describedby')") == "error-person_image"

    studio.visit(visit)
    assert studio.jobs() == []


def test_a_photo_beyond_the_servers_limits_is_refused_with_the_limit(studio: Studio) -> None:
    small = studio.file("small.png", image_bytes(size=(20, 200)))

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('[data-field=size]')")
        await page.choose_file("[name=person_image]", small)
        await page.says("#error-person_image", "at least 32 pixels wide and high")

    studio.visit(visit)


def test_a_refusal_of_the_server_stands_beside_its_field_in_words_and_has_the_focus(studio: Studio) -> None:
    # Begins like HEIC, so the page lets it pass: it cannot show these.
    broken = studio.file("broken.heic", b"\0\0\0\x18ftypheic" + b"\0" * 300)

    async def visit(page: Page) -> None:
        await studio.fill(page)
        await page.choose_file(".ingredient input[data-field=person_image]", broken)
        await page.says(".unseen", "The server can read it")
        await make(page)
        await page.says("#error-person_image", "This photo cannot be read.")
        await page.until("document.activeElement.dataset.field === 'person_image'")
        assert "person_image" not in await page.run("document.body.innerText")

    studio.visit(visit)
    assert studio.jobs() == []


def test_what_is_missing_is_named_and_focused_and_a_number_is_told_its_limits(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await page.until("document.querySelector('[data-field=size]')")
        await make(page)
        await page.says("#error-person_image", "Add a photo of the person.")
        await page.until("document.activeElement.dataset.field === 'person_image'")
        await page.says("#error-audio", "record it")
        await page.says("#error-prompt", "first scene")
        await page.write("[data-field=num_inference_steps]", "1000")
        await page.until("document.querySelector('#error-num_inference_steps')")
        error = await page.run("document.querySelector('#error-num_inference_steps').textContent")
        assert error == "Steps goes from 1 to 100."
        await page.write("[data-field=seed]", "1.5")
        await page.until(
            "document.querySelector('#error-seed')?.textContent.startsWith('Seed is a whole number')"
        )

    studio.visit(visit)


def test_speech_that_is_too_long_can_be_trimmed(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await studio.fill(page, speech=audio_bytes(seconds=301, rate=8000), prompts=("A",))
        await page.says("footer", "95 clips")
        await make(page)
        await page.says("#error-audio", "at most 5 min. Trim it")
        await page.write(".trim .to", "5")
        await page.says("footer", "2 clips")
        await make(page)
        await page.until("location.hash.startsWith('#job=')")
        job = studio.live.services.journal.read(studio.jobs()[0])
        assert job.submitted.params.num_frames == 125

    studio.visit(visit)


def test_the_note_of_a_toy_checkpoint_is_there_once(studio: Studio) -> None:
    job = studio.submit()
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await page.run(go(job))
        await page.until("document.querySelector('video')")
        text = await page.run("document.body.textContent")
        assert text.count(CARD.note) == 1
        assert "untrained" not in text
        await page.click(".menu summary")
        assert CARD.note in await page.text(".menu")

    studio.visit(visit)


def test_prompts_are_shown_as_text_and_never_as_markup(studio: Studio) -> None:
    job = studio.submit(prompt=["<img src=x onerror=alert(1)> <b>shows</b> a cup"])

    async def visit(page: Page) -> None:
        await page.run(go(job))
        await page.says(".title-line", "<b>shows</b>")
        await page.says(".row-title", "<img src=x")
        assert (
            await page.run("document.querySelectorAll('main b b, .row-title b, .title-line b').length") == 0
        )
        assert page.complaints == []

    studio.visit(visit)


# --- what is kept, and what can be taken back --------------------------------------------------------------


def test_a_reload_keeps_the_draft_with_its_photos_and_speech(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await studio.fill(page, prompts=("She lifts it.", "", "She waves."))
        await page.write("footer select", "fast")
        await page.says("footer", "9.0 s · 3 clips")
        await asyncio.sleep(0.5)
        await page.call("Page.reload")
        await page.until("document.querySelectorAll('.ingredient img').length === 2")
        await page.until("document.querySelectorAll('.slice textarea')[2]?.value === 'She waves.'")
        await page.until("document.querySelector('footer select')?.value === 'fast'")
        await page.until("document.querySelector('.ingredient img').naturalWidth === 64")
        await make(page)
        await page.until("location.hash.startsWith('#job=')")
        job = studio.live.services.journal.read(studio.jobs()[0])
        assert job.submitted.params.preset is Preset.FAST

    studio.visit(visit)


def test_every_ingredient_can_be_removed_and_the_focus_stays_near(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await studio.fill(page)
        for label, field in (
            ("Remove the photo: Person", "person_image"),
            ("Remove the photo: Product", "product_image"),
            ("Remove the speech", "audio"),
        ):
            await page.run(f"document.querySelector(`[aria-label='{label}']`).focus()")
            await page.press("Enter")
            await page.until(f"document.activeElement.dataset.field === '{field}'")
        await page.says("footer", "Still needed: a photo of the person and speech")

    studio.visit(visit)


def test_a_deleted_video_can_be_brought_back_and_the_focus_is_never_lost(studio: Studio) -> None:
    jobs = [studio.submit(), studio.submit()]
    for job in jobs:
        studio.succeed(job)

    async def visit(page: Page) -> None:
        await page.until("document.querySelectorAll('.row-job').length === 2")
        await page.run("document.querySelector('.row-job .icon-button').focus()")
        await page.press("Enter")
        await page.until("document.querySelectorAll('.row-job').length === 1")
        assert await page.run("document.activeElement !== document.body")
        await page.click(".toast button")
        await page.until("document.querySelectorAll('.row-job').length === 2")
        assert await page.run("document.activeElement !== document.body")
        await page.click(".gallery-head .link")
        await page.click(".row-job input")
        await page.click(".gallery .danger")
        await page.until("document.querySelectorAll('.row-job').length === 1")
        await page.call("Page.navigate", url="about:blank")  # leaving makes it final
        for _ in range(100):
            if len(studio.jobs()) == 1:
                return
            await asyncio.sleep(0.1)
        raise AssertionError("not deleted")

    studio.visit(visit)


def test_canceling_keeps_the_focus(studio: Studio) -> None:
    job = studio.submit()

    async def visit(page: Page) -> None:
        await page.run(go(job))
        await page.says("footer", "Cancel")
        await page.run("document.querySelector('footer button:not(.primary)').focus()")
        await page.press("Enter")
        await page.says(".panel h2", "Canceled")
        assert await page.run("document.activeElement !== document.body")

    studio.visit(visit)


def test_the_gallery_goes_on_beyond_a_hundred_and_can_be_searched(studio: Studio) -> None:
    oldest = studio.submit(prompt=["a very blue vase"])
    studio.many_jobs(119)

    async def visit(page: Page) -> None:
        await page.until("document.querySelectorAll('.row-job').length >= 50")
        await page.write(".gallery [type=search]", "blue VASE")
        await page.until("document.querySelectorAll('.row-job').length === 1")
        assert await page.run("document.querySelector('.row-job').dataset.id") == oldest
        await page.write(".gallery [type=search]", "")
        await page.until("document.querySelectorAll('.row-job').length === 120")

    studio.visit(visit)


def test_the_crop_is_drawn_where_the_model_will_cut(studio: Studio) -> None:
    wide = studio.file("wide.png", image_bytes(size=(400, 192)))

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('[data-field=size]')")
        await page.choose_file("[name=person_image]", wide)
        await page.until("document.querySelector('.ingredient .crop rect')")
        box = "(({ x, y, width, height }) => [x, y, width, height])(document.querySelector('rect').getBBox())"
        # 112 × 192 out of 400 × 192, from the middle.
        assert await page.run(box) == [144, 0, 112, 192]
        await page.write(".ingredient select", "contain")
        await page.until("document.querySelector('.ingredient .crop') === null")
        assert await page.run("document.querySelector('.ingredient img').style.objectFit") == "contain"

    studio.visit(visit)


# --- addresses, tabs, keys ---------------------------------------------------------------------------------


def test_a_job_can_be_linked_to_and_back_works(studio: Studio) -> None:
    job = studio.submit()
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await page.says(".panel h2", "Your video is ready")
        await page.until("document.querySelector('video').readyState >= 2")
        await page.click("footer .primary")
        await page.says(".panel h2", "New video")
        await page.run("history.back()")
        await page.says(".panel h2", "Your video is ready")
        await page.run("location.hash = 'job=job_' + '0'.repeat(36)")
        await page.says(".toast", "does not exist")
        await page.says(".panel h2", "New video")

    studio.visit(visit, at=f"/#job={job}")


def test_use_again_fills_the_draft_with_what_a_job_was_made_from(studio: Studio) -> None:
    publish_card(studio.live.services.store, CARD.model_copy(update={"pose": True}))
    job = studio.submit(
        audio=audio_bytes(seconds=5),
        prompt=["She nods.", "She waves."],
        fit="contain",
        negative_prompt="grey",
        pose_video=("pose.mp4", video_bytes(150), "video/mp4"),
    )
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await page.says(".panel", "Use again")
        await page.run(
            "[...document.querySelectorAll('.panel button')]"
            ".find((one) => one.innerText === 'Use again').click()"
        )
        await page.until("document.querySelectorAll('.slice textarea')[1]?.value === 'She waves.'")
        assert await page.run("document.querySelector('.ingredient select').value") == "contain"
        await page.press("Enter", CONTROL)
        await page.until("location.hash.startsWith('#job=')")
        newest = studio.live.services.journal.read(studio.jobs()[-1])
        params = studio.live.services.journal.read(job).submitted.params
        assert newest.id != job
        assert newest.submitted.params.model_copy(update={"seed": params.seed}) == params
        assert newest.submitted.inputs.pose_video is not None

    studio.visit(visit, at=f"/#job={job}")


def test_a_server_with_keys_asks_for_one_shows_what_it_may_and_forgets_it(studio: Studio) -> None:
    token = studio.key()
    job = studio.submit(token)
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await page.says(".key-form", "asks for a key")
        await page.write("#key", "ck_wrong")
        await page.run("document.querySelector('.key-form').requestSubmit()")
        await page.says("#key-error", "not valid")
        await page.write("#key", token)
        await page.run("document.querySelector('.key-form').requestSubmit()")
        await page.until("document.querySelector('.row-job img')?.src.startsWith('blob:')")
        await page.run(go(job))
        await page.until("document.querySelector('video')?.readyState >= 2")
        await page.click("nav .menu summary")
        assert "submit" in await page.text("nav .menu")
        await page.click("nav .menu button")
        await page.says(".key-form", "asks for a key")

    studio.visit(visit)


def test_a_key_that_may_not_look_is_told_what_it_lacks_and_one_that_may_not_submit_too(
    studio: Studio,
) -> None:
    blind, reader = studio.key("blind", scopes=[Scope.SUBMIT]), studio.key("reader", scopes=[Scope.READ])

    async def visit(page: Page) -> None:
        await page.says("#key-error", "scopes submit and read")
        await page.write("#key", reader)
        await page.run("document.querySelector('.key-form').requestSubmit()")
        await studio.fill(page)
        await make(page)
        await page.says("#error-all", "Your key may look, but not do this.")

    studio.visit(visit, script=f"if (!sessionStorage.getItem('key')) {use_key(blind)}")
    assert studio.jobs() == []


def test_a_photo_may_be_dropped_anywhere_and_pasted(studio: Studio) -> None:
    event = (
        "(async (kind, make) => { const data = new DataTransfer();"
        "const canvas = new OffscreenCanvas(64, 96); canvas.getContext('2d').fillRect(0, 0, 9, 9);"
        "data.items.add(new File([await canvas.convertToBlob()], `${kind}.png`));"
        "document.body.dispatchEvent(make(data)); })"
    )

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('[data-field=size]')")
        options = "bubbles: true, cancelable: true"
        await page.run(
            f"{event}('drop', (data) => new DragEvent('drop', {{ dataTransfer: data, {options} }}))"
        )
        await page.until("document.querySelector('.ingredient img')?.alt === 'Person: drop.png'")
        await page.run(
            f"{event}('paste', (data) => new ClipboardEvent('paste', {{ clipboardData: data, {options} }}))"
        )
        await page.until("document.querySelectorAll('.ingredient img')[1]?.alt === 'Product: paste.png'")

    studio.visit(visit)


def test_the_reference_shows_every_route(served: Live, studio: Studio) -> None:
    routes = sum(len(methods) for methods in served.app.openapi()["paths"].values())

    async def visit(page: Page) -> None:
        await page.call("Page.navigate", url=f"{served.url}/docs")
        await page.until(f"document.querySelectorAll('#operations details').length === {routes}")
        assert page.complaints == []

    studio.visit(visit)


def test_a_complete_draft_violates_no_content_security_policy(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await studio.fill(page)
        await page.says("footer", "9.0 s · 3 clips")
        await page.choose_file(".ingredient input[data-field=person_image]", studio.file("again.png", PERSON))
        await page.until("document.querySelector('.ingredient img').alt.includes('again.png')")
        await asyncio.sleep(1.0)
        assert page.complaints == []

    studio.visit(visit)
