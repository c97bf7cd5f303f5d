"""Makes the files that ship with the code: `python -m tools.ship COMMAND`.

The command inputs draws the sample inputs, checkpoint takes the default checkpoint from a finished training,
and picture makes the README's animation from a finished `make demo`. Only whoever trains the small checkpoint
needs to run it.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile
from diffusers import AutoencoderKLWan
from safetensors import safe_open

from contract.card import MANIFEST
from contract.video import SAMPLE_RATE
from deploy.samples import BUNDLED, BUNDLED_CHECKPOINT, Samples
from model.checkpoints.card_file import read_card, write_card
from model.checkpoints.writer import sha256_of
from tools import ROOT
from tools.showcase import save_showcase
from training.small import SmallRecipe
from training.synthetic import make_video
from training.vae_training import reconstruction_psnr
from training.world import ACTIONS, Action

log = logging.getLogger(__name__)

RECIPE = ROOT / "training/procedural-world.toml"
PICTURE = ROOT / "docs/images/demo.webp"

# The presenter, product and actions of the sample inputs. They are held out, so training never saw them. The
# product has one broad band: finer patterns are more than the small model can draw.
DEMO_PHOTO_SEED = 136
DEMO_ACTIONS: tuple[Action, ...] = ("lift_right", "rotate", "point_left")
DEMO_PHOTO_SIZE = (480, 768)

NOTE = (
    "A toy that shows how the service works: 80×128 pixels, drawn people, seven actions; a product keeps its "
    "colours but not its pattern, and photos of real people come out as a blur."
)
CURVES = ("curve.jsonl", "vae-log.jsonl", "audio-log.jsonl")


def draw_inputs(
    folder: Path, seed: int = DEMO_PHOTO_SEED, actions: Sequence[Action] = DEMO_ACTIONS
) -> Samples:
    """Write the sample inputs: a held-out presenter and product of the procedural world, 3.2 s per action."""
    width, height = DEMO_PHOTO_SIZE
    video = make_video(
        seed, width, height, actions=actions, split="heldout", shown=range(1), synthesiser="formant",
        with_structure=False,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    samples = Samples(folder)
    video.person_image.save(samples.person, optimize=True)
    video.product_image.save(samples.product, optimize=True)
    soundfile.write(samples.audio, video.audio, SAMPLE_RATE, subtype="PCM_16")
    samples.prompts.write_text("\n".join(video.prompts) + "\n", encoding="utf-8")
    return samples


def install_checkpoint(training: Path, recipe_file: Path = RECIPE, target: Path = BUNDLED_CHECKPOINT) -> None:
    """Replace `target` by the checkpoint, curves and hashes that `training.small` left in `training`.

    Raises:
        FileNotFoundError: a part of the training's output is missing.
        ValueError: the checkpoint is untrained.
    """
    recipe = SmallRecipe.read(recipe_file)
    run = training / recipe.name
    card = read_card(run / "checkpoint")
    if not card.trained:
        raise ValueError(f"{run / 'checkpoint'} is untrained")
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(run / "checkpoint", target)
    for file in target.glob("*/config.json"):
        _forget_its_origin(file)
    for name in CURVES:
        source = run / name if name == "curve.jsonl" else training / name
        shutil.copyfile(source, target / name)
    write_card(card.model_copy(update={"note": NOTE}), target)
    (target / "TRAINING.md").write_text(training_report(target, recipe_file, recipe), encoding="utf-8")
    files = sorted(path for path in target.rglob("*") if path.is_file())
    sums = "".join(f"{sha256_of(path)}  {path.relative_to(target).as_posix()}\n" for path in files)
    (target / MANIFEST).write_text(sums, encoding="utf-8")
    log.info("%s: %.1f MB", target, sum(path.stat().st_size for path in files) / 1e6)


def training_report(folder: Path, recipe_file: Path, recipe: SmallRecipe) -> str:
    """How the checkpoint in `folder` was made, in Markdown."""
    steps = _lines(folder / "curve.jsonl")
    last = steps[-max(1, len(steps) // 50) :]
    vae_settings = recipe.vae.model_copy(update={"width": recipe.width, "height": recipe.height})
    psnr = reconstruction_psnr(AutoencoderKLWan.from_pretrained(folder / "vae"), vae_settings)
    parts = [f"| {part} | {count / 1e6:.2f} M |" for part, count in _parameters(folder)]
    results = {
        "VAE, held-out videos, PSNR": f"{psnr:.1f} dB",
        "VAE, weighted L1": _mean(_lines(folder / "vae-log.jsonl")[-10:], "l1"),
        "audio encoder, share of the band energies' variance explained": _mean(
            _lines(folder / "audio-log.jsonl")[-1:], "explained"
        ),
        "DiT, video": _mean(last, "rgb"),
        "DiT, HOI stream": _mean(last, "hoi"),
        "router, balanced accuracy": _mean(last, "routing_accuracy"),
        "DiT, steps": str(steps[-1]["step"] + 1),
    }
    return (
        f"# {recipe.name}\n\n"
        f"Trained on the procedural world, seed {recipe.seed}. The recipe, from nothing, in one command:\n\n"
        f"```\npython -m training.small training/{recipe_file.name} OUTPUT\n"
        "python -m tools.ship checkpoint OUTPUT\n```\n\n"
        "Every step draws from (seed, step), so the same number of steps takes the same batches; where the "
        "recipe ends by `minutes`, a faster machine takes more of them. `SHA256SUMS` covers every file here "
        "(`sha256sum -c SHA256SUMS`). Losses over time: `curve.jsonl`, `vae-log.jsonl`, `audio-log.jsonl`. "
        "What the checkpoint can do, measured: docs/training.md.\n\n"
        "| part | parameters |\n|---|---|\n" + "\n".join(parts) + "\n\n"
        "| at the end (DiT: mean of the last 2 % of the logged steps) | |\n|---|---|\n"
        + "\n".join(f"| {name} | {value} |" for name, value in results.items())
        + f"\n\nThe recipe:\n\n```toml\n{recipe_file.read_text(encoding='utf-8').strip()}\n```\n"
    )


def _forget_its_origin(config: Path) -> None:
    """Remove the folder that diffusers noted for a network: it is of no use, and differs between machines."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _mean(entries: Iterable[dict[str, Any]], name: str) -> str:
    """The mean over the steps that have this part of the loss."""
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    return f"{np.mean(values):.3f}" if values else "not trained"


def _parameters(folder: Path) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        counts[file.parent.name] = counts.get(file.parent.name, 0) + sum(
            int(np.prod(shape)) for shape in shapes
        )
    return list(counts.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inputs = commands.add_parser("inputs", help="draw the sample inputs")
    inputs.add_argument("--seed", type=int, default=DEMO_PHOTO_SEED)
    inputs.add_argument("--actions", default=",".join(DEMO_ACTIONS), help=f"of {', '.join(ACTIONS)}")
    inputs.add_argument("--to", type=Path, default=BUNDLED.folder)
    checkpoint = commands.add_parser("checkpoint", help="install a trained small checkpoint as the default")
    checkpoint.add_argument("training", type=Path, help="OUTPUT of training.small")
    checkpoint.add_argument("--recipe", type=Path, default=RECIPE)
    checkpoint.add_argument("--to", type=Path, default=BUNDLED_CHECKPOINT)
    picture = commands.add_parser("picture", help="the README's animation, of what `make demo` left")
    picture.add_argument("demo", type=Path, nargs="?", default=Path("demo-output"))
    picture.add_argument("--to", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.command == "inputs":
        unknown = set(options.actions.split(",")) - set(ACTIONS)
        if unknown:
            parser.error(f"no such actions: {', '.join(sorted(unknown))}")
        actions = cast(list[Action], options.actions.split(","))
        log.info("%s", draw_inputs(options.to, options.seed, actions).folder)
    elif options.command == "checkpoint":
        install_checkpoint(options.training, options.recipe, options.to)
    else:
        save_showcase(Samples(options.demo / "inputs"), options.demo / "presenter.mp4", options.to)


if __name__ == "__main__":
    main()
