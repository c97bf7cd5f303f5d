"""The child: an RQ worker that keeps the model in memory and renders in its own process.

RQ's own workers fork, trust the function names in Redis, and give up when Redis goes away. This one does none
of that. The supervisor sends its heartbeats, because this process can send none while a call holds the
interpreter lock.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType, MappingProxyType

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import InvalidJobOperation, StopRequested
from rq.executions import Execution
from rq.job import Job as RqJob
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty
from rq.worker import SimpleWorker
from rq.worker.base import WorkerStatus

from contract.settings import Settings
from jobs.journal import Journal
from jobs.logs import configure_logging
from jobs.queue import JobQueue, queue_name
from jobs.redis_connection import connect
from jobs.storage import open_store
from jobs.tickets import RENDER_NEXT, Ticket
from jobs.traces import Traces, open_traces
from workers.attempt import Runner
from workers.engines.engine import Engine
from workers.engines.fake import FAKE_FILE, FakeEngine, FakeSettings
from workers.lifeline import end_with_supervisor
from workers.maker import maker_of
from workers.messages import LONGEST_CAUSE, ChildConfig, Message, Ready, Unloadable
from workers.provenance import Provenance

log = logging.getLogger(__name__)

RESTART_EXIT_STATUS = 75
"""The process must be replaced before it can render again (EX_TEMPFAIL)."""

_RECONNECT_S = 0.5
_LEASE_POLL_S = 0.5


class NoTimeLimit(BaseDeathPenalty):
    """No limit from RQ, which would raise in the middle of a render. The supervisor has a watchdog."""

    def setup_death_penalty(self) -> None:
        pass

    def cancel_death_penalty(self) -> None:
        pass


class GpuWorker(SimpleWorker):
    """RQ's loop around `Runner.render_next`: one queue, no fork, no commands from Redis, no maintenance."""

    death_penalty_class = NoTimeLimit
    exponential_backoff_factor = 1.0
    max_connection_wait_time = _RECONNECT_S

    def __init__(self, runner: Runner, checkpoint: str, connection: Redis, settings: Settings) -> None:
        class AllowedTicket(Ticket):
            functions: Mapping[str, Callable[..., None]] = MappingProxyType({RENDER_NEXT: runner.render_next})

        self._runner = runner
        self._settings = settings
        queue = Queue(
            queue_name(checkpoint), connection=connection, job_class=AllowedTicket, serializer=JSONSerializer
        )
        super().__init__(
            [queue],
            name=runner.worker,
            connection=connection,
            job_class=AllowedTicket,
            serializer=JSONSerializer,
            worker_ttl=20,  # RQ waits 15 s less than this for a ticket, then registers again
            log_job_description=False,
        )

    def _set_ip_address(self, connection: Redis) -> None:
        # RQ asks Redis for its list of clients, which redis-py cannot read if the socket's path has a space
        # or "=" in it. Nobody needs the address.
        self.ip_address = "unknown"

    def bootstrap(self, *args: object, **kwargs: object) -> None:
        """Register. Unlike RQ's, listens to no command channel and leaves logging alone."""
        self.register_birth()
        self.set_state(WorkerStatus.STARTED)

    def register_birth(self) -> None:
        self.connection.delete(self.key)  # our own registration from before Redis went away
        super().register_birth()  # type: ignore[no-untyped-call]

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RqJob, Queue] | None:
        """Take no ticket while this worker is drained, or its lease is dead: then the supervisor, which
        renews it, is stopped or cut off.
        """
        while not self._stop_requested and not self._runner.may_work():
            self._runner.stopping.wait(_LEASE_POLL_S)
        return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Never. Maintenance is the reaper's work, because it must go on while all workers are busy."""
        return False

    def get_heartbeat_ttl(self, job: RqJob, working_time: float = 0.0) -> int:
        return self._settings.rq_lease_s

    def execute_job(self, job: RqJob, queue: Queue) -> None:
        super().execute_job(job, queue)
        if self._runner.broken:
            raise StopRequested

    def handle_job_success(
        self, job: RqJob, queue: Queue, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        try:
            super().handle_job_success(job, queue, started_job_registry, execution)
        except InvalidJobOperation:
            log.info("Redis has forgotten the ticket; the journal has not")

    def _install_signal_handlers(self) -> None:
        signal.signal(signal.SIGTERM, self.request_stop)
        # Ctrl-C reaches the whole foreground group; the supervisor turns it into SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """On SIGTERM, a render stops at its next step and an idle worker stops at once."""
        self._runner.stopping.set()
        self._stop_requested = True
        if self.get_state() != WorkerStatus.BUSY:
            raise StopRequested


def load_engine(config: ChildConfig) -> Engine:
    if (config.folder / FAKE_FILE).exists():
        settings = FakeSettings.model_validate_json((config.folder / FAKE_FILE).read_bytes())
        return FakeEngine(settings, config.memory_mode)
    # This imports torch, which takes seconds and a gigabyte. The fault tests do without.
    from workers.engines.pipeline import PipelineEngine, place_of

    device = config.devices[config.rank]
    return PipelineEngine(
        config.folder,
        device,
        config.settings.attention,
        config.memory_mode,
        place_of(config),
        config.settings.fp8_compute,
    )


def serve(config: ChildConfig, engine: Engine, provenance: Provenance, traces: Traces) -> int:
    """Work until told to stop. Returns the exit status. Waits for a Redis that is away."""
    report_lock = threading.Lock()

    def tell(message: Message) -> None:
        line = message.model_dump_json().encode() + b"\n"
        with report_lock:
            os.write(config.report_fd, line)

    store = provenance.store
    runner = Runner(
        worker=config.name,
        journal=Journal(store),
        store=store,
        queue=JobQueue(config.settings, config.redis_url),
        settings=config.settings,
        engine=engine,
        tell=tell,
        stopping=threading.Event(),
        provenance=provenance,
        maker=maker_of(engine, config.folder, len(config.devices)),
        traces=traces,
    )

    def stop(signum: int, frame: FrameType | None) -> None:
        runner.stopping.set()

    signal.signal(signal.SIGTERM, stop)
    tell(Ready(attention=engine.attention, memory_mode=engine.memory_mode))
    while not runner.stopping.is_set() and not runner.broken:
        connection = connect(config.redis_url, timeout_s=None)
        try:
            connection.ping()
            GpuWorker(runner, config.checkpoint, connection, config.settings).work()
        except (RedisError, StopRequested) as error:
            log.info("RQ's loop ended: %s", error)
        finally:
            signal.signal(signal.SIGTERM, stop)
            connection.close()
        runner.stopping.wait(_RECONNECT_S)
    return RESTART_EXIT_STATUS if runner.broken else 0


def main() -> int:
    faulthandler.enable()  # last words of a crash in native code
    config = ChildConfig.model_validate_json(sys.stdin.buffer.readline())
    configure_logging(config.settings)
    end_with_supervisor(config.parent_pid)
    try:
        provenance = Provenance(open_store(config.settings, probe=False), config.settings)
        provenance.check()
        traces = open_traces(config.settings, "cointeract-worker", {"device": config.devices[0]})
        engine = load_engine(config)
    except Exception as error:  # whatever it is, it is the reason why nothing is rendered
        log.exception("the model cannot be loaded", extra={"checkpoint": config.checkpoint})
        cause = f"{type(error).__name__}: {error}"[:LONGEST_CAUSE]
        os.write(config.report_fd, Unloadable(cause=cause).model_dump_json().encode() + b"\n")
        return 1
    status = serve(config, engine, provenance, traces)
    traces.close()
    if config.meeting is not None:
        # Tensors that never arrive must not hold up the end: torch would wait for them.
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
