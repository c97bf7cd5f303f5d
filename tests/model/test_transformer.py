"""What the transformer promises beyond equal numbers (those are in test_parity_dit.py)."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from diffusers.models.attention_dispatch import attention_backend
from peft import LoraConfig
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from model.checkpoints.official_components import rename
from model.checkpoints.official_names import dit_config, dit_name, is_hoi_name
from model.network.moe import HumanAwareMoE
from model.transformer import CoInteractTransformer3DModel, ConditioningInputs, MotionPacker
from tests.model.golden import FULL_DIT, TINY_DIT, official_dit_shapes, official_weights

CASES = Path(__file__).parent.parent / "data" / "dit_tiny_cases.safetensors"


def build(hoi_branch: bool = False) -> CoInteractTransformer3DModel:
    """The golden network; without the HOI branch it is the pruned one, with the same tensors."""
    weights = official_weights(official_dit_shapes(TINY_DIT, hoi_branch=True), seed=0)
    settings = dit_config(TINY_DIT, hoi_branch)
    kept = {key: tensor for key, tensor in weights.items() if hoi_branch or not is_hoi_name(key)}
    transformer = CoInteractTransformer3DModel(**settings)
    layers = settings["audio_inject_layers"]
    transformer.load_state_dict(rename(kept, lambda key: dit_name(key, layers)), strict=True)
    return transformer.eval()


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(CASES)


@pytest.fixture(scope="module")
def target(recorded: dict[str, torch.Tensor]) -> torch.Tensor:
    return recorded["in.latents"][:, :, 1:]


@pytest.fixture(scope="module")
def inputs(recorded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Person, product, motion, prompt and speech."""
    return {
        "person_latents": recorded["in.latents"][:, :, :1],
        "product_latents": recorded["in.product_latents"],
        "motion_latents": recorded["in.motion_latents"],
        "encoder_hidden_states": recorded["in.context"],
        "audio_embeds": recorded["in.audio_features"],
    }


@pytest.fixture(scope="module")
def hoi_inputs(recorded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "hoi_latents": recorded["in.hoi_latents"],
        "hoi_encoder_hidden_states": recorded["in.hoi_context"],
    }


def prepare(transformer: CoInteractTransformer3DModel, inputs: dict[str, torch.Tensor], **more: object):
    keep = bool(more.pop("keep_key_values", False))
    return transformer.prepare_conditioning(
        ConditioningInputs(**inputs, **more), num_latent_frames=4, keep_key_values=keep
    )


def predict(
    transformer: CoInteractTransformer3DModel, target: torch.Tensor, timestep: float, **given: object
):
    """One call, with the inputs and the options of `forward` in one list."""
    names = {field.name for field in fields(ConditioningInputs)}
    inputs = ConditioningInputs(**{name: given.pop(name) for name in list(given) if name in names})
    return transformer(target, timestep, inputs, **given)


# The paper's central claim


@pytest.mark.parametrize("timestep", [950.0, 500.0])
def test_the_video_is_bit_identical_with_the_asymmetric_hoi_stream_and_with_the_branch_pruned(
    target, inputs, hoi_inputs, timestep
) -> None:
    with torch.no_grad():
        both = predict(
            build(hoi_branch=True), target, timestep, **inputs, **hoi_inputs, hoi_visibility="asymmetric"
        )
        pruned = predict(build(hoi_branch=False), target, timestep, **inputs)
    assert torch.equal(both.sample, pruned.sample)
    assert both.hoi_sample is not None
    assert both.hoi_sample.shape == target.shape
    assert pruned.hoi_sample is None


def test_the_video_sees_the_hoi_stream_under_mutual_visibility(target, inputs, hoi_inputs) -> None:
    transformer = build(hoi_branch=True)
    with torch.no_grad():
        alone = predict(transformer, target, 500, **inputs)
        mutual = predict(transformer, target, 500, **inputs, **hoi_inputs, hoi_visibility="mutual")
    assert not torch.allclose(alone.sample, mutual.sample, atol=1e-3)


def test_the_hoi_loss_reaches_shared_weights_and_the_video_through_attention(
    target, inputs, hoi_inputs
) -> None:
    transformer = build(hoi_branch=True).train()
    noisy = target.clone().requires_grad_()
    product = inputs["product_latents"].clone().requires_grad_()
    person = inputs["person_latents"].clone().requires_grad_()
    given = {**inputs, "product_latents": product, "person_latents": person}
    predict(transformer, noisy, 500, **given, **hoi_inputs).hoi_sample.square().mean().backward()
    assert noisy.grad is not None
    assert noisy.grad.abs().max() > 0
    assert product.grad.abs().max() > 0
    # Seen only through what target and product gather from it in the blocks before.
    assert person.grad.abs().max() > 0
    assert transformer.blocks[0].attn1.to_k.weight.grad.abs().max() > 0
    assert transformer.patch_embedding.weight.grad.abs().max() > 0


def test_the_hoi_stream_does_not_read_person_or_motion_in_a_one_layer_network(
    target, inputs, hoi_inputs, recorded
) -> None:
    settings = {**dit_config(TINY_DIT, hoi_branch=True), "num_layers": 1, "audio_inject_layers": (0,)}
    transformer = CoInteractTransformer3DModel(**settings).eval()
    other = {
        **inputs,
        "person_latents": -inputs["person_latents"],
        "motion_latents": recorded["in.motion_latents"] * 2,
    }
    swapped = {**inputs, "product_latents": -inputs["product_latents"]}
    with torch.no_grad():
        first = predict(transformer, target, 500, **inputs, **hoi_inputs).hoi_sample
        second = predict(transformer, target, 500, **other, **hoi_inputs).hoi_sample
        third = predict(transformer, target, 500, **swapped, **hoi_inputs).hoi_sample
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


# Experts


def test_experts_run_below_the_routing_limit_and_are_not_even_called_from_it_on(
    target, inputs, monkeypatch
) -> None:
    transformer = build()
    calls: list[str] = []
    monkeypatch.setattr(HumanAwareMoE, "route", _counting(HumanAwareMoE.route, calls, "route"))
    monkeypatch.setattr(HumanAwareMoE, "forward", _counting(HumanAwareMoE.forward, calls, "experts"))
    with torch.no_grad():
        predict(transformer, target, 900.0, **inputs)
        assert calls == []
        predict(transformer, target, 899.9, **inputs)
    assert calls == ["route", "experts"] * 4


def test_from_the_routing_limit_on_the_experts_weights_do_not_matter(target, inputs) -> None:
    transformer = build()
    with torch.no_grad():
        before = predict(transformer, target, 900, **inputs).sample
        below = predict(transformer, target, 899, **inputs).sample
        for block in transformer.blocks:
            for parameter in block.moe.parameters():
                parameter.mul_(-3)
        assert torch.equal(before, predict(transformer, target, 900, **inputs).sample)
        assert not torch.equal(below, predict(transformer, target, 899, **inputs).sample)


def test_a_batch_on_both_sides_of_the_routing_limit_equals_its_samples_one_by_one(target, inputs) -> None:
    transformer = build()
    timesteps = torch.tensor([950.0, 500.0])
    doubled = {name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in inputs.items()}
    with torch.no_grad():
        batch = predict(transformer, torch.cat([target, -target]), timesteps, **doubled).sample
        first = predict(transformer, target, 950, **inputs).sample
        second = predict(transformer, -target, 500, **inputs).sample
    torch.testing.assert_close(batch, torch.cat([first, second]), atol=2e-5, rtol=0)


def test_router_logits_are_returned_for_every_block_at_every_timestep_and_train_the_router_only(
    target, inputs
) -> None:
    transformer = build()
    output = predict(transformer, target, 950, **inputs, return_router_logits=True)
    assert [tuple(logits.shape) for logits in output.router_logits] == [(1, 96, 3)] * 4
    with torch.no_grad():
        plain = predict(transformer, target, 950, **inputs)
    assert torch.equal(output.sample, plain.sample)
    torch.stack(output.router_logits).square().mean().backward()
    assert transformer.blocks[0].moe.router[0].weight.grad.abs().max() > 0
    # The router reads features without steering them.
    assert transformer.blocks[0].attn1.to_q.weight.grad is None


# Once per clip


def test_a_prepared_conditioning_gives_the_same_bits_as_raw_inputs(target, inputs, recorded) -> None:
    transformer = build()
    pose = recorded["in.pose_latents"]
    with torch.no_grad():
        raw = predict(transformer, target, 500, **inputs, pose_latents=pose)
        for keep in (False, True):
            conditioning = prepare(transformer, inputs, pose_latents=pose, keep_key_values=keep)
            assert torch.equal(raw.sample, transformer(target, 500, conditioning).sample)
        assert torch.equal(raw.sample, transformer(target, 500, raw.conditioning).sample)


def test_nothing_of_the_conditioning_is_computed_again_in_a_step(target, inputs, monkeypatch) -> None:
    transformer = build()
    with torch.no_grad():
        conditioning = prepare(transformer, inputs, keep_key_values=True)
        modules = [
            transformer.rope,
            transformer.audio_encoder,
            transformer.motion_packer,
            transformer.pose_embedding,
            transformer.condition_embedder.text_embedder,
            *(block.attn2.to_k for block in transformer.blocks),
            *(block.audio_injection.norm_linear for block in transformer.blocks if block.audio_injection),
        ]
        for module in modules:
            monkeypatch.setattr(module, "forward", _refuse)
        transformer(target, 500, conditioning)


def test_the_last_block_queries_from_target_tokens_only(target, inputs) -> None:
    transformer = build()
    lengths = []
    for block in transformer.blocks:
        block.attn1.to_q.register_forward_hook(lambda _, given, __: lengths.append(given[0].shape[1]))
    with torch.no_grad():
        layout = predict(transformer, target, 500, **inputs).conditioning.layout
    assert lengths == [layout.video] * 3 + [layout.target]
    assert layout.video > layout.target


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("motion_latents", lambda t: t[..., :4], "motion latents"),
        ("motion_latents", lambda t: torch.cat([t, t], dim=2), "19 frames more"),
        ("audio_embeds", lambda t: t[..., :9], "speech of 9 frames"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused_with_a_reason(
    target, inputs, name, change, message
) -> None:
    transformer = build()
    given = {**inputs, name: change(inputs[name])}
    with pytest.raises(ValueError, match=message), torch.no_grad():
        predict(transformer, target, 500, **given)


def test_a_conditioning_of_another_size_is_refused(target, inputs) -> None:
    transformer = build()
    with torch.no_grad():
        conditioning = prepare(transformer, inputs)
        with pytest.raises(ValueError, match="conditioning fits"):
            transformer(target[:, :, :, :6], 500, conditioning)


# Being a diffusers model


def test_a_saved_network_loads_strictly_and_predicts_the_same(target, inputs, hoi_inputs, tmp_path) -> None:
    transformer = build(hoi_branch=True)
    transformer.save_pretrained(tmp_path)
    loaded, report = CoInteractTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    saved = json.loads((tmp_path / "config.json").read_text())
    for name, value in transformer.config.items():
        if not name.startswith("_"):
            assert saved[name] == json.loads(json.dumps(value)), name
    with torch.no_grad():
        before = predict(transformer, target, 500, **inputs, **hoi_inputs)
        after = predict(loaded, target, 500, **inputs, **hoi_inputs)
    assert torch.equal(before.sample, after.sample)
    assert torch.equal(before.hoi_sample, after.hoi_sample)


def test_in_half_precision_timesteps_and_modulation_stay_in_full(tmp_path) -> None:
    build().save_pretrained(tmp_path)
    loaded = CoInteractTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    kept = {name for name, tensor in loaded.named_parameters() if tensor.dtype == torch.float32}
    assert "scale_shift_table" in kept
    assert "blocks.3.scale_shift_table" in kept
    assert "condition_embedder.time_embedder.linear_1.weight" in kept
    assert len(kept) == 4 + 1 + 4


def test_bfloat16_stays_near_full_precision(target, inputs, tmp_path) -> None:
    transformer = build()
    transformer.save_pretrained(tmp_path)
    loaded = CoInteractTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    with torch.no_grad():
        exact = predict(transformer, target, 500, **inputs).sample
        half = predict(loaded, target.bfloat16(), 500, **{k: v.bfloat16() for k, v in inputs.items()}).sample
    assert half.dtype == torch.bfloat16
    assert ((half.float() - exact).norm() / exact.norm()) < 0.03


def test_gradient_checkpointing_changes_no_gradient(target, inputs, hoi_inputs) -> None:
    gradients = []
    for checkpointing in (False, True):
        transformer = build(hoi_branch=True).train()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        output = predict(transformer, target, 500, **inputs, **hoi_inputs, return_router_logits=True)
        loss = output.sample.square().mean() + output.hoi_sample.square().mean()
        (loss + torch.stack(output.router_logits).square().mean()).backward()
        gradients.append({name: p.grad for name, p in transformer.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_every_parameter_of_the_network_is_trained(target, inputs, hoi_inputs, recorded) -> None:
    transformer = build(hoi_branch=True).train()
    output = predict(
        transformer,
        target,
        500,
        **inputs,
        **hoi_inputs,
        pose_latents=recorded["in.pose_latents"],
        return_router_logits=True,
    )
    loss = output.sample.square().mean() + output.hoi_sample.square().mean()
    (loss + torch.stack(output.router_logits).square().mean()).backward()
    assert [name for name, p in transformer.named_parameters() if p.grad is None] == []


def test_lora_trains_beside_the_network_and_can_be_switched_off(target, inputs) -> None:
    transformer = build()
    with torch.no_grad():
        before = predict(transformer, target, 500, **inputs).sample
    transformer.add_adapter(
        LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    )
    with torch.no_grad():
        adapted = predict(transformer, target, 500, **inputs).sample
        transformer.disable_adapters()
        switched_off = predict(transformer, target, 500, **inputs).sample
    assert not torch.allclose(before, adapted, atol=1e-3)
    assert torch.equal(before, switched_off)


def test_a_first_block_cache_skips_blocks_when_steps_are_alike(target, inputs) -> None:
    transformer = build()
    with torch.no_grad():
        exact = predict(transformer, target, 500, **inputs).sample
        transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
        calls = []
        transformer.blocks[2].ffn.net[2].register_forward_hook(lambda *_: calls.append(1))
        with transformer.cache_context("cond"):
            first = predict(transformer, target, 500, **inputs).sample
            second = predict(transformer, target, 499.5, **inputs).sample
    assert len(calls) == 1
    torch.testing.assert_close(first, exact, atol=1e-5, rtol=0)
    assert second.shape == exact.shape
    assert not torch.equal(second, first)


def test_layerwise_casting_stores_weights_small_and_keeps_sensitive_ones(target, inputs) -> None:
    transformer = build()
    with torch.no_grad():
        exact = predict(transformer, target, 500, **inputs).sample
        apply_layerwise_casting(
            transformer,
            torch.float8_e4m3fn,
            torch.float32,
            skip_modules_pattern=CoInteractTransformer3DModel._skip_layerwise_casting_patterns,
        )
        cast = predict(transformer, target, 500, **inputs).sample
    assert transformer.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    assert transformer.patch_embedding.weight.dtype == torch.float32
    assert ((cast - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offloading_changes_nothing_over_several_steps(target, inputs, offload_type) -> None:
    transformer = build()
    with torch.no_grad():
        exact = [predict(transformer, target, t, **inputs).sample for t in (950, 500)]
        apply_group_offloading(
            transformer,
            onload_device=torch.device("cpu"),
            offload_type=offload_type,
            num_blocks_per_group=1 if offload_type == "block_level" else None,
        )
        first = predict(transformer, target, 950, **inputs)
        second = transformer(target, 500, first.conditioning)
    assert torch.equal(first.sample, exact[0])
    assert torch.equal(second.sample, exact[1])


def test_the_attention_backend_can_be_chosen(target, inputs) -> None:
    transformer = build()
    # diffusers also sets the choice for all networks to come; the block takes that back.
    with torch.no_grad(), attention_backend("native"):
        default = predict(transformer, target, 500, **inputs).sample
        transformer.set_attention_backend("_native_math")
        chosen = predict(transformer, target, 500, **inputs).sample
    torch.testing.assert_close(chosen, default, atol=2e-5, rtol=0)


@pytest.mark.slow
def test_blocks_compile_into_whole_graphs(target, inputs) -> None:
    torch.compiler.reset()  # what other tests compiled of the same code counts against the limit
    transformer = build()
    with torch.no_grad():
        exact = [predict(transformer, target, t, **inputs).sample for t in (950, 500)]
        transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
        conditioning = prepare(transformer, inputs, keep_key_values=True)
        compiled = [transformer(target, t, conditioning).sample for t in (950, 500)]
    torch.testing.assert_close(compiled, exact, atol=2e-5, rtol=0)


def test_names_that_diffusers_splits_and_compiles_by_exist() -> None:
    transformer = build()
    classes = {type(module).__name__ for module in transformer.modules()}
    assert set(transformer._repeated_blocks) <= classes
    assert set(transformer._no_split_modules) <= classes


# Official checkpoints


@pytest.mark.parametrize("ffn_base", ["", "ffn_base."])
@pytest.mark.parametrize("hoi_branch", [False, True])
def test_every_official_tensor_of_the_full_network_has_exactly_one_place(ffn_base, hoi_branch) -> None:
    official = official_dit_shapes(FULL_DIT, hoi_branch, ffn_base)
    settings = dit_config(FULL_DIT, hoi_branch)
    with torch.device("meta"):
        transformer = CoInteractTransformer3DModel(**settings)
    ours = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    mapped = [dit_name(name, settings["audio_inject_layers"]) for name in official]
    assert len(set(mapped)) == len(mapped)
    assert {name: official[key] for name, key in zip(mapped, official, strict=True)} == ours


def test_the_pruned_network_has_17_03_billion_parameters() -> None:
    with torch.device("meta"):
        transformer = CoInteractTransformer3DModel()
    assert sum(parameter.numel() for parameter in transformer.parameters()) == 17_030_803_409


def test_lora_tensors_follow_their_module() -> None:
    layers = (0, 2, 3)
    name = dit_name("blocks.7.ffn.ffn_base.0.lora_A.default.weight", layers)
    assert name == "blocks.7.ffn.net.0.proj.lora_A.default.weight"
    name = dit_name("audio_injector.injector.1.o.lora_B.weight", layers)
    assert name == "blocks.2.audio_injection.attn.to_out.0.lora_B.weight"


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.self_attn.x.weight",
        "blocks.0.ffn.1.weight",
        "blocks.0.ffn.router.1.weight",
        "blocks.0.norm1.weight",
        "audio_injector.injector.3.q.weight",
        "img_emb.proj.0.weight",
        "patch_embedding.gamma",
    ],
)
def test_names_that_the_official_network_does_not_have_are_refused(name) -> None:
    with pytest.raises(KeyError):
        dit_name(name, (0, 2, 3))


def test_audio_layers_beyond_the_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[5\]"):
        CoInteractTransformer3DModel(**{**dit_config(TINY_DIT, False), "audio_inject_layers": (0, 5)})


def test_a_conditioning_can_be_changed_without_touching_the_first(target, inputs) -> None:
    transformer = build()
    with torch.no_grad():
        conditioning = prepare(transformer, inputs)
        silent = prepare(transformer, {**inputs, "audio_embeds": inputs["audio_embeds"] * 0})
        swapped = replace(conditioning, audio=silent.audio)
        assert torch.equal(transformer(target, 500, swapped).sample, transformer(target, 500, silent).sample)
        assert not torch.equal(
            transformer(target, 500, swapped).sample, transformer(target, 500, conditioning).sample
        )


def _counting(method, calls: list[str], name: str):
    def wrapper(self, *arguments):
        calls.append(name)
        return method(self, *arguments)

    return wrapper


def _refuse(*_, **__) -> None:
    raise AssertionError("computed again in a step")


class Convolutions(TorchDispatchMode):
    """Notes the type and the width of the result of each strided convolution in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, int]] = []

    def __torch_dispatch__(self, operation, types, given=(), options=None):
        made = operation(*given, **(options or {}))
        if "convolution" in operation.name() and made.ndim == 5 and given[3][-1] > 1:
            self.seen.append((made.dtype, made.shape[-1]))
        return made


@pytest.mark.parametrize("autocast", [True, False])
def test_motion_is_packed_in_full_precision_on_cpus(autocast) -> None:
    """oneDNN's bf16 kernel is wrong where the result is one column wide, but only on CPUs with AMX."""
    packer = MotionPacker(16, 24)
    latents = torch.randn(1, 16, 19, 12, 10)
    if not autocast:
        packer, latents = packer.bfloat16(), latents.bfloat16()
    with Convolutions() as convolutions, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        grids = packer(latents)
    assert (torch.float32, 1) in convolutions.seen
    assert {dtype for dtype, _ in convolutions.seen} == {torch.float32}
    assert {grid.dtype for grid in grids} == {latents.dtype}
