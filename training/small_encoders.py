"""The small checkpoint's text and audio encoders, in the official architectures.

Text: a byte-level BPE vocabulary, in which each word of the world's prompts is one token and any other text
has tokens too. The UMT5 encoder has seeded random weights. It is never trained; the DiT learns to read its
outputs. Audio: a wav2vec2 that is trained for some minutes to carry the log energies of 24 frequency bands
through all its layers.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from contract.card import OFFICIAL_DEFAULTS
from contract.video import SAMPLE_RATE

from .clips import HOI_PROMPT_PREFIX
from .speech import SENTENCES, Synthesiser, speak
from .world import ACTIONS, describe, make_cast

log = logging.getLogger(__name__)

SMALL_TEXT_DIM = 64
SMALL_AUDIO_DIM = 48
AUDIO_LAYERS = 2
BANDS = 24


def make_tokenizer(prompts: int = 4000) -> PreTrainedTokenizerFast:
    """Byte-level BPE over lower-cased text, `</s>` at the end as T5 wants it; deterministic."""
    rng = np.random.default_rng(0)
    corpus = [HOI_PROMPT_PREFIX, OFFICIAL_DEFAULTS.negative_prompt, *SENTENCES] * 40
    for seed in range(prompts):
        corpus.append(describe(make_cast(seed), ACTIONS[seed % len(ACTIONS)], rng, first=seed % 2 == 0))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def make_text_encoder(vocabulary: int, seed: int) -> UMT5EncoderModel:
    """One layer of UMT5 with random weights. It mixes neighbours, and different tokens stay different."""
    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=SMALL_TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config).eval().requires_grad_(False)


def make_feature_extractor() -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)


def train_audio_encoder(
    output: Path, steps: int, seed: int = 0, synthesiser: Synthesiser = "auto"
) -> Wav2Vec2Model:
    """Train to predict the log band energies of synthetic speech at 50 Hz from the mean of all hidden states.

    The log is audio-log.jsonl.
    """
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        hidden_size=SMALL_AUDIO_DIM,
        num_hidden_layers=AUDIO_LAYERS,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=(32,) * 7,
        conv_bias=True,
        feat_extract_norm="group",  # keeps loudness over time, which layer norms would take away
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        apply_spec_augment=False,
        layerdrop=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
    )
    encoder, head = Wav2Vec2Model(config), nn.Linear(SMALL_AUDIO_DIM, BANDS)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3)
    extractor = make_feature_extractor()
    output.mkdir(parents=True, exist_ok=True)
    with (output / "audio-log.jsonl").open("w") as curve:
        for step in range(steps):
            fall = 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * fall * min(1.0, (step + 1) / 30)
            audio = [speak(80, seed * 1_000_000 + step * 4 + i, synthesiser) for i in range(4)]
            values = extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
            hidden = torch.stack(
                encoder(values, output_hidden_states=True).hidden_states
            )  # (layers, B, T, D)
            wanted = log_band_energies(values, hidden.shape[2])
            loss = F.mse_loss(head(hidden.mean(dim=0)), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            if step % 25 == 0:
                explained = 1 - loss.item() / wanted.var().item()
                curve.write(json.dumps({"step": step, "explained": round(explained, 4)}) + "\n")
                curve.flush()
                log.info(
                    "audio encoder step %d: %.3f of the variance of band energies explained", step, explained
                )
    return encoder.eval().requires_grad_(False)


def log_band_energies(audio: torch.Tensor, num_frames: int) -> torch.Tensor:
    """(B, N) at 16 kHz → (B, num_frames, BANDS) at 50 Hz: log10 of energies.

    The bands are evenly spaced on a mel scale.
    """
    window = torch.hann_window(400)
    spectrum = (
        torch.stft(audio, 512, 320, 400, window, center=False, return_complex=True).abs() ** 2
    )  # (B, 257, T)
    mel = np.linspace(0, 2595 * math.log10(1 + 7600 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1) / (SAMPLE_RATE / 512)
    bins = np.arange(257)
    rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None)).float()
    energies = torch.log10(torch.einsum("bft,mf->btm", spectrum, bank) + 1e-2)
    return F.pad(energies, (0, 0, 0, max(0, num_frames - energies.shape[1])))[:, :num_frames]
