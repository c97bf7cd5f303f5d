"""Whether the model reads a prompt to its end: counted with the checkpoint's own tokenizer, without torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache

from tokenizers import Tokenizer

from contract.choices import WarningCode
from contract.prompts import PROMPT_TOKENS
from contract.warnings import JobWarning
from jobs.artifacts import ArtifactStore
from jobs.cards import read_tokenizer

log = logging.getLogger(__name__)


@lru_cache(maxsize=2)
def _tokenizer(data: bytes) -> Tokenizer | None:
    """The tokenizer in a `tokenizer.json`. A large one takes a second and 200 MB: the last ones are kept."""
    try:
        return Tokenizer.from_buffer(data)
    except ValueError:
        log.exception("a checkpoint's tokenizer.json cannot be read: its prompts are not counted")
        return None


def perhaps_cut(prompts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the (field, prompt) that may be too long. Most are not, so nobody need count their tokens."""
    # A token is a byte at least, and the end mark is one more.
    return [(field, prompt) for field, prompt in prompts if len(prompt.encode()) >= PROMPT_TOKENS]


def warnings_about_length(
    prompts: Iterable[tuple[str, str]], checkpoint: str, store: ArtifactStore
) -> list[JobWarning]:
    """A warning for each (field, prompt) of which the checkpoint does not read the end."""
    long = perhaps_cut(prompts)
    data = read_tokenizer(store, checkpoint) if long else None
    tokenizer = None if data is None else _tokenizer(data)
    if tokenizer is None:
        return []
    warnings = []
    for field, prompt in long:
        count = len(tokenizer.encode(" ".join(prompt.split())).ids)
        if count > PROMPT_TOKENS:
            message = (
                f"The model reads {PROMPT_TOKENS} tokens of a prompt; this one has {count}, the rest is cut."
            )
            warnings.append(JobWarning(code=WarningCode.PROMPT_CUT, message=message, field=field))
    return warnings
