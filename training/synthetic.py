"""Videos of the procedural world as training data, with everything that the official data format holds.

A video has RGB frames, HOI structure frames, boxes of face and hands, references, prompts and speech, so no
photographs and no detectors are needed. The seed decides everything in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from contract.video import CLIP_FRAMES, FPS, SAMPLE_RATE
from model.media.images import place_product

from .drawing import Boxes, Painter, product_image
from .speech import Synthesiser, mouth_opening, speak
from .world import ACTIONS, Action, Cast, Pose, Split, describe, make_cast, pose_at, rest_pose


@dataclass(frozen=True)
class SyntheticVideo:
    """Consecutive clips of one presenter with one product.

    frames, structure: (80·clips, H, W, 3) uint8. audio: (N,) float32, 16 kHz, as long as the clips.
    mouth: (80·clips,).
    """

    cast: Cast
    actions: tuple[Action, ...]
    prompts: tuple[str, ...]
    person_image: Image.Image
    product_image: Image.Image
    audio: np.ndarray
    mouth: np.ndarray
    poses: tuple[Pose, ...]
    boxes: tuple[Boxes, ...]
    frames: np.ndarray
    structure: np.ndarray


def make_video(
    seed: int,
    width: int,
    height: int,
    *,
    actions: Sequence[Action] | int = 1,
    split: Split = "train",
    shown: range | None = None,
    synthesiser: Synthesiser = "auto",
    with_structure: bool = True,
) -> SyntheticVideo:
    """Draw a video.

    Args:
        actions: the action of each clip, or a number of clips whose actions are drawn at random.
        shown: the frames to draw (default: all, 80 per clip). `poses` and `boxes` cover all frames anyway.
    """
    rng = np.random.default_rng([seed, 3])
    cast = make_cast(seed, split)
    if isinstance(actions, int):
        actions = [ACTIONS[i] for i in rng.integers(len(ACTIONS), size=actions)]
    total = CLIP_FRAMES * len(actions)
    shown = range(total) if shown is None else shown
    audio = speak(total, seed, synthesiser)
    mouth = mouth_opening(audio, total)
    poses = tuple(
        pose_at(actions[i // CLIP_FRAMES], i % CLIP_FRAMES, float(mouth[i]), cast.product)
        for i in range(total)
    )
    painter = Painter(cast, width, height)
    structure = [painter.structure(poses[i]) for i in shown] if with_structure else []
    return SyntheticVideo(
        cast=cast,
        actions=tuple(actions),
        prompts=tuple(describe(cast, action, rng, first=i == 0) for i, action in enumerate(actions)),
        person_image=Image.fromarray(painter.frame(rest_pose())),
        product_image=product_image(cast.product, width, height),
        audio=audio[: total * SAMPLE_RATE // FPS],
        mouth=mouth,
        poses=poses,
        boxes=tuple(painter.boxes(pose) for pose in poses),
        frames=np.stack([painter.frame(poses[i]) for i in shown]),
        structure=np.stack(structure) if structure else np.zeros((0, height, width, 3), np.uint8),
    )


def world_sheet(width: int = 80, height: int = 128) -> Image.Image:
    """One row per action: both references, seven frames of the clip, and two HOI structure frames."""
    rows = []
    for seed, action in enumerate(ACTIONS):
        video = make_video(seed, width, height, actions=[action], synthesiser="formant")
        product = np.asarray(place_product(video.product_image, width, height))
        shown = [video.frames[i] for i in (1, 8, 20, 30, 40, 50, 70)]
        structure = [video.structure[i] for i in (20, 40)]
        rows.append(np.concatenate([np.asarray(video.person_image), product, *shown, *structure], axis=1))
    return Image.fromarray(np.concatenate(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw a sheet of the procedural world.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--size", default="80x128", metavar="WIDTHxHEIGHT")
    options = parser.parse_args(arguments)
    width, height = (int(side) for side in options.size.split("x"))
    world_sheet(width, height).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
