"""The commands that make videos: generate, demo, samples.

Imports inside the commands: see `cli.app`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.common import (
    ApiKeyOption,
    UrlOption,
    console,
    explained_errors,
)
from contract.choices import Fit, Preset

videos = typer.Typer()


@videos.command(rich_help_panel="Make videos")
def generate(
    person: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Photo of the person.")],
    audio: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The speech: WAV, MP3, M4A, WebM and others.")
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
        Fit | None,
        typer.Option(help="How a person photo of another shape fills the frame. Default: cover."),
    ] = None,
    preset: Annotated[
        Preset,
        typer.Option(
            help="balanced and fast leave out steps, draft takes few; parity repeats the official code."
        ),
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
            help="Without --url: checkpoint folder to render with. Default: the bundled small one.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Without --url: cpu, cuda, cuda:N or auto.")] = "auto",
) -> None:
    """Make one video: through a server with --url, otherwise in this process.

    Exit status: 0 saved, 1 failed (the reason is on stderr), 2 wrong usage, 130 interrupted.
    """
    from cli.generate import generate_over_http, options_of
    from cli.service import service

    with explained_errors():
        options = options_of(
            {
                "prompt": prompt,
                "negative_prompt": negative_prompt,
                "size": size,
                "num_inference_steps": steps,
                "guidance_scale": guidance,
                "flow_shift": flow_shift,
                "product_scale": product_scale,
                "seed": seed,
                "num_clips": clips,
                "fit": fit,
                "preset": preset,
                "audio_face_mask": audio_face_mask,
                "model": model,
            },
            {"person_image": person, "audio": audio, "product_image": product, "pose_video": pose},
        )
        if url is not None:
            with service(url, api_key) as client:
                made = generate_over_http(options, output, client, console)
        else:
            from cli.generate_local import generate_here

            made = generate_here(options, output, checkpoint, device, console)
        console.print(f"Saved [bold]{output}[/] (seed {made.seed})", highlight=False)
        if made.caveat:
            console.print(made.caveat, style="yellow", highlight=False, markup=False)


@videos.command(rich_help_panel="Make videos")
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Folder for inputs and video.")
    ] = Path("demo-output"),
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Without --url: keep the studio open with the video, until Ctrl-C."),
    ] = False,
) -> None:
    """Make a video from the bundled sample inputs, through the server at --url or a stack started for it."""
    from cli.demo import run_demo

    with explained_errors():
        run_demo(output, url, api_key, serve, console)


@videos.command(rich_help_panel="Make videos")
def samples(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder to write them to.")],
) -> None:
    """Write the bundled sample inputs: two pictures, speech and prompts."""
    from deploy.samples import write_samples

    for path in write_samples(folder).files:
        console.print(str(path), highlight=False, markup=False)
