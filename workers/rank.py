"""A rank of a worker that is not the first: it loads its part of the model and follows rank 0.

It knows no queue and no journal, and holds nothing that would be lost. Its supervisor kills it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys

from jobs.logs import configure_logging
from workers.engines.fake import FAKE_FILE
from workers.lifeline import end_with_supervisor
from workers.messages import LONGEST_CAUSE, ChildConfig, Message, Unloadable

log = logging.getLogger(__name__)


def main() -> int:
    faulthandler.enable()  # last words of a crash in native code
    config = ChildConfig.model_validate_json(sys.stdin.buffer.readline())
    configure_logging(config.settings)
    end_with_supervisor(config.parent_pid)
    # Ctrl-C reaches the whole foreground group; the supervisor ends us when rank 0 has put its job back.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def tell(message: Message) -> None:
        os.write(config.report_fd, message.model_dump_json().encode() + b"\n")

    if (config.folder / FAKE_FILE).exists():
        while True:
            signal.pause()
    # This imports torch, which takes seconds and a gigabyte. The fault tests do without.
    from workers.engines.following import Following

    try:
        following = Following(config)
    except Exception as error:  # whatever it is, it is the reason why nothing is rendered
        log.exception("the model cannot be loaded", extra={"checkpoint": config.checkpoint})
        tell(Unloadable(cause=f"{type(error).__name__}: {error}"[:LONGEST_CAUSE]))
        return 1
    try:
        following.run()
    except Exception as error:  # whatever it is, all ranks start anew
        log.exception("rank %d failed", config.rank)
        tell(following.failure(error))
        os._exit(1)  # tensors that never arrive must not hold up the end: torch would wait for them
    return 0


if __name__ == "__main__":
    sys.exit(main())
