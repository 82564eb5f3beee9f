"""What every test shares."""

from collections.abc import Iterator

import jax
import pytest
import scipy.linalg  # noqa: F401 - so that its BLAS is loaded before it is limited
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """There is a process for every core: several threads for a small matrix only wait for each other."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """The whole test in float64."""
    with jax.enable_x64(True):
        yield
