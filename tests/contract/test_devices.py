from __future__ import annotations

import pytest

from contract.devices import parse_devices


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cpu", ("cpu",)),
        ("cpu, cpu", ("cpu", "cpu")),
        ("cuda", ("cuda:0",)),
        ("0,1,10", ("cuda:0", "cuda:1", "cuda:10")),
        ("cuda:3,1", ("cuda:3", "cuda:1")),
    ],
)
def test_devices_are_named_in_short_or_in_full(text: str, devices: tuple[str, ...]) -> None:
    assert parse_devices(text) == devices


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no device"),
        ("gpu0", "'gpu0' is no device"),
        ("0,,1", "is no device"),
        ("cuda:-1", "is no device"),
        ("cpu,0", "mix CPU and GPU"),
        ("0,cuda:0", "cuda:0 twice"),
        ("0,cuda", "cuda:0 twice"),
    ],
)
def test_what_names_no_devices_or_the_same_twice_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_devices(text)
