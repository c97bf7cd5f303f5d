"""Damaged or wrong official files stop the conversion with the tensor's name, and leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.convert import ConvertRequest, convert
from model.checkpoints.errors import CheckpointError, Fault
from model.checkpoints.load import load_pipeline
from model.checkpoints.tiny import write_tiny_checkpoint
from model.checkpoints.writer import checkpoint_folder
from tests.checkpoints.official_files import OfficialFiles, OfficialPaths, Variant
from tests.model.golden import TINY_DIT

pytestmark = pytest.mark.slow

Q = "blocks.1.self_attn.q"
LORA_A, LORA_B = f"{Q}.lora_A.default.weight", f"{Q}.lora_B.default.weight"
SHARD = "diffusion_pytorch_model-00002-of-00004.safetensors"


def request(paths: OfficialPaths, out: Path, **settings: Any) -> ConvertRequest:
    return ConvertRequest(paths.base, paths.cointeract, paths.audio_encoder, out, **settings)


def refusal(paths: OfficialPaths, out: Path, **settings: Any) -> CheckpointError:
    """The error that converting these files raises; asserts that no output, whole or half, is left."""
    with pytest.raises(CheckpointError) as caught:
        convert(request(paths, out, **settings))
    assert not [path for path in out.parent.iterdir() if out.name in path.name]
    return caught.value


def truncate(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


# What is done to the tensors, what the refusal is about, and words of it.
Change = Callable[[OfficialFiles], object]
TENSOR_FAULTS: dict[str, tuple[Change, Fault, str, str]] = {
    "base tensor missing": (
        lambda f: drop(f.base, f"{Q}.bias"),
        Fault.MISSING,
        f"{Q}.bias",
        r"expected \[96\]",
    ),
    "LoRA pair missing": (
        lambda f: drop(f.cointeract, LORA_A, LORA_B),
        Fault.MISSING,
        f"{Q}.lora_A.weight",
        r"expected \[rank, 96\]",
    ),
    "lora_A missing": (lambda f: drop(f.cointeract, LORA_A), Fault.MISSING, LORA_A, "expected beside"),
    "lora_B missing": (lambda f: drop(f.cointeract, LORA_B), Fault.MISSING, LORA_B, "expected beside"),
    "expert tensor missing": (
        lambda f: drop(f.cointeract, "blocks.3.ffn.face_expert.fc2.bias"),
        Fault.MISSING,
        "blocks.3.ffn.face_expert.fc2.bias",
        r"expected \[96\] in checkpoint.safetensors",
    ),
    "all experts missing": (
        lambda f: drop(f.cointeract, *(name for name in f.cointeract if "expert" in name)),
        Fault.MISSING,
        "blocks.0.ffn.hand_expert.fc1.weight",
        "found no expert",
    ),
    "part of the HOI branch missing": (
        lambda f: drop(f.cointeract, "depth_head.modulation"),
        Fault.MISSING,
        "depth_head.modulation",
        r"expected \[1, 2, 96\]",
    ),
    "text encoder tensor missing": (
        lambda f: drop(f.t5, "blocks.2.ffn.gate.0.weight"),
        Fault.MISSING,
        "blocks.2.ffn.gate.0.weight",
        "models_t5",
    ),
    "text encoder tensor that tells its size missing": (
        lambda f: drop(f.t5, "token_embedding.weight"),
        Fault.MISSING,
        "token_embedding.weight",
        "models_t5",
    ),
    "VAE tensor missing": (
        lambda f: drop(f.vae, "decoder.upsamples.3.time_conv.bias"),
        Fault.MISSING,
        "decoder.upsamples.3.time_conv.bias",
        r"Wan2.1_VAE.pth",
    ),
    "audio encoder tensor missing": (
        lambda f: drop(f.w2v, "wav2vec2.encoder.layers.7.attention.k_proj.weight"),
        Fault.MISSING,
        "wav2vec2.encoder.layers.7.attention.k_proj.weight",
        "pytorch_model.bin",
    ),
    "base tensor unexpected": (
        lambda f: put(f.base, {"blocks.1.surprise.weight": (4, 4)}),
        Fault.UNEXPECTED,
        "blocks.1.surprise.weight",
        "expected no such tensor",
    ),
    "a layer too many": (
        lambda f: put(f.base, {"blocks.4.modulation": (1, 6, 96)}),
        Fault.UNEXPECTED,
        "blocks.4.modulation",
        "expected no such tensor",
    ),
    "CoInteract tensor unexpected": (
        lambda f: put(f.cointeract, {"blocks.1.norm3.weight": (96,)}),
        Fault.UNEXPECTED,
        "blocks.1.norm3.weight",
        "expected LoRA, expert, router or HOI",
    ),
    "LoRA on another layer": (
        lambda f: put(f.cointeract, {"head.head.lora_A.weight": (4, 96), "head.head.lora_B.weight": (64, 4)}),
        Fault.UNEXPECTED,
        "head.head.lora_A.weight",
        "expected LoRA only on",
    ),
    "text encoder tensor unexpected": (
        lambda f: put(f.t5, {"decoder.weight": (4, 4)}),
        Fault.UNEXPECTED,
        "decoder.weight",
        "expected no such tensor",
    ),
    "VAE tensor unexpected": (
        lambda f: put(f.vae, {"encoder.extra": (4,)}),
        Fault.UNEXPECTED,
        "encoder.extra",
        "expected no such tensor",
    ),
    "audio encoder tensor unexpected": (
        lambda f: put(f.w2v, {"wav2vec2.adapter.weight": (4,)}),
        Fault.UNEXPECTED,
        "wav2vec2.adapter.weight",
        "expected no such tensor",
    ),
    "LoRA pair twice, with and without prefix": (
        lambda f: f.cointeract.update({f"diffusion_model.{LORA_A}": f.cointeract[LORA_A].clone()}),
        Fault.DUPLICATE,
        LORA_A,
        "mean the same tensor",
    ),
    "LoRA pair twice, by old and new FFN name": (
        lambda f: f.cointeract.update(
            {
                "blocks.0.ffn.0.lora_B.weight": f.cointeract[
                    "blocks.0.ffn.ffn_base.0.lora_B.default.weight"
                ].clone()
            }
        ),
        Fault.DUPLICATE,
        "blocks.0.ffn",
        "mean the same tensor",
    ),
    "audio encoder tensor twice": (
        lambda f: f.w2v.update(
            {"encoder.layer_norm.bias": f.w2v["wav2vec2.encoder.layer_norm.bias"].clone()}
        ),
        Fault.DUPLICATE,
        "encoder.layer_norm.bias",
        "mean the same tensor",
    ),
    "base tensor mis-shaped": (
        lambda f: put(f.base, {f"{Q}.weight": (96, 95)}),
        Fault.WRONG_SHAPE,
        f"{Q}.weight",
        r"expected \[96, 96\], found \[96, 95\]",
    ),
    "base tensor flattened": (
        lambda f: put(f.base, {"patch_embedding.weight": (96, 64)}),
        Fault.WRONG_SHAPE,
        "patch_embedding.weight",
        r"expected \[96, 16, 1, 2, 2\], found \[96, 64\]",
    ),
    "ranks of a pair differ": (
        lambda f: put(f.cointeract, {LORA_B: (96, 5)}),
        Fault.WRONG_SHAPE,
        LORA_B,
        r"expected \[96, 4\] to fit lora_A's rank, found \[96, 5\]",
    ),
    "lora_A of another width": (
        lambda f: put(f.cointeract, {LORA_A: (4, 95)}),
        Fault.WRONG_SHAPE,
        LORA_A,
        r"expected \[rank, 96\], found \[4, 95\]",
    ),
    "expert mis-shaped": (
        lambda f: put(f.cointeract, {"blocks.2.ffn.hand_expert.fc1.weight": (17, 96)}),
        Fault.WRONG_SHAPE,
        "blocks.2.ffn.hand_expert.fc1.weight",
        r"expected \[16, 96\], found \[17, 96\]",
    ),
    "dropped HOI tensor mis-shaped": (
        lambda f: put(f.cointeract, {"depth_cond_mask.weight": (2, 96)}),
        Fault.WRONG_SHAPE,
        "depth_cond_mask.weight",
        r"expected \[1, 96\], found \[2, 96\]",
    ),
    "VAE tensor mis-shaped": (
        lambda f: put(f.vae, {"decoder.head.2.bias": (4,)}),
        Fault.WRONG_SHAPE,
        "decoder.head.2.bias",
        r"expected \[3\], found \[4\]",
    ),
    "zero-size base tensor": (
        lambda f: put(f.base, {f"{Q}.bias": (0,)}),
        Fault.EMPTY,
        f"{Q}.bias",
        r"shape \[0\]",
    ),
    "LoRA of rank zero": (
        lambda f: put(f.cointeract, {LORA_A: (0, 96), LORA_B: (96, 0)}),
        Fault.EMPTY,
        LORA_A,
        r"shape \[0, 96\]",
    ),
    "zero-size text encoder tensor": (
        lambda f: put(f.t5, {"norm.weight": (0,)}),
        Fault.EMPTY,
        "norm.weight",
        r"shape \[0\]",
    ),
    "whole numbers for weights": (
        lambda f: f.base.update({f"{Q}.bias": torch.zeros(96, dtype=torch.int32)}),
        Fault.WRONG_TYPE,
        f"{Q}.bias",
        "found I32",
    ),
    "whole numbers in a torch file": (
        lambda f: f.vae.update({"conv1.bias": torch.zeros(32, dtype=torch.int64)}),
        Fault.WRONG_TYPE,
        "conv1.bias",
        "found torch.int64",
    ),
    "NaN in the base": (
        lambda f: spoil(f.base, f"{Q}.weight", "nan"),
        Fault.NOT_FINITE,
        f"{Q}.weight",
        "NaN",
    ),
    "infinity in the base": (
        lambda f: spoil(f.base, "head.head.bias", "inf"),
        Fault.NOT_FINITE,
        "head.head.bias",
        "infinity",
    ),
    "NaN in lora_A": (lambda f: spoil(f.cointeract, LORA_A, "nan"), Fault.NOT_FINITE, LORA_A, "NaN"),
    "NaN in lora_B": (lambda f: spoil(f.cointeract, LORA_B, "nan"), Fault.NOT_FINITE, LORA_B, "NaN"),
    "NaN in a router": (
        lambda f: spoil(f.cointeract, "blocks.0.ffn.router.3.bias", "nan"),
        Fault.NOT_FINITE,
        "blocks.0.ffn.router.3.bias",
        "NaN",
    ),
    "NaN in a dropped HOI tensor": (
        lambda f: spoil(f.cointeract, "depth_head.head.weight", "nan"),
        Fault.NOT_FINITE,
        "depth_head.head.weight",
        "NaN",
    ),
    "NaN in the text encoder": (
        lambda f: spoil(f.t5, "norm.weight", "nan"),
        Fault.NOT_FINITE,
        "norm.weight",
        "NaN",
    ),
    "NaN in the VAE": (lambda f: spoil(f.vae, "conv1.bias", "nan"), Fault.NOT_FINITE, "conv1.bias", "NaN"),
    "NaN in the audio encoder": (
        lambda f: spoil(f.w2v, "wav2vec2.encoder.layer_norm.bias", "nan"),
        Fault.NOT_FINITE,
        "wav2vec2.encoder.layer_norm.bias",
        "NaN",
    ),
    "a merge that overflows": (
        lambda f: f.cointeract.update({name: f.cointeract[name] * 1e30 for name in (LORA_A, LORA_B)}),
        Fault.NOT_FINITE,
        f"{Q}.weight",
        "after merging",
    ),
}


def drop(tensors: dict[str, torch.Tensor], *names: str) -> None:
    for name in names:
        del tensors[name]


def put(tensors: dict[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    tensors.update({name: torch.full(shape, 0.01) for name, shape in shapes.items()})


def spoil(tensors: dict[str, torch.Tensor], name: str, value: str) -> None:
    """Put a number into the last place of a tensor."""
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = float(value)


@pytest.mark.parametrize(
    ("change", "fault", "tensor", "words"), TENSOR_FAULTS.values(), ids=TENSOR_FAULTS.keys()
)
def test_a_wrong_tensor_is_named_with_what_was_expected(
    change: Change, fault: Fault, tensor: str, words: str, files: OfficialFiles, tmp_path: Path
) -> None:
    change(files)
    error = refusal(files.write(tmp_path), tmp_path / "out")
    problem = error.problems[0]
    assert problem.fault == fault
    assert tensor in problem.where or tensor in problem.detail
    assert tensor in str(error)
    with pytest.raises(CheckpointError, match=words):
        raise error


def test_all_problems_of_a_file_are_listed_at_once(files: OfficialFiles, tmp_path: Path) -> None:
    drop(files.base, f"{Q}.bias", "head.head.bias")
    put(files.base, {"extra": (3,)})
    put(files.cointeract, {LORA_B: (96, 5)})
    faults = {
        problem.where: problem.fault for problem in refusal(files.write(tmp_path), tmp_path / "out").problems
    }
    assert faults == {
        f"{Q}.bias": Fault.MISSING,
        "head.head.bias": Fault.MISSING,
        "extra": Fault.UNEXPECTED,
        LORA_B: Fault.WRONG_SHAPE,
    }


def test_a_tensor_in_two_shards_is_refused(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    shard = load_file(paths.base / SHARD)
    shard["blocks.0.modulation"] = files.base["blocks.0.modulation"]
    first = next(
        path for path in paths.base.glob("*.safetensors") if "blocks.0.modulation" in load_file(path)
    )
    assert first.name != SHARD
    save_file(shard, paths.base / SHARD)
    error = refusal(paths, tmp_path / "out")
    assert (error.problems[0].fault, error.problems[0].where) == (Fault.DUPLICATE, "blocks.0.modulation")
    assert first.name in str(error)
    assert SHARD in str(error)


def test_a_tensor_twice_in_one_header_is_refused(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    data = paths.cointeract.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    entry = json.loads(header)["depth_cond_mask.weight"]
    twice = header[:-1] + f',"depth_cond_mask.weight":{json.dumps(entry)}}}'.encode()
    paths.cointeract.write_bytes(len(twice).to_bytes(8, "little") + twice + data[8 + length :])
    error = refusal(paths, tmp_path / "out")
    assert (error.problems[0].fault, error.problems[0].where) == (Fault.DUPLICATE, "depth_cond_mask.weight")


def test_a_missing_shard_is_named(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    (paths.base / SHARD).unlink()
    assert SHARD in str(refusal(paths, tmp_path / "out"))


def test_shards_of_two_downloads_in_one_folder_are_refused(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    shutil.copy(paths.base / SHARD, paths.base / "diffusion_pytorch_model-00001-of-00002.safetensors")
    assert "mixture" in str(refusal(paths, tmp_path / "out"))


@pytest.mark.parametrize(
    "name",
    [
        f"base/{SHARD}",
        "checkpoint.safetensors",
        "base/models_t5_umt5-xxl-enc-bf16.pth",
        "wav2vec2/pytorch_model.bin",
    ],
)
@pytest.mark.parametrize("count", [1, 5000])
def test_a_truncated_file_is_named(name: str, count: int, files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    truncate(tmp_path / name, count)
    error = refusal(paths, tmp_path / "out")
    assert error.problems[0].fault == Fault.UNREADABLE
    assert Path(name).name in str(error)
    assert "truncated" in str(error)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("base/Wan2.1_VAE.pth", b""),
        ("base/Wan2.1_VAE.pth", b"<!DOCTYPE html><html></html>"),
        (f"base/{SHARD}", b""),
        (f"base/{SHARD}", b"\xff" * 16),
        ("checkpoint.safetensors", b"garbage" * 100),
        ("wav2vec2/pytorch_model.bin", b"garbage" * 100),
    ],
)
def test_a_file_that_holds_something_else_is_named(
    name: str, content: bytes, files: OfficialFiles, tmp_path: Path
) -> None:
    paths = files.write(tmp_path)
    (tmp_path / name).write_bytes(content)
    error = refusal(paths, tmp_path / "out")
    assert error.problems[0].fault == Fault.UNREADABLE
    assert Path(name).name in str(error)


@pytest.mark.parametrize(
    "name",
    [
        "base/models_t5_umt5-xxl-enc-bf16.pth",
        "base/Wan2.1_VAE.pth",
        "checkpoint.safetensors",
        "wav2vec2/pytorch_model.bin",
        "wav2vec2/config.json",
    ],
)
def test_a_file_that_is_not_there_is_named(name: str, files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    (tmp_path / name).unlink()
    assert Path(name).name in str(refusal(paths, tmp_path / "out"))


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_with_code_is_refused_and_the_code_is_not_run(
    new_format: bool, files: OfficialFiles, tmp_path: Path
) -> None:
    paths = files.write(tmp_path)
    marker = tmp_path / "code-was-run"
    state = {**files.vae, "conv1.extra": RunsCode(marker)}
    torch.save(state, paths.base / "Wan2.1_VAE.pth", _use_new_zipfile_serialization=new_format)
    error = refusal(paths, tmp_path / "out")
    assert "could run code" in str(error)
    assert "Wan2.1_VAE.pth" in str(error)
    assert not marker.exists()


def test_a_torch_file_that_holds_no_tensors_by_name_is_refused(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    torch.save({"state_dict": files.vae}, paths.base / "Wan2.1_VAE.pth")
    error = refusal(paths, tmp_path / "out")
    assert "state_dict: expected a tensor, found dict" in str(error)


def test_old_torch_files_non_contiguous_tensors_and_parameters_are_read_rightly(
    files: OfficialFiles, tmp_path: Path
) -> None:
    paths = files.write(tmp_path)
    convert(request(paths, tmp_path / "plain"))
    strided = {
        name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor
        for name, tensor in files.t5.items()
    }
    torch.save(strided, paths.base / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(
        {name: torch.nn.Parameter(tensor) for name, tensor in files.vae.items()},
        paths.base / "Wan2.1_VAE.pth",
    )
    torch.save(files.w2v, paths.audio_encoder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(request(paths, tmp_path / "odd"))
    for name in ("text_encoder/model", "vae/diffusion_pytorch_model", "audio_encoder/model"):
        plain, odd = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("plain", "odd"))
        assert plain.keys() == odd.keys()
        assert all(torch.equal(tensor, odd[key]) for key, tensor in plain.items())


def test_hoi_cannot_be_kept_from_a_file_without_it(tmp_path: Path) -> None:
    files = OfficialFiles.draw(Variant(hoi=False))
    error = refusal(files.write(tmp_path), tmp_path / "out", keep_hoi=True)
    assert {problem.fault for problem in error.problems} == {Fault.MISSING}
    assert all("depth_" in problem.where for problem in error.problems)


def test_dims_that_do_not_fit_the_tensors_are_refused(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    (paths.base / "config.json").write_text(json.dumps({**TINY_DIT, "ffn_dim": 200}))
    error = refusal(paths, tmp_path / "out")
    assert "blocks.0.ffn.0.weight" in str(error)
    assert "expected [200, 96], found [192, 96]" in str(error)


def test_without_a_config_the_official_dims_are_expected(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    (paths.base / "config.json").unlink()
    assert "expected [13824, 5120], found [192, 96]" in "\n".join(
        str(problem) for problem in refusal(paths, tmp_path / "out").problems
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"dim": 97}', '{"dim": "wide"}'])
def test_a_config_that_makes_no_network_is_named(content: str, files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    (paths.base / "config.json").write_text(content)
    assert "config.json" in str(refusal(paths, tmp_path / "out"))


def test_an_audio_encoder_of_another_width_is_refused(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    (paths.base / "config.json").write_text(json.dumps({**TINY_DIT, "audio_dim": 48}))
    error = refusal(paths, tmp_path / "out")
    assert "casual_audio_encoder.encoder.conv1_local.conv.weight" in str(error)


@pytest.mark.parametrize("damage", ["empty", "gone", "no tokenizer"])
def test_a_missing_tokenizer_is_named(damage: str, files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    tokenizer = paths.base / "google" / "umt5-xxl"
    shutil.rmtree(tokenizer)
    if damage != "gone":
        tokenizer.mkdir()
    if damage == "no tokenizer":
        (tokenizer / "readme.txt").write_text("hello")
    assert "google/umt5-xxl" in str(refusal(paths, tmp_path / "out"))


def test_a_conversion_that_is_killed_leaves_no_output_and_the_next_one_succeeds(
    files: OfficialFiles, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from model.checkpoints.writer import checkpoint_folder\n"
        "with checkpoint_folder(Path(sys.argv[1])) as folder:\n"
        "    folder.write_bytes('transformer/left-behind.safetensors', b'x' * 1000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / ".out.partial" / "transformer" / "left-behind.safetensors").exists()
    convert(request(files.write(tmp_path), out))
    assert (out / "cointeract.json").is_file()
    assert not (out / "transformer" / "left-behind.safetensors").exists()
    assert not (tmp_path / ".out.partial").exists()


def test_two_conversions_to_one_folder_at_once_are_refused(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    with checkpoint_folder(tmp_path / "out") as folder:
        folder.write_bytes("first", b"1")
        with pytest.raises(BlockingIOError, match="another process"):
            convert(request(paths, tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"first", "SHA256SUMS"}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9965\n"


@pytest.mark.parametrize("name", ["base/models_t5_umt5-xxl-enc-bf16.pth", "checkpoint.safetensors"])
def test_a_git_lfs_pointer_is_named_as_such(name: str, files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    (tmp_path / name).write_bytes(POINTER)
    error = refusal(paths, tmp_path / "out")
    assert error.problems[0].fault == Fault.UNREADABLE
    assert "git lfs pull" in str(error)


def test_a_git_lfs_pointer_in_a_checkpoint_folder_is_named_as_such(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    (weights,) = (tmp_path / "vae").glob("*.safetensors")
    weights.write_bytes(POINTER)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_pipeline(tmp_path)
