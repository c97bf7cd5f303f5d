"""The sandbox: a small process that forks confined children to decode files. `python -m server.decode N`.

Each child decodes the files of one request and is gone, so nothing that a file does to it reaches the next
request. N of them are waiting at any time, forked with every codec already loaded. A child holds no secret
(empty environment), cannot open files, sockets or processes (server.seccomp), and is bounded in memory, CPU,
output and time.

Protocol, on the socket that is our standard input (SOCK_SEQPACKET): one JSON message per request, with file
descriptors [reply, input 0, output 0, input 1, output 1, …]. On the reply socket: one JSON line per file,
then its end.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
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
USUAL: Final = ("image:PNGRGBA", "image:JPEG turned", "audio:WAVPCM_16")
NO_MORE_REQUESTS: Final = 17
"""Exit status of a child that found the socket closed."""
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
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                answer = {"code": "insufficient_storage", "detail": "The disk is full.", "limit": None}
            except MemoryError:
                answer = {
                    "code": "undecodable_file",
                    "detail": "Decoding the file takes too much memory.",
                    "limit": None,
                }
        os.write(reply, json.dumps(answer).encode() + b"\n")
        if "code" in answer:
            return


def _child(control: socket.socket, samples: Mapping[str, bytes]) -> None:
    """Runs in a forked process: waits for one request, locks itself in, decodes, ends. Never returns."""
    status = 1
    try:
        seccomp.die_with_parent()
        # Touching what the next request will touch copies those pages now, while nobody waits for it.
        _warm_up(samples)
        message, descriptors, _, _ = socket.recv_fds(control, LARGEST_MESSAGE, MOST_DESCRIPTORS)
        if message:
            control.close()  # other people's requests arrive there
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)  # codecs remark on every oddity of a file
            timeout_s = json.loads(message)["timeout_s"]
            signal.setitimer(signal.ITIMER_REAL, timeout_s)  # SIGALRM ends the process
            _limit(timeout_s)
            if seccomp.supported():
                seccomp.confine()
            _decode_all(message, descriptors)
            status = 0
        else:
            status = NO_MORE_REQUESTS
    finally:
        # Any other exception is the file's doing: the missing line tells the server which file it was.
        os._exit(status)


def _warm_up(samples: Mapping[str, bytes]) -> None:
    """Decode some files for nothing."""
    limits = Limits(max_pixels=10**6, min_side=1, min_seconds=0.0, max_seconds=60.0, max_frame_pixels=10**6)
    for name, data in samples.items():
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
    """Keep `sys.argv[1]` children waiting for requests until the other end of standard input closes."""
    control = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; our parent decides
    seccomp.die_with_parent()
    samples = _samples()
    _warm_up(samples)  # so that no codec has to open a file once the filter is on
    usual = {name: data for name, data in samples.items() if name in USUAL}
    gc.collect()
    gc.freeze()  # what exists now stays shared with the children,
    gc.disable()  # who live too shortly to collect anything
    control.send(b"ready")
    waiting = 0
    while True:
        while waiting < int(sys.argv[1]):
            if os.fork() == 0:
                _child(control, usual)
            waiting += 1
        _, status = os.wait()
        waiting -= 1
        if os.waitstatus_to_exitcode(status) == NO_MORE_REQUESTS:
            return


if __name__ == "__main__":
    main()
