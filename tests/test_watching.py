"""`watch` beside `jax.value_and_grad` and beside gradients by perturbations that the models here are given."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from vgjax.diagnosis.watching import watch

WIDTH, BATCH = 6, 5
X, Y = (np.random.default_rng(i).normal(size=(BATCH, WIDTH)).astype(np.float32) for i in range(2))


def kernels(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape) / np.sqrt(shape[-2])


def of_name(scalars: dict[str, Any], kind: str) -> dict[str, float]:
    return {name.partition("/")[2]: float(a) for name, a in scalars.items() if name.startswith(f"{kind}/")}


def rms(a: Any) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(a))))


# --- a network written by hand, with a perturbation at every state --------------------------------------------------

LAYERS = 3
WEIGHTS = {"layers": [{"kernel": kernels(WIDTH, WIDTH), "bias": 0.1 * jnp.ones(WIDTH)} for _ in range(LAYERS)]}


def network(weights: Any, x: Any, y: Any, moved: Any = (0.0,) * LAYERS) -> tuple[Any, list[Any]]:
    states = []
    for layer, eps in zip(weights["layers"], moved, strict=True):
        states.append(x @ layer["kernel"] + layer["bias"] + eps)
        x = jnp.tanh(states[-1])
    return jnp.mean((x - y) ** 2), states


def test_signal_and_gradient_are_those_of_a_perturbation_by_hand() -> None:
    value, gradients, scalars = jax.jit(watch(network, has_aux=True))(WEIGHTS, X, Y)
    (right, states), of_weights = jax.value_and_grad(network, has_aux=True)(WEIGHTS, X, Y)
    moved = jax.grad(lambda m: network(WEIGHTS, X, Y, m)[0])([jnp.zeros((BATCH, WIDTH))] * LAYERS)
    assert float(value[0]) == float(right)
    assert jax.tree.map(jnp.shape, value[1]) == jax.tree.map(jnp.shape, states)
    # Sums that cancel round otherwise on another processor: by eps of their largest term, of about .1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=5e-8), gradients, of_weights)
    signal, gradient = of_name(scalars, "signal"), of_name(scalars, "gradient")
    for l in range(LAYERS):
        name = f"layers/{l}/kernel"
        assert signal[name] == pytest.approx(rms(states[l]), rel=1e-5)
        assert gradient[name] == pytest.approx(float(jnp.linalg.norm(moved[l])), rel=1e-5)
    assert all(np.shape(scalar) == () for scalar in scalars.values())


def scanned(stack: Any, x: Any, y: Any, moved: Any = 0.0, *, remat: bool = False) -> Any:
    def step(h: Any, now: Any) -> tuple[Any, None]:
        kernel, eps = now
        return jnp.tanh(h @ kernel + eps), None

    moved = jnp.broadcast_to(moved, (len(stack), BATCH, WIDTH))
    return jnp.mean((lax.scan(jax.checkpoint(step) if remat else step, x, (stack, moved))[0] - y) ** 2)


@pytest.mark.parametrize("remat", [False, True])
def test_every_layer_of_a_scan_has_a_number_of_its_own(remat: bool) -> None:
    stack = kernels(4, WIDTH, WIDTH)
    watched = watch(lambda w, x: scanned(w["stack"], x, Y, remat=remat))
    _, gradients, scalars = jax.jit(watched)({"stack": stack}, X)
    np.testing.assert_allclose(gradients["stack"], jax.grad(scanned)(stack, X, Y), rtol=1e-5, atol=1e-8)
    moved = jax.grad(scanned, argnums=3)(stack, X, Y, jnp.zeros((4, BATCH, WIDTH)))
    gradient = of_name(scalars, "gradient")
    for l in range(4):
        assert gradient[f"stack[{l}]"] == pytest.approx(float(jnp.linalg.norm(moved[l])), rel=1e-5)


def test_a_checkpoint_stays_one() -> None:
    """What it saves in memory is left to be saved."""
    wide = {"stack": kernels(30, 64, 64)}
    x = jnp.ones((256, 64))

    def loss(w: Any, x: Any, remat: bool) -> Any:
        step = lambda h, k: (jnp.tanh(jnp.sin(jnp.cos(jnp.tanh(h @ k)))), None)  # noqa: E731
        return jnp.mean(lax.scan(jax.checkpoint(step) if remat else step, x, w["stack"])[0])

    def memory(f: Any) -> int:
        return int(jax.jit(f).lower(wide, x).compile().memory_analysis().temp_size_in_bytes)

    kept, plain = (memory(watch(lambda w, x, r=remat: loss(w, x, r))) for remat in (True, False))
    assert kept < 0.5 * plain


def test_steps_of_a_recurrence_are_the_first_and_the_last() -> None:
    weights = {"in": kernels(WIDTH, WIDTH), "h": kernels(WIDTH, WIDTH), "out": kernels(WIDTH, 1)}

    def loss(w: Any, xs: Any) -> Any:
        h, _ = lax.scan(lambda h, x: (jnp.tanh(h @ w["h"] + x @ w["in"]), None), jnp.zeros(WIDTH), xs)
        return jnp.sum(h @ w["out"])

    _, gradients, scalars = jax.jit(watch(loss))(weights, jnp.asarray(X))
    for name, right in jax.grad(loss)(weights, jnp.asarray(X)).items():  # entries cancel over the steps
        assert np.linalg.norm(gradients[name] - right) < 1e-6 * np.linalg.norm(right)
    steps = {int(name.rpartition("[")[2][:-1]) for name in scalars if name.endswith("]")}
    assert steps == {0, len(X) - 1}


def test_a_branch_not_taken_has_no_number() -> None:
    weights = {"a": kernels(WIDTH, WIDTH), "b": kernels(WIDTH, WIDTH)}

    def loss(w: Any, i: Any, x: Any) -> Any:
        return jnp.mean(lax.switch(i, [lambda h: jnp.tanh(h @ w["a"]), lambda h: jnp.tanh(h @ w["b"])], x) ** 2)

    for i, (taken, other) in enumerate((("a", "b"), ("b", "a"))):
        _, gradients, scalars = jax.jit(watch(loss))(weights, i, X)
        right = jax.grad(loss)(weights, i, X)
        np.testing.assert_allclose(gradients[taken], right[taken], rtol=1e-5)
        assert np.all(gradients[other] == 0)
        gradient = of_name(scalars, "gradient")
        assert np.isnan(gradient[other])
        assert gradient[taken] > 0


# --- modules --------------------------------------------------------------------------------------------------------


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.tanh(self.dropout(self.norm(self.linear(x))))


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def nnx_loss(model: Any, x: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def test_a_module_trains_as_without() -> None:
    """Parameters, running statistics and random counts behind three steps are the same numbers."""
    y = np.arange(BATCH) % 3
    plain, watched = Network(nnx.Rngs(0)), Network(nnx.Rngs(0))
    optimizers = [nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param) for model in (plain, watched)]

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        value, gradients = nnx.value_and_grad(nnx_loss)(model, X, y)
        optimizer.update(model, gradients)
        return value

    @nnx.jit
    def watched_step(model: Any, optimizer: Any) -> Any:
        value, gradients, scalars = watch(nnx_loss)(model, X, y)
        optimizer.update(model, gradients)
        return value, scalars

    for _ in range(3):
        value = step(plain, optimizers[0])
        other, scalars = watched_step(watched, optimizers[1])
        np.testing.assert_allclose(other, value, rtol=1e-6)
    for a, b in zip(*(jax.tree.leaves(nnx.to_pure_dict(nnx.state(m))) for m in (plain, watched)), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert {"gradient/blocks/1/linear/kernel", "signal/blocks/0/linear/kernel:add", "gradient/head/kernel"} <= {
        *scalars
    }


# --- when -----------------------------------------------------------------------------------------------------------


def test_every_so_many_steps_alone() -> None:
    watched = jax.jit(lambda w, i: watch(lambda w, x: network(w, x, Y)[0], every=3)(w, X, step=i))
    right = jax.grad(lambda w: network(w, X, Y)[0])(WEIGHTS)
    for i in range(4):
        _, gradients, scalars = watched(WEIGHTS, i)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), gradients, right)
        assert all(np.isnan(a) != (i % 3 == 0) for a in scalars.values())
    with pytest.raises(ValueError, match=r"^step must be given where one step in 3 is looked at, got None$"):
        watch(lambda w, x: network(w, x, Y)[0], every=3)(WEIGHTS, X)


def test_a_batch_that_is_closed_over_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^loss must take its batch as an argument"):
        watch(lambda w: network(w, X, Y)[0])(WEIGHTS)


def test_integers_among_the_arrays_have_no_gradient() -> None:
    tree = {"kernel": kernels(WIDTH, WIDTH), "count": np.array(2)}
    _, gradients, _ = watch(lambda t, x: jnp.mean((x @ t["kernel"]) ** t["count"]))(tree, X)
    assert gradients["count"] is None
    right = jax.grad(lambda k: jnp.mean((X @ k) ** 2))(tree["kernel"])
    np.testing.assert_allclose(gradients["kernel"], right, rtol=1e-5)


def test_past_the_floats_it_says_what_the_training_sees() -> None:
    stack = {"stack": 1e20 * kernels(4, WIDTH, WIDTH)}

    def loss(w: Any, x: Any) -> Any:
        return jnp.mean(lax.scan(lambda h, k: (h @ k, None), x, w["stack"])[0])

    signal = of_name(watch(loss)(stack, X)[2], "signal")
    assert not np.isfinite(signal["stack[3]"])
    assert np.isfinite(signal["stack[0]"])
