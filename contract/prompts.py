"""How much of a prompt the model reads."""

from __future__ import annotations

from typing import Final

PROMPT_TOKENS: Final = 512
"""Every prompt is padded or cut to this many tokens, as in training."""
