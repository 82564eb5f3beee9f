"""Implicit: ensembles of networks whose kernels are never drawn, exact in law at every width, at the price of a few
vectors a layer."""

from vgjax.implicit.passes import Undrawn, undrawn

__all__ = ["Undrawn", "undrawn"]
