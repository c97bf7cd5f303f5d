"""A checkpoint folder → a pipeline, built on the meta device, with weights read straight to their device.

diffusers and transformers only warn about tensors that are missing, left over or of another shape. Here each
is an error that names the tensor, found from the files' headers before any weight is read.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, ModelMixin
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    UMT5EncoderModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from contract.card import CheckpointCard
from contract.memory import MemoryMode
from model.checkpoints.card_file import read_card
from model.checkpoints.errors import CheckpointError, Fault, Problem, unreadable
from model.checkpoints.official import LFS_ADVICE, is_lfs_pointer
from model.clip import ClipRenderer
from model.memory.lanes import lanes_of
from model.memory.needs import PART_TOKENS, Plan
from model.memory.offload import choose_plan, stream_weights
from model.parallel.arrangement import check_ranks
from model.pipeline import CoInteractPipeline
from model.transformer import CoInteractTransformer3DModel

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Types by the names that recipes and commands use."""

__all__ = ["CheckpointCard", "CheckpointError", "load_model", "load_pipeline"]

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=ModelMixin | PreTrainedModel)


def load_pipeline(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    memory: MemoryMode | None = None,
    ranks: int = 1,
) -> CoInteractPipeline:
    """Load a checkpoint folder (diffusers layout) for `device`, floating tensors as `dtype`.

    Args:
        memory: what stays on the device; by default the fastest mode in which the card's sizes fit.
        ranks: so many devices render together.

    Raises:
        FileNotFoundError: a component's folder or file is not there.
        CheckpointError: missing, unexpected, duplicated or mis-shaped tensors, each named, or an
            unreadable file.
        ValueError: more ranks than attention heads.
    """
    folder, device = Path(folder), torch.device(device)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint folder: it has no model_index.json")
    started = time.monotonic()
    plan = _plan(folder, device, ranks, memory)
    mode, host = plan.mode, torch.device("cpu")
    pipeline = CoInteractPipeline(
        transformer=load_model(
            CoInteractTransformer3DModel,
            folder / "transformer",
            host if mode is MemoryMode.OFFLOAD else device,
            dtype,
        ),
        vae=load_model(AutoencoderKLWan, folder / "vae", device, dtype),
        text_encoder=load_model(
            UMT5EncoderModel,
            folder / "text_encoder",
            device if mode is MemoryMode.RESIDENT else host,
            dtype,
        ),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        audio_encoder=load_model(Wav2Vec2Model, folder / "audio_encoder", device, dtype),
        feature_extractor=Wav2Vec2FeatureExtractor.from_pretrained(
            folder / "feature_extractor", local_files_only=True
        ),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(
            folder / "scheduler", local_files_only=True
        ),
    )
    check_ranks(ranks, pipeline.transformer.config.num_attention_heads)
    pipeline.streams = stream_weights(
        pipeline.text_encoder, pipeline.transformer, mode, device, lanes_of(device)
    )
    pipeline.transformer.part_tokens = PART_TOKENS if plan.in_parts else None
    peaks = f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB of main memory"
    if device.type == "cuda":
        peaks += f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB of GPU memory"
    seconds = time.monotonic() - started
    how = f"mode {mode.value}{', activations in parts' if plan.in_parts else ''}"
    logger.info("loaded %s on %s in %.1f s, %s, %s", folder, device, seconds, how, peaks)
    return pipeline


def load_renderer(
    folder: Path, device: torch.device, dtype: torch.dtype, memory: MemoryMode | None, ranks: int
) -> ClipRenderer:
    """Load what one of `ranks` needs that is not the first: it encodes nothing. Errors as `load_pipeline`."""
    plan = _plan(folder, device, ranks, memory)
    mode = plan.mode
    place = torch.device("cpu") if mode is MemoryMode.OFFLOAD else device
    transformer = load_model(CoInteractTransformer3DModel, folder / "transformer", place, dtype)
    check_ranks(ranks, transformer.config.num_attention_heads)
    transformer.part_tokens = PART_TOKENS if plan.in_parts else None
    return ClipRenderer(
        transformer,
        vae=load_model(AutoencoderKLWan, folder / "vae", device, dtype),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(
            folder / "scheduler", local_files_only=True
        ),
        device=device,
        streams=stream_weights(None, transformer, mode, device, lanes_of(device)),
    )


def _plan(folder: Path, device: torch.device, ranks: int, wanted: MemoryMode | None) -> Plan:
    if device.type != "cuda":
        return Plan(wanted or MemoryMode.RESIDENT)
    sizes = [tuple(map(int, size.split("x"))) for size in read_card(folder).sizes]
    return choose_plan(folder, device, [(width, height) for width, height in sizes], ranks, wanted)


def load_model(cls: type[Model], folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """Load one network of a checkpoint folder; errors as `load_pipeline`."""
    with init_empty_weights(include_buffers=False):
        model = _build(cls, folder)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = _tied_names(model)
    keep_in_fp32 = (
        set(getattr(model, "_keep_in_fp32_modules", None) or ()) if isinstance(model, ModelMixin) else set()
    )

    with ExitStack() as stack:
        places: dict[str, Any] = {}
        problems: list[Problem] = []
        for file in _shards(folder):
            # safetensors would say that such a file does not exist.
            if not os.access(file, os.R_OK, effective_ids=True):
                raise unreadable(file, f"permission denied: user {os.geteuid()} may not read it")
            try:
                shard = stack.enter_context(safe_open(file, framework="pt", device=str(device)))
            except (SafetensorError, OSError) as error:
                raise unreadable(file, LFS_ADVICE if is_lfs_pointer(file) else str(error)) from error
            for name in shard.keys():  # noqa: SIM118 (a file handle, not a mapping)
                shape = tuple(shard.get_slice(name).get_shape())
                if name in places:
                    problems.append(Problem(Fault.DUPLICATE, name, f"again in {file}"))
                elif name not in expected:
                    problems.append(Problem(Fault.UNEXPECTED, name, f"found {list(shape)} in {file}"))
                elif shape != expected[name]:
                    detail = f"expected {list(expected[name])}, found {list(shape)} in {file}"
                    problems.append(Problem(Fault.WRONG_SHAPE, name, detail))
                places[name] = shard
        for name in expected.keys() - places.keys() - tied.keys():
            problems.append(Problem(Fault.MISSING, name, f"expected {list(expected[name])} in {folder}"))
        if problems:
            raise CheckpointError(sorted(problems, key=lambda problem: problem.where))

        tensors = {}
        for name, shard in places.items():
            tensor = shard.get_tensor(name)
            if tensor.is_floating_point():
                tensor = tensor.to(torch.float32 if keep_in_fp32 & set(name.split(".")) else dtype)
            tensors[name] = tensor
    for name, source in tied.items():
        tensors.setdefault(name, tensors[source])
    model.load_state_dict(tensors, strict=True, assign=True)
    if isinstance(model, PreTrainedModel):
        model.tie_weights()
    model.to(device).eval().requires_grad_(False)
    return model


def _build(cls: type[Model], folder: Path) -> Model:
    if issubclass(cls, PreTrainedModel):
        model: Model = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
    else:
        model = cls.from_config(cls.load_config(folder, local_files_only=True))
    return model


def _tied_names(model: ModelMixin | PreTrainedModel) -> Mapping[str, str]:
    """Names of tensors that need not be stored, by which other name's tensor they are."""
    return {"encoder.embed_tokens.weight": "shared.weight"} if isinstance(model, UMT5EncoderModel) else {}


def _shards(folder: Path) -> list[Path]:
    """Weight files of a component, whole or sharded, under diffusers' or transformers' name."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            try:
                names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (json.JSONDecodeError, KeyError, AttributeError) as error:
                raise unreadable(index, str(error)) from error
            missing = sorted(name for name in names if not (folder / name).is_file())
            if missing:
                raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which its index names")
            return [folder / name for name in sorted(names)]
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    raise FileNotFoundError(f"{folder} has no safetensors weights")
