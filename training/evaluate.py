"""Evaluates a checkpoint of the procedural world: `python -m training.evaluate --checkpoint DIR`.

Held-out people present held-out products. The world's renderer draws the right frame and wrong ones, with
another product, person, action or mouth. A generated frame counts for the drawing that it is closest to, so
no judge has to be trained or trusted. `denoising.py` adds the errors of single steps on true clips.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from contract.card import CheckpointDefaults
from contract.choices import Preset
from contract.video import CLIP_FRAMES
from model.checkpoints.card_file import read_card
from model.checkpoints.load import load_pipeline
from model.media.images import place_product
from model.pipeline import CoInteractPipeline

from .denoising import denoising_scores
from .drawing import Painter
from .synthetic import SyntheticVideo, make_video
from .world import ACTIONS, Action, Cast, Pose, make_cast, pose_at

log = logging.getLogger(__name__)

SHOWING = range(24, 56, 4)
"""Frames of a clip in which its action is fully under way."""
MOUTHS = np.linspace(0, 1, 11)
MAX_LAG = 5
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class GeneratedScores:
    """Measurements of one generated video. Goals: product ≥ 0.95, mouth ≥ 0.7 at lag ≤ 1."""

    product_told_apart: float
    """Share of frames whose held product is closer to the right product than to another one."""
    person_told_apart: float
    """The same share for the presenter's head and shirt."""
    action_obeyed: float
    """Share of clips that look most like the prompted one of the seven actions."""
    hand_obeyed: float | None
    """Share of one-handed clips in which the prompted hand acts; None without such clips."""
    mouth_correlation: float
    """Correlation of the mouth's opening with the speech, at the best lag within ±5 frames, over all clips.
    """
    mouth_lag_frames: int
    """The absolute lag of that best correlation."""
    contact: float
    """Share of frames in which the gripping hand touches the product."""
    penetration: float
    """Share of the product's visible surface that wrongly shows hand or background."""
    boundary_jump: float | None
    """Change of picture where clips meet, relative to the median change between frames; None for one clip."""
    face_error: float
    """Mean absolute difference from the true video in the face's box, 0..255."""
    hands_error: float
    """The same difference in the boxes of both hands."""
    product_error: float
    """The same difference in the product's box."""
    error: float
    """The same difference in the whole picture."""


Measured = dict[str, float | None]
"""All measurements of one video by name: of the generated one, and of denoising the true one."""


def evaluate(
    pipeline: CoInteractPipeline,
    settings: CheckpointDefaults,
    *,
    width: int,
    height: int,
    videos: int,
    clips: int,
    preset: Preset = Preset.EXACT,
    first_seed: int = 0,
    pictures: Path | None = None,
) -> list[Measured]:
    """Generate `videos` held-out videos of `clips` clips, measure them, put sheets in `pictures`."""
    measured: list[Measured] = []
    for seed in range(first_seed, first_seed + videos):
        true = make_video(seed, width, height, actions=clips, split="heldout", synthesiser="formant")
        generated = generate(pipeline, true, settings, preset)
        scores = measure(generated, true, make_cast(seed + 10_000, "heldout"))
        measured.append({**vars(scores), **vars(denoising_scores(pipeline, true))})
        log.info("video %d: %s", seed, json.dumps(measured[-1]))
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            contact_sheet(generated, true).save(pictures / f"heldout-{seed}.png")
    return measured


def generate(
    pipeline: CoInteractPipeline,
    video: SyntheticVideo,
    settings: CheckpointDefaults,
    preset: Preset = Preset.EXACT,
) -> np.ndarray:
    """Generate a video from the true video's references, prompts and speech: (T, H, W, 3) uint8.

    It is as long as the true one. Guidance is against an empty prompt.
    """
    height, width = video.frames.shape[1:3]
    made = pipeline(
        video.person_image,
        video.audio,
        video.prompts,
        video.product_image,
        negative_prompt="",
        height=height,
        width=width,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        flow_shift=settings.flow_shift,
        seed=0,
        preset=preset,
    )
    return made.frames[: len(video.frames)]


def measure(generated: np.ndarray, video: SyntheticVideo, other: Cast) -> GeneratedScores:
    """Compare a generated video with the true one, and with drawings of a swapped person or product."""
    height, width = generated.shape[1:3]
    painter = Painter(video.cast, width, height)
    swapped_product = Painter(replace(video.cast, product=other.product), width, height)
    swapped_person = Painter(replace(video.cast, person=other.person), width, height)
    product_hits, person_hits, contacts, penetrations = [], [], [], []
    for clip in range(len(video.actions)):
        for k in SHOWING:
            frame = clip * CLIP_FRAMES + k
            pose, boxes = video.poses[frame], video.boxes[frame]
            if boxes.product is not None:
                wrong = swapped_product.frame(pose)
                product_hits.append(_closer(generated[frame], video.frames[frame], wrong, boxes.product))
                contact, penetration = _grip(generated[frame], painter, pose, boxes.product)
                contacts.append(contact)
                penetrations.append(penetration)
            bust = (0, 0, width, boxes.face[3] + (boxes.face[3] - boxes.face[1]) // 2)
            person_hits.append(
                _closer(generated[frame], video.frames[frame], swapped_person.frame(pose), bust)
            )
    seen = [seen_action(generated, video, painter, clip) for clip in range(len(video.actions))]
    one_handed = [(a, s) for a, s in zip(video.actions, seen, strict=True) if a.endswith(("_right", "_left"))]
    correlation, lag = mouth_agreement(seen_mouth(generated, video, painter), video.mouth)
    difference = np.abs(generated.astype(np.int16) - video.frames).mean(axis=3)
    changes = np.abs(np.diff(generated.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    joins = [changes[clip * CLIP_FRAMES - 1] for clip in range(1, len(video.actions))]
    return GeneratedScores(
        product_told_apart=float(np.mean(product_hits)),
        person_told_apart=float(np.mean(person_hits)),
        action_obeyed=float(np.mean([a == s for a, s in zip(video.actions, seen, strict=True)])),
        hand_obeyed=float(np.mean([a.split("_")[-1] == s.split("_")[-1] for a, s in one_handed]))
        if one_handed
        else None,
        mouth_correlation=correlation,
        mouth_lag_frames=abs(lag),
        contact=float(np.mean(contacts)),
        penetration=float(np.mean(penetrations)),
        boundary_jump=float(np.mean(joins) / max(1e-6, float(np.median(changes)))) if joins else None,
        face_error=_error_in(difference, [boxes.face for boxes in video.boxes]),
        hands_error=_error_in(
            difference,
            [boxes.right_hand for boxes in video.boxes],
            [boxes.left_hand for boxes in video.boxes],
        ),
        product_error=_error_in(difference, [boxes.product for boxes in video.boxes]),
        error=float(difference.mean()),
    )


def seen_action(generated: np.ndarray, video: SyntheticVideo, painter: Painter, clip: int) -> Action:
    """The action whose drawing is closest to a clip's frames."""

    def distance(action: Action) -> float:
        total = 0.0
        for k in SHOWING:
            frame = clip * CLIP_FRAMES + k
            pose = pose_at(action, k, float(video.mouth[frame]), video.cast.product)
            total += float(np.abs(generated[frame].astype(np.int16) - painter.frame(pose)).mean())
        return total

    return min(ACTIONS, key=distance)


def seen_mouth(generated: np.ndarray, video: SyntheticVideo, painter: Painter) -> np.ndarray:
    """Mouth opening 0..1 in each frame: that of the closest of eleven drawings of the lower face."""
    opening = np.zeros(len(generated))
    for i, frame in enumerate(generated):
        x1, y1, x2, y2 = video.boxes[i].face
        lower = slice((y1 + y2) // 2, y2), slice(x1, x2)
        shown = frame[lower].astype(np.int16)
        drawings = [painter.frame(replace(video.poses[i], mouth=float(m)))[lower] for m in MOUTHS]
        opening[i] = MOUTHS[int(np.argmin([np.abs(shown - drawing).mean() for drawing in drawings]))]
    return opening


def mouth_agreement(seen: np.ndarray, spoken: np.ndarray) -> tuple[float, int]:
    """The greatest correlation at any lag within ±5 frames, and that lag. A late mouth has a positive lag."""
    best = (-1.0, 0)
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        late, early = seen[max(0, lag) :], spoken[max(0, -lag) :]
        length = min(len(late), len(early))
        late, early = late[:length], early[:length]
        if late.std() < 1e-6 or early.std() < 1e-6:
            continue
        best = max(best, (float(np.corrcoef(late, early)[0, 1]), lag), key=lambda pair: pair[0])
    return best if best[0] > -1 else (0.0, 0)


def contact_sheet(generated: np.ndarray, video: SyntheticVideo, every: int = 10) -> Image.Image:
    """References, then generated frames above true ones."""
    height, width = generated.shape[1:3]
    product = np.asarray(place_product(video.product_image, width, height))
    references = np.concatenate([np.asarray(video.person_image), product])
    rows = [np.concatenate(list(frames[every // 2 :: every]), axis=1) for frames in (generated, video.frames)]
    return Image.fromarray(np.concatenate([references, np.concatenate(rows)], axis=1))


def _closer(frame: np.ndarray, right: np.ndarray, wrong: np.ndarray, box: Box) -> bool:
    """Whether a frame's box is closer to `right` than to `wrong`. Pixels that the two share do not count."""
    x1, y1, x2, y2 = box
    inside = (slice(y1, y2), slice(x1, x2))
    shown, a, b = (image[inside].astype(np.int16) for image in (frame, right, wrong))
    return bool(np.abs(shown - a).mean() < np.abs(shown - b).mean())


def _error_in(difference: np.ndarray, *boxes: Sequence[Box | None]) -> float:
    """Mean of (T, H, W) over the pixels inside boxes; each sequence holds one box per frame."""
    inside = [
        difference[i, box[1] : box[3], box[0] : box[2]].ravel()
        for each in boxes
        for i, box in enumerate(each)
        if box is not None
    ]
    return float(np.concatenate(inside).mean())


def _grip(frame: np.ndarray, painter: Painter, pose: Pose, box: Box) -> tuple[float, float]:
    """Contact and penetration in one frame.

    The true drawing says where product and hand are. Each generated pixel counts as the colour that it is
    closest to: the product, the skin, or the shirt or wall. Contact means that a skin pixel touches a product
    pixel. Penetration is the share of the product's visible area whose pixels are not product pixels.
    """
    x1, y1, x2, y2 = (max(0, box[0] - 4), max(0, box[1] - 4), box[2] + 4, box[3] + 4)
    region = (slice(y1, y2), slice(x1, x2))
    shown = frame[region].astype(np.int16)
    held = painter.frame(pose)[region].astype(np.int16)
    without = painter.frame(replace(pose, held=None))[region].astype(np.int16)
    product_area = np.abs(held - without).sum(axis=2) > 40
    skin = np.array(painter.cast.person.skin, dtype=np.int16)
    to_product = np.abs(shown - held).sum(axis=2)
    to_without = np.abs(shown - without).sum(axis=2)
    to_skin = np.abs(shown - skin).sum(axis=2)
    product_like = product_area & (to_product <= to_without) & (to_product <= to_skin)
    skin_like = (to_skin < 90) & ~product_like
    touching = np.zeros_like(product_like)
    for axis in (0, 1):
        for step in (-1, 1):
            touching |= np.roll(product_like, step, axis=axis) & skin_like
    missing = 1 - product_like.sum() / max(1, product_area.sum())
    return float(touching.sum() >= 2), float(missing)


def markdown_table(rows: dict[str, list[Measured]]) -> str:
    """One column per checkpoint, one row per measurement: its mean over videos.

    Columns after the first also give the difference from the first, ± two standard errors of that difference
    from video to video.
    """
    first = next(iter(rows.values()))
    lines = ["| | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for name in first[0]:
        cells = []
        for measured in rows.values():
            pairs = [(a[name], b[name]) for a, b in zip(measured, first, strict=True)]
            known = np.array([(a, b) for a, b in pairs if a is not None and b is not None])
            cells.append(_cell(known, compared=measured is not first))
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(pairs: np.ndarray, compared: bool) -> str:
    """(videos, 2) of this checkpoint's values and the first one's → the text of one cell."""
    if not len(pairs):
        return "-"
    text = f"{pairs[:, 0].mean():.3f}"
    if not compared or len(pairs) < 2:
        return text
    gaps = pairs[:, 0] - pairs[:, 1]
    return f"{text} ({gaps.mean():+.3f} ± {2 * gaps.std(ddof=1) / len(gaps) ** 0.5:.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, action="append", required=True, help="may be given several times"
    )
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument(
        "--parity", action="store_true", help="with the official behaviours, such as lips that drift off"
    )
    parser.add_argument("--guidance", type=float, help="guidance scale, if not the checkpoint's default")
    parser.add_argument("--pictures", type=Path, help="folder for contact sheets")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    rows: dict[str, list[Measured]] = {}
    for folder in options.checkpoint:
        card = read_card(folder)
        width, height = (int(side) for side in card.sizes[0].split("x"))
        name = str(folder) if card.name in rows else card.name
        settings = card.defaults
        if options.guidance is not None:
            settings = settings.model_copy(update={"guidance_scale": options.guidance})
        rows[name] = evaluate(
            load_pipeline(folder),
            settings,
            width=width,
            height=height,
            videos=options.videos,
            clips=options.clips,
            preset=Preset.PARITY if options.parity else Preset.EXACT,
            pictures=options.pictures,
        )
    log.info("\n%s", markdown_table(rows))


if __name__ == "__main__":
    main()
