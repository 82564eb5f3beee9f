"""What every test shares."""

import contextlib
from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both precisions; float64 is switched on around the test that asks for it."""
    with jax.enable_x64(True) if request.param == "float64" else contextlib.nullcontext():
        yield request.param


@pytest.fixture
def x64() -> Iterator[None]:
    """The whole test in float64."""
    with jax.enable_x64(True):
        yield
