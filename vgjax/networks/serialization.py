"""Networks as plain JSON values and back, so that what was measured can be stored with the network it was measured of.

Nothing is imported on the way back: blocks are looked up in `vgjax.blocks` and activations in their registry. What is a
user's own (a block, an activation, a law of initialization) is written down for people to read, and makes a network
that cannot be had back from its description.
"""

import inspect
from typing import Any

import numpy as np
from flax import nnx

from vgjax import activations, blocks
from vgjax.activations import Activation
from vgjax.blocks import Spec
from vgjax.blocks.protocol import Constant
from vgjax.blocks.told import FAMILIES, TheoryArguments
from vgjax.checks import kinds
from vgjax.networks.network import Network, Stage

Json = dict[str, Any]

_BLOCKS = {
    block.__name__: block for block in vars(blocks).values() if inspect.isclass(block) and issubclass(block, nnx.Module)
}


@kinds
def network_to_json(network: Network) -> Json:
    """A network as nested dicts, lists, strings and numbers."""
    return {
        "name": network.name,
        "input_shape": list(network.input_shape),
        "stem": _encoded(network.stem),
        "stages": [{name: _encoded(value) for name, value in vars(stage).items()} for stage in network.stages],
        "head": _encoded(network.head),
        "shared": _encoded(network.shared),
    }


@kinds
def network_from_json(described: Json) -> Network | None:
    """The network that `network_to_json` described; None if it holds a block, an activation or a law of a user's own,
    or if the description is not one that this version reads."""
    try:
        return Network(
            stem=_decoded(described["stem"]),
            stages=tuple(Stage(**{n: _decoded(value) for n, value in stage.items()}) for stage in described["stages"]),
            head=_decoded(described["head"]),
            input_shape=tuple(described["input_shape"]),
            shared=_decoded(described["shared"]),
            name=described["name"],
        )
    # What a dict of another shape runs into, and names that this version does not know.
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _encoded(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_encoded(item) for item in value]}
    if isinstance(value, Activation) and activations.registered(value):
        return {"activation": value.name}
    if isinstance(value, Constant):
        return {"array": value.array.tolist(), "dtype": value.array.dtype.name}
    if isinstance(value, Spec) and _BLOCKS.get(value.block.__name__) is value.block:
        options = {name: _encoded(option) for name, option in value.options}
        return {"block": value.block.__name__, "arguments": [_encoded(a) for a in value.arguments], "options": options}
    if isinstance(value, TheoryArguments):
        return {"told": type(value).__name__, "fields": {name: _encoded(field) for name, field in vars(value).items()}}
    return {"of a user": repr(value)}


def _decoded(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_decoded(item) for item in value["tuple"])
    if "array" in value:
        return Constant(np.array(value["array"], value["dtype"]))
    if "activation" in value:
        return activations.get(value["activation"])
    if "told" in value:
        return FAMILIES[value["told"]](**{name: _decoded(field) for name, field in value["fields"].items()})
    arguments = tuple(_decoded(argument) for argument in value["arguments"])
    options = tuple((name, _decoded(option)) for name, option in value["options"].items())
    return Spec(_BLOCKS[value["block"]], arguments, options)
