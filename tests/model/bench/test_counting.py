"""What a forward multiplies and moves, counted on tensors without data."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.bench.clip import ClipShape, conditioning_inputs
from model.bench.counting import Product, Traffic, count_forward
from model.bench.official_code import OfficialCode, OfficialCodeMissing
from model.bench.timing import peak_memory
from model.transformer import CoInteractTransformer3DModel

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 48,
    "text_dim": 8,
    "freq_dim": 16,
    "audio_dim": 8,
    "num_layers": 2,
    "audio_inject_layers": (0,),
    "expert_hidden_dim": 8,
}
SHAPE = ClipShape(64, 96, pose=True)


@pytest.fixture(scope="module")
def model() -> CoInteractTransformer3DModel:
    torch.manual_seed(0)
    made: CoInteractTransformer3DModel = CoInteractTransformer3DModel(**CONFIG).eval()
    return made


@pytest.mark.parametrize("timestep", [500.0, 950.0])
def test_the_shapes_multiply_to_what_torch_counts_on_real_tensors(model, timestep) -> None:
    inputs = conditioning_inputs(model, SHAPE, torch.randn)
    with torch.no_grad():
        prepared = model.prepare_conditioning(inputs, num_latent_frames=20, keep_key_values=True)

        def linear_gelu(states: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
            return 2 * states.numel() * weight[0]

        def attention(query: torch.Size, key: torch.Size, *_: object, **__: object) -> int:
            return 4 * query.numel() * key[-2]

        mapping = {
            torch.ops.cointeract.linear_gelu: linear_gelu,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        }
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            model(torch.randn(SHAPE.latents(20)), timestep, prepared)
    by_operation = counter.get_flop_counts()["Global"]
    convolutions = sum(count for op, count in by_operation.items() if "conv" in str(op))
    attended = sum(count for op, count in by_operation.items() if "attention" in str(op))
    counts = count_forward(model, SHAPE, timestep, torch.float32)
    assert counts.tokens == prepared.layout.video
    assert counts.attention_flop == attended
    assert counts.matrix_flop == counter.get_total_flops() - attended - convolutions


def test_half_precision_halves_the_bytes_of_activations_and_no_launch(model) -> None:
    whole, half = (count_forward(model, SHAPE, 500.0, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert whole.products == half.products
    assert whole.attentions == half.attentions
    assert 0.4 < half.bytes.total() / whole.bytes.total() < 0.65


def test_counting_leaves_model_and_default_type_alone(model) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_forward(model, SHAPE, 500.0, torch.bfloat16)
    assert torch.get_default_dtype() is torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_views_are_free_and_each_written_tensor_counts_with_what_it_reads() -> None:
    left, right = torch.randn(6, 4), torch.randn(4, 5)
    with Traffic() as traffic:
        (left.t().t() @ right).add_(1)
    assert traffic.launches.total() == 2
    assert traffic.products == {Product(6, 4, 5): 1}
    assert traffic.bytes.total() == 2 * 6 * 5 * 4  # the sum reads and writes it; the product's are hidden


def test_the_peak_is_of_the_block_alone() -> None:
    device = torch.device("cpu")
    with peak_memory(device) as large:
        torch.ones(100_000_000).sum()
    with peak_memory(device) as small:
        torch.ones(1000).sum()
    assert large.bytes is not None
    assert small.bytes is not None
    assert 3e8 < large.bytes - small.bytes < 5e8


def test_a_folder_without_the_official_code_is_named(tmp_path) -> None:
    with pytest.raises(OfficialCodeMissing, match="is no clone"):
        OfficialCode(tmp_path)
