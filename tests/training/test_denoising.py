"""Errors by kind of token, on the shipped checkpoint and a held-out video."""

from dataclasses import replace

import pytest

from deploy.samples import BUNDLED_CHECKPOINT
from model.checkpoints.load import load_pipeline
from model.pipeline import CoInteractPipeline
from training.denoising import denoising_scores
from training.synthetic import SyntheticVideo, make_video

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipeline() -> CoInteractPipeline:
    return load_pipeline(BUNDLED_CHECKPOINT)


@pytest.fixture(scope="module")
def video() -> SyntheticVideo:
    return make_video(2, 80, 128, actions=["lift_right", "rotate"], split="heldout", synthesiser="formant")


def test_a_swapped_product_shows_on_product_tokens_alone(
    pipeline: CoInteractPipeline, video: SyntheticVideo
) -> None:
    right = denoising_scores(pipeline, video)
    other = make_video(11, 80, 128, split="heldout", shown=range(1), with_structure=False)
    swapped = denoising_scores(pipeline, replace(video, product_image=other.product_image))
    assert swapped.denoising_product > 1.1 * right.denoising_product
    assert swapped.denoising_elsewhere == pytest.approx(right.denoising_elsewhere, rel=0.05)
    assert right.router_accuracy > 0.9


def test_silence_shows_on_face_tokens(pipeline: CoInteractPipeline, video: SyntheticVideo) -> None:
    right = denoising_scores(pipeline, video)
    silent = denoising_scores(pipeline, replace(video, audio=0 * video.audio))
    assert silent.denoising_face > 1.05 * right.denoising_face
    assert denoising_scores(pipeline, video) == right
