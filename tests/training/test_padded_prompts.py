"""Cut prompts are exactly prompts of 512 rows."""

import pytest
import torch

from model.text_encoder import PROMPT_TOKENS
from model.transformer import ConditioningInputs
from tests.training.networks import TEXT, small_batch, small_transformer
from training.padded_prompts import pad_prompts, use_short_prompts

pytestmark = pytest.mark.slow


def test_cut_prompts_give_what_512_rows_give() -> None:
    transformer = small_transformer().eval()
    batch = small_batch(frames=20)
    prompts = [torch.randn(7, TEXT), torch.randn(11, TEXT)]

    def predict(embeds: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            inputs = ConditioningInputs(batch.person, encoder_hidden_states=embeds, audio_embeds=batch.audio)
            output = transformer(batch.target, 500.0, inputs)
        return output.sample

    full = predict(pad_prompts(prompts, PROMPT_TOKENS))
    cut = pad_prompts(prompts)
    assert cut.shape[1] == 12
    without = predict(cut)
    use_short_prompts(transformer)
    torch.testing.assert_close(predict(cut), full, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(without, full, rtol=1e-4, atol=1e-5)  # the padding does matter
