"""The whole pipeline on two and four ranks against one process, at sizes whose rows nothing divides; what is
sent; and how a clip ends early.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.choices import Preset
from contract.job import Stage
from contract.params import GenerationParams
from contract.video import CLIP_FRAMES, CLIP_LATENT_FRAMES, MOTION_FRAMES
from deploy.samples import BUNDLED, BUNDLED_CHECKPOINT
from model import vae
from model.checkpoints.load import load_pipeline
from model.checkpoints.tiny import tiny_pipeline
from model.clip import ClipInputs, ClipRenderer, OnStep
from model.inputs import VideoInputs
from model.media import load_audio, load_image
from model.parallel.arrangement import share
from model.parallel.collectives import Purpose
from model.parallel.ranks import Ranks
from model.parallel.together import END, OutOfStep, follow
from model.pipeline import Clip, CoInteractPipeline
from tests.model.ranks import on_ranks
from tests.model.test_pipeline import photo, speech

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
WIDTH, HEIGHT = 80, 144  # 480×832 at a sixth: 9 rows of 5 tokens, and motion in 4 rows of 2 and 2 of 1
TILE, TILE_STRIDE = (8, 8), (6, 6)  # small ones: a frame of 16 × 8 latents has three


def settings(**changes: Any) -> GenerationParams:
    return GenerationParams(
        **{
            "prompts": ("She lifts the cup.", "She turns it."),
            "negative_prompt": "blurry",
            "width": WIDTH,
            "height": HEIGHT,
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "flow_shift": 5.0,
            "product_scale": 0.8,
            "seed": 7,
            "num_clips": 2,
            "num_frames": 2 * CLIP_FRAMES,
        }
        | changes
    )


FIRST_CLIP = {"num_clips": 1, "num_frames": CLIP_FRAMES}
VIDEOS = {
    "a later clip": settings(router_maps=True),
    "without guidance": settings(guidance_scale=1.0, router_maps=True),
    "landscape": settings(width=HEIGHT, height=WIDTH, router_maps=True),
    "a first clip": settings(**FIRST_CLIP, seed=8),
    "parity in tiles": settings(**FIRST_CLIP, preset=Preset.PARITY, width=64, height=128),
}


def render(pipeline: CoInteractPipeline, ranks: Ranks | None, params: GenerationParams, **more: Any) -> Clip:
    """One clip of random networks: chained, they would blow a difference of one level up to many."""
    pose = np.random.default_rng(3).integers(0, 256, (90, 30, 40, 3), dtype=np.uint8)
    inputs = VideoInputs(photo(1), speech(6.5), photo(2), pose)
    shape = (MOTION_FRAMES, params.height, params.width, 3)
    motion = np.random.default_rng(4).integers(0, 256, shape, dtype=np.uint8)
    first_clip = params.num_clips - 1
    usual = vae.TILE, vae.TILE_STRIDE
    vae.TILE, vae.TILE_STRIDE = TILE, TILE_STRIDE
    try:
        return next(
            pipeline.generate_clips(
                inputs, params, first_clip=first_clip, motion_frames=motion, ranks=ranks, **more
            )
        )
    finally:
        vae.TILE, vae.TILE_STRIDE = usual


@dataclass(frozen=True)
class Counting(ClipRenderer):
    steps: list[int] = field(default_factory=list)

    def render(self, inputs: ClipInputs, on_step: OnStep) -> tuple[torch.Tensor, np.ndarray | None]:
        def counted(stage: Stage, finished: int) -> None:
            self.steps.append(finished)
            on_step(stage, finished)

        return super().render(inputs, counted)


def led(ranks: Ranks, pipeline: CoInteractPipeline, lead: Callable[[], Any]) -> Any:
    """What `lead` gives on rank 0, which the others follow."""
    if ranks.rank == 0:
        found = lead()
        ranks.control.tell(END)
        return found
    vae.TILE, vae.TILE_STRIDE = TILE, TILE_STRIDE
    renderer = Counting(pipeline.transformer, pipeline.vae, pipeline.scheduler, CPU, ranks)
    follow(renderer, ranks)
    return {"steps": len(renderer.steps), "received": dict(ranks.traffic.received)}


Made = dict[str, tuple[np.ndarray, np.ndarray | None]]
"""Frames and routes by name."""


def videos(pipeline: CoInteractPipeline, ranks: Ranks | None) -> Made:
    made = {name: render(pipeline, ranks, params) for name, params in VIDEOS.items()}
    return {name: (clip.frames, clip.routes) for name, clip in made.items()}


def videos_alone(ranks: Ranks) -> Made:
    return videos(tiny_pipeline(), None)


def videos_together(ranks: Ranks) -> Any:
    pipeline = tiny_pipeline()
    return led(ranks, pipeline, lambda: videos(pipeline, ranks))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Made:
    found: Made = on_ranks(1, tmp_path_factory.mktemp("alone"), videos_alone)[0]
    return found


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_clip_of_several_ranks_is_at_most_one_level_from_that_of_one(
    count: int, alone: Made, tmp_path: Path
) -> None:
    together = on_ranks(count, tmp_path, videos_together)[0]
    for name, (frames, routes) in alone.items():
        made, found = together[name]
        assert made.shape == frames.shape, name
        difference = np.abs(made.astype(int) - frames)
        assert difference.max() <= 1, name
        assert (difference > 0).mean() < 1e-3, name
        assert (routes is not None) == VIDEOS[name].router_maps
        if routes is not None:  # of every token at its place
            assert found.shape == routes.shape == (CLIP_LATENT_FRAMES, *np.array(frames.shape[1:3]) // 16, 2)
            assert routes.std() > 0
            assert np.abs(found.astype(int) - routes).max() <= 1, name


def chain(ranks: Ranks, together: bool) -> Any:
    """Three clips of the trained checkpoint, each continuing the one before."""
    pipeline = load_pipeline(BUNDLED_CHECKPOINT)
    audio = np.tile(load_audio(BUNDLED.audio), 8)
    inputs = VideoInputs(load_image(BUNDLED.person), audio, load_image(BUNDLED.product))
    params = settings(
        prompts=BUNDLED.sentences()[:3], guidance_scale=2.0, num_clips=3, num_frames=3 * CLIP_FRAMES
    )

    def frames(leader: Ranks | None) -> np.ndarray:
        return np.concatenate([clip.frames for clip in pipeline.generate_clips(inputs, params, ranks=leader)])

    return led(ranks, pipeline, lambda: frames(ranks)) if together else frames(None)


@pytest.mark.timeout(900)
def test_three_clips_of_the_trained_network_stay_within_one_level(tmp_path: Path) -> None:
    frames = on_ranks(1, tmp_path / "1", chain, False)[0]
    assert frames.shape == (3 * CLIP_FRAMES, HEIGHT, WIDTH, 3)
    assert frames.std() > 10, "a picture"
    for count in (2, 4):
        others = on_ranks(count, tmp_path / str(count), chain, True)[0]
        assert np.abs(others.astype(int) - frames).max() <= 1, count


def counted(ranks: Ranks) -> dict[str, Any]:
    pipeline = tiny_pipeline()
    found: dict[str, Any] = {}

    def lead() -> dict[str, Any]:
        for steps in (1, 2):
            ranks.traffic.received.clear()
            render(pipeline, ranks, settings(num_inference_steps=steps))
            found[str(steps)] = dict(ranks.traffic.received)
        return found

    return led(ranks, pipeline, lead)  # type: ignore[no-any-return]


def test_a_step_sends_what_the_formula_says(tmp_path: Path) -> None:
    """Four ranks, two groups of two: a pass shares its tokens and the passes exchange one velocity."""
    leader, *followers = on_ranks(4, tmp_path, counted)
    per_step = {name: leader["2"][name] - leader["1"].get(name, 0) for name in leader["2"]}
    heads, width, blocks, ranks = 4, 24, 4, 2
    frame = (WIDTH // 16) * (HEIGHT // 16)
    motion = frame + 4 * 2 + 4 * 2 * 1
    target = CLIP_LATENT_FRAMES * len(share(frame, ranks, 0))
    held = target + sum(len(share(count, ranks, 0)) for count in (frame, frame, motion))
    tokens, whole_target = (CLIP_LATENT_FRAMES + 2) * frame + motion, CLIP_LATENT_FRAMES * frame
    inwards = (3 * blocks - 1) * (tokens - held) + (whole_target - target)
    outwards = (blocks - 1) * held + target
    latents = 16 * CLIP_LATENT_FRAMES * (WIDTH // 8) * (HEIGHT // 8)
    assert per_step == {
        Purpose.ATTENTION: (inwards + outwards) * (heads // 2) * width * 4,
        # Its own group's shares for the pass, then the other pass's whole velocity.
        Purpose.VELOCITY: (CLIP_LATENT_FRAMES * len(share(frame, ranks, 0)) * 64 + latents) * 4,
        Purpose.FRAMES: 0,
    }
    rows = [8 * len(share(HEIGHT // 8, 4, rank)) for rank in range(4)]
    assert leader["1"][Purpose.FRAMES] == sum(rows[1:]) * WIDTH * 3 * CLIP_FRAMES
    # Person, product, 19 of motion, 20 of pose, 20 of noise; two prompts; speech.
    inputs = (16 * 61 * (WIDTH // 8) * (HEIGHT // 8) + 2 * 512 * 64 + 25 * 32 * 80) * 4
    assert all(follower["received"][Purpose.INPUTS] == 2 * inputs for follower in followers)


class Cancel(Exception):
    pass


PLACES = [(Stage.ENCODING, 0), (Stage.DENOISING, 0), (Stage.DENOISING, 1), (Stage.DECODING, 2)]


def canceled(ranks: Ranks) -> dict[str, Any]:
    """Before and behind clips that are canceled at each place: the same bits."""
    pipeline = tiny_pipeline()
    steps: list[tuple[Stage, int]] = []

    def lead() -> dict[str, Any]:
        before = render(pipeline, ranks, settings()).frames
        for place in PLACES:

            def on_progress(stage: Stage, clip: int, step: int, place: tuple[Stage, int] = place) -> None:
                steps.append((stage, step))
                if (stage, step) == place:
                    raise Cancel

            with pytest.raises(Cancel):
                render(pipeline, ranks, settings(), on_progress=on_progress)
        return {"same": np.array_equal(render(pipeline, ranks, settings()).frames, before), "steps": steps}

    return led(ranks, pipeline, lead)  # type: ignore[no-any-return]


def test_a_canceled_clip_ends_on_all_ranks_within_a_step_and_leaves_nothing_behind(tmp_path: Path) -> None:
    leader, *followers = on_ranks(4, tmp_path, canceled)
    assert leader["same"]
    encoding = [(Stage.ENCODING, 0)] * 2
    denoising = [(Stage.DENOISING, step) for step in range(3)]
    assert leader["steps"] == [
        encoding[0],
        *encoding,
        *denoising[:1],
        *encoding,
        *denoising[:2],
        *encoding,
        *denoising,
        (Stage.DECODING, 2),
    ]
    clip = 3 + 1 + MOTION_FRAMES // 4 + 1 + CLIP_LATENT_FRAMES  # steps, then decoded latent frames
    for follower in followers:  # two whole clips, and of the canceled ones no step more than rank 0
        assert follower["steps"] == 2 * clip + 1 + 2 + 4


def broken(ranks: Ranks, culprit: int) -> str:
    """One rank fails within a step: rank 0 is told, and so are the others when it is gone."""
    pipeline = tiny_pipeline()
    if ranks.rank == culprit:
        pipeline.transformer.blocks[1].register_forward_pre_hook(fail)
    try:
        led(ranks, pipeline, lambda: render(pipeline, ranks, settings()))
    except OutOfStep as error:
        return f"out of step: {error}"
    except (RuntimeError, ZeroDivisionError) as error:
        return type(error).__name__
    return "nothing"


def fail(*_: object) -> None:
    raise ZeroDivisionError("in a block")


@pytest.mark.parametrize("culprit", [0, 2])
def test_a_rank_that_fails_within_a_step_is_not_waited_for(culprit: int, tmp_path: Path) -> None:
    leader, *followers = on_ranks(3, tmp_path, broken, culprit)
    assert leader.startswith("out of step: ")
    if culprit == 0:
        assert "ZeroDivisionError: in a block" in leader
    else:
        assert followers[culprit - 1] == "ZeroDivisionError"
    assert "nothing" not in followers
