"""What makes the repository itself: generated pages, shipped checkpoint, pictures."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
"""The repository."""
