"""What fits where: the memory model behind `cointeract doctor` and the worker's choice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from contract.memory import MemoryMode
from model.checkpoints.convert import ConvertRequest, convert
from model.checkpoints.layout import on_meta
from model.checkpoints.official_names import dit_config
from model.memory.needs import (
    OFFICIAL_SIZE,
    PLANS,
    Plan,
    fitting_plan,
    measure_checkpoint,
    needed,
    tokens,
    with_fp8,
)
from model.memory.offload import choose_plan
from model.transformer import CoInteractTransformer3DModel
from tests.checkpoints.official_files import OfficialFiles

GB = 10**9
LAYOUTS = Path(__file__).parent.parent / "data" / "official_layouts.json"


def test_the_official_size_is_that_of_the_official_layouts() -> None:
    layouts = {name: layout["tensors"] for name, layout in json.loads(LAYOUTS.read_text()).items()}
    model = on_meta(lambda: CoInteractTransformer3DModel(**dit_config({}, hoi_branch=False)))
    blocks: dict[str, int] = {}
    rest = 0
    for name, tensor in model.state_dict().items():
        if name.startswith("blocks."):
            number = name.split(".")[1]
            blocks[number] = blocks.get(number, 0) + 2 * tensor.numel()
        else:
            rest += 2 * tensor.numel()

    def bf16_bytes(tensors: dict[str, list[int]]) -> int:
        return sum(2 * math.prod(shape) for shape in tensors.values())

    speech = layouts["wav2vec2-large-xlsr-53-chinese-zh-cn"]
    used = {name: shape for name, shape in speech.items() if "lm_head" not in name and "masked" not in name}
    assert OFFICIAL_SIZE.transformer == sum(blocks.values()) + rest
    assert (OFFICIAL_SIZE.transformer_block, OFFICIAL_SIZE.transformer_rest) == (max(blocks.values()), rest)
    assert OFFICIAL_SIZE.text_encoder == bf16_bytes(layouts["umt5-xxl-encoder"])
    assert OFFICIAL_SIZE.vae == bf16_bytes(layouts["wan2.1-vae"])
    assert OFFICIAL_SIZE.audio_encoder == bf16_bytes(used)


def test_token_counts_are_those_of_a_clip_with_product_and_motion() -> None:
    assert tokens(720, 1280) == pytest.approx(84_560, rel=0.001)
    assert tokens(480, 832) == pytest.approx(36_634, rel=0.001)


def test_each_mode_needs_less_gpu_memory_than_the_one_before_and_larger_frames_need_more() -> None:
    for width, height in ((480, 832), (720, 1280)):
        peaks = [needed(OFFICIAL_SIZE, Plan(mode), width, height).gpu for mode in MemoryMode]
        assert peaks == sorted(peaks, reverse=True)
    for plan in PLANS:
        large = needed(OFFICIAL_SIZE, plan, 720, 1280).gpu
        assert needed(OFFICIAL_SIZE, plan, 480, 832).gpu < large
        assert needed(with_fp8(OFFICIAL_SIZE), plan, 720, 1280).gpu < large


def test_more_ranks_need_less_of_each_gpu_and_more_main_memory_for_what_each_streams() -> None:
    plan = Plan(MemoryMode.RESIDENT)
    resident = [needed(OFFICIAL_SIZE, plan, 720, 1280, ranks).gpu for ranks in (1, 2, 4, 8)]
    assert resident == sorted(resident, reverse=True)
    # One decodes whole frames. Two decode bands and take a pass each, with all its tokens; four share the
    # tokens, and the first, which encodes whole frames, needs most for that.
    assert GB < resident[0] - resident[1] < 2 * GB
    assert 0 < resident[1] - resident[2] < 2 * GB
    assert resident[2] == resident[3]
    hosts = [needed(OFFICIAL_SIZE, Plan(MemoryMode.OFFLOAD), 720, 1280, ranks).host for ranks in (1, 2, 4)]
    streamed = OFFICIAL_SIZE.transformer - OFFICIAL_SIZE.transformer_rest
    assert hosts[1] - hosts[0] > streamed
    assert hosts[2] - hosts[1] == 2 * (hosts[1] - hosts[0])


@pytest.mark.parametrize(
    ("gpu_gb", "host_gb", "size", "plan"),
    [
        (141, 128, (720, 1280), Plan(MemoryMode.RESIDENT)),
        (80, 128, (720, 1280), Plan(MemoryMode.RESIDENT)),
        (58, 128, (720, 1280), Plan(MemoryMode.RESIDENT, in_parts=True)),
        (56, 128, (720, 1280), Plan(MemoryMode.TEXT_OFFLOAD)),
        (48, 128, (480, 832), Plan(MemoryMode.TEXT_OFFLOAD)),
        (24, 128, (720, 1280), Plan(MemoryMode.OFFLOAD)),
        (16, 128, (720, 1280), Plan(MemoryMode.OFFLOAD)),
        (12.88, 128, (720, 1280), Plan(MemoryMode.OFFLOAD, in_parts=True)),  # 12 GiB
        (10, 128, (480, 832), Plan(MemoryMode.OFFLOAD)),
        (9, 128, (480, 832), Plan(MemoryMode.OFFLOAD, in_parts=True)),
        (24, 32, (480, 832), None),  # what leaves the GPU has no room in main memory
        (8, 128, (480, 832), None),
    ],
)
def test_the_fastest_plan_that_fits_is_chosen(
    gpu_gb: float, host_gb: int, size: tuple[int, int], plan: Plan | None
) -> None:
    assert fitting_plan(OFFICIAL_SIZE, int(gpu_gb * GB), host_gb * GB, *size) == plan


def test_a_worker_loads_the_plan_that_fits_its_gpu_or_that_of_the_mode_it_fell_to(
    files: OfficialFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = files.write(tmp_path)
    folder = tmp_path / "out"
    convert(ConvertRequest(paths.base, paths.cointeract, paths.audio_encoder, folder, "bf16"))
    size, gpu = measure_checkpoint(folder), torch.device("cuda")
    memory = SimpleNamespace(total_memory=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)

    def chosen(wanted: MemoryMode | None) -> Plan:
        return choose_plan(folder, gpu, [(480, 832), (720, 1280)], 1, wanted)

    for plan in PLANS:
        memory.total_memory = needed(size, plan, 720, 1280).gpu
        assert chosen(plan.mode) == plan
        assert chosen(None) == next(p for p in PLANS if needed(size, p, 720, 1280).gpu <= memory.total_memory)
    memory.total_memory = 1
    assert chosen(None) == PLANS[-1]


@pytest.mark.parametrize("mode", MemoryMode)
def test_in_parts_everything_but_the_weights_is_smaller(mode: MemoryMode) -> None:
    for width, height in ((480, 832), (720, 1280)):
        whole, parts = (needed(OFFICIAL_SIZE, Plan(mode, cut), width, height) for cut in (False, True))
        assert parts.gpu < whole.gpu
        assert parts.host == whole.host


def test_a_folder_is_measured_as_it_will_be_loaded(files: OfficialFiles, tmp_path: Path) -> None:
    paths = files.write(tmp_path)
    convert(ConvertRequest(paths.base, paths.cointeract, paths.audio_encoder, tmp_path / "fp32", "fp32"))
    convert(
        ConvertRequest(
            paths.base, paths.cointeract, paths.audio_encoder, tmp_path / "fp8", "bf16", fp8_ffn=True
        )
    )
    plain, eight_bit = measure_checkpoint(tmp_path / "fp32"), measure_checkpoint(tmp_path / "fp8")
    model = CoInteractTransformer3DModel.from_pretrained(
        tmp_path / "fp32" / "transformer", dtype=torch.float32
    )
    assert plain.transformer == 2 * sum(tensor.numel() for tensor in model.state_dict().values())
    assert (plain.width, plain.layers, plain.fp8) == (96, 4, False)
    assert eight_bit.fp8
    scales = 2 * 4 * (96 + 192)
    assert eight_bit.transformer == with_fp8(plain).transformer + scales
    assert eight_bit.ffn_weights == plain.ffn_weights == 4 * 2 * 96 * 192
