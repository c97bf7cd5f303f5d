"""Seconds and peak memory of `cointeract convert` on files of the full official layout.

    python benchmarks/convert_full_layout.py FOLDER [--layers N] [--dtype bf16|fp32] [--fp8-ffn]
    [--small-disk]

The official files' names, shapes and sizes are real, their numbers are all 0: they are written as sparse
files that
take next to no space. The result is written for real (46 GB in bf16), checked against its manifest, and
removed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import ByT5Tokenizer, Wav2Vec2FeatureExtractor

from model.checkpoints.convert import ConvertRequest, convert
from model.checkpoints.writer import verify_manifest

LAYOUTS = Path(__file__).parent.parent / "tests" / "data" / "official_layouts.json"
LAYERS = 40
W2V_CONFIG = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "vocab_size": 3503,
}

Shapes = Mapping[str, list[int]]


def sparse_safetensors(path: Path, shapes: Shapes, dtype: str) -> None:
    """A safetensors file of zeros that are not stored."""
    size = {"BF16": 2, "F32": 4}[dtype]
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + torch.Size(shape).numel() * size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def sparse_torch_file(path: Path, shapes: Shapes, dtype: torch.dtype) -> None:
    """A torch file of zeros that are not stored."""
    with FakeTensorMode():
        tensors = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors, path)


def within(shapes: Shapes, layers: int) -> Shapes:
    """Without the transformer's blocks from `layers` on."""
    kept = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        if parts[0] != "blocks" or int(parts[1]) < layers:
            kept[name] = shape
    return kept


def write_official_layout(folder: Path, layers: int, base_dtype: str) -> ConvertRequest:
    """All files that `convert` reads, in the full layout or with fewer blocks."""
    layouts = {name: layout["tensors"] for name, layout in json.loads(LAYOUTS.read_text()).items()}
    base, audio = folder / "Wan2.2-S2V-14B", folder / "wav2vec2"
    base.mkdir(parents=True)
    audio.mkdir()
    inject = [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39]
    injectors = sum(layer < layers for layer in inject)

    def injected(shapes: Shapes) -> Shapes:
        return {
            name: shape
            for name, shape in shapes.items()
            if not name.startswith("audio_injector.") or int(name.split(".")[2]) < injectors
        }

    tensors = injected(within(layouts["wan2.2-s2v-14b"], layers))
    names = list(tensors)
    for n in range(4):
        shard = {name: tensors[name] for name in names[n * len(names) // 4 : (n + 1) * len(names) // 4]}
        sparse_safetensors(
            base / f"diffusion_pytorch_model-{n + 1:05d}-of-00004.safetensors", shard, base_dtype
        )
    (base / "config.json").write_text(json.dumps({"num_layers": layers}))
    sparse_torch_file(base / "models_t5_umt5-xxl-enc-bf16.pth", layouts["umt5-xxl-encoder"], torch.bfloat16)
    sparse_torch_file(base / "Wan2.1_VAE.pth", layouts["wan2.1-vae"], torch.float32)
    ByT5Tokenizer().save_pretrained(base / "google" / "umt5-xxl")
    cointeract = folder / "checkpoint.safetensors"
    sparse_safetensors(cointeract, injected(within(layouts["cointeract-checkpoint"], layers)), "BF16")
    w2v = layouts["wav2vec2-large-xlsr-53-chinese-zh-cn"]
    sparse_torch_file(audio / "pytorch_model.bin", w2v, torch.float32)
    (audio / "config.json").write_text(json.dumps(W2V_CONFIG))
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(audio)
    return ConvertRequest(base, cointeract, audio, folder / "out")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where there is room; it must not exist yet")
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer blocks, for a small disk")
    parser.add_argument(
        "--base-dtype", choices=["BF16", "F32"], default="BF16", help="type of the base shards"
    )
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--fp8-ffn", action="store_true")
    parser.add_argument(
        "--small-disk",
        action="store_true",
        help="empty each shard once it is written; no check against the manifest",
    )
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    try:
        request = write_official_layout(arguments.folder, arguments.layers, arguments.base_dtype)
        request = ConvertRequest(
            request.base,
            request.cointeract,
            request.audio_encoder,
            request.out,
            dtype=arguments.dtype,
            fp8_ffn=arguments.fp8_ffn,
        )
        largest = 0

        def make_room(component: str, written: int, total: int) -> None:
            nonlocal largest
            shards = sorted(
                (request.out.parent / ".out.partial").rglob("*.safetensors"), key=lambda p: p.stat().st_mtime
            )
            largest = max(largest, max(path.stat().st_size for path in shards))
            for path in shards[:-1] if arguments.small_disk else ():
                if path.stat().st_size:
                    os.truncate(path, 0)

        report = convert(request, make_room)
        used = resource.getrusage(resource.RUSAGE_SELF)
        started = time.monotonic()
        wrong = [] if arguments.small_disk else verify_manifest(request.out)
        checked = round(time.monotonic() - started, 1)
        figures = {
            "layers": arguments.layers,
            "seconds": report.seconds,
            "peak_rss_gb": round(report.peak_memory_bytes / 1e9, 2),
            "output_gb": round(sum(part.bytes for part in report.components.values()) / 1e9, 2),
            "largest_file_gb": round(largest / 1e9, 2),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "transformer_parameters": report.components["transformer"].parameters,
            "dropped_hoi_parameters": report.dropped_hoi_parameters,
            "manifest": "not checked" if arguments.small_disk else f"wrong: {wrong}" if wrong else "intact",
            "verify_seconds": checked,
            "cpus": os.cpu_count(),
            "machine": platform.processor() or platform.machine(),
        }
        parser.exit(0, json.dumps(figures, indent=2) + "\n")
    finally:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
