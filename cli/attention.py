"""The part of `cointeract doctor` about attention: the speeds measured here, and advice for faster ones."""

from __future__ import annotations

from pathlib import Path

import torch

from contract.attention import AttentionBackend
from contract.card import CheckpointCard
from model.attention_choice import AttentionChoice, AttentionShape, Measured, fastest, measure
from model.memory.needs import tokens
from model.transformer import CoInteractTransformer3DModel

FULL_SIZE = AttentionShape(tokens(720, 1280), heads=40, head_dim=128)
"""The shape for the official weights, for users who do not have them yet."""

HOPPER = (9, 0)
FLASH_3 = {AttentionBackend.FLASH_3, AttentionBackend.FLASH_3_HUB}


def measure_here(folder: Path | None, card: CheckpointCard | None) -> list[tuple[str, AttentionChoice]]:
    """Each device's choice, made as a worker makes it; without a checkpoint, for the official weights."""
    shape = FULL_SIZE if folder is None or card is None else checkpoint_shape(folder, card)
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    choices = []
    for device in devices or [torch.device("cpu")]:
        measured = measure(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        choices.append((str(device), AttentionChoice(fastest(measured, device), shape, measured)))
    return choices


def checkpoint_shape(folder: Path, card: CheckpointCard) -> AttentionShape:
    """Self-attention at the checkpoint's default size."""
    config = CoInteractTransformer3DModel.load_config(folder / "transformer", local_files_only=True)
    width, height = map(int, card.sizes[0].split("x"))
    return AttentionShape(tokens(width, height), config["num_attention_heads"], config["attention_head_dim"])


def sentence(device: str, choice: AttentionChoice) -> str:
    report = choice.report()
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in report.teraflops.items())
    where = "" if device == "cpu" else f" on {device}"
    return f"Attention of {report.tokens} tokens{where} runs on {report.backend}. TFLOP/s here: {rates}."


def advice_for(choice: AttentionChoice, capability: tuple[int, int] | None) -> str:
    """What to install for a faster kernel; empty if none is known to be faster on this card."""
    usable = {found.backend for found in choice.measured if found.seconds is not None}
    if capability != HOPPER or FLASH_3 & usable:
        return ""
    missing = _why_not(choice.measured, AttentionBackend.CUDNN)
    cudnn = f" (cuDNN cannot be used: {missing})" if missing else ""
    return (
        "FlashAttention 3 may be faster on this card: pip install kernels, and start workers with "
        f"COINTERACT_ATTENTION={AttentionBackend.FLASH_3_HUB}; the first start fetches it from the Hugging "
        f"Face Hub.{cudnn}"
    )


def _why_not(measured: tuple[Measured, ...], backend: AttentionBackend) -> str:
    return next((found.why_not for found in measured if found.backend is backend), "")
