"""`cointeract doctor`: says what this machine can do with the checkpoints, what is wrong, and what to do."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

import torch
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from cli.attention import advice_for, measure_here, sentence
from contract.attention import AttentionBackend
from contract.card import MANIFEST, CheckpointCard
from contract.memory import MemoryMode
from contract.settings import Settings
from deploy.stack import StackError
from deploy.up import checkpoint_card
from jobs.artifacts import FolderStore, exposed_paths
from jobs.redis_connection import connect
from jobs.redis_server import running_redis
from jobs.storage import StoreRefusedError, open_store
from model.checkpoints.writer import verify_manifest
from model.fp8_choice import why_not_fp8
from model.memory.host import host_memory_bytes
from model.memory.needs import (
    OFFICIAL_SIZE,
    PLANS,
    CheckpointSize,
    fitting_plan,
    measure_checkpoint,
    needed,
    with_fp8,
)
from model.network.attention_backends import missing_package

SIZES = ("480x832", "720x1280")
OLDEST_REDIS = (6, 2)
SLOW_FSYNC_S = 0.1
CPU_PARAMETER_BYTES = 10**9
"""With more bytes of parameters than this, a video takes hours on a CPU."""


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    """Something must be fixed. It makes the command's exit status 1."""


@dataclass(frozen=True)
class Finding:
    topic: str
    status: Status
    message: str
    advice: str = ""


@dataclass(frozen=True)
class Gpu:
    name: str
    total_bytes: int
    free_bytes: int
    capability: str


@dataclass(frozen=True)
class Machine:
    gpus: tuple[Gpu, ...]
    host_bytes: int
    """Main memory that processes may use here: the machine's memory, or the container's limit."""
    cpus: int


@dataclass(frozen=True)
class DeviceFit:
    """Whether one checkpoint renders one size in one mode on the largest GPU."""

    checkpoint: str
    size: str
    mode: MemoryMode
    in_parts: bool
    fp8: bool
    gpu_bytes: int
    host_bytes: int
    fits: bool


@dataclass(frozen=True)
class Diagnosis:
    machine: Machine
    findings: list[Finding]
    fits: list[DeviceFit] = field(default_factory=list)

    @property
    def has_problems(self) -> bool:
        return any(finding.status is Status.PROBLEM for finding in self.findings)


def diagnose(settings: Settings, checkpoints: Mapping[str, Path], verify: bool = False) -> Diagnosis:
    """Examine machine, checkpoints (by name), attention backends, disk and Redis.

    Args:
        verify: also compare every checkpoint file with its SHA-256, which reads all of it.
    """
    machine = inspect_machine()
    findings = list(check_machine(machine))
    fits: list[DeviceFit] = []
    for name, folder in checkpoints.items():
        findings += check_files(name, folder, verify)
        try:
            size = measure_checkpoint(folder)
            card = checkpoint_card(folder)
        except (OSError, ValueError, KeyError, StackError) as error:
            advice = "Make it anew with `cointeract convert`."
            findings.append(Finding("checkpoint", Status.PROBLEM, f"{name}: {error}", advice))
            continue
        judged = [judge for text in SIZES for judge in judge_fits(name, size, machine, text)]
        fits += judged
        findings.append(check_fit(name, size, card, machine))
        findings += check_fp8(name, size, settings.fp8_compute)
        findings += check_attention(settings, folder, card)
    if not checkpoints:
        # Users want to know this before they download the weights.
        fits = [
            judge for text in SIZES for judge in judge_fits("official weights", OFFICIAL_SIZE, machine, text)
        ]
        findings += check_attention(settings)
    findings += check_disk(settings)
    findings += check_privacy(settings)
    findings += check_storage(settings)
    findings += check_redis(settings)
    return Diagnosis(machine, findings, fits)


def inspect_machine() -> Machine:
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(Gpu(properties.name, total, free, f"{properties.major}.{properties.minor}"))
    return Machine(tuple(gpus), host_memory_bytes(), os.cpu_count() or 1)


def check_machine(machine: Machine) -> Iterator[Finding]:
    memory = f"{machine.cpus} CPU cores, {machine.host_bytes / 1e9:.0f} GB of main memory"
    if not machine.gpus:
        advice = (
            "For trained checkpoints use a machine with an NVIDIA GPU and a torch built for its CUDA driver."
        )
        yield Finding(
            "machine", Status.WARNING, f"No GPU that torch {torch.__version__} can use; {memory}.", advice
        )
        return
    yield Finding("machine", Status.OK, f"torch {torch.__version__}; {memory}.")
    for index, gpu in enumerate(machine.gpus):
        used = gpu.total_bytes - gpu.free_bytes
        message = (
            f"GPU {index}: {gpu.name}, {gpu.total_bytes / 1e9:.0f} GB, compute capability {gpu.capability}."
        )
        if used > 0.1 * gpu.total_bytes:
            taken = f"{message} {used / 1e9:.1f} GB of it are in use."
            advice = (
                "Stop what else runs there (nvidia-smi names it), unless that is a worker of this service."
            )
            yield Finding("machine", Status.WARNING, taken, advice)
        else:
            yield Finding("machine", Status.OK, message)


def check_files(name: str, folder: Path, verify: bool) -> Iterator[Finding]:
    """Compare the files of a checkpoint folder with its manifest, if it has one."""
    if not (folder / MANIFEST).is_file():
        return
    if verify:
        wrong = verify_manifest(folder)
    else:
        listed = [line.partition("  ")[2] for line in (folder / MANIFEST).read_text().splitlines()]
        wrong = [entry for entry in listed if not (folder / entry).is_file()]
    if wrong:
        advice = "Copy them again, or make the folder anew with `cointeract convert`."
        what = "differ from their checksums or are missing" if verify else "are missing"
        yield Finding("checkpoint", Status.PROBLEM, f"{name}: {', '.join(wrong)} {what}.", advice)
    else:
        how = "match their checksums" if verify else "are there (--verify compares checksums)"
        yield Finding("checkpoint", Status.OK, f"{name}: all files {how}.")


def judge_fits(name: str, size: CheckpointSize, machine: Machine, text: str) -> Iterator[DeviceFit]:
    """Judge each mode with the checkpoint as it is, and with its feed-forward weights in fp8."""
    width, height = map(int, text.split("x"))
    largest = max((gpu.total_bytes for gpu in machine.gpus), default=0)
    for variant in (size,) if size.fp8 else (size, with_fp8(size)):
        for plan in PLANS:
            need = needed(variant, plan, width, height)
            fits = need.gpu <= largest and need.host <= machine.host_bytes
            yield DeviceFit(name, text, plan.mode, plan.in_parts, variant.fp8, need.gpu, need.host, fits)


def check_fit(name: str, size: CheckpointSize, card: CheckpointCard, machine: Machine) -> Finding:
    """Whether the checkpoint's default size can be rendered here, and how."""
    text = card.sizes[0]
    width, height = map(int, text.split("x"))
    if not machine.gpus:
        needs = 2 * size.total  # the CPU computes in fp32
        message = f"{name}: {needs / 1e9:.1f} GB of weights in fp32 on the CPU"
        if needs > machine.host_bytes:
            advice = "Use a machine with a GPU, or one with more main memory."
            return Finding("checkpoint", Status.PROBLEM, f"{message} do not fit.", advice)
        if size.transformer > CPU_PARAMETER_BYTES:
            return Finding("checkpoint", Status.WARNING, f"{message}: a video takes hours.", "Use a GPU.")
        return Finding("checkpoint", Status.OK, f"{message}: fine.")
    gpu = max(machine.gpus, key=lambda gpu: gpu.total_bytes)
    plan = fitting_plan(size, gpu.total_bytes, machine.host_bytes, width, height)
    if plan is not None:
        message = f"{name}: {text} fits on {gpu.name} in mode {plan.mode.value}"
        message += ", activations in parts." if plan.in_parts else "."
        if plan.mode is MemoryMode.OFFLOAD:
            message += " Weights stream from main memory."
        message += _together(size, machine, gpu, (width, height), plan.mode)
        return Finding("checkpoint", Status.OK, message)
    offload = needed(size, PLANS[-1], width, height)
    if offload.gpu <= gpu.total_bytes:
        message = (
            f"{name}: {text} would fit on {gpu.name} offloaded, but that needs {offload.host / 1e9:.0f} GB"
        )
        message += f" of main memory and there are {machine.host_bytes / 1e9:.0f} GB."
        return Finding("checkpoint", Status.PROBLEM, message, "Add main memory, or convert with --fp8-ffn.")
    message = f"{name}: {text} needs {offload.gpu / 1e9:.0f} GB of GPU memory even offloaded; {gpu.name} has "
    message += f"{gpu.total_bytes / 1e9:.0f} GB."
    return Finding("checkpoint", Status.PROBLEM, message, "Render smaller sizes, or use a larger GPU.")


def _together(
    size: CheckpointSize, machine: Machine, gpu: Gpu, frame: tuple[int, int], alone: MemoryMode
) -> str:
    """The smallest group of GPUs that renders one job in a faster mode than one GPU does."""
    modes = list(MemoryMode)
    for count in range(2, len(machine.gpus) + 1):
        plan = fitting_plan(size, gpu.total_bytes, machine.host_bytes, *frame, ranks=count)
        if plan is not None and modes.index(plan.mode) < modes.index(alone):
            return f" {count} GPUs together (--gpus-per-job {count}) fit it in mode {plan.mode.value}."
    return ""


def check_fp8(name: str, size: CheckpointSize, wanted: bool) -> Iterator[Finding]:
    """How the feed-forwards of a checkpoint that stores them in 8 bits are computed here."""
    if not size.fp8 or not torch.cuda.is_available():
        return
    obstacle = why_not_fp8(torch.device("cuda")) if wanted else "COINTERACT_FP8_COMPUTE is off"
    if obstacle is None:
        yield Finding("fp8", Status.OK, f"{name}: its feed-forwards compute in 8 bits.")
    else:
        message = f"{name}: its feed-forwards are expanded to bf16 for each product: {obstacle}."
        yield Finding("fp8", Status.OK, f"{message} They save memory, not time.")


def check_attention(
    settings: Settings, folder: Path | None = None, card: CheckpointCard | None = None
) -> Iterator[Finding]:
    """Measure attention on each device, with a checkpoint's shapes or those of the official weights."""
    wanted = settings.attention
    missing = missing_package(wanted)
    if missing:
        advice = "Install it, or leave COINTERACT_ATTENTION unset."
        yield Finding("attention", Status.PROBLEM, f"{wanted} is set but cannot be used: {missing}", advice)
    for device, choice in measure_here(folder, card):
        capability = None if device == "cpu" else torch.cuda.get_device_capability(device)
        faster = advice_for(choice, capability) if wanted is AttentionBackend.AUTO else ""
        status = Status.WARNING if faster else Status.OK
        yield Finding("attention", status, sentence(device, choice), faster)


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Check that the data folder is writable, has room, and creates files exclusively, as races need."""
    folder = settings.data_dir.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        probe = Path(tempfile.mkdtemp(prefix=".doctor-", dir=existing))
    except OSError as error:
        advice = "Choose another folder with --data, or give this user the right to write there."
        yield Finding("disk", Status.PROBLEM, f"{existing} cannot be written: {error.strerror}.", advice)
        return
    try:
        store = FolderStore(probe)
        started = time.monotonic()
        first, second = store.create("probe", b"1"), store.create("probe", b"2")
        seconds = time.monotonic() - started
    except OSError as error:
        advice = "Use a local file system, or a network one with hard links and fsync."
        yield Finding("disk", Status.PROBLEM, f"{existing} cannot hold the job store: {error}.", advice)
        return
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    if (first, second) != (True, False):
        advice = (
            "Use a file system with atomic exclusive creation: jobs could be lost or run twice on this one."
        )
        yield Finding("disk", Status.PROBLEM, f"{existing} let one file be created twice.", advice)
    elif seconds > SLOW_FSYNC_S:
        message = f"{existing} takes {seconds:.1f} s to write one journal entry."
        yield Finding(
            "disk", Status.WARNING, message, "Use a faster disk for --data: each submit waits for it."
        )
    else:
        yield Finding(
            "disk", Status.OK, f"{existing} can be written, {1000 * seconds:.0f} ms per journal entry."
        )
    free = shutil.disk_usage(existing).free
    if free < settings.min_free_bytes:
        least = settings.min_free_bytes / 1e9
        message = f"{free / 1e9:.1f} GB are free in {existing}; below {least:.1f} jobs are refused."
        yield Finding("disk", Status.PROBLEM, message, "Free some space, or shorten COINTERACT_RETENTION_S.")
    else:
        yield Finding("disk", Status.OK, f"{free / 1e9:.0f} GB are free in {existing}.")


def check_privacy(settings: Settings) -> Iterator[Finding]:
    """Who else on this machine may read jobs, keys and secrets."""
    exposed = exposed_paths(settings.storage_dir)
    folder = settings.data_dir
    if folder.is_dir() and folder.stat().st_mode & 0o022:  # others could put another storage in its place
        exposed.append(folder)
    if exposed:
        names = ", ".join(str(path) for path in exposed[:3]) + (", …" if len(exposed) > 3 else "")
        advice = (
            "Start the service as the user who owns them: it closes them. Or chmod 600 files, 700 folders."
        )
        yield Finding(
            "privacy", Status.PROBLEM, f"Other users of this machine may read or change {names}.", advice
        )
    elif settings.storage_dir.is_dir():
        message = f"Nobody else on this machine can read {settings.storage_dir}."
        yield Finding("privacy", Status.OK, message)


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Check that a store in S3 answers, and has the conditional writes that all races need."""
    if settings.storage_url is None:
        return
    try:
        store = open_store(settings)
        started = time.monotonic()
        store.check()
        seconds = time.monotonic() - started
    except StoreRefusedError as error:
        yield Finding("storage", Status.PROBLEM, str(error), "Choose another store.")
    except OSError as error:
        advice = "Check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, the credentials, and that the bucket exists."
        yield Finding("storage", Status.PROBLEM, f"{settings.storage_url}: {error.strerror}", advice)
    else:
        message = f"{settings.storage_url} wrote, read and removed a file in {1000 * seconds:.0f} ms."
        yield Finding("storage", Status.OK, message)


def check_redis(settings: Settings) -> Iterator[Finding]:
    """Check that the configured Redis answers, or that the embedded one starts and answers."""
    if settings.redis_url is not None:
        yield from check_redis_at(settings.redis_url)
        return
    with tempfile.TemporaryDirectory(prefix="cointeract-doctor-") as folder:
        try:
            with running_redis(Path(folder)) as server:
                findings = list(check_redis_at(server.url))
        except (RuntimeError, OSError) as error:
            advice = "Install redis-server or valkey-server 7 or newer, or set COINTERACT_REDIS_URL."
            yield Finding("redis", Status.PROBLEM, f"The embedded Redis does not start: {error}", advice)
            return
    for finding in findings:
        yield Finding(finding.topic, finding.status, f"Embedded: {finding.message}", finding.advice)


def check_redis_at(url: str) -> Iterator[Finding]:
    client = connect(url, timeout_s=3.0, connect_timeout_s=3.0)
    try:
        info = client.info()
    except (RedisError, OSError) as error:
        advice = "Start Redis, or correct COINTERACT_REDIS_URL."
        yield Finding("redis", Status.PROBLEM, f"Redis does not answer: {error}", advice)
        return
    finally:
        client.close()
    version = str(info.get("redis_version", "0"))
    if tuple(map(int, version.split(".")[:2])) < OLDEST_REDIS:
        yield Finding("redis", Status.PROBLEM, f"Redis {version} is too old.", "Use Redis 6.2 or newer.")
    else:
        yield Finding("redis", Status.OK, f"Redis {version} answers.")
    if not info.get("aof_enabled"):
        advice = "Start it with --appendonly yes: without it, a restart delays waiting jobs."
        yield Finding("redis", Status.WARNING, "Redis keeps no append-only file.", advice)
    elif info.get("aof_last_write_status") != "ok":
        advice = "Look at its log and its disk."
        yield Finding("redis", Status.PROBLEM, "Redis cannot write its append-only file.", advice)
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        advice = "Set maxmemory-policy to noeviction."
        yield Finding("redis", Status.PROBLEM, f"Redis drops keys when full ({policy}).", advice)


MARKS = {Status.OK: "[green]✓[/]", Status.WARNING: "[yellow]![/]", Status.PROBLEM: "[red]✗[/]"}


def show(diagnosis: Diagnosis, console: Console) -> None:
    """The diagnosis for people."""
    for finding in diagnosis.findings:
        console.print(f"{MARKS[finding.status]} [bold]{finding.topic}[/] {finding.message}", highlight=False)
        if finding.advice:
            console.print(f"    → {finding.advice}", highlight=False)
    table = Table("checkpoint", "size", "mode", "GPU memory", "with fp8 FFN", "main memory")
    for (name, size, plan), row in _rows(diagnosis.fits).items():
        cells = [_cell(row.get(fp8)) for fp8 in (False, True)]
        table.add_row(name, size, plan, *cells, f"{max(fit.host_bytes for fit in row.values()) / 1e9:.0f} GB")
    console.print(table)
    console.print(
        "Green fits here. From the memory model in docs/weights.md; a GPU worker takes the first that fits."
    )


def _rows(fits: Sequence[DeviceFit]) -> dict[tuple[str, str, str], dict[bool, DeviceFit]]:
    rows: dict[tuple[str, str, str], dict[bool, DeviceFit]] = {}
    for fit in fits:
        plan = f"{fit.mode.value}, in parts" if fit.in_parts else fit.mode.value
        rows.setdefault((fit.checkpoint, fit.size, plan), {})[fit.fp8] = fit
    return rows


def _cell(fit: DeviceFit | None) -> str:
    if fit is None:
        return ""
    colour = "green" if fit.fits else "red"
    return f"[{colour}]{fit.gpu_bytes / 1e9:.1f} GB[/]"


def as_json(diagnosis: Diagnosis) -> str:
    """The diagnosis for programs."""
    return json.dumps({"healthy": not diagnosis.has_problems, **asdict(diagnosis)}, indent=2)
