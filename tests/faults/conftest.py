from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.stack import Stack
from workers.engines.fake import FakeSettings

StackFactory = Callable[..., Stack]


@pytest.fixture
def make_stack(tmp_path: Path) -> Iterator[StackFactory]:
    """Builds a stack (Redis running, nothing else yet) and takes it down."""
    stacks: list[Stack] = []

    def make(*, seconds_per_step: float = 0.05, media: bool = False, **settings: object) -> Stack:
        stack = Stack.create(
            tmp_path / str(len(stacks)),
            FakeSettings(seconds_per_step=seconds_per_step, media=media),
            **settings,
        )
        stacks.append(stack)
        return stack

    yield make
    for stack in stacks:
        stack.close()
