"""The README's animation: the three inputs of a video beside the video itself, as one animated WebP."""

from __future__ import annotations

import textwrap
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image, ImageDraw, ImageFont

from contract.video import CLIP_FRAMES, FPS, clips_of_frames
from deploy.samples import Samples

PAGE = (800, 392)
SHOWN_PHOTO_SIZE = (165, 264)
VIDEO = (225, 360)
WAVE = (527, 80)
PAGE_MARGIN = 16
EVERY = 2
"""One frame in so many is shown: lips still match the sound, and the file is half as large."""

PAPER, SOFT, BRAND = (255, 255, 255), (150, 150, 162), (79, 70, 229)


def save_showcase(samples: Samples, video: Path, target: Path) -> None:
    """Write the animation of `video`, made from `samples`. Prompt and speech of the shown clip are lit."""
    with av.open(str(video)) as container:
        frames = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    clips = clips_of_frames(len(frames))
    pages = [inputs_page(samples, clip, clips) for clip in range(clips)]
    shown = []
    for index in range(0, len(frames), EVERY):
        page = pages[index // CLIP_FRAMES].copy()
        # The video is small. Enlarged with a smooth filter, it looks drawn rather than made of squares.
        enlarged = frames[index].resize(VIDEO, Image.Resampling.LANCZOS)
        page.paste(enlarged, (PAGE[0] - VIDEO[0] - PAGE_MARGIN, PAGE_MARGIN))
        shown.append(page)
    target.parent.mkdir(parents=True, exist_ok=True)
    duration = 1000 * EVERY // FPS
    shown[0].save(
        target, save_all=True, append_images=shown[1:], duration=duration, loop=0, quality=72, method=4
    )


def inputs_page(samples: Samples, clip: int, clips: int) -> Image.Image:
    """Everything but the video, while clip `clip` of `clips` is on."""
    page = Image.new("RGB", PAGE, PAPER)
    draw = ImageDraw.Draw(page)
    for place, file in enumerate((samples.person, samples.product)):
        with Image.open(file) as image:
            photo = image.convert("RGB").resize(SHOWN_PHOTO_SIZE, Image.Resampling.LANCZOS)
        page.paste(photo, (PAGE_MARGIN + place * (SHOWN_PHOTO_SIZE[0] + PAGE_MARGIN), PAGE_MARGIN))
    _draw_prompts(draw, samples.sentences(), clip)
    _draw_wave(draw, samples.audio, clip, clips)
    return page


def _draw_prompts(draw: ImageDraw.ImageDraw, sentences: tuple[str, ...], clip: int) -> None:
    x, y = 2 * (SHOWN_PHOTO_SIZE[0] + PAGE_MARGIN) + PAGE_MARGIN, PAGE_MARGIN
    font = ImageFont.load_default(size=13)
    for index, sentence in enumerate(sentences):
        text = textwrap.fill(sentence, 25)
        draw.multiline_text((x, y), text, fill=BRAND if index == clip else SOFT, font=font, spacing=3)
        y = round(draw.multiline_textbbox((x, y), text, font=font, spacing=3)[3]) + 14


def _draw_wave(draw: ImageDraw.ImageDraw, speech: Path, clip: int, clips: int) -> None:
    samples, rate = soundfile.read(speech, dtype="float32")
    loud = np.abs(samples[: len(samples) // WAVE[0] * WAVE[0]]).reshape(WAVE[0], -1).max(axis=1)
    per_clip = CLIP_FRAMES / FPS * rate / len(samples) * WAVE[0]  # pixels
    middle = PAGE_MARGIN + SHOWN_PHOTO_SIZE[1] + PAGE_MARGIN + WAVE[1] // 2
    for x, height in enumerate(loud / loud.max() * WAVE[1] / 2):
        color = BRAND if int(x / per_clip) == min(clip, clips - 1) else SOFT
        draw.line((PAGE_MARGIN + x, middle - height, PAGE_MARGIN + x, middle + height), fill=color)
