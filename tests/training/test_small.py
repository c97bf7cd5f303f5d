"""The small checkpoint's recipe and parts."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

import training
from model.speech_features import encode_audio
from model.transformer import ConditioningInputs
from tests.training.networks import small_batch
from training import vae_training
from training.small import (
    SmallRecipe,
    SmallTransformer,
    SyntheticClips,
    assemble,
    build_small,
    make_transformer,
)
from training.small_encoders import (
    make_feature_extractor,
    make_text_encoder,
    make_tokenizer,
    train_audio_encoder,
)
from training.speech import mouth_opening, speak
from training.vae_training import SMALL_VAE, MatrixViews, VAERecipe, as_pixels, draw_crops, train_vae
from training.world import ACTIONS, describe, make_cast

pytestmark = pytest.mark.slow

RECIPE = Path(training.__file__).with_name("procedural-world.toml")


@torch.no_grad()
def envelope_probe(features: torch.Tensor, mouth: torch.Tensor, ridge: float = 1e-2) -> float:
    """Share of the mouth opening's variance that a ridge regression reads from features (T, D); last
    third held out.
    """
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    split = len(inputs) * 2 // 3
    seen, unseen = inputs[:split], inputs[split:]
    gram = seen.T @ seen + ridge * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, seen.T @ mouth[:split].double())
    error = (unseen @ weights - mouth[split:].double()).pow(2).mean()
    return float(1 - error / mouth[split:].double().var(unbiased=False))


def test_the_shipped_recipe_makes_a_checkpoint_of_at_most_25_megabytes() -> None:
    recipe = SmallRecipe.read(RECIPE)
    parts = [make_transformer(recipe), AutoencoderKLWan(**SMALL_VAE), make_text_encoder(1024, 0)]
    numbers = sum(weight.numel() for part in parts for weight in part.parameters())
    assert 2 * numbers < 24e6


def test_the_untrained_dit_predicts_zero_and_still_gets_gradients() -> None:
    transformer = make_transformer(SmallRecipe(transformer=SmallTransformer(heads=2, head_dim=12, layers=2)))
    batch = small_batch(frames=20, batch=1)
    output = transformer(
        batch.target,
        500.0,
        ConditioningInputs(
            person_latents=batch.person,
            encoder_hidden_states=torch.randn(1, 9, 64),
            audio_embeds=torch.randn(1, 3, 48, 80),
        ),
    )
    assert not output.sample.any()
    (output.sample - 1).pow(2).mean().backward()
    assert transformer.proj_out.weight.grad.abs().max() > 0


def test_words_of_the_world_are_single_tokens_and_any_text_has_tokens() -> None:
    tokenizer = make_tokenizer(prompts=400)
    rng = np.random.default_rng(0)
    prompt = describe(make_cast(7), ACTIONS[0], rng, first=True)
    assert len(tokenizer(prompt).input_ids) < 1.5 * len(prompt.split()) + 3
    strange = tokenizer("Ein Glas Honig, 蜂蜜!").input_ids
    assert tokenizer.unk_token_id not in strange
    assert strange[-1] == tokenizer.eos_token_id


def test_different_prompts_have_different_embeddings() -> None:
    tokenizer = make_tokenizer(prompts=400)
    encoder = make_text_encoder(len(tokenizer), 0)
    right, left = (
        encoder(**tokenizer(f"The person lifts the red box with the {hand} hand.", return_tensors="pt"))
        for hand in ("right", "left")
    )
    difference = (right.last_hidden_state - left.last_hidden_state).norm(dim=-1)[0]
    assert difference.max() > 1


def test_the_audio_encoder_learns_to_carry_loudness(tmp_path: Path) -> None:
    encoder = train_audio_encoder(tmp_path, steps=40, synthesiser="formant")
    extractor = make_feature_extractor()
    features, mouths = [], []
    for seed in range(500, 506):
        audio = speak(80, seed, "formant")
        encoded = encode_audio(encoder, extractor, audio, torch.device("cpu")).mean(dim=0)
        features.append(encoded)
        mouths.append(torch.from_numpy(mouth_opening(audio, 80))[: len(encoded)])
    assert envelope_probe(torch.cat(features), torch.cat(mouths)) > 0.3


def test_vae_training_lowers_the_loss_and_measures_its_latents(tmp_path: Path) -> None:
    recipe = VAERecipe(crop=16, batches=((5, 1),), steps=4, decoder_steps=2, measured_videos=1)
    vae = train_vae(recipe, tmp_path, workers=0)
    assert (tmp_path / "vae" / "config.json").is_file()
    assert max(vae.config.latents_std) > 0
    assert vae.config.latents_std != [1.0] * 16
    assert json.loads((tmp_path / "vae-log.jsonl").read_text().splitlines()[0])["step"] == 0
    first = AutoencoderKLWan.from_pretrained(tmp_path / "vae-whole").state_dict()
    kept = {name for name, weight in vae.state_dict().items() if torch.equal(weight, first[name])}
    assert kept == {name for name in first if name.startswith(("encoder.", "quant_conv."))}


def test_a_stopped_vae_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = VAERecipe(crop=16, batches=((5, 1),), steps=2, decoder_steps=2, measured_videos=1)
    whole = train_vae(recipe, tmp_path / "whole", workers=0)

    def stop_at(unlucky: int, recipe: VAERecipe, step: int) -> tuple[np.ndarray, np.ndarray]:
        if step == unlucky:
            raise KeyboardInterrupt
        return draw_crops(recipe, step)

    monkeypatch.setattr(vae_training, "SAVE_SECONDS", 0.0)
    for unlucky in (1, 3):  # in the middle of each pass
        with monkeypatch.context() as stopped:
            stopped.setattr(vae_training, "draw_crops", partial(stop_at, unlucky))
            with pytest.raises(KeyboardInterrupt):
                train_vae(recipe, tmp_path / "halves", workers=0)
    resumed = train_vae(recipe, tmp_path / "halves", workers=0)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert not (tmp_path / "halves" / "vae-state.pt").exists()


def test_vae_batches_repeat_by_step_and_mix_both_streams() -> None:
    recipe = VAERecipe(crop=32, batches=((5, 2), (9, 1)))
    one, weights = as_pixels(*draw_crops(recipe, 0))
    assert torch.equal(one, as_pixels(*draw_crops(recipe, 0))[0])
    assert one.shape == (2, 3, 5, 32, 32)
    assert weights.shape == (2, 1, 5, 32, 32)
    assert as_pixels(*draw_crops(recipe, 1))[0].shape == (1, 3, 9, 32, 32)


def test_matrix_views_share_memory_with_the_kernels() -> None:
    convolution = torch.nn.Conv2d(3, 4, 3)
    views = MatrixViews([convolution.weight])
    convolution(torch.ones(1, 3, 5, 5)).sum().backward()
    views.take_gradients()
    before = convolution.weight.detach().clone()
    torch.optim.Muon(views.matrices, lr=0.1).step()  # type: ignore[no-untyped-call]
    assert not torch.equal(convolution.weight, before)


def test_one_command_builds_a_checkpoint_from_nothing(tmp_path: Path) -> None:
    recipe = SmallRecipe(
        width=64,
        height=64,
        clips=3,
        audio_steps=2,
        vae=VAERecipe(crop=16, batches=((5, 1),), steps=2, decoder_steps=1, measured_videos=1),
        transformer=SmallTransformer(heads=2, head_dim=12, layers=1, ffn_dim=24),
        training={"steps": 2, "batch": 1, "window": 2},
    )
    clips = SyntheticClips(recipe)
    assert [clips[i].motion is not None for i in (1, 2)] == [False, True]
    folder = build_small(recipe, tmp_path)
    assert (folder / "model_index.json").is_file()
    size = sum(file.stat().st_size for file in (folder / "transformer").iterdir())
    assert 0 < size < 1e6


def test_assembling_needs_the_trained_parts(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="vae"):
        assemble(SmallRecipe(), tmp_path)
