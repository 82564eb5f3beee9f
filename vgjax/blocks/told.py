"""What blocks tell a theory of themselves: a class for every family of networks, which holds all that its theory has
to be given.

A block tells it as ``theory_arguments``; what all blocks of a network tell between them is
`vgjax.networks.Network.theory_arguments`; and `vgjax.comparison` has one predictor for every class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from vgjax.activations import Activation

if TYPE_CHECKING:
    from vgjax.blocks.protocol import Constant


@dataclass(frozen=True)
class TheoryArguments:
    """What a theory has to be given of a block, or of a network of such blocks; each family's is a class of its own."""

    # Whether all blocks share one draw and each reads an input of its own (depth is time), or neither.
    over_time: ClassVar[bool] = False

    @property
    def label(self) -> str | None:
        """What a curve of it is called; None for the name of the network."""
        return None

    def stacked(self, stages: Sequence[tuple["TheoryArguments", int]]) -> "TheoryArguments | None":
        """Of a network, from what its stages tell, all of this class, and their depths; None where theory has nothing:
        unless told otherwise, of blocks that are not all alike."""
        return self if all(told == self for told, _ in stages) else None


@dataclass(frozen=True)
class LayerArguments(TheoryArguments):
    """Of a layer around phi, or of a stack of them.

    Attributes:
        activation: phi.
        kernel_init, bias_init: how kernels and biases are drawn.
        widths: sizes of the states: before and behind a layer; of a stack h^0 ... h^L.
        names: of the scales of kernels and biases, in the order of the formula.
        residual: None: ``W phi(h) + b``; ``"pre"``: ``skip h + branch (W phi(h) + b)``; ``"plain"``:
            ``skip h + branch (V phi(W h + b) + a)``.
        norm, epsilon: a normalization around phi, None for none, and what it adds to the variance.
        norm_on: ``"preactivations"``: phi(norm(h)), or ``"activations"``: norm(phi(h)).
        dropout: the distribution of the noise on the activations (its rate is the scale ``dropout``), None for none.
    """

    activation: Activation
    kernel_init: str
    bias_init: str
    widths: tuple[int, ...]
    names: tuple[str, ...]
    residual: str | None = None
    norm: str | None = None
    epsilon: float = 0.0
    norm_on: str = "preactivations"
    dropout: str | None = None

    @property
    def plain(self) -> bool:
        """Whether it is ``W phi(h) + b`` and nothing else."""
        return self.residual is None and self.norm is None and self.dropout is None

    @property
    def label(self) -> str:
        """Of its activation."""
        return self.activation.name

    def stacked(self, stages: Sequence[tuple[TheoryArguments, int]]) -> "LayerArguments | None":
        """Layers that differ in nothing but their sizes."""
        layers = [(told, depth) for told, depth in stages if isinstance(told, LayerArguments)]
        if len({replace(told, widths=()) for told, _ in layers}) > 1:
            return None
        behind = (told.widths[1] for told, depth in layers for _ in range(depth))
        return replace(self, widths=(self.widths[0], *behind))


@dataclass(frozen=True)
class TransformerArguments(TheoryArguments):
    """Of a transformer's block, as `vgjax.theory.transformer.propagate` takes it.

    Attributes:
        activation: phi of the feed-forward layer, None for attention alone.
        gated: whether it is a gate's.
        residual, norm: where the norm stands, and which; None for none.
        tokens: how many.
    """

    activation: Activation | None
    gated: bool
    residual: str
    norm: str | None
    tokens: int


@dataclass(frozen=True)
class StreamArguments(TheoryArguments):
    """Of hyper-connections around a layer.

    Attributes:
        branch: of the layer.
        streams: n.
        shift: whether the maps move the streams by one; else they keep them, and one is read by all blocks.
        logit, steps: of maps that are made doubly stochastic; None of free ones.
        dynamic: whether maps depend on the state, where ``sigma_d`` is not 0.
    """

    branch: LayerArguments
    streams: int
    shift: bool
    logit: float | None
    steps: int
    dynamic: bool


@dataclass(frozen=True)
class DepthAverageArguments(TheoryArguments):
    """Of averages over all states before, which a layer reads.

    Attributes:
        branch: of the layer.
        memory: how many states are kept.
    """

    branch: LayerArguments
    memory: int


@dataclass(frozen=True)
class GraphArguments(TheoryArguments):
    """Of a graph convolution.

    Attributes:
        layer: of what every node does.
        adjacency: A.
    """

    layer: LayerArguments
    adjacency: "Constant"


Numbers = tuple[tuple[str, int | float | bool | tuple[float, float]], ...]
"""By name."""


@dataclass(frozen=True)
class RecurrenceArguments(TheoryArguments):
    """Of a recurrence that is linear in its state: the law of the factors on it.

    Attributes:
        law: ring, s4d, mamba, rg_lru, min_gru, min_lstm or delta_rule.
        numbers: those that the law is drawn by, as `vgjax.theory.linear_recurrences` takes them.
        kernel_init, bias_init: how what makes the factors of the input is drawn; None for a law of one's own.
    """

    over_time: ClassVar[bool] = True

    law: str
    numbers: Numbers = ()
    kernel_init: str | None = "gaussian"
    bias_init: str | None = "zero"


FAMILIES = {family.__name__: family for family in TheoryArguments.__subclasses__()}
"""All of them, by name."""
