"""Pages of the site that are made of the code and of its measurements, at every build."""

from pathlib import Path


def write(folder: Path) -> None:
    """All of them."""
    folder.mkdir(exist_ok=True)
