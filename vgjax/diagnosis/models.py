"""Models of any JAX library as one pure function of their parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """A model and what it is asked about, as one pure function.

    Attributes:
        function: ``(parameters, inputs, rest) -> loss``, shape ``()``, or any output where ``has_loss`` is False.
        parameters: pytree of float arrays: what gets a gradient of its own.
        inputs: pytree of arrays: the batch.
        rest: pytree of arrays that belong to neither (running statistics, random state, counts).
        has_loss: whether the function ends in a loss.
        rebuild: parameters -> a model of the user's own kind.
    """

    function: Callable[[Any, Any, Any], Any]
    parameters: Any
    inputs: Any
    rest: Any
    has_loss: bool
    rebuild: Callable[[Any], Any]
