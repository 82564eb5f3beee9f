"""What every test shares."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def x64() -> Iterator[None]:
    """The whole test in float64."""
    with jax.enable_x64(True):
        yield
