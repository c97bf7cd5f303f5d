"""What comes with the code: a small trained checkpoint, and sample inputs (two photos, speech, prompts).

`python -m tools.ship` makes both, so that there is nothing to download and nothing to license.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Samples:
    """A folder of inputs. person.png, product.png: RGB. speech.wav: mono. prompts.txt: a line per clip."""

    folder: Path

    @property
    def person(self) -> Path:
        return self.folder / "person.png"

    @property
    def product(self) -> Path:
        return self.folder / "product.png"

    @property
    def audio(self) -> Path:
        return self.folder / "speech.wav"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.txt"

    @property
    def files(self) -> tuple[Path, ...]:
        return self.person, self.product, self.audio, self.prompts

    def sentences(self) -> tuple[str, ...]:
        """One prompt per clip."""
        return tuple(self.prompts.read_text(encoding="utf-8").splitlines())


BUNDLED = Samples(Path(__file__).parent / "inputs")

BUNDLED_CHECKPOINT = Path(__file__).parent / "checkpoint"
"""`python -m tools.ship checkpoint` puts it there."""


def write_samples(folder: Path) -> Samples:
    """Copy the sample inputs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in BUNDLED.files:
        shutil.copyfile(file, folder / file.name)
    return Samples(folder)
