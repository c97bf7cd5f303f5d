from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from contract.card import CheckpointCard, CheckpointDefaults
from jobs.artifacts import FolderStore
from jobs.cards import publish_card, read_cards


def card(name: str) -> CheckpointCard:
    defaults = CheckpointDefaults(
        num_inference_steps=40, guidance_scale=7, flow_shift=7, negative_prompt="blurry"
    )
    return CheckpointCard(
        name=name, trained=False, sizes=("112x192",), min_side=32, max_pixels=2**20, defaults=defaults
    )


def test_published_cards_are_read_by_name(tmp_path: Path) -> None:
    publish_card(FolderStore(tmp_path), card("tiny"))
    publish_card(FolderStore(tmp_path), card("large-1.0"))
    assert read_cards(FolderStore(tmp_path)) == {"tiny": card("tiny"), "large-1.0": card("large-1.0")}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a b"])
def test_a_name_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="checkpoint name"):
        publish_card(FolderStore(tmp_path), card(name))


class OneUnreadable(FolderStore):
    """The files whose keys contain "bad" are where the disk fails."""

    def read(self, key: str) -> bytes | None:
        if "bad" in key:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(key)


def test_a_card_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    for name in ("bad", "good"):
        publish_card(FolderStore(tmp_path), card(name))
    assert set(read_cards(OneUnreadable(tmp_path))) == {"good"}


def test_storage_that_is_away_is_not_taken_for_storage_without_cards(tmp_path: Path) -> None:
    publish_card(FolderStore(tmp_path), card("bad"))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        read_cards(OneUnreadable(tmp_path))
