from __future__ import annotations

from dataclasses import replace

import pytest

from tests.checkpoints.official_files import OfficialFiles, OfficialPaths


@pytest.fixture(scope="session")
def drawn_files() -> OfficialFiles:
    return OfficialFiles.draw()


@pytest.fixture(scope="session")
def good_paths(drawn_files: OfficialFiles, tmp_path_factory: pytest.TempPathFactory) -> OfficialPaths:
    return drawn_files.write(tmp_path_factory.mktemp("official"))


@pytest.fixture
def files(drawn_files: OfficialFiles, good_paths: OfficialPaths) -> OfficialFiles:
    """A set of good files whose tensors a test may change before it writes them."""
    return replace(
        drawn_files,
        base=dict(drawn_files.base),
        cointeract=dict(drawn_files.cointeract),
        t5=dict(drawn_files.t5),
        vae=dict(drawn_files.vae),
        w2v=dict(drawn_files.w2v),
        written=(drawn_files, good_paths),
    )
