"""Prompt → `prompt_embeds` (B, 512, D): clean, tokenize, encode, zero the padding (official code)."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import cast

import ftfy
import torch
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from contract.prompts import PROMPT_TOKENS


def clean_prompt(prompt: str) -> str:
    """Repair broken unicode, decode HTML entities (twice: some data are escaped twice), collapse spaces."""
    prompt = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return re.sub(r"\s+", " ", prompt).strip()


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (B, 512) int64."""
    tokens = tokenizer(
        [clean_prompt(prompt) for prompt in prompts],
        padding="max_length",
        truncation=True,
        max_length=PROMPT_TOKENS,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return tokens["input_ids"], tokens["attention_mask"]


def encode_prompts(
    encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    device: torch.device,
) -> torch.Tensor:
    """Embeds (B, 512, D) in the encoder's dtype; rows after a prompt's last token are exactly 0."""
    ids, mask = tokenize(tokenizer, prompts)
    return encode_tokens(encoder, ids.to(device), mask.to(device))


@torch.no_grad()
def encode_tokens(encoder: UMT5EncoderModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Embeds (B, 512, D) of token ids and mask, (B, 512) each; one prompt per encoder call.

    In a batch, the choice of the matrix product's kernel would make embeds depend on the video's other
    prompts.
    """
    table = cast(torch.nn.Embedding, encoder.get_input_embeddings())
    rows = []
    for row_ids, row_mask in zip(ids.split(1), mask.split(1), strict=True):
        # The table of words may lie in main memory: its rows come to the device, not the table.
        words = table(row_ids.to(table.weight.device)).to(row_ids.device)
        embeds = encoder(inputs_embeds=words, attention_mask=row_mask).last_hidden_state  # (1, 512, D)
        rows.append(embeds * row_mask[..., None].to(embeds.dtype))
    return torch.cat(rows)
