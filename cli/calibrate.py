"""`cointeract calibrate`: find the steps that the faster presets of a checkpoint compute; write its card."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.console import Console

from cli.generate import GenerateOptions
from cli.generate_local import local_request
from contract.card import CheckpointCard
from deploy.up import checkpoint_card
from model.calibration import calibrate
from model.checkpoints.card_file import rewrite_card
from workers.engines.pipeline import PipelineEngine, inputs_of


def run_calibration(folder: Path, options: GenerateOptions, device: str, console: Console) -> CheckpointCard:
    """Measure and write the card of the checkpoint in `folder`. Raises GenerationFailed, FieldError,
    StackError.
    """
    card = checkpoint_card(folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="cointeract-") as decoded:
        request, _ = local_request(options, card, Path(decoded))
        with console.status(f"Loading {folder} on {device} …"):
            engine = PipelineEngine(folder, device)

        def say(line: str) -> None:
            console.print(line, highlight=False, markup=False)

        found = calibrate(engine.pipeline, inputs_of(request), request.params, report=say)
    card = card.model_copy(update={"calibration": found})
    rewrite_card(card, folder)
    for preset, calibration in found.items():
        steps = request.params.num_inference_steps
        times = steps / len(calibration.levels)
        say(
            f"{preset}: {len(calibration.levels)} of {steps} steps ({times:.1f}× fewer passes), "
            f"{calibration.psnr_db:.1f} dB, {calibration.lowest_psnr_db:.1f} dB in the worst clip"
        )
    return card
