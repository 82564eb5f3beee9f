"""Models of any JAX library as one pure function of their parameters."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgjax import memory
from vgjax.checks import short
from vgjax.diagnosis.layout import parameter_names


@dataclass(frozen=True)
class Model:
    """A model and what it is asked about, as one pure function.

    Attributes:
        function: ``(parameters, inputs, rest) -> loss``, shape ``()``, or any output where ``has_loss`` is False.
        parameters: pytree of float arrays: what gets a gradient of its own.
        inputs: pytree of arrays: the batch.
        rest: pytree of arrays that belong to neither (running statistics, random state, counts, targets).
        has_loss: whether the function ends in a loss.
        rebuild: parameters -> a model of the user's own kind.
    """

    function: Callable[[Any, Any, Any], Any]
    parameters: Any
    inputs: Any
    rest: Any
    has_loss: bool
    rebuild: Callable[[Any], Any]


def read_model(model: Any, batch: Any, loss: Callable[..., Any] | None, key: jax.Array) -> Model:
    """The model as one pure function, traced once without being run; what `vgjax.diagnose` says of its arguments.

    Raises:
        ValueError: what is no model, an empty batch or one with a NaN, a loss that is no number, integers without a
            loss, or more than fits into memory. What the model itself raises is left as it is.
    """
    whole = _whole(model, key)
    if not jax.tree.leaves(whole.parameters):
        raise ValueError(f"model must have float parameters, got {short(model)}")
    form = _form(loss)
    arrays, batch_of = _arrays_of(batch)
    _check_batch(batch, arrays)
    first_target = len(arrays)
    if form == "targets" and type(batch) is tuple:
        if len(batch) < 2:
            raise ValueError(f"batch must be (inputs, targets) for a loss of two arguments, got {short(batch)}")
        first_target = len(_arrays_of(batch[:-1])[0])
    told = [not jnp.issubdtype(a.dtype, jax.dtypes.prng_key) and i < first_target for i, a in enumerate(arrays)]

    def function(parameters: Any, inputs: Any, rest: Any) -> Any:
        given, (inner, others) = iter(inputs), rest
        beside = iter(others)
        data = batch_of([next(given) if is_input else next(beside) for is_input in told])
        if form == "everything":
            return _first(loss(whole.of(parameters, inner), data))  # type: ignore[misc]
        both = form == "targets" and type(data) is tuple
        output = whole.call(parameters, inner, _arguments(data[:-1] if both else data))
        if form == "targets":
            return loss(output, data[-1] if both else data)  # type: ignore[misc]
        return loss(output) if form == "output" else output  # type: ignore[misc]

    inputs = [a for a, is_input in zip(arrays, told, strict=True) if is_input]
    rest = whole.rest, [a for a, is_input in zip(arrays, told, strict=True) if not is_input]
    jaxpr, output = jax.make_jaxpr(function, return_shape=True)(whole.parameters, inputs, rest)
    _check_memory(jaxpr, whole.parameters)
    has_loss = loss is not None or _is_loss(_first(output))
    _check_output(output, loss)
    ends = (lambda *args: _first(function(*args))) if has_loss else function
    return Model(ends, whole.parameters, inputs, rest, has_loss, lambda p: whole.rebuild(whole.of(p, whole.rest)))


def with_parameters(model: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A model of the same kind, some of whose parameters are others; the one given stays as it is.

    Args:
        model: as for `read_model`.
        change: its parameters by path -> those that are to be put in their place.

    Raises:
        ValueError: what is no model, or has no parameters of these names and shapes.
    """
    whole = _whole(model, jax.random.key(0))
    leaves, structure = jax.tree.flatten(whole.parameters)
    old = dict(zip(parameter_names(whole.parameters), leaves, strict=True))
    try:
        new = change(old)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"model must have the parameters that this was tried on, got {short(model)}") from error
    return whole.rebuild(whole.of(jax.tree.unflatten(structure, list((old | new).values())), whole.rest))


# --- the libraries --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Whole:
    """A model taken apart.

    Attributes:
        parameters, rest: its float parameters, and its other arrays.
        of: ``(parameters, rest)`` -> what a loss of everything is given.
        call: ``(parameters, rest, arguments)`` -> its output.
        rebuild: what ``of`` gives -> a model as it was handed over.
    """

    parameters: Any
    rest: Any
    of: Callable[[Any, Any], Any]
    call: Callable[[Any, Any, tuple[Any, ...]], Any]
    rebuild: Callable[[Any], Any]


def _whole(model: Any, key: jax.Array) -> _Whole:
    """Libraries are known by what is imported already: whoever has a model of Equinox has Equinox."""
    if isinstance(model, nnx.Module):
        return _of_nnx(model)
    if _is(model, "equinox", "Module"):
        return _of_equinox(model)
    if type(model) is tuple and len(model) == 2:
        first, second = model
        if _is(first, "flax.linen", "Module"):
            return _of_linen(first, second, key)
        if _is(first, "haiku", "Transformed") or _is(first, "haiku", "TransformedWithState"):
            return _of_haiku(first, second, key)
        if callable(first) and not inspect.isclass(first):
            parameters, rest, of = _partition(second)
            return _Whole(parameters, rest, of, lambda p, r, args: first(of(p, r), *args), lambda p: (first, p))
    raise ValueError(
        "model must be a module of NNX or Equinox, or a pair: (Linen module, variables), (transformed by Haiku, "
        f"params) or (function, params), got {short(model)}"
    )


def _is(value: Any, library: str, kind: str) -> bool:
    return library in sys.modules and isinstance(value, getattr(sys.modules[library], kind))


def _of_nnx(model: nnx.Module) -> _Whole:
    """Splitting leaves the module as it is; a merged one may change its own state only in the trace that made it."""

    def is_float(path: Any, variable: Any) -> bool:
        return isinstance(variable, nnx.Param) and jnp.issubdtype(variable.dtype, jnp.inexact)

    graph, parameters, *others = nnx.split(model, is_float, ...)

    def of(parameters: Any, rest: Any) -> Any:
        return nnx.merge(graph, parameters, rest, copy=True)

    plain, rest = nnx.to_pure_dict(parameters), nnx.to_pure_dict(others[0])
    return _Whole(plain, rest, of, lambda p, r, args: of(p, r)(*args), lambda module: module)


def _of_equinox(model: Any) -> _Whole:
    """Modules of Equinox take one example, so that batch norm names an axis: the batch's first one is mapped over."""
    parameters, rest, of = _partition(model)

    def call(parameters: Any, rest: Any, arguments: tuple[Any, ...]) -> Any:
        mapped, put_back = _arrays_of(arguments)
        axes = [0 if jnp.ndim(a) else None for a in mapped]
        one = lambda *arrays: of(parameters, rest)(*put_back(list(arrays)))  # noqa: E731
        return jax.vmap(one, axes, axis_name="batch")(*mapped)

    return _Whole(parameters, rest, of, call, lambda module: module)


def _of_linen(module: Any, variables: Any, key: jax.Array) -> _Whole:
    """All collections but the parameters may be changed, as in training; one key serves dropout and all other draws."""
    if not isinstance(variables, Mapping):
        raise ValueError(f"model must be (Linen module, variables), got variables of {short(variables)}")
    variables = dict(variables) if "params" in variables else {"params": variables}
    parameters, inner, of_parameters = _partition(variables["params"])
    others = {name: collection for name, collection in variables.items() if name != "params"}

    def of(parameters: Any, rest: Any) -> Any:
        return {"params": of_parameters(parameters, rest[0]), **rest[1]}

    def call(parameters: Any, rest: Any, arguments: tuple[Any, ...]) -> Any:
        output = module.apply(of(parameters, rest), *arguments, rngs=key, mutable=list(others) or False)
        return output[0] if others else output

    return _Whole(parameters, (inner, others), of, call, lambda variables: (module, variables))


def _of_haiku(transformed: Any, second: Any, key: jax.Array) -> _Whole:
    """With state, the second of the pair is ``(params, state)``."""
    parameters, rest, of = _partition(second)
    if not _is(transformed, "haiku", "TransformedWithState"):
        call = lambda p, r, arguments: transformed.apply(of(p, r), key, *arguments)  # noqa: E731
        return _Whole(parameters, rest, of, call, lambda params: (transformed, params))
    if type(second) is not tuple or len(second) != 2:
        raise ValueError(f"model must be (transformed by Haiku, (params, state)), got {short(second)} for the latter")
    parameters, inner, of_parameters = _partition(second[0])

    def of_both(parameters: Any, rest: Any) -> Any:
        return of_parameters(parameters, rest[0]), rest[1]

    def call_with_state(parameters: Any, rest: Any, arguments: tuple[Any, ...]) -> Any:
        return transformed.apply(*of_both(parameters, rest), key, *arguments)[0]

    return _Whole(parameters, (inner, second[1]), of_both, call_with_state, lambda both: (transformed, both))


def _partition(tree: Any) -> tuple[Any, list[Any], Callable[[Any, Any], Any]]:
    """Float arrays as a tree of their own, the other arrays as a list, and the function that puts a tree together."""
    leaves, structure = jax.tree.flatten(tree)
    floats = [_is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    beside = [_is_array(leaf) and not is_float for leaf, is_float in zip(leaves, floats, strict=True)]

    def of(parameters: Any, rest: Any) -> Any:
        float_, other = iter(jax.tree.leaves(parameters)), iter(rest)
        return jax.tree.unflatten(
            structure,
            [
                next(float_) if is_float else next(other) if is_other else leaf
                for leaf, is_float, is_other in zip(leaves, floats, beside, strict=True)
            ],
        )

    kept = [leaf if is_float else None for leaf, is_float in zip(leaves, floats, strict=True)]
    return (
        jax.tree.unflatten(structure, kept),
        [leaf for leaf, is_other in zip(leaves, beside, strict=True) if is_other],
        of,
    )


# --- the batch and the loss -----------------------------------------------------------------------------------------


def _form(loss: Callable[..., Any] | None) -> str:
    """What a loss is a function of: the ``output``, output and ``targets``, ``everything``; or there is ``none``."""
    if loss is None:
        return "none"
    if inspect.isclass(loss) or not callable(loss):
        raise ValueError(f"loss must be a function, got {short(loss)}")
    try:
        parameters = list(inspect.signature(loss).parameters.values())
    except ValueError:  # of some builtins nothing is known
        return "output"
    in_a_row = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.kind in in_a_row and p.default is p.empty]
    if len(needed) > 2 or not parameters:
        raise ValueError(
            f"loss must take (output), (output, targets) or (model, batch), got one that takes ({', '.join(needed)})"
        )
    if len(needed) < 2:
        return "output"
    return "everything" if needed[0] in ("model", "params", "parameters", "variables") else "targets"


def _arguments(data: Any) -> tuple[Any, ...]:
    return data if type(data) is tuple else (data,)


def _arrays_of(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays in a tree, and the function that puts others in their place; what is no array stays (a flag)."""
    leaves, structure = jax.tree.flatten(tree)
    are = [_is_array(leaf) for leaf in leaves]

    def put_back(arrays: list[Any]) -> Any:
        new = iter(arrays)
        return jax.tree.unflatten(
            structure, (next(new) if is_array else leaf for leaf, is_array in zip(leaves, are, strict=True))
        )

    return [leaf for leaf, is_array in zip(leaves, are, strict=True) if is_array], put_back


def _is_array(value: Any) -> bool:
    kinds = (np.number, np.bool_, jax.dtypes.prng_key)
    is_array = isinstance(value, (jax.Array, np.ndarray, np.generic))
    return is_array and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)


def _first(output: Any) -> Any:
    """A loss, of (loss, whatever else)."""
    return output[0] if type(output) is tuple and len(output) == 2 and _is_loss(output[0]) else output


def _is_loss(value: Any) -> bool:
    return getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, jnp.floating)


# --- what is refused ------------------------------------------------------------------------------------------------


def _check_batch(batch: Any, arrays: list[Any]) -> None:
    if not arrays:
        raise ValueError(f"batch must hold an array, got {short(batch)}")
    for a in arrays:
        if not a.size:
            raise ValueError(f"batch must hold at least one example, got {short(a)}")
        if jnp.issubdtype(a.dtype, jnp.inexact) and bool(jnp.any(jnp.isnan(a))):
            raise ValueError(f"batch must hold numbers, got a NaN in {short(a)}")


def _check_output(output: Any, loss: Callable[..., Any] | None) -> None:
    if loss is not None and not _is_loss(_first(output)):
        said = f"shape {output.shape} and dtype {output.dtype}" if hasattr(output, "shape") else short(output)
        raise ValueError(f"loss must return one float number, or (loss, whatever else), got {said}")
    leaves = jax.tree.leaves(output)
    if not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        kinds = ", ".join(sorted({str(leaf.dtype) for leaf in leaves})) or "nothing"
        raise ValueError(f"model must return floats, which have gradients, or needs a loss of them, got {kinds}")


def _check_memory(jaxpr: Any, parameters: Any) -> None:
    """Refuse what cannot fit: parameters with their gradients, and the largest product, which is written out."""
    largest = max(_products(jaxpr), default=0)
    needed, there = 2 * sum(map(_bytes, jax.tree.leaves(parameters))) + largest, _device_memory()
    if needed > there:
        size, limit = (f"{n / 2**30:.3g} GiB" for n in (needed, there))
        raise ValueError(f"{size} is the least that this model and its gradients need; it must fit into {limit}")


def _products(jaxpr: Any) -> Iterator[int]:
    """Bytes of what every product and convolution makes, in nested programs too; what is elementwise may be fused."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield _bytes(eqn.outvars[0].aval)
        for parameter in eqn.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _products(inner)


def _bytes(array: Any) -> int:
    return int(array.size) * int(getattr(array.dtype, "itemsize", 0)) if hasattr(array, "dtype") else 0


def _device_memory() -> float:
    """Bytes of memory of the device that is computed on."""
    (device,) = jnp.zeros(()).devices()
    return (device.memory_stats() or {}).get("bytes_limit") or memory.of_machine()
