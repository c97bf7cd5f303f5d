"""The pictures of the documentation, drawn by the smallest networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contract.card import CheckpointDefaults
from model.checkpoints.card_file import read_card
from model.checkpoints.load import load_pipeline
from model.checkpoints.tiny import tiny_pipeline
from training.branches import with_hoi_branch
from training.pictures import AVERAGED_WEIGHTS, SHOWN_FRAMES, co_generate, load_unpruned, main, router_picture
from training.saves import saved_steps
from training.small import SmallRecipe, SmallTransformer, build_small
from training.synthetic import SyntheticVideo, make_video
from training.vae_training import VAERecipe

pytestmark = pytest.mark.slow

SIDE = 64
DEFAULTS = CheckpointDefaults(num_inference_steps=2, guidance_scale=2.0, flow_shift=5.0, negative_prompt="")


@pytest.fixture(scope="module")
def video() -> SyntheticVideo:
    return make_video(3, SIDE, SIDE, actions=["hold"], split="heldout", synthesiser="formant")


def test_the_clip_beside_its_hoi_stream_is_the_one_that_the_service_makes(video: SyntheticVideo) -> None:
    pipeline = tiny_pipeline()
    clip = pipeline(
        video.person_image,
        video.audio,
        video.prompts,
        video.product_image,
        height=SIDE,
        width=SIDE,
        seed=5,
        **vars(DEFAULTS),
    )
    pipeline.transformer = with_hoi_branch(pipeline.transformer)
    made = co_generate(pipeline, video, DEFAULTS, seed=5)
    difference = np.abs(made.frames.astype(int) - clip.frames)
    assert difference.max() <= 2
    assert made.hoi is not None
    assert made.hoi.shape == clip.frames.shape
    assert np.abs(made.hoi.astype(int) - clip.frames).max() > 20, "a stream of its own"


def test_hands_and_faces_are_coloured_where_the_router_sees_them(video: SyntheticVideo) -> None:
    made = co_generate(tiny_pipeline(), video, DEFAULTS)
    assert made.hoi is None
    assert made.routes.shape == made.labels.shape == (20, SIDE // 16, SIDE // 16)
    made.frames[:] = 0
    made.labels[:] = 0
    made.labels[0, 0, 0] = 2  # latent frame 0 is frames 0..3: behind none of the columns
    made.labels[SHOWN_FRAMES[1] // 4, 1, 2] = 1
    sheet = np.asarray(router_picture(made).reduce(2), int)
    row = sheet[2 * (SIDE + 2) :]
    orange = (row[..., 0] > 120) & (row[..., 2] < 20)
    blue = (row[..., 2] > 120) & (row[..., 0] < 60)
    assert not blue.any()
    ys, xs = np.nonzero(orange)
    left = SIDE + 2 + 32
    assert 14 <= ys.min() <= 18 and 30 <= ys.max() <= 33  # noqa: PT018
    assert left - 2 <= xs.min() and xs.max() <= left + 17  # noqa: PT018


def test_the_weights_before_pruning_are_found_in_the_state_of_a_training(tmp_path: Path) -> None:
    recipe = SmallRecipe(
        width=SIDE,
        height=SIDE,
        clips=2,
        audio_steps=1,
        vae=VAERecipe(crop=16, batches=((5, 1),), steps=1, measured_videos=1),
        transformer=SmallTransformer(heads=2, head_dim=12, layers=1, ffn_dim=24),
        training={"steps": 2, "batch": 1, "window": 2, "learning_rate": 0.1, "stored_weights": "fp32"},
        num_inference_steps=2,
    )
    folder = build_small(recipe, tmp_path)
    state = folder.parent / "state"
    pruned, unpruned = load_pipeline(folder).transformer, load_unpruned(folder, state).transformer
    kept = dict(unpruned.named_parameters())
    for name, weight in pruned.named_parameters():
        torch.testing.assert_close(weight, kept[name])
    assert kept["hoi_proj_out.weight"].abs().max() > 0
    main(["--checkpoint", str(folder), "--state", str(state), "--out", str(tmp_path / "out")])
    for name in ("router-maps.webp", "hoi-stream.webp"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (2 * len(SHOWN_FRAMES) * (SIDE + 2), 2 * 3 * (SIDE + 2))
    file = saved_steps(state)[-1] / AVERAGED_WEIGHTS
    average = torch.load(file, weights_only=True)
    torch.save({**average, "shadow_params": average["shadow_params"][:-1]}, file)
    with pytest.raises(ValueError, match="does not hold all weights"):
        load_unpruned(folder, state)
    assert read_card(folder).trained
