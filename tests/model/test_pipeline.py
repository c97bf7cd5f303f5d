"""Clips of the tiny networks: chaining, resuming, trimming, cancelling, and what parity mode repeats."""

import numpy as np
import pytest
import torch
from PIL import Image

from contract.choices import Fit, Preset
from contract.job import Stage
from contract.params import GenerationParams
from contract.video import CLIP_FRAMES, MOTION_FRAMES, SpeechLength, video_length
from model.checkpoints.tiny import tiny_pipeline
from model.inputs import VideoInputs
from model.media.images import fit_person, place_product
from model.pipeline import CoInteractPipeline

pytestmark = pytest.mark.slow

SECOND = 16_000
STAGES = [Stage.ENCODING, Stage.DENOISING, Stage.DECODING]


@pytest.fixture(scope="module")
def pipeline() -> CoInteractPipeline:
    return tiny_pipeline()


def speech(seconds: float) -> np.ndarray:
    t = np.arange(round(seconds * SECOND)) / SECOND
    return (0.3 * np.sin(2 * np.pi * 220 * t) * np.sin(3 * t)).astype(np.float32)


def photo(seed: int = 0, size: tuple[int, int] = (90, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clips(pipeline, seconds=3.0, **changes):
    """The clips of `seconds` of speech; `changes` are fields of the inputs or the settings, or arguments."""
    num_clips, num_frames = video_length(SpeechLength(round(seconds * SECOND), SECOND))
    inputs = {
        "person_image": photo(1),
        "product_image": photo(2),
        "audio": speech(seconds),
        "pose_frames": None,
    }
    settings = {
        "prompts": ("She lifts the cup.", "She turns it."),
        "negative_prompt": "blurry",
        "height": 64,
        "width": 64,
        "num_inference_steps": 1,
        "guidance_scale": 3.0,
        "flow_shift": 5.0,
        "product_scale": 1.0,
        "seed": 7,
        "num_clips": num_clips,
        "num_frames": num_frames,
        "fit": Fit.COVER,
        "preset": Preset.EXACT,
        "router_maps": False,
    }
    for known in (inputs, settings):
        known.update({name: changes.pop(name) for name in list(changes) if name in known})
    return pipeline.generate_clips(VideoInputs(**inputs), GenerationParams(**settings), **changes)


def spy(monkeypatch, pipeline) -> list[dict]:
    """The inputs of every `prepare_conditioning`."""
    calls = []
    original = pipeline.transformer.prepare_conditioning

    def recording(inputs, **arguments):
        calls.append(vars(inputs))
        return original(inputs, **arguments)

    monkeypatch.setattr(pipeline.transformer, "prepare_conditioning", recording)
    return calls


def test_router_maps_change_no_pixel_and_say_how_much_each_expert_got(pipeline):
    plain, mapped = (next(clips(pipeline, router_maps=wanted)) for wanted in (False, True))
    assert np.array_equal(plain.frames, mapped.frames)
    assert plain.routes is None
    assert mapped.routes is not None
    assert (mapped.routes.shape, mapped.routes.dtype) == ((20, 4, 4, 2), np.uint8)
    assert mapped.routes.astype(int).sum(axis=-1).max() <= 256, "the base expert gets the rest"
    assert mapped.routes.std() > 0


def test_a_video_is_as_long_as_its_speech(pipeline):
    made = list(clips(pipeline, seconds=4.5))
    assert [clip.index for clip in made] == [0, 1]
    assert [clip.frames.shape for clip in made] == [(80, 64, 64, 3), (33, 64, 64, 3)]
    assert all(clip.frames.dtype == np.uint8 for clip in made)
    assert made[1].motion_frames.shape == (MOTION_FRAMES, 64, 64, 3)
    assert np.array_equal(made[0].motion_frames, made[0].frames[-MOTION_FRAMES:])


def test_the_settings_rule_over_the_length_of_the_speech(pipeline):
    made = list(clips(pipeline, seconds=4.5, num_frames=100, num_clips=2))
    assert [len(clip.frames) for clip in made] == [80, 20]
    assert [len(clip.frames) for clip in clips(pipeline, seconds=4.5, num_frames=80, num_clips=1)] == [80]


def test_resuming_behind_a_clip_gives_the_same_bits(pipeline):
    whole = list(clips(pipeline, seconds=7.0))
    resumed = list(clips(pipeline, seconds=7.0, first_clip=1, motion_frames=whole[0].motion_frames.copy()))
    assert [clip.index for clip in resumed] == [1, 2]
    for ours, theirs in zip(resumed, whole[1:], strict=True):
        assert np.array_equal(ours.frames, theirs.frames)
        assert torch.equal(ours.latents, theirs.latents)


def test_resuming_behind_the_last_clip_makes_nothing(pipeline):
    motion = np.zeros((MOTION_FRAMES, 64, 64, 3), np.uint8)
    assert list(clips(pipeline, first_clip=1, motion_frames=motion)) == []


def test_a_later_clip_depends_on_the_one_before(pipeline):
    black, white = (np.full((MOTION_FRAMES, 64, 64, 3), level, np.uint8) for level in (0, 255))
    after_black, after_white = (
        next(clips(pipeline, seconds=6.0, first_clip=1, motion_frames=motion)) for motion in (black, white)
    )
    assert not np.array_equal(after_black.frames, after_white.frames)


def test_a_seed_gives_the_same_video_and_another_seed_another(pipeline):
    first, again, other = (next(clips(pipeline, seed=seed)).frames for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_each_clip_draws_its_own_noise(pipeline, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        "model.pipeline.draw_noise",
        lambda shape, seed: seeds.append(seed) or torch.zeros(shape),
    )
    list(clips(pipeline, seconds=4.0, seed=7))
    list(clips(pipeline, seconds=4.0, seed=7, preset=Preset.PARITY))
    assert seeds == [7, 8, 0, 1]


def test_prompts_drive_their_clips_and_the_last_is_reused(pipeline, monkeypatch):
    calls = spy(monkeypatch, pipeline)
    list(clips(pipeline, seconds=7.0, guidance_scale=1.0))
    first, second, third = (call["encoder_hidden_states"] for call in calls)
    assert not torch.equal(first, second)
    assert torch.equal(second, third)


def test_the_unconditional_pass_hears_silence_and_reads_the_negative_prompt(pipeline, monkeypatch):
    calls = spy(monkeypatch, pipeline)
    list(clips(pipeline))
    cond, uncond = calls
    assert cond["audio_embeds"].any()
    assert not uncond["audio_embeds"].any()
    assert not torch.equal(cond["encoder_hidden_states"], uncond["encoder_hidden_states"])
    for shared in ("person_latents", "product_latents"):
        assert torch.equal(cond[shared], uncond[shared])


def test_guidance_of_one_runs_one_pass_per_step(pipeline, monkeypatch):
    passes = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda *_: passes.append(1))
    list(clips(pipeline, guidance_scale=1.0, num_inference_steps=2))
    one = len(passes)
    list(clips(pipeline, guidance_scale=3.0, num_inference_steps=2))
    hook.remove()
    assert (one, len(passes) - one) == (2, 4)


def test_audio_windows_follow_the_clips_and_drift_in_parity_mode(pipeline, monkeypatch):
    calls = spy(monkeypatch, pipeline)
    list(clips(pipeline, seconds=7.0, guidance_scale=1.0))
    list(clips(pipeline, seconds=7.0, guidance_scale=1.0, preset=Preset.PARITY))
    ours, official = calls[:3], calls[3:]
    assert [call["audio_embeds"].shape[-1] for call in ours + official] == [80] * 3 + [81] * 3
    for k in (1, 2):  # the official window of clip k starts k frames late
        shifted = official[k]["audio_embeds"][:, :24, :, : 80 - k]
        assert torch.allclose(shifted, ours[k]["audio_embeds"][:, :24, :, k:], atol=1e-6)


def test_parity_mode_makes_the_official_number_of_whole_clips(pipeline):
    made = list(clips(pipeline, seconds=3.3, preset=Preset.PARITY))
    assert [len(clip.frames) for clip in made] == [80, 80]


def test_no_product_is_no_tokens_rather_than_a_black_image(pipeline, monkeypatch):
    calls = spy(monkeypatch, pipeline)
    list(clips(pipeline, product_image=None))
    assert all(call["product_latents"] is None for call in calls)


def test_pose_frames_of_each_clip_are_encoded_and_missing_ones_are_black(pipeline, monkeypatch):
    calls = spy(monkeypatch, pipeline)
    pose = np.random.default_rng(3).integers(0, 256, (100, 30, 40, 3), dtype=np.uint8)
    black = np.zeros((200, 64, 64, 3), np.uint8)
    list(clips(pipeline, seconds=9.0, guidance_scale=1.0, pose_frames=pose))
    list(clips(pipeline, seconds=9.0, guidance_scale=1.0, pose_frames=black))
    posed, unposed = (
        [call["pose_latents"] for call in calls[:3]],
        [call["pose_latents"] for call in calls[3:]],
    )
    assert all(latents.shape == (1, 16, 20, 8, 8) for latents in posed)
    assert not torch.equal(posed[0], unposed[0])
    assert not torch.equal(posed[1][:, :, :5], unposed[1][:, :, :5])
    assert torch.equal(posed[2], unposed[2])


def test_progress_is_told_at_every_stage_and_step(pipeline):
    told: list[tuple[Stage, int, int]] = []
    list(clips(pipeline, seconds=4.0, num_inference_steps=2, on_progress=lambda *at: told.append(at)))
    steps = [(clip, step) for stage, clip, step in told if stage is Stage.DENOISING]
    assert steps == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    order = list(dict.fromkeys((clip, stage) for stage, clip, _ in told))
    assert order == [(k, stage) for k in (0, 1) for stage in STAGES]


@pytest.mark.parametrize("stage", STAGES)
def test_an_exception_from_the_callback_ends_the_generation_at_once(pipeline, stage):
    told: list[Stage] = []

    def cancel(now: Stage, clip: int, step: int) -> None:
        told.append(now)
        if now is stage:
            raise InterruptedError

    generation = clips(pipeline, num_inference_steps=3, on_progress=cancel)
    with pytest.raises(InterruptedError):
        next(generation)
    assert told.count(stage) == 1


def test_a_cancelled_generation_leaves_nothing_behind(pipeline):
    before = next(clips(pipeline)).frames

    def cancel(stage: Stage, clip: int, step: int) -> None:
        if step == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        next(clips(pipeline, num_inference_steps=3, on_progress=cancel))
    assert np.array_equal(next(clips(pipeline)).frames, before)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"height": 60}, "multiples of 16"),
        ({"prompts": []}, "prompt"),
        ({"num_clips": 0}, "num_clips"),
        ({"first_clip": 1}, "motion_frames"),
        ({"first_clip": 1, "motion_frames": np.zeros((72, 64, 64, 3), np.uint8)}, "motion_frames"),
        ({"audio": np.zeros(100, np.float32)}, "too short"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"fit": "squeeze"}, "fit"),
    ],
)
def test_impossible_requests_are_refused(pipeline, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        next(clips(pipeline, **change))


def test_photos_are_brought_to_the_frame_before_encoding(pipeline):
    prepared = {
        "person_image": fit_person(photo(1), 64, 64, Fit.COVER),
        "product_image": photo(2),
    }
    assert np.array_equal(next(clips(pipeline)).frames, next(clips(pipeline, **prepared)).frames)
    stretched = next(clips(pipeline, fit=Fit.STRETCH)).frames
    assert not np.array_equal(stretched, next(clips(pipeline)).frames)


def test_the_product_is_placed_with_its_margin(pipeline, monkeypatch):
    seen = []
    original = pipeline._encode_frames

    def recording(frames, parity):
        seen.append(frames)
        return original(frames, parity)

    monkeypatch.setattr(pipeline, "_encode_frames", recording)
    next(clips(pipeline))
    assert np.array_equal(seen[1][0], np.asarray(place_product(photo(2), 64, 64)))


def test_calling_the_pipeline_gives_all_frames_and_the_seed(pipeline):
    output = pipeline(
        photo(1), speech(3.5), "She lifts the cup.", photo(2), height=64, width=64, num_inference_steps=1
    )
    assert output.frames.shape == (88, 64, 64, 3)
    again = pipeline(
        photo(1),
        speech(3.5),
        "She lifts the cup.",
        photo(2),
        height=64,
        width=64,
        num_inference_steps=1,
        seed=output.seed,
    )
    assert np.array_equal(output.frames, again.frames)


def test_a_saved_pipeline_comes_back_through_diffusers(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = CoInteractPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert np.array_equal(next(clips(loaded)).frames, next(clips(pipeline)).frames)
    assert len(next(clips(loaded)).frames) <= CLIP_FRAMES
