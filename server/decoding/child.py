"""The sandbox: a small process that forks confined children to decode files.
`python -m server.decoding.child plain|full N SOCKET`.

Each child decodes the files of one request and is gone, so nothing that a file does to it reaches the next
request. N of them are waiting at any time, forked with every codec already loaded: the small libraries that
most files need, or all (server.decoding.decoders). A child holds no secret (empty environment), cannot open
files, sockets or processes (server.decoding.seccomp), and is bounded in memory, CPU, output and time.

Protocol, on a socket that keeps messages apart: `ready` from us, then one JSON message per request, with file
descriptors [reply, input 0, output 0, input 1, …]. On the reply socket: one JSON line per file, then its end.
When our standard input ends, so do we.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import tempfile
from typing import BinaryIO, Final

from contract.processes import die_with_parent
from server.decoding import seccomp
from server.decoding.decoders import Libraries, decode, load_decoders
from server.decoding.formats import Kind, Limits, RejectedFileError, Sample
from server.decoding.samples import usual_samples

MEMORY_BYTES: Final = 2 * 2**30
"""Address space of a child. The worst photo of 64 MP, a transparent WebP, takes 1.2 GiB in all."""
OUTPUT_BYTES: Final = 2 * 2**30
OPEN_FILES: Final = 64
READY: Final = b"ready"
"""What the process says once it has loaded its codecs."""
HEAVY_NICENESS: Final = 10
"""By how much heavy work gives way to that of a moment, and to the event loop that all tenants share."""
NO_MORE_REQUESTS: Final = 17
"""Exit status of a child that was told so."""
LARGEST_MESSAGE: Final = 65_536
MOST_DESCRIPTORS: Final = 16


def _limit(seconds: float) -> None:
    bounds = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: OUTPUT_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS refuses this one
        bounds[resource.RLIMIT_AS] = MEMORY_BYTES
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))


def _unnamed_file() -> BinaryIO:
    """An empty file, in memory where there is such a thing."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("sample"), "w+b")
    return tempfile.TemporaryFile()


class Zygote:
    """The process that is forked for each request."""

    def __init__(self, control: socket.socket, libraries: Libraries) -> None:
        self._control = control
        self._lifeline = os.dup(0)
        self._decoders, trials = load_decoders(libraries)
        self._nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(self._nowhere, 0)
        # So that no codec has to open a file once the filter is on.
        self._warm_up(trials)
        self._usual = usual_samples()

    def serve(self, children: int) -> None:
        """Keep so many children waiting until the socket closes."""
        gc.collect()
        gc.freeze()  # what exists now stays shared with the children,
        gc.disable()  # who live too shortly to collect anything
        self._control.send(READY)
        waiting = 0
        while True:
            while waiting < children:
                if os.fork() == 0:
                    self._child()
                waiting += 1
            _, status = os.wait()
            waiting -= 1
            if os.waitstatus_to_exitcode(status) == NO_MORE_REQUESTS:
                return

    def _child(self) -> None:
        """Runs in a forked process: waits for one request, locks itself in, decodes, ends. Never returns."""
        status = 1
        try:
            die_with_parent(signal.SIGKILL)
            # Touching what the next request will touch copies those pages now, while nobody waits for it.
            self._warm_up(self._usual)
            message, descriptors = self._next_request()
            if message:
                self._control.close()  # other people's requests arrive there
                os.close(self._lifeline)
                os.dup2(self._nowhere, 2)  # codecs remark on every oddity of a file
                request = json.loads(message)
                timeout_s = request["timeout_s"]
                signal.setitimer(signal.ITIMER_REAL, timeout_s)  # SIGALRM ends the process
                _limit(timeout_s)
                if request["heavy"]:
                    os.nice(HEAVY_NICENESS)
                seccomp.confine()
                self._decode_all(request["kinds"], Limits(**request["limits"]), descriptors)
                status = 0
            else:
                status = NO_MORE_REQUESTS
        finally:
            # Any other exception is the file's doing: the missing line tells the server which file it was.
            os._exit(status)

    def _next_request(self) -> tuple[bytes, list[int]]:
        """Wait for it, among the other children. Empty if there will be none."""
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._lifeline], [], [])
            if self._lifeline in ready:
                return b"", []
            try:
                message, descriptors, _, _ = socket.recv_fds(
                    self._control, LARGEST_MESSAGE, MOST_DESCRIPTORS, socket.MSG_DONTWAIT
                )
            except BlockingIOError:  # another child has it
                continue
            return message, descriptors

    def _decode_all(self, kinds: list[Kind], limits: Limits, descriptors: list[int]) -> None:
        """Decode each file in turn, answering one line each; stops at the first that is rejected."""
        reply, files = descriptors[0], descriptors[1:]
        for index, kind in enumerate(kinds):
            with (
                os.fdopen(files[2 * index], "rb") as source,
                os.fdopen(files[2 * index + 1], "w+b") as target,
            ):
                try:
                    answer = decode(self._decoders, source, target, kind, limits)
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

    def _warm_up(self, samples: list[Sample]) -> None:
        """Decode some files for nothing."""
        limits = Limits(
            max_pixels=10**6, min_side=1, min_seconds=0.0, max_seconds=60.0, max_frame_pixels=10**6
        )
        for kind, data in samples:
            with (
                _unnamed_file() as source,
                _unnamed_file() as target,
            ):
                source.write(data)
                source.flush()
                decode(self._decoders, source, target, kind, limits)


def main() -> None:
    """Serve requests until standard input ends."""
    control = socket.socket(fileno=int(sys.argv[3]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; our parent decides
    die_with_parent(signal.SIGKILL)
    Zygote(control, "full" if sys.argv[1] == "full" else "plain").serve(int(sys.argv[2]))


if __name__ == "__main__":
    main()
