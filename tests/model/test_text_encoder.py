"""Prompts as the official code encodes them."""

import json

import pytest
import torch
from transformers import ByT5Tokenizer, UMT5EncoderModel

from model.parity.pipeline_cases import build_text_encoder
from model.text_encoder import clean_prompt, encode_prompts, tokenize
from tests.model.official_parts import recorded, text_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> UMT5EncoderModel:
    return build_text_encoder(text_weights())


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  The person\n\tlifts  a cup ", "The person lifts a cup"),
        ("tea &amp; coffee", "tea & coffee"),
        ("tea &amp;amp; coffee", "tea & coffee"),
        ("it\u2019s a caf\u00c3\u00a9", "it's a café"),
        ("", ""),
        ("&nbsp;", ""),
        ("手里拿着杯子", "手里拿着杯子"),
    ],
)
def test_prompts_are_mended_unescaped_and_their_whitespace_collapsed(prompt, cleaned):
    assert clean_prompt(prompt) == cleaned


def test_recorded_prompts_give_the_official_tokens_and_embeds(encoder):
    cases, metadata = recorded("text_cases")
    for index, prompt in enumerate(json.loads(metadata["prompts"])):
        ids, mask = tokenize(ByT5Tokenizer(), [prompt])
        length = int(mask.sum())
        assert torch.equal(ids[:, :length], cases[f"prompt{index}.ids"])
        embeds = encode_prompts(encoder, ByT5Tokenizer(), [prompt], CPU)
        official = cases[f"prompt{index}.embeds"]
        assert embeds.shape == (1, 512, official.shape[2])
        assert (embeds[:, :length] - official).abs().max() <= 1e-5 * official.abs().max()
        assert not embeds[:, length:].any()


def test_a_prompt_longer_than_512_tokens_is_cut(encoder):
    embeds = encode_prompts(encoder, ByT5Tokenizer(), ["word " * 400], CPU)
    assert embeds.shape[1] == 512
    assert embeds[:, -1].any()


def test_an_embed_does_not_depend_on_the_other_prompts_of_the_video(encoder):
    prompts = ["She turns the cup.", "", "She puts it down, slowly, and smiles."]
    together = encode_prompts(encoder, ByT5Tokenizer(), prompts, CPU)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row[None], encode_prompts(encoder, ByT5Tokenizer(), [prompt], CPU))
