"""Settings and the environment that hands them to another process."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.settings import Settings, as_environment


def test_a_process_reads_the_settings_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings(
        data_dir=Path("elsewhere"),
        redis_url="unix:///tmp/redis.sock",
        allow_anonymous=True,
        allowed_hosts=("a.example", "b.example"),
        lease_ttl_s=2.25,
    )
    for name, value in as_environment(given.model_dump()).items():
        monkeypatch.setenv(name, value)
    assert Settings() == given
