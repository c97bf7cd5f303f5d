"""Pictures and sound for the fake engine's clips, through the same encoder as real ones.

They have a module of their own because the media libraries take longer to load than a fake job takes to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from contract.params import GenerationParams
from contract.video import CLIP_FRAMES, CLIP_LATENT_FRAMES
from model.media import ClipStream, encode_clip, join_clips, with_label, write_poster, write_router_map
from workers.engines.engine import ClipFiles

__all__ = ["ClipStream", "encode_colours", "join"]


def encode_colours(params: GenerationParams, index: int, digest: bytes, files: ClipFiles) -> None:
    """Frames of one colour each, drawn from `digest`, as clip `index`; its video and poster."""
    count = min(CLIP_FRAMES, params.num_frames - index * CLIP_FRAMES)
    colours = np.random.default_rng(list(digest)).integers(0, 256, (count, 1, 1, 3), np.uint8)
    frames = np.broadcast_to(colours, (count, params.height, params.width, 3))
    frames = with_label(frames, params.label)
    encode_clip(frames, files.video)
    write_poster(frames, files.poster)
    if params.router_maps:
        routes = np.full(
            (CLIP_LATENT_FRAMES, params.height // 16, params.width // 16, 2), digest[0], np.uint8
        )
        write_router_map(routes, count, files.router_map)


def join(params: GenerationParams, clips: Sequence[Path], speech: Path, video: Path, poster: Path) -> None:
    """Clips and speech → `video`, and a white `poster`."""
    join_clips(clips, speech, video)
    Image.new("RGB", (params.width, params.height), "white").save(poster, "JPEG")
