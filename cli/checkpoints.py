"""The commands that make checkpoints: fetch, convert, train, tiny-checkpoint.

Imports inside the commands: see `cli.app`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.common import (
    FAILED,
    complaints,
    console,
    explained_errors,
)

checkpoints = typer.Typer()


class StoredType(StrEnum):
    BF16 = "bf16"
    FP32 = "fp32"


@checkpoints.command(rich_help_panel="Checkpoints")
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
    from cli.weights import parse_revisions, run_fetch

    with explained_errors():
        revisions = parse_revisions(revision or [])
        from model.checkpoints.fetch import FetchRequest

        run_fetch(FetchRequest(to, pose, revisions, offline=offline), console)


@checkpoints.command(rich_help_panel="Checkpoints")
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
    """Make a checkpoint folder from the official weights: checked, LoRA merged, HOI branch pruned."""
    from cli.weights import run_convert

    with explained_errors(), console.status("Loading"):
        from model.checkpoints.convert import ConvertRequest
    request = ConvertRequest(base, cointeract, audio_encoder, out, dtype.value, fp8_ffn, keep_hoi)
    with explained_errors():
        run_convert(request, console)


@checkpoints.command(rich_help_panel="Checkpoints")
def train(
    config: Annotated[
        Path,
        typer.Option("--config", exists=True, dir_okay=False, help="Recipe in TOML; see docs/training.md."),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the recipe's last saved state.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Train nothing: read all rows, list all faults, estimate time and disk space."
        ),
    ] = False,
) -> None:
    """Fine-tune a checkpoint on clips of your own by co-generation, then prune it for serving."""
    with explained_errors():
        with console.status("Loading"):
            from cli.training import run_check, run_training
        (run_check if check else run_training)(config, resume, console)


@checkpoints.command("train-example", rich_help_panel="Checkpoints")
def train_example(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder to write; it must not exist yet.")],
) -> None:
    """Write six drawn clips as training data, with tables and a recipe for the bundled checkpoint."""
    with explained_errors():
        with console.status("Drawing clips …"):
            from cli.training import run_example
        run_example(folder, console)


@checkpoints.command(rich_help_panel="Checkpoints")
def calibrate(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Checkpoint folder.")],
    person: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Photo. Default: the bundled sample's.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Speech. Default: the bundled sample's.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="One per clip; repeat it. Default: the bundled sample's.")
    ] = None,
    product: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Photo. Default: as the person's.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT. Default: the checkpoint's first.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips to measure on.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
) -> None:
    """Find which steps the presets balanced and fast must compute on this checkpoint, and write its card.

    Takes about as long as five exact videos of that many clips. Restart the workers that hold the checkpoint.
    """
    from cli.generate import options_of
    from deploy.samples import BUNDLED

    with explained_errors():
        with console.status("Loading"):
            from cli.calibrate import run_calibration
        own = person is not None or audio is not None or bool(prompt)
        options = options_of(
            {
                "prompt": prompt or list(BUNDLED.sentences()),
                "size": size,
                "num_clips": clips,
                "seed": seed,
            },
            {
                "person_image": person or BUNDLED.person,
                "audio": audio or BUNDLED.audio,
                "product_image": product or (None if own else BUNDLED.product),
            },
        )
        run_calibration(folder, options, device, console)


@checkpoints.command("tiny-checkpoint", rich_help_panel="Checkpoints")
def tiny_checkpoint(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder to write; it must not exist yet.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
) -> None:
    """Write a complete checkpoint with small random networks: videos are noise, but every part runs."""
    if folder.exists() and any(folder.iterdir()):
        complaints.print(f"{folder} exists and is not empty.", style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED)
    with console.status("Writing the tiny checkpoint …"):
        from model.checkpoints.tiny import write_tiny_checkpoint

        write_tiny_checkpoint(folder, seed)
    console.print(str(folder), highlight=False, markup=False)
