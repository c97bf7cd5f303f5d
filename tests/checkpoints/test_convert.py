"""`cointeract convert` on small files in the official formats."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file

from model.checkpoints.card_file import read_card
from model.checkpoints.convert import ConversionReport, ConvertRequest, convert
from model.checkpoints.load import load_pipeline
from model.checkpoints.official_names import dit_name
from model.checkpoints.writer import sha256_of, verify_manifest
from model.network.fp8_linear import Fp8Linear
from model.parity.__main__ import run as run_parity
from model.pipeline import CoInteractPipeline
from tests.checkpoints.official_files import OfficialFiles, OfficialPaths, Tensors, Variant
from tests.model.golden import TINY_DIT
from tests.model.test_parity_pipeline import pipeline_cases

pytestmark = pytest.mark.slow

DIT_CASES = Path(__file__).parent.parent / "data" / "dit_tiny_cases.safetensors"

VARIANTS = {
    "as official training writes it": Variant(),
    "prefixed, short LoRA names, no HOI": Variant(prefix="diffusion_model.", infix="", hoi=False, rank=1),
    "prefixed, with HOI, plain ffn": Variant(prefix="diffusion_model.", ffn="ffn.", rank=32),
    "plain ffn, short LoRA names": Variant(infix="", ffn="ffn.", rank=7),
    "pose, one shard": Variant(file="checkpoint_pose.safetensors", shards=1),
    "other dims": Variant(
        rank=5,
        seed=7,
        dit={
            **TINY_DIT,
            "dim": 64,
            "num_heads": 2,
            "num_layers": 3,
            "ffn_dim": 96,
            "audio_inject_layers": [1],
            "expert_hidden_dim": 8,
        },
    ),
}


def request(paths: OfficialPaths, out: Path, **settings: Any) -> ConvertRequest:
    return ConvertRequest(paths.base, paths.cointeract, paths.audio_encoder, out, **settings)


def stored(folder: Path) -> Tensors:
    """All tensors of a component's files."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def expected_transformer(files: OfficialFiles, hoi: bool) -> Tensors:
    layers = files.variant.dit["audio_inject_layers"]
    kept = {name: tensor for name, tensor in files.merged.items() if hoi or "depth_" not in name}
    return {dit_name(name, layers): tensor for name, tensor in kept.items()}


def assert_close(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-6, msg=f"{name} differs")


def assert_parity(folder: Path) -> int:
    """Number of recorded cases that the folder's transformer reproduces."""
    results = list(run_parity(DIT_CASES, None, folder))
    assert [result.case for result in results if not result.passed] == []
    return len(results)


@pytest.fixture(scope="module")
def converted(
    tmp_path_factory: pytest.TempPathFactory, drawn_files: OfficialFiles
) -> tuple[Path, OfficialPaths, ConversionReport]:
    """The default variant in fp32, pruned; weights of the recorded cases."""
    folder = tmp_path_factory.mktemp("converted")
    paths = drawn_files.write(folder)
    report = convert(request(paths, folder / "speech", dtype="fp32"))
    return folder / "speech", paths, report


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_each_way_in_which_the_files_may_come_gives_the_same_network(
    variant: Variant, tmp_path: Path
) -> None:
    files = OfficialFiles.draw(variant)
    report = convert(request(files.write(tmp_path), tmp_path / "out", dtype="fp32"))
    assert_close(stored(tmp_path / "out" / "transformer"), expected_transformer(files, hoi=False))
    assert report.lora_ranks == [variant.rank]
    assert bool(report.dropped_hoi_tensors) == variant.hoi
    assert read_card(tmp_path / "out").pose == ("pose" in variant.file)


def test_the_converted_folder_reproduces_the_official_codes_numbers(
    converted: tuple[Path, OfficialPaths, ConversionReport],
) -> None:
    assert assert_parity(converted[0]) >= 9


def test_a_converted_folder_makes_the_video_that_the_official_pipeline_made(tmp_path: Path) -> None:
    cases, metadata = pipeline_cases(clips=1)
    save_file(cases, tmp_path / "cases.safetensors", metadata)
    variant = Variant(
        prefix="diffusion_model.",
        infix="",
        hoi=False,
        drawn_with_hoi=False,
        rank=3,
        seed=1,
        file="checkpoint_pose.safetensors",
    )
    convert(request(OfficialFiles.draw(variant).write(tmp_path), tmp_path / "out", dtype="fp32"))
    results = list(run_parity(tmp_path / "cases.safetensors", None, tmp_path / "out"))
    assert {result.case for result in results} == {"clip0.latents", "clip0.frames"}
    assert [result.case for result in results if not result.passed] == []


def test_with_keep_hoi_the_recorded_cases_of_the_hoi_branch_pass_too(
    files: OfficialFiles, tmp_path: Path
) -> None:
    report = convert(request(files.write(tmp_path), tmp_path / "out", dtype="fp32", keep_hoi=True))
    assert_close(stored(tmp_path / "out" / "transformer"), expected_transformer(files, hoi=True))
    assert report.transformer_tensors["HOI branch"] == 10
    assert report.dropped_hoi_tensors == []
    assert assert_parity(tmp_path / "out") >= 12


def test_the_report_proves_what_was_merged_loaded_and_dropped(
    converted: tuple[Path, OfficialPaths, ConversionReport], drawn_files: OfficialFiles
) -> None:
    folder, _, report = converted
    merged = {name: tensor for name, tensor in drawn_files.merged.items() if "depth_" not in name}
    hoi = {name: tensor for name, tensor in drawn_files.merged.items() if "depth_" in name}
    assert report.transformer_tensors == {"base": 128, "base + LoRA": 52, "mixture of experts": 56}
    assert sum(report.transformer_parameters.values()) == sum(tensor.numel() for tensor in merged.values())
    assert report.lora_pairs_merged == 52
    assert set(report.dropped_hoi_tensors) == set(hoi)
    assert report.dropped_hoi_parameters == sum(tensor.numel() for tensor in hoi.values())
    assert set(report.dropped_other_tensors) == {
        "lm_head.weight",
        "lm_head.bias",
        "wav2vec2.masked_spec_embed",
    }
    assert json.loads((folder / "conversion.json").read_text())["lora_pairs_merged"] == 52


def test_the_folder_is_one_that_any_user_of_diffusers_can_load(
    converted: tuple[Path, OfficialPaths, ConversionReport], drawn_files: OfficialFiles
) -> None:
    pipeline = CoInteractPipeline.from_pretrained(converted[0], dtype=torch.float32)
    config = DiffusionPipeline.load_config(converted[0])
    assert config["_class_name"] == "CoInteractPipeline"
    assert pipeline.transformer.config.hoi_branch is False
    assert torch.equal(
        pipeline.vae.state_dict()["encoder.conv_in.weight"], drawn_files.vae["encoder.conv1.weight"]
    )
    assert torch.equal(pipeline.text_encoder.shared.weight, drawn_files.t5["token_embedding.weight"])
    assert pipeline.text_encoder.encoder.embed_tokens.weight is pipeline.text_encoder.shared.weight
    projection = pipeline.audio_encoder.encoder.layers[23].attention.q_proj.weight
    assert torch.equal(projection, drawn_files.w2v["wav2vec2.encoder.layers.23.attention.q_proj.weight"])
    assert pipeline.tokenizer("a").input_ids == [100, 1]


def test_the_worker_loads_the_folder_strictly(
    converted: tuple[Path, OfficialPaths, ConversionReport],
) -> None:
    pipeline = load_pipeline(converted[0], "cpu", torch.float32)
    assert pipeline.transformer.config.num_layers == 4


def test_the_card_tells_sources_hashes_sizes_and_settings(
    converted: tuple[Path, OfficialPaths, ConversionReport],
) -> None:
    folder, paths, _ = converted
    card = read_card(folder)
    assert card.trained
    assert card.name == "speech"
    assert card.sizes[0] == "720x1280"
    assert (card.frames_per_clip, card.fps) == (80, 25)
    assert (card.defaults.num_inference_steps, card.defaults.guidance_scale, card.defaults.flow_shift) == (
        40,
        7,
        7,
    )
    assert card.license == "Apache-2.0"
    assert card.sources["checkpoint.safetensors"] == f"sha256:{sha256_of(paths.cointeract)}"
    assert len(card.sources) == 4 + 1 + 3


def test_every_file_is_in_the_manifest_that_sha256sum_understands(
    converted: tuple[Path, OfficialPaths, ConversionReport],
) -> None:
    folder = converted[0]
    check = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, capture_output=True)
    assert check.returncode == 0, check.stdout
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there - listed == {"SHA256SUMS"}
    assert verify_manifest(folder) == []


def test_a_changed_byte_shows_in_the_manifest(files: OfficialFiles, tmp_path: Path) -> None:
    convert(request(files.write(tmp_path), tmp_path / "out"))
    victim = tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    assert verify_manifest(tmp_path / "out") == ["vae/diffusion_pytorch_model.safetensors"]


def test_bf16_rounds_the_fp32_merge_once(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    convert(request(paths, tmp_path / "fp32", dtype="fp32"))
    convert(request(paths, tmp_path / "bf16", dtype="bf16"))
    exact, rounded = stored(tmp_path / "fp32" / "transformer"), stored(tmp_path / "bf16" / "transformer")
    for name, tensor in exact.items():
        assert torch.equal(rounded[name], tensor.to(torch.bfloat16)), name
    assert {tensor.dtype for tensor in stored(tmp_path / "bf16" / "text_encoder").values()} == {
        torch.bfloat16
    }
    assert {tensor.dtype for tensor in stored(tmp_path / "bf16" / "vae").values()} == {torch.float32}


def test_bf16_sources_are_merged_in_fp32(tmp_path: Path) -> None:
    files = OfficialFiles.draw(Variant(dtype=torch.bfloat16))
    convert(request(files.write(tmp_path), tmp_path / "out", dtype="fp32"))
    name = "blocks.2.cross_attn.k"
    up, down = (files.cointeract[f"{name}.lora_{side}.default.weight"].float() for side in "BA")
    merged = stored(tmp_path / "out" / "transformer")["blocks.2.attn2.to_k.weight"]
    torch.testing.assert_close(merged, files.base[f"{name}.weight"].float() + up @ down, rtol=0, atol=1e-6)


def test_shards_keep_to_their_limit_and_their_index_names_each_tensor_once(
    files: OfficialFiles, tmp_path: Path
) -> None:
    limit = 2_000_000  # the largest single tensor has 1.6 MB
    convert(request(files.write(tmp_path), tmp_path / "out", dtype="fp32", max_shard_bytes=limit))
    folder = tmp_path / "out" / "transformer"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("diffusion_pytorch_model-*-of-*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            names = set(file.keys())
        assert names == {name for name, place in index["weight_map"].items() if place == shard.name}
        assert shard.stat().st_size < limit + 50_000  # header
    assert_parity(tmp_path / "out")


def test_fp8_halves_the_feed_forward_weights_and_stays_close(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    convert(request(paths, tmp_path / "exact", dtype="fp32"))
    convert(request(paths, tmp_path / "fp8", dtype="bf16", fp8_ffn=True))
    tensors = stored(tmp_path / "fp8" / "transformer")
    eight_bit = {name for name, tensor in tensors.items() if tensor.dtype == torch.uint8}
    assert eight_bit == {f"blocks.{n}.ffn.net.{part}.weight" for n in range(4) for part in ("0.proj", "2")}
    for pipeline in (
        CoInteractPipeline.from_pretrained(tmp_path / "fp8", dtype=torch.float32),
        load_pipeline(tmp_path / "fp8", "cpu", torch.float32),
    ):
        layer = pipeline.transformer.get_submodule("blocks.0.ffn.net.2")
        assert isinstance(layer, Fp8Linear)
        assert layer.weight.dtype == torch.uint8
        exact = stored(tmp_path / "exact" / "transformer")
        states = torch.eye(exact["blocks.0.ffn.net.2.weight"].shape[1])
        bias = stored(tmp_path / "fp8" / "transformer")["blocks.0.ffn.net.2.bias"]
        weight = (layer(states) - bias.float()).T
        difference = (weight - exact["blocks.0.ffn.net.2.weight"]).abs()
        assert (difference <= exact["blocks.0.ffn.net.2.weight"].abs() / 16 + 1e-4).all()
    largest = max(
        result.max_abs_diff / result.max_abs_ref for result in run_parity(DIT_CASES, None, tmp_path / "fp8")
    )
    assert largest < 0.1


def test_the_folder_is_not_touched_if_it_exists(files: OfficialFiles, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="out exists"):
        convert(request(files.write(tmp_path), tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_too_little_disk_space_is_said_before_writing(
    files: OfficialFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(OSError, match=r"GB needed for .*out, 0\.0 GB free"):
        convert(request(files.write(tmp_path), tmp_path / "out"))
    assert not list(tmp_path.glob("*out*"))


def test_progress_counts_up_to_all_bytes(files: OfficialFiles, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    convert(request(files.write(tmp_path), tmp_path / "out"), lambda *report: seen.append(report))
    written = [count for _, count, _ in seen]
    assert written == sorted(written)
    assert written[-1] == seen[-1][2]
    assert list(dict.fromkeys(component for component, _, _ in seen)) == [
        "transformer",
        "text_encoder",
        "vae",
        "audio_encoder",
    ]
