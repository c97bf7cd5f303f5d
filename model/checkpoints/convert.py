"""`cointeract convert`: official files → a checkpoint folder for `CoInteractPipeline.from_pretrained`.

Everything is checked from the files' headers before the first byte is written. Then tensors stream in slices
from the official files through the LoRA merge into the shards, so a large model needs no more memory than a
small one.
"""

from __future__ import annotations

import errno
import logging
import math
import resource
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, Wav2Vec2FeatureExtractor

from contract.card import CARD_FILE, OFFICIAL_DEFAULTS, CheckpointCard
from model.checkpoints.card_file import write_card
from model.checkpoints.components import (
    TEXT_ENCODER_FILE,
    VAE_FILE,
    ComponentPlan,
    plan_audio_encoder,
    plan_text_encoder,
    plan_vae,
    read_json,
)
from model.checkpoints.errors import CheckpointError, Fault, Problem, unreadable
from model.checkpoints.fetch import provenance
from model.checkpoints.fp8 import fp8_outputs, is_fp8_weight
from model.checkpoints.layout import on_meta, transformer_layout
from model.checkpoints.load import DTYPES
from model.checkpoints.merge import Origin, PlannedTensor, expert_hidden_dim, plan_transformer
from model.checkpoints.official import find_shards, read_table
from model.checkpoints.official_names import dit_config
from model.checkpoints.writer import (
    MAX_SHARD_BYTES,
    CheckpointFolder,
    OutputTensor,
    checkpoint_folder,
    sha256_of,
)
from model.pipeline import CoInteractPipeline
from model.transformer import CoInteractTransformer3DModel

logger = logging.getLogger(__name__)

TOKENIZER_FOLDER = "google/umt5-xxl"
REPORT = "conversion.json"
LICENSE = "Apache-2.0"
TRAINED_SIZES = ("720x1280", "1280x720", "480x832", "832x480")
CONVERSION_SLACK_BYTES = 64 * 2**20
"""Free disk space asked for beyond the tensors: configuration, tokenizer, directory entries."""


@dataclass(frozen=True)
class ConvertRequest:
    base: Path
    """Folder of Wan2.2-S2V-14B: four shards, T5, VAE, tokenizer, config.json."""
    cointeract: Path
    """CoInteract's checkpoint.safetensors or checkpoint_pose.safetensors."""
    audio_encoder: Path
    """Folder of the wav2vec2 model."""
    out: Path
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Type of transformer and text encoder. VAE and audio encoder are small and stay in fp32."""
    fp8_ffn: bool = False
    """Store the feed-forward weights of the blocks as fp8, with one scale per output row."""
    keep_hoi: bool = False
    max_shard_bytes: int = MAX_SHARD_BYTES


@dataclass(frozen=True)
class ComponentReport:
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: the proof that the output is the official model without its HOI branch."""

    seconds: float
    peak_memory_bytes: int
    """Peak resident memory of the process."""
    transformer_tensors: dict[str, int]
    """Number of tensors by origin: base, base + LoRA, mixture of experts, HOI branch."""
    transformer_parameters: dict[str, int]
    lora_pairs_merged: int
    lora_ranks: list[int]
    dropped_hoi_tensors: list[str]
    dropped_hoi_parameters: int
    dropped_other_tensors: list[str]
    """Tensors of the audio encoder's file that only its speech recogniser or its training needs."""
    components: dict[str, ComponentReport]
    """What was written, by component: transformer, text_encoder, vae, audio_encoder."""


OnWritten = Callable[[str, int, int], None]
"""Called with the component being written, the bytes written so far, and all bytes."""


def convert(request: ConvertRequest, on_progress: OnWritten | None = None) -> ConversionReport:
    """Convert official files to a checkpoint folder at `request.out`.

    Raises:
        CheckpointError: input is missing, damaged or not of the official layout; names tensor and file.
        FileExistsError: the output folder exists and is not empty.
        OSError: not enough disk space (checked before writing), or reading or writing failed.
    """
    started = time.monotonic()
    plan = _plan_all(request)
    outputs = {name: _outputs(name, component, request) for name, component in plan.components.items()}
    total = sum(tensor.nbytes for tensors in outputs.values() for tensor in tensors)
    _check_disk(request.out, total)
    with (
        checkpoint_folder(request.out) as folder,
        ThreadPoolExecutor(1, thread_name_prefix="hash-sources") as hashing,
    ):
        # Hashing releases the interpreter lock, so it runs beside the merge.
        stop = threading.Event()
        digests = {path: hashing.submit(sha256_of, path, stop) for path in plan.source_files}
        try:
            _write_tensors(folder, outputs, request.max_shard_bytes, total, on_progress)
            _read_dropped(plan)
            _write_rest(folder, request, plan, digests)
        except BaseException:
            stop.set()
            raise
        report = _report(plan, outputs, time.monotonic() - started)
        folder.write_json(REPORT, asdict(report))
    logger.info(
        "converted to %s in %.0f s, peak memory %.2f GB",
        request.out,
        report.seconds,
        report.peak_memory_bytes / 1e9,
    )
    return report


@dataclass(frozen=True)
class _Plan:
    components: dict[str, ComponentPlan]
    ranks: tuple[int, ...]
    tokenizer: Path
    preprocessor: Path

    @property
    def transformer(self) -> ComponentPlan:
        return self.components["transformer"]

    @property
    def source_files(self) -> list[Path]:
        return [path for component in self.components.values() for path in component.files]


def _plan_all(request: ConvertRequest) -> _Plan:
    """Read all headers and check everything that can be checked without data."""
    if not request.base.is_dir():
        raise unreadable(request.base, "expected the folder of the base model, there is none")
    tokenizer = request.base / TOKENIZER_FOLDER
    if not tokenizer.is_dir() or not any(tokenizer.iterdir()):
        raise unreadable(tokenizer, "expected the tokenizer's folder, it is missing or empty")
    text_encoder = plan_text_encoder(request.base / TEXT_ENCODER_FILE)
    vae = plan_vae(request.base / VAE_FILE)
    audio_encoder = plan_audio_encoder(request.audio_encoder)

    shards = find_shards(request.base)
    base = read_table(*shards)
    cointeract = read_table(request.cointeract)
    settings_file = request.base / "config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    settings.setdefault("text_dim", text_encoder.model.config.d_model)
    settings["expert_hidden_dim"] = expert_hidden_dim(cointeract)
    try:
        config = dit_config(settings, hoi_branch=True)
        model = on_meta(lambda: CoInteractTransformer3DModel(**config))
    except (ValueError, TypeError) as error:
        raise unreadable(settings_file, f"not the dims of a CoInteract transformer: {error}") from error
    layout = transformer_layout(model, config["audio_inject_layers"])
    plan = plan_transformer(base, cointeract, layout, request.keep_hoi)
    output_config = config | {"hoi_branch": request.keep_hoi, "fp8_ffn": request.fp8_ffn}
    output = on_meta(lambda: CoInteractTransformer3DModel(**output_config))
    transformer = ComponentPlan(output, plan.tensors, plan.dropped, (*shards, request.cointeract))
    _check_sizes(config, text_encoder, vae, audio_encoder)
    return _Plan(
        components={
            "transformer": transformer,
            "text_encoder": text_encoder,
            "vae": vae,
            "audio_encoder": audio_encoder,
        },
        ranks=plan.ranks,
        tokenizer=tokenizer,
        preprocessor=request.audio_encoder / "preprocessor_config.json",
    )


def _check_sizes(
    config: dict[str, Any], text_encoder: ComponentPlan, vae: ComponentPlan, audio_encoder: ComponentPlan
) -> None:
    """Check that the parts fit each other. Without this the first request would fail, not the conversion."""
    speech = audio_encoder.model.config
    pairs = (
        ("text_dim", config["text_dim"], "the text encoder's width", text_encoder.model.config.d_model),
        ("audio_dim", config["audio_dim"], "the audio encoder's width", speech.hidden_size),
        (
            "audio layers",
            config.get("num_audio_layers", 25),
            "the audio encoder's layers + 1",
            speech.num_hidden_layers + 1,
        ),
        ("in_dim", config["in_channels"], "the VAE's latent channels", vae.model.config.z_dim),
    )
    for name, expected, what, found in pairs:
        if expected != found:
            detail = f"the transformer expects {name} {expected}, {what} is {found}"
            raise CheckpointError([Problem(Fault.WRONG_SHAPE, what, detail)])


def _outputs(component: str, plan: ComponentPlan, request: ConvertRequest) -> list[OutputTensor]:
    dtype = DTYPES[request.dtype] if component in ("transformer", "text_encoder") else torch.float32
    outputs: list[OutputTensor] = []
    for tensor in plan.tensors:
        if request.fp8_ffn and component == "transformer" and is_fp8_weight(tensor.name):
            outputs += fp8_outputs(tensor)
        else:
            outputs.append(
                OutputTensor(tensor.name, tensor.shape, dtype, partial(_cast_slices, tensor, dtype))
            )
    return outputs


def _cast_slices(tensor: PlannedTensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    for rows in tensor.slices():
        cast = rows.to(dtype)
        # The inputs are finite, but their sum, or a large number in a narrow type, may not be.
        if (tensor.lora is not None or dtype.itemsize < rows.dtype.itemsize) and not all(
            bool(bound.isfinite()) for bound in cast.aminmax()
        ):
            detail = f"expected finite numbers after merging and casting to {dtype}"
            raise CheckpointError([Problem(Fault.NOT_FINITE, tensor.source.name, detail)])
        yield cast


def _write_tensors(
    folder: CheckpointFolder,
    outputs: dict[str, list[OutputTensor]],
    max_shard_bytes: int,
    total: int,
    on_progress: OnWritten | None,
) -> None:
    written = 0
    for component, tensors in outputs.items():

        def on_bytes(count: int, component: str = component) -> None:
            nonlocal written
            written += count
            if on_progress is not None:
                on_progress(component, written, total)

        stem = "diffusion_pytorch_model" if component in ("transformer", "vae") else "model"
        folder.write_tensors(f"{component}/{stem}", tensors, on_bytes, max_shard_bytes)


def _read_dropped(plan: _Plan) -> None:
    """Read the tensors that are not used, too: a damaged one shows that the file is damaged."""
    for component in plan.components.values():
        for info in component.dropped:
            info.read()


def _write_rest(
    folder: CheckpointFolder, request: ConvertRequest, plan: _Plan, digests: dict[Path, Future[str]]
) -> None:
    for source in sorted(path for path in plan.tokenizer.rglob("*") if path.is_file()):
        relative = source.relative_to(plan.tokenizer)
        if not any(part.startswith(".") for part in relative.parts):
            folder.write_bytes(f"tokenizer/{relative}", source.read_bytes())
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.path / "tokenizer")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(plan.tokenizer, f"not a tokenizer that transformers can load: {error}") from error
    vocabulary = plan.components["text_encoder"].model.config.vocab_size
    if len(tokenizer) > vocabulary:
        raise unreadable(plan.tokenizer, f"{len(tokenizer)} tokens, the text encoder knows {vocabulary}")
    settings = read_json(plan.preprocessor) if plan.preprocessor.is_file() else {"do_normalize": True}
    pipeline = CoInteractPipeline(
        transformer=plan.transformer.model,
        vae=plan.components["vae"].model,
        text_encoder=plan.components["text_encoder"].model,
        tokenizer=tokenizer,
        audio_encoder=plan.components["audio_encoder"].model,
        feature_extractor=Wav2Vec2FeatureExtractor.from_dict(settings),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.save_config(folder.path)
    for name in ("transformer", "vae", "scheduler"):
        getattr(pipeline, name).save_config(folder.path / name)
    pipeline.text_encoder.config.save_pretrained(folder.path / "text_encoder")
    pipeline.audio_encoder.config.save_pretrained(folder.path / "audio_encoder")
    pipeline.feature_extractor.save_pretrained(folder.path / "feature_extractor")
    for path in sorted(folder.path.rglob("*.json")):
        if (name := str(path.relative_to(folder.path))) not in folder.digests:
            folder.adopt(name)
    write_card(_card(request, digests), folder.path)
    folder.adopt(CARD_FILE)


def _card(request: ConvertRequest, digests: dict[Path, Future[str]]) -> CheckpointCard:
    return CheckpointCard(
        name=request.out.name,
        trained=True,
        sizes=TRAINED_SIZES,
        min_side=256,
        max_pixels=1280 * 720,
        defaults=OFFICIAL_DEFAULTS,
        pose="pose" in request.cointeract.stem,
        license=LICENSE,
        sources={provenance(path): f"sha256:{digest.result()}" for path, digest in digests.items()},
    )


def _report(plan: _Plan, outputs: dict[str, list[OutputTensor]], seconds: float) -> ConversionReport:
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for tensor in plan.transformer.tensors:
        tensors[tensor.origin] += 1
        parameters[tensor.origin] += math.prod(tensor.shape)
    unused = [
        info.name for name, part in plan.components.items() if name != "transformer" for info in part.dropped
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return ConversionReport(
        seconds=round(seconds, 1),
        peak_memory_bytes=peak if sys.platform == "darwin" else peak * 1024,
        transformer_tensors=dict(tensors),
        transformer_parameters=dict(parameters),
        lora_pairs_merged=tensors[Origin.MERGED],
        lora_ranks=list(plan.ranks),
        dropped_hoi_tensors=[info.name for info in plan.transformer.dropped],
        dropped_hoi_parameters=sum(info.numel for info in plan.transformer.dropped),
        dropped_other_tensors=unused,
        components={
            name: ComponentReport(
                tensors=len(plan.components[name].tensors),
                parameters=sum(math.prod(tensor.shape) for tensor in plan.components[name].tensors),
                bytes=sum(tensor.nbytes for tensor in written),
            )
            for name, written in outputs.items()
        },
    )


def _check_disk(out: Path, needed: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed + CONVERSION_SLACK_BYTES:
        raise OSError(
            errno.ENOSPC,
            f"{(needed + CONVERSION_SLACK_BYTES) / 1e9:.1f} GB needed for {out}, "
            f"{free / 1e9:.1f} GB free on its disk",
        )
