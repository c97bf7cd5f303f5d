"""Checkpoint folders load strictly: every tensor that is not exactly right is an error that names it."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from model.checkpoints.card_file import read_card, write_card
from model.checkpoints.load import CheckpointError, load_model, load_pipeline
from model.checkpoints.tiny import CARD, write_tiny_checkpoint
from model.transformer import ConditioningInputs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture
def vae_folder(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint / "vae", tmp_path / "vae"))


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    return load_model(AutoencoderKLWan, folder, CPU, dtype)


def rewrite(folder: Path, change) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_a_loaded_pipeline_holds_the_stored_tensors_ready_to_run(checkpoint):
    pipeline = load_pipeline(checkpoint)
    for name in ("transformer", "vae", "text_encoder", "audio_encoder"):
        model = getattr(pipeline, name)
        (file,) = (checkpoint / name).glob("*.safetensors")
        stored, loaded = load_file(file), model.state_dict()
        assert stored.keys() - loaded.keys() == set()
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in stored.items())
        assert not any(tensor.is_meta for tensor in loaded.values())
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_tied_embedding_is_one_tensor(checkpoint):
    encoder = load_pipeline(checkpoint).text_encoder
    assert encoder.shared.weight.data_ptr() == encoder.encoder.embed_tokens.weight.data_ptr()


def test_weights_come_in_the_type_asked_for(vae_folder):
    assert {p.dtype for p in load_vae(vae_folder, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_sharded_weights_load_like_whole_ones(checkpoint, tmp_path):
    vae = load_vae(checkpoint / "vae")
    vae.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sharded = load_vae(tmp_path).state_dict()
    assert all(torch.equal(tensor, sharded[key]) for key, tensor in vae.state_dict().items())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("quant_conv.bias"), "missing tensor: quant_conv.bias: expected [32]"),
        (lambda t: t.update(extra=torch.zeros(2)), "unexpected tensor: extra: found [2]"),
        (
            lambda t: t.update({"quant_conv.bias": torch.zeros(31)}),
            "mis-shaped tensor: quant_conv.bias: expected [32], found [31]",
        ),
    ],
)
def test_a_wrong_tensor_is_named(vae_folder, change, complaint):
    rewrite(vae_folder, change)
    with pytest.raises(CheckpointError) as error:
        load_vae(vae_folder)
    assert complaint in str(error.value)


def test_every_wrong_tensor_is_named_at_once(vae_folder):
    rewrite(vae_folder, lambda t: (t.pop("quant_conv.bias"), t.update(extra=torch.zeros(2))))
    with pytest.raises(CheckpointError) as error:
        load_vae(vae_folder)
    assert [problem.where for problem in error.value.problems] == ["extra", "quant_conv.bias"]


def test_a_tensor_in_two_shards_is_named(checkpoint, tmp_path):
    load_vae(checkpoint / "vae").save_pretrained(tmp_path, max_shard_size="20KB")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    tensors = load_file(second)
    name, tensor = next(iter(load_file(first).items()))
    save_file({**tensors, name: tensor}, second)
    with pytest.raises(CheckpointError, match=f"duplicated tensor: {name}"):
        load_vae(tmp_path)


def test_a_cut_off_file_is_named(vae_folder):
    file = vae_folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"unreadable file.*diffusion_pytorch_model"):
        load_vae(vae_folder)


def test_a_missing_shard_is_named(checkpoint, tmp_path):
    load_vae(checkpoint / "vae").save_pretrained(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name):
        load_vae(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_index"):
        load_pipeline(tmp_path)


def test_the_card_survives_writing_and_reading(tmp_path):
    write_card(CARD, tmp_path)
    assert read_card(tmp_path) == CARD
    raw = json.loads((tmp_path / "cointeract.json").read_text())
    assert (raw["name"], raw["trained"], raw["sizes"][0]) == ("tiny-random", False, "112x192")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"defaults": {}}'])
def test_a_broken_card_is_refused(tmp_path, text):
    (tmp_path / "cointeract.json").write_text(text)
    with pytest.raises(ValueError, match=r"cointeract\.json"):
        read_card(tmp_path)


def test_a_tiny_checkpoint_is_complete_and_small(checkpoint):
    components = {
        "transformer", "vae", "text_encoder", "tokenizer", "audio_encoder", "feature_extractor", "scheduler"
    }  # fmt: skip
    assert {path.name for path in checkpoint.iterdir() if path.is_dir()} == components
    assert sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) < 30_000_000


def test_the_sizes_on_the_tiny_card_are_ones_the_model_takes():
    for size in CARD.sizes:
        width, height = map(int, size.split("x"))
        assert width % 16 == height % 16 == 0
        assert min(width, height) >= CARD.min_side
        assert width * height <= CARD.max_pixels


def test_a_seed_gives_the_same_tiny_checkpoint_and_another_seed_another(checkpoint, tmp_path):
    write_tiny_checkpoint(tmp_path / "same")
    write_tiny_checkpoint(tmp_path / "other", seed=1)
    for name in ("transformer", "vae", "text_encoder", "audio_encoder"):
        (file,) = (checkpoint / name).glob("*.safetensors")
        assert (tmp_path / "same" / name / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "other" / name / file.name).read_bytes() != file.read_bytes()


def test_the_tiny_networks_react_to_their_inputs_at_every_size(checkpoint):
    pipeline = load_pipeline(checkpoint)
    for width, height in ((14, 24), (8, 8), (24, 14)):
        latents = torch.randn(1, 16, 1, height, width, generator=torch.Generator().manual_seed(0))
        outputs = []
        for audio in (torch.zeros(1, 25, 32, 80), torch.ones(1, 25, 32, 80)):
            conditioning = pipeline.transformer.prepare_conditioning(
                ConditioningInputs(
                    person_latents=latents,
                    encoder_hidden_states=torch.zeros(1, 512, 64),
                    audio_embeds=audio,
                    motion_latents=latents.expand(-1, -1, 19, -1, -1),
                ),
                num_latent_frames=20,
            )
            noise = torch.zeros(1, 16, 20, height, width)
            outputs.append(pipeline.transformer(noise, 500.0, conditioning).sample.numpy())
        assert np.isfinite(outputs).all()
        assert not np.array_equal(*outputs)


def test_weights_that_this_user_may_not_read_are_said_to_be_just_that(checkpoint: Path) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to other users
        Path(place).chmod(0o755)
        folder = Path(shutil.copytree(checkpoint / "vae", Path(place) / "vae"))
        (folder / "diffusion_pytorch_model.safetensors").chmod(0o000)
        with as_nobody(), pytest.raises(CheckpointError, match="permission denied"):
            load_vae(folder)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Not root, for whom every file is readable."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)
