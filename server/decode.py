"""The sandbox: a small process that forks one confined child per request to decode its files. `python -m
server.decode`.

Why forked: a child starts with every codec already loaded, in about 2 ms, decodes the files of one request,
and is gone,
so nothing that a file does to it reaches the next request. The child holds no secret (empty environment),
cannot open
files, sockets or processes (server.seccomp), and is bounded in memory, CPU, output and time.

Protocol, on the socket that is our standard input (SOCK_SEQPACKET): one JSON message per request, with file
descriptors
[reply, input 0, output 0, input 1, output 1, …]. On the reply pipe: one JSON line per file, then the end of
the file.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import signal
import socket
import time
from typing import Final

import av
import numpy as np
import soundfile
from PIL import Image

from server import seccomp
from server.media_files import DECODERS, Limits, RejectedFileError

MEMORY_BYTES: Final = 2 * 2**30
"""Address space of a child. 25 MP take about 0.3 GiB while being turned and laid on white; the libraries
themselves 0.6.
"""
OUTPUT_BYTES: Final = 2 * 2**30
OPEN_FILES: Final = 64
LARGEST_MESSAGE: Final = 65_536
MOST_DESCRIPTORS: Final = 16


def _limit(seconds: float) -> None:
    bounds = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: OUTPUT_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))


def _decode_all(message: bytes, descriptors: list[int]) -> None:
    """Decode each file in turn, answering one line each; stops at the first that is rejected."""
    request = json.loads(message)
    limits = Limits(**request["limits"])
    reply, files = descriptors[0], descriptors[1:]
    for index, kind in enumerate(request["kinds"]):
        with os.fdopen(files[2 * index], "rb") as source, os.fdopen(files[2 * index + 1], "w+b") as target:
            try:
                answer: dict[str, object] = DECODERS[kind](source, target, limits)
            except RejectedFileError as rejected:
                answer = {"code": rejected.code, "detail": rejected.detail, "limit": rejected.limit}
            except MemoryError:
                answer = {
                    "code": "undecodable_file",
                    "detail": "Decoding the file takes too much memory.",
                    "limit": None,
                }
        os.write(reply, json.dumps(answer).encode() + b"\n")
        if "code" in answer:
            return


def _child(message: bytes, descriptors: list[int]) -> None:
    """Runs in the forked process and never returns."""
    status = 1
    try:
        os.close(0)
        seccomp.die_with_parent()
        signal.setitimer(signal.ITIMER_REAL, json.loads(message)["timeout_s"])
        _limit(json.loads(message)["timeout_s"])
        if seccomp.supported():
            seccomp.confine()
        _decode_all(message, descriptors)
        status = 0
    finally:
        # Any other exception is the file's doing: the missing line tells the server which file it was.
        os._exit(status)


def _warm_up() -> None:
    """Decode one of everything, so that no codec has to open a file once the filter is on."""
    limits = Limits(max_pixels=10**6, min_side=1, min_seconds=0.0, max_seconds=60.0, max_frame_pixels=10**6)
    for name, data in _samples().items():
        with (
            os.fdopen(os.memfd_create(name), "w+b") as source,
            os.fdopen(os.memfd_create("out"), "w+b") as target,
        ):
            source.write(data)
            source.flush()
            source.seek(0)
            DECODERS[name.split(":")[0]](source, target, limits)


def _samples() -> dict[str, bytes]:
    """A tiny file of each kind, made on the spot."""
    samples: dict[str, bytes] = {}
    for kind, mode in (("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("WEBP", "RGB")):
        buffer = io.BytesIO()
        Image.new(mode, (32, 32)).save(buffer, kind)
        samples[f"image:{kind}{mode}"] = buffer.getvalue()
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation
    buffer = io.BytesIO()
    Image.new("CMYK", (32, 32)).save(buffer, "JPEG", exif=turned)
    samples["image:JPEG turned"] = buffer.getvalue()
    for kind, subtype, rate in (("WAV", "PCM_16", 8000), ("WAV", "FLOAT", 96_000), ("FLAC", "PCM_16", 8000),
                                ("OGG", "VORBIS", 8000), ("OGG", "OPUS", 8000),
                                ("MP3", None, 8000)):  # fmt: skip
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros((4000, 2), np.float32), rate, format=kind, subtype=subtype)
        samples[f"audio:{kind}{subtype}"] = buffer.getvalue()
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        speech = container.add_stream("aac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16_000
        container.mux(speech.encode(silence))
        container.mux(speech.encode(None))
    samples["audio:M4A"] = buffer.getvalue()
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        container.mux(
            video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24"))
        )
        container.mux(video.encode(None))
    samples["video:MP4"] = buffer.getvalue()
    return samples


def main() -> None:
    """Serve until the other end of standard input closes."""
    control = socket.socket(fileno=os.dup(0))
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C in a terminal reaches the whole group; our parent decides
    seccomp.die_with_parent()
    _warm_up()
    control.send(b"ready")
    deadlines: dict[int, float] = {}
    while True:
        readable, _, _ = select.select([control], [], [], 0.1 if deadlines else None)
        for pid in list(deadlines):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del deadlines[pid]
            elif time.monotonic() > deadlines[pid]:
                os.kill(pid, signal.SIGKILL)
        if not readable:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, LARGEST_MESSAGE, MOST_DESCRIPTORS)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            _child(message, descriptors)
        deadlines[pid] = time.monotonic() + json.loads(message)["timeout_s"] + 1.0
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    main()
