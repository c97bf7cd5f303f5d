"""The `cointeract` command. Every command is a thin layer over the module that does the work.

Imports inside the commands are on purpose, here and nowhere else: `cointeract --help` answers in a fraction
of a second, and only commands that compute load torch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from deploy.cli_keys import keys

if TYPE_CHECKING:
    from jobs.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="CoInteract: a person photo, a product photo, prompts and speech become a video.",
)
app.add_typer(keys, name="keys", rich_help_panel="Run the service")
console = Console()
complaints = Console(stderr=True)

FAILED = 1
INTERRUPTED = 130


class Fit(StrEnum):
    COVER = "cover"
    CONTAIN = "contain"
    STRETCH = "stretch"


class HealthCheck(StrEnum):
    API = "api"
    WORKER = "worker"


class StoredType(StrEnum):
    BF16 = "bf16"
    FP32 = "fp32"


class Preset(StrEnum):
    EXACT = "exact"
    PARITY = "parity"


@contextmanager
def explained_errors() -> Iterator[None]:
    """Errors we foresee become a red sentence and exit status 1; everything else keeps its traceback."""
    from pydantic import ValidationError

    from deploy.client import ServiceError
    from deploy.generate import GenerationFailed
    from deploy.stack import StackError
    from deploy.weights import WeightsError

    try:
        yield
    except (ServiceError, GenerationFailed, StackError, WeightsError) as error:
        complaints.print(str(error), style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED) from error
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            complaints.print(f"Setting {name}: {problem['msg']}", style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        complaints.print("Interrupted.", style="yellow")
        raise typer.Exit(INTERRUPTED) from None


def settings_with(**given: Any) -> Settings:
    """Settings from the environment, with what the command line gives on top."""
    from jobs.settings import Settings

    return Settings(**{name: value for name, value in given.items() if value is not None})


def connected(settings: Settings) -> tuple[Settings, str]:
    """The settings and the Redis that a part of the service needs. Raises StackError if none is set."""
    from deploy.stack import StackError

    if settings.redis_url is None:
        raise StackError("Set COINTERACT_REDIS_URL. (`cointeract up` brings a Redis of its own.)")
    return settings, settings.redis_url


DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Folder for jobs, results and the embedded Redis. Default: ./data"
    ),
]
HostOption = Annotated[
    str | None, typer.Option("--host", help="Address the API binds to. Default: 127.0.0.1")
]
PortOption = Annotated[int | None, typer.Option("--port", "-p", help="Port the API binds to. Default: 8000")]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="COINTERACT_URL", help="Server to use, such as http://127.0.0.1:8000"),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="COINTERACT_API_KEY", help="API key, if the server asks for one."),
]


@app.command(rich_help_panel="Run the service")
def up(
    port: PortOption = None,
    host: HostOption = None,
    data: DataOption = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="[NAME=]DIR",
            help="Checkpoint folder to serve; repeat it to serve several. Default: a tiny untrained one.",
        ),
    ] = None,
) -> None:
    """Run everything on this machine: Redis, API, reaper, and a worker per GPU (or one on the CPU).

    Whatever dies is restarted. Ctrl-C stops everything; jobs and results stay in the data folder.
    """
    from deploy.up import run_up

    with explained_errors():
        run_up(settings_with(data_dir=data, host=host, port=port), checkpoint or [], console)


@app.command(rich_help_panel="Run the service")
def serve(port: PortOption = None, host: HostOption = None, data: DataOption = None) -> None:
    """Run the HTTP API alone. It needs Redis (COINTERACT_REDIS_URL) and the data folder of the workers."""
    from deploy.stack import StackError
    from jobs.logs import configure_logging
    from server.app import StartRefusedError
    from server.app import serve as serve_api

    with explained_errors():
        settings, _ = connected(settings_with(data_dir=data, host=host, port=port))
        configure_logging(settings)
        try:
            serve_api(settings)
        except StartRefusedError as error:
            raise StackError(str(error)) from error


@app.command(rich_help_panel="Run the service")
def worker(
    checkpoint: Annotated[
        str,
        typer.Option("--checkpoint", "-c", metavar="[NAME=]DIR", help="Checkpoint folder to render with."),
    ],
    device: Annotated[
        str, typer.Option(help="cpu, cuda or cuda:N; auto takes a GPU if there is one.")
    ] = "auto",
    data: DataOption = None,
) -> None:
    """Run one worker alone: a supervisor and the child process that holds the model."""
    from deploy.stack import devices
    from deploy.up import named_checkpoints
    from jobs.logs import configure_logging
    from workers.main import run

    with explained_errors():
        ((name, folder),) = named_checkpoints([checkpoint]).items()
        settings, redis_url = connected(settings_with(data_dir=data))
        configure_logging(settings)
        run(settings, redis_url, folder, devices()[0] if device == "auto" else device, checkpoint=name)


@app.command(rich_help_panel="Run the service")
def reaper(data: DataOption = None) -> None:
    """Run the reaper alone: it puts back jobs of dead workers and repairs whatever Redis forgot."""
    from jobs.logs import configure_logging
    from workers.reaper import run

    with explained_errors():
        settings, redis_url = connected(settings_with(data_dir=data))
        configure_logging(settings)
        stopping = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        run(settings, redis_url, stopping)


@app.command(rich_help_panel="Run the service")
def healthy(
    part: Annotated[HealthCheck, typer.Argument(help="The part that should run on this host.")],
) -> None:
    """Exit with status 0 if this host's API or worker is alive: what a container's health check asks."""
    from deploy.health import why_api_is_unhealthy, why_worker_is_unhealthy

    with explained_errors():
        settings = settings_with()
        if part is HealthCheck.API:
            reason = why_api_is_unhealthy(settings)
        else:
            reason = why_worker_is_unhealthy(*connected(settings))
    if reason is not None:
        complaints.print(reason, style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED)


@app.command(rich_help_panel="Make videos")
def generate(
    person: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Photo of the person.")],
    audio: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The speech: WAV, MP3, FLAC, OGG or M4A.")
    ],
    prompt: Annotated[
        list[str], typer.Option("--prompt", help="What happens; repeat it for one prompt per clip of 3.2 s.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="Where to save the MP4.")],
    product: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Photo of the product.")
    ] = None,
    pose: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Video of poses to follow, for pose checkpoints."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT, multiples of 16. Default: the checkpoint's.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps. Default: the checkpoint's.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 switches it off.")] = None,
    flow_shift: Annotated[float | None, typer.Option(help="Shift of the noise schedule.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the video should not look like.")] = None,
    product_scale: Annotated[float, typer.Option(help="Size of the product relative to the frame.")] = 1.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Same seed, same video. Default: drawn and reported.")
    ] = None,
    clips: Annotated[
        int | None, typer.Option(min=1, help="At most this many clips. Default: as the speech needs.")
    ] = None,
    fit: Annotated[
        Fit, typer.Option(help="How a person photo of another shape fills the frame.")
    ] = Fit.COVER,
    preset: Annotated[
        Preset, typer.Option(help="parity repeats the official code's behaviour, defects included.")
    ] = Preset.EXACT,
    audio_face_mask: Annotated[
        bool, typer.Option("--audio-face-mask", help="Let the speech move the face only.")
    ] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    model: Annotated[
        str | None, typer.Option(help="With --url: name of the checkpoint, where a server has several.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "-c",
            file_okay=False,
            metavar="DIR",
            help="Without --url: checkpoint folder to render with.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Without --url: cpu, cuda, cuda:N or auto.")] = "auto",
    data: DataOption = None,
) -> None:
    """Make one video: through a server with --url, otherwise in this process.

    Exit status: 0 saved, 1 failed (the reason is on stderr), 2 wrong usage, 130 interrupted.
    """
    from deploy.client import ServiceClient
    from deploy.generate import GenerateOptions, generate_over_http

    options = GenerateOptions(
        person=person,
        audio=audio,
        prompts=tuple(prompt),
        product=product,
        pose=pose,
        negative_prompt=negative_prompt,
        size=size,
        steps=steps,
        guidance=guidance,
        flow_shift=flow_shift,
        product_scale=product_scale,
        seed=seed,
        clips=clips,
        fit=fit.value,
        preset="parity" if preset is Preset.PARITY else "exact",
        audio_face_mask=audio_face_mask,
        model=model,
    )
    with explained_errors():
        if url is not None:
            with ServiceClient(url, api_key) as client:
                used_seed = generate_over_http(options, output, client, console)
        else:
            from deploy.generate_local import generate_here

            used_seed = generate_here(
                options, output, checkpoint, device, settings_with(data_dir=data), console
            )
        console.print(f"Saved [bold]{output}[/] (seed {used_seed})", highlight=False)


@app.command(rich_help_panel="Make videos")
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Folder for inputs and video.")
    ] = Path("demo-output"),
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Make a video from the bundled sample inputs: through the server at --url, or a stack started for it."""
    from deploy.demo import run_demo

    with explained_errors():
        run_demo(output, url, api_key, console)


@app.command(rich_help_panel="Make videos")
def samples(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder to write them to.")],
) -> None:
    """Write sample inputs, drawn and spoken by this program: two pictures, speech and prompts."""
    from deploy.samples import write_samples

    written = write_samples(folder)
    for path in (written.person, written.product, written.audio, written.prompts):
        console.print(str(path), highlight=False, markup=False)


@app.command(rich_help_panel="Checkpoints")
def fetch(
    to: Annotated[Path, typer.Option(file_okay=False, metavar="DIR", help="Folder for the files.")] = Path(
        "weights"
    ),
    pose: Annotated[
        bool,
        typer.Option("--pose", help="Fetch the pose-driven checkpoint instead of the speech-driven one."),
    ] = False,
    revision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REPO=REVISION", help="Commit, tag or branch to take. Default: as first fetched."
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only check what is there. HF_HUB_OFFLINE=1 means the same.")
    ] = False,
) -> None:
    """Download the official weights: 49 GB, exactly the files needed. Run it again to continue.

    Honours HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
    """
    from deploy.weights import parse_revisions, run_fetch

    with explained_errors():
        revisions = parse_revisions(revision or [])
        from model.checkpoints.fetch import FetchRequest

        run_fetch(FetchRequest(to, pose, revisions, offline=offline), console)


@app.command(rich_help_panel="Checkpoints")
def convert(
    base: Annotated[Path, typer.Option(metavar="DIR", help="Folder of Wan2.2-S2V-14B.")],
    cointeract: Annotated[
        Path, typer.Option(metavar="FILE", help="CoInteract's checkpoint(_pose).safetensors.")
    ],
    audio_encoder: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the wav2vec2 model.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Checkpoint folder to write; it must not exist yet.")
    ],
    dtype: Annotated[
        StoredType, typer.Option(help="Type of transformer and text encoder.")
    ] = StoredType.BF16,
    fp8_ffn: Annotated[
        bool,
        typer.Option("--fp8-ffn", help="Store the blocks' feed-forward weights in 8 bits: 6 GB less, lossy."),
    ] = False,
    keep_hoi: Annotated[
        bool, typer.Option("--keep-hoi", help="Keep the HOI branch, which serving does not need.")
    ] = False,
) -> None:
    """Make a checkpoint folder of the official weights: checked, LoRA merged, HOI branch pruned."""
    from deploy.weights import run_convert

    with explained_errors(), console.status("Loading"):
        from model.checkpoints.convert import ConvertRequest
    request = ConvertRequest(base, cointeract, audio_encoder, out, dtype.value, fp8_ffn, keep_hoi)
    with explained_errors():
        run_convert(request, console)


@app.command(rich_help_panel="Run the service")
def doctor(
    checkpoint: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", "-c", metavar="[NAME=]DIR", help="Checkpoint folder; repeatable."),
    ] = None,
    data: DataOption = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare every file with its checksum: reads all of it."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what fits on this machine, what is wrong and what to do.

    Exit status 1 if something must be fixed.
    """
    from deploy.up import named_checkpoints

    with explained_errors():
        folders = named_checkpoints(checkpoint or [])
        settings = settings_with(data_dir=data)
        with complaints.status("Examining this machine …"):
            from deploy.doctor import as_json as to_json
            from deploy.doctor import diagnose, show

            diagnosis = diagnose(settings, folders, verify)
    if as_json:
        typer.echo(to_json(diagnosis))
    else:
        show(diagnosis, console)
    if diagnosis.has_problems:
        raise typer.Exit(FAILED)


@app.command(rich_help_panel="Checkpoints")
def train(
    config: Annotated[
        Path,
        typer.Option("--config", exists=True, dir_okay=False, help="Recipe in TOML; see docs/training.md."),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the recipe's last saved state.")
    ] = False,
) -> None:
    """Co-generation training: fine-tune a checkpoint on clips of your own, then prune it for serving."""
    with explained_errors():
        with console.status("Loading"):
            from deploy.training import run_training
        run_training(config, resume, console)


@app.command("tiny-checkpoint", rich_help_panel="Checkpoints")
def tiny_checkpoint(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder to write; it must not exist yet.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
) -> None:
    """Write a complete checkpoint with small random networks: videos are noise, but every part runs."""
    if folder.exists() and any(folder.iterdir()):
        complaints.print(f"{folder} exists and is not empty.", style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED)
    with console.status("Writing the tiny checkpoint …"):
        from model.tiny import write_tiny_checkpoint

        write_tiny_checkpoint(folder, seed)
    console.print(str(folder), highlight=False, markup=False)


@app.command(rich_help_panel="Run the service")
def chaos(
    jobs: Annotated[int, typer.Option(min=1, help="Jobs to submit.")] = 1000,
    kills: Annotated[int, typer.Option(min=0, help="Processes to kill: API, workers, reaper, Redis.")] = 100,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the part with faults.")] = 300,
    workers: Annotated[int, typer.Option(min=1, help="Workers to run.")] = 3,
    outage: Annotated[float, typer.Option(min=0, help="Seconds without Redis in the middle of it.")] = 0,
    overload: Annotated[float, typer.Option(min=0, help="Seconds of flooding the API afterwards.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the order of faults.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Kill parts of a stack of its own while jobs run, and count what was lost. A fast engine stands in.

    Exit status 1 if any promise of docs/reliability.md was broken.
    """
    from deploy.chaos import Options, run_chaos
    from deploy.chaos_report import as_json as to_json
    from deploy.chaos_report import show

    with explained_errors():
        report = run_chaos(Options(jobs, kills, seconds, workers, outage, overload, seed))
    if as_json:
        typer.echo(to_json(report))
    else:
        show(report, console)
    if not report.ok():
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    app(prog_name=os.environ.get("COINTERACT_PROGRAM", "cointeract"))
