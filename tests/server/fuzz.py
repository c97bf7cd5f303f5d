"""Mutated images, speech and video against a live API: every answer must be 2xx or 4xx.

python -m tests.server.fuzz --cases 10000 --seed 1
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from jobs.artifacts import FolderStore
from jobs.cards import publish_card
from jobs.redis_server import RedisServer
from server.app import create_app
from server.decoding.colour import matrix_profile
from tests.server.conftest import CARD, Live, make_settings, serving
from tests.server.decoded import CASES, Pipe, encoded
from tests.server.inputs import audio_bytes, form, image_bytes, jpeg_of_scans, samples, video_bytes

Seeds = list[tuple[str, bytes]]
EXTREMES = (
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\0\0\0\x01",
    b"\xff\xff",
    b"\0",
)


def seeds() -> Seeds:
    """(field, good file) of every format and flavour."""

    def read(name: str) -> bytes:
        return (CASES / name).read_bytes()

    profile = matrix_profile((0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060), (2.2,))
    images = [
        image_bytes("PNG"),
        image_bytes("PNG", mode="RGBA"),
        image_bytes("PNG", mode="P"),
        image_bytes("PNG", mode="L"),
        image_bytes("PNG", mode="1"),
        image_bytes("JPEG"),
        image_bytes("JPEG", progressive=True),
        image_bytes("JPEG", mode="CMYK"),
        image_bytes("WEBP"),
        image_bytes("WEBP", lossless=True),
        image_bytes("AVIF", speed=10),
        image_bytes("JPEG", icc_profile=profile),
        image_bytes("PNG", icc_profile=profile),
        image_bytes("JPEG") + video_bytes(3),
        jpeg_of_scans((64, 64), 40),
        *(read(name) for name in ("turned.heic", "alpha.heic", "p3_profile.heic", "p3_code_points.heic")),
    ]
    tone = samples(0.3, 48_000, 2)
    speech = [
        audio_bytes("WAV", 0.3),
        audio_bytes("WAV", 0.3, channels=2, subtype="FLOAT"),
        audio_bytes("WAV", 0.3, subtype="IMA_ADPCM"),
        audio_bytes("WAV", 0.3, subtype="ULAW"),
        audio_bytes("FLAC", 0.3),
        audio_bytes("OGG", 0.3, subtype="VORBIS"),
        audio_bytes("OGG", 0.3, subtype="OPUS"),
        audio_bytes("MP3", 0.3),
        audio_bytes("M4A", 0.3, channels=2),
        audio_bytes("WAV", 0.3, 96_000),
        audio_bytes("WAV", 0.3) + audio_bytes("WAV", 0.3, 44_100),
        audio_bytes("WAV", 0.3, channels=6),
        audio_bytes("OGG", 0.3, subtype="OPUS") + audio_bytes("OGG", 0.3, subtype="VORBIS"),
        encoded("mp3", "libmp3lame", tone, 48_000, Pipe()),
        encoded("mp3", "libmp3lame", tone, 48_000) * 2,
        encoded("adts", "aac", tone, 48_000),
        encoded("flac", "flac", tone, 48_000, Pipe()),
        encoded("webm", "libopus", tone, 48_000, Pipe()),
        encoded("mp4", "libopus", tone, 48_000),
        encoded("mov", "pcm_s16le", tone, 48_000),
        encoded("aiff", "pcm_s24be", tone, 48_000),
    ]
    videos = [video_bytes(4), video_bytes(4, kind="matroska")]
    return (
        [("person_image", data) for data in images]
        + [("audio", data) for data in speech]
        + [("pose_video", data) for data in videos]
    )


def mutated(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A few random changes, most of them near the front, where headers are."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not content:
            break
        front = rng.random() < 0.6
        position = rng.randrange(min(len(content), 200) if front else len(content))
        match rng.randrange(8):
            case 0:
                content[position] ^= 1 << rng.randrange(8)
            case 1:
                content[position] = rng.randrange(256)
            case 2:
                extreme = rng.choice(EXTREMES)
                content[position : position + len(extreme)] = extreme
            case 3:
                del content[rng.randrange(len(content)) :]
            case 4:
                del content[position : position + rng.randrange(1, 64)]
            case 5:
                content[position:position] = rng.randbytes(rng.randrange(1, 64))
            case 6:
                block = content[position : position + rng.randrange(1, 400)]
                content[position:position] = block * rng.randrange(1, 20)
            case 7:
                content[position:] = other[rng.randrange(len(other)) :]
    return bytes(content)


def case(number: int, seed: int, corpus: Seeds) -> tuple[str, bytes]:
    """Case `number` of a run: always the same for the same seed."""
    rng = random.Random(f"{seed}.{number}")
    field, data = corpus[number % len(corpus)]
    return field, mutated(rng, data, rng.choice(corpus)[1])


def run(live: Live, cases: int, seed: int, at_once: int = 4) -> collections.Counter[str]:
    """Number of answers by status and code. Every tenth case goes through a real submit."""
    corpus = seeds()
    with httpx.Client(base_url=live.url, timeout=120) as client:

        def one(number: int) -> str:
            field, data = case(number, seed, corpus)
            route = "/v1/generate" if number % 10 == 0 else "/v1/validate"
            answer = client.post(route, files=form(**{field: data}))
            if answer.status_code == 202:
                client.delete(answer.headers["location"])
            return f"{answer.status_code} {answer.json().get('code', 'ok')}"

        with ThreadPoolExecutor(at_once) as pool:
            return collections.Counter(pool.map(one, range(cases)))


def bad(answers: collections.Counter[str]) -> dict[str, int]:
    """The answers that are neither 2xx nor 4xx."""
    return {answer: count for answer, count in answers.items() if answer[0] not in "24"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer(Path(folder) / "redis")
        redis.start()
        try:
            settings = make_settings(Path(folder) / "data", redis.url)
            publish_card(FolderStore(settings.storage_dir), CARD)
            started = time.monotonic()
            with serving(create_app(settings)) as live:
                answers = run(live, arguments.cases, arguments.seed)
                alive = httpx.get(f"{live.url}/healthz").status_code == 200
            left = FolderStore(settings.storage_dir).list_names("scratch")
        finally:
            redis.stop()
    report = {
        "cases": arguments.cases,
        "seconds": round(time.monotonic() - started, 1),
        "answers": dict(answers.most_common()),
        "neither_2xx_nor_4xx": bad(answers),
        "api_alive": alive,
        "files_left": len(left),
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0 if alive and not bad(answers) and not left else 1


if __name__ == "__main__":
    sys.exit(main())
