"""Speed of a map: many networks at all depths in one pass, against bare matrix products and against autodiff.

One 32 x 32 map over (sigma_w, sigma_b): one draw, one tangent, every depth. The weights are drawn beforehand on all
sides, except where a reading says otherwise; the time of that draw stands beside. All contenders of one activation run
interleaved in one process. They are:

- the bare scan: the same matrix products and nothing else, each layer's state and tangent as two products, or stacked
  into one, which is faster and the stricter of the two;
- JAX as one would write it: `jax.grad` with respect to the states, jitted once, one network after the other, or `vmap`
  over networks that each have kernels of their own;
- PyTorch autograd (where it is installed), one network after the other, in three readings: (i) a module built and drawn
  for every network, all parameter gradients and retained state gradients; (ii) one shared draw, with parameter
  gradients; (iii) one shared draw, state gradients alone, which is what the map does; each with its own choice of
  threads and on one thread, and the map is held against the faster;
- autodiff over the whole grid as one batch with one shared draw, in JAX and in PyTorch: the map's own idea, without its
  exponents.

Readings that take one network at a time take another one of the map in every round; the time of the fastest of these
times the number of networks is what stands in the table. Before that, those with the shared draw are checked to give
the library's gradients.

    python benchmarks/bench_map.py        # SIZE=small for a quick look
"""

import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, best_of, piece_of_sweep, print_table, write_json
from jax import Array, lax

import vgjax as vg
from vgjax.ensembles import job
from vgjax.measure import flow

try:
    import torch
except ImportError:
    torch = None

SIDE, WIDTH, DEPTH = (8, 64, 20) if SMALL else (32, 256, 100)
ROUNDS = 3 if SMALL else 15
OWN_WEIGHTS = 16 if SMALL else 64  # points of the batched products with kernels of their own, then scaled up
INPUTS, OUTPUTS = 64, 10
ONE_THREAD = ", one thread"
HIGHEST = lax.Precision.HIGHEST
ACTIVATIONS = ("tanh", "relu", "gelu")

LEAST_SHARE_OF_BARE = 0.85  # tanh and ReLU, in both readings of the bare scan
LEAST_OVER_TORCH_STATES = 25.0  # reading (iii)
ABOUT_OVER_TORCH_MODULES = 250.0  # reading (i)

PHI = {"tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": functools.partial(jax.nn.gelu, approximate=False)}


# --- the bare matrix products ---------------------------------------------------------------------------------------


@jax.jit
def two_products(kernels: Array, states: Array, tangents: Array) -> tuple[Array, Array]:
    """Two products a layer, (points, width) by (width, width)."""

    def layer(carry: tuple[Array, Array], z: Array) -> tuple[tuple[Array, Array], None]:
        h, t = carry
        return (jnp.dot(h, z, precision=HIGHEST), jnp.dot(t, z, precision=HIGHEST)), None

    return lax.scan(layer, (states, tangents), kernels)[0]


@jax.jit
def one_product(kernels: Array, both: Array) -> Array:
    """One product a layer, (2 points, width) by (width, width)."""
    return lax.scan(lambda h, z: (jnp.dot(h, z, precision=HIGHEST), None), both, kernels)[0]


# --- plain JAX ------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="phi")
def state_gradients(
    phi: Callable[[Array], Array], plain: dict[str, Array], sigma_w: Array, sigma_b: Array, x: Array, label: int
) -> Array:
    """||dL/dh_l|| at all depths of one network, L its cross-entropy: `jax.grad` by zeros added to the states."""

    def loss(added: Array) -> Array:
        h = sigma_w * jnp.dot(x, plain["stem"], precision=HIGHEST) + sigma_b * plain["stem bias"] + added[0]

        def layer(h: Array, of_layer: tuple[Array, Array, Array]) -> tuple[Array, None]:
            kernel, bias, added = of_layer
            return jnp.dot(sigma_w * phi(h), kernel, precision=HIGHEST) + sigma_b * bias + added, None

        h, _ = lax.scan(layer, h, (plain["kernels"], plain["biases"], added[1:]))
        return -jax.nn.log_softmax(jnp.dot(phi(h), plain["head"], precision=HIGHEST))[label]

    return jnp.linalg.norm(jax.grad(loss)(jnp.zeros((DEPTH + 1, WIDTH))), axis=1)


def over_grid(axes: dict[str, int | None], sigma_axis: int | None) -> Callable[..., Array]:
    """`state_gradients` of many networks as one batch; ``axes`` says which parameters each network has of its own."""

    def run(phi: Any, plain: Any, sigma_w: Any, sigma_b: Any, x: Array, label: int) -> Array:
        one = functools.partial(state_gradients, phi)
        return jax.vmap(one, in_axes=(axes, sigma_axis, sigma_axis, None, None))(plain, sigma_w, sigma_b, x, label)

    return jax.jit(run, static_argnums=0)


SHARED = dict.fromkeys(("stem", "stem bias", "kernels", "biases", "head"))
# Layer axis first, so that the scan needs no transposed copy.
OWN = {"stem": 0, "stem bias": 0, "kernels": 1, "biases": 1, "head": None}
shared_grid, own_grid = over_grid(SHARED, 0), over_grid(OWN, None)


@jax.jit
def scaled_one_by_one(plain: dict[str, Array], sigma_w: Array, sigma_b: Array) -> dict[str, Array]:
    """Every network's own parameters, W = sigma_w Z and b = sigma_b z, the layer axis first."""
    return {
        "stem": jnp.einsum("p,io->pio", sigma_w, plain["stem"]),
        "stem bias": jnp.einsum("p,o->po", sigma_b, plain["stem bias"]),
        "kernels": jnp.einsum("p,lio->lpio", sigma_w, plain["kernels"]),
        "biases": jnp.einsum("p,lo->lpo", sigma_b, plain["biases"]),
        "head": plain["head"],
    }


# --- PyTorch --------------------------------------------------------------------------------------------------------


def norms(gradients: Any) -> list[float]:
    """Norms of the states' gradients, as plain numbers (so that the device has finished)."""
    return torch.stack([g.norm() for g in gradients]).tolist()


class Torch:
    """The readings of PyTorch autograd, each ``(sigma_w, sigma_b) -> ||dL/dh_l||``; a batch of one input throughout."""

    def __init__(self, activation: str, plain: dict[str, Array], x: Array, label: int):
        self.device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
        self.phi = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation]
        # PyTorch keeps kernels as (out, in).
        self.plain = {k: self._tensor(np.swapaxes(v, -1, -2) if np.ndim(v) > 1 else v) for k, v in plain.items()}
        self.plain["biases"] = self._tensor(plain["biases"])
        self.kernels, self.biases = [*self.plain["kernels"]], [*self.plain["biases"]]
        names = ("stem", "stem bias", "head")
        self.trained = {name: self.plain[name].clone().requires_grad_() for name in names}
        self.trained_kernels = [w.clone().requires_grad_() for w in self.kernels]
        self.trained_biases = [b.clone().requires_grad_() for b in self.biases]
        self.x, self.label = self._tensor(x)[None], torch.tensor([label], device=self.device)

    def _tensor(self, a: Any) -> Any:
        return torch.tensor(np.asarray(a), device=self.device)

    def _loss(self, outputs: Any) -> Any:
        return torch.nn.functional.cross_entropy(outputs, self.label)

    def module(self, sigma_w: float, sigma_b: float) -> list[float]:
        """(i) Built, drawn and differentiated for every network, with respect to everything."""
        return self._backward_through(self._built(), sigma_w, sigma_b)

    def redrawn(self, sigma_w: float, sigma_b: float) -> list[float]:
        """(i) without what `torch.nn.Linear` draws before it is drawn over: one module, redrawn in place."""
        return self._backward_through(self._module, sigma_w, sigma_b)

    @functools.cached_property
    def _module(self) -> Any:
        return self._built()

    def _built(self) -> Any:
        sizes = [INPUTS, *[WIDTH] * (DEPTH + 1), OUTPUTS]
        layers = [torch.nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        return torch.nn.ModuleList(layers).to(self.device)

    def _backward_through(self, layers: Any, sigma_w: float, sigma_b: float) -> list[float]:
        for i, layer in enumerate(layers):
            head = i == DEPTH + 1
            torch.nn.init.normal_(layer.weight, std=(1 if head else sigma_w) / math.sqrt(layer.in_features))
            torch.nn.init.normal_(layer.bias, std=0 if head else sigma_b)
        layers.zero_grad()
        h = layers[0](self.x)
        states = [h]
        for layer in layers[1:-1]:
            h = layer(self.phi(h))
            states.append(h)
        for state in states:
            state.retain_grad()
        self._loss(layers[-1](self.phi(h))).backward()
        return norms([state.grad for state in states])

    def _states(self, first: Any, kernels: list[Any], biases: list[Any], sigma_w: Any, sigma_b: Any) -> list[Any]:
        linear, states = torch.nn.functional.linear, [first]
        for kernel, bias in zip(kernels, biases, strict=True):
            states.append(linear(sigma_w * self.phi(states[-1]), kernel, sigma_b * bias))
        return states

    def with_parameters(self, sigma_w: float, sigma_b: float) -> list[float]:
        """(ii) One shared draw, gradients with respect to all parameters and states."""
        linear, w = torch.nn.functional.linear, self.trained
        for parameter in (*w.values(), *self.trained_kernels, *self.trained_biases):
            parameter.grad = None
        first = linear(sigma_w * self.x, w["stem"], sigma_b * w["stem bias"])
        states = self._states(first, self.trained_kernels, self.trained_biases, sigma_w, sigma_b)
        for state in states:
            state.retain_grad()
        self._loss(linear(self.phi(states[-1]), w["head"])).backward()
        return norms([state.grad for state in states])

    def states_alone(self, sigma_w: float, sigma_b: float) -> list[float]:
        """(iii) One shared draw, gradients with respect to the states alone."""
        linear, w = torch.nn.functional.linear, self.plain
        first = linear(sigma_w * self.x, w["stem"], sigma_b * w["stem bias"]).requires_grad_()
        states = self._states(first, self.kernels, self.biases, sigma_w, sigma_b)
        return norms(torch.autograd.grad(self._loss(linear(self.phi(states[-1]), w["head"])), states))

    def grid(self, sigma_w: np.ndarray, sigma_b: np.ndarray) -> list[list[float]]:
        """The whole grid as one batch with one shared draw, gradients with respect to the states alone."""
        linear, w = torch.nn.functional.linear, self.plain
        sigma_w, sigma_b = (self._tensor(s)[:, None] for s in (sigma_w, sigma_b))
        states = [(sigma_w * linear(self.x, w["stem"]) + sigma_b * w["stem bias"]).requires_grad_()]
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            states.append(linear(sigma_w * self.phi(states[-1]), kernel) + sigma_b * bias)
        outputs = linear(self.phi(states[-1]), w["head"])
        loss = torch.nn.functional.cross_entropy(outputs, self.label.expand(len(outputs)), reduction="sum")
        return torch.stack([g.norm(dim=1) for g in torch.autograd.grad(loss, states)]).tolist()


def on_one_thread(f: Callable[..., Any]) -> Callable[..., Any]:
    """f where PyTorch's threads need not wait for each other, which costs milliseconds a layer on a busy machine."""

    def run(*args: Any) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return f(*args)
        finally:
            torch.set_num_threads(threads)

    return run


# --- one activation -------------------------------------------------------------------------------------------------


def first_call(f: Callable[[], Any]) -> float:
    """Seconds of a call that has to trace and compile first."""
    jax.clear_caches()
    start = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - start


def case(activation: str) -> dict[str, Any]:
    """Seconds of everything for one activation, and how the map compares."""
    network = vg.mlp(width=WIDTH, depth=DEPTH, activation=activation, inputs=INPUTS, outputs=OUTPUTS)
    key = jax.random.key(0)
    parameters = vg.init(key, network)
    u = flow.directions(jax.random.key(1), network, 1)
    x, label = vg.data.sphere(jax.random.key(2), 1, INPUTS)[0], 3
    sigma_w, sigma_b = (
        a.ravel().astype(np.float32)
        for a in np.meshgrid(np.linspace(0.5, 3, SIDE), np.linspace(0, 1, SIDE), indexing="ij")
    )
    points = len(sigma_w)
    # On the device before the clock starts, as for the bare scan.
    grid = vg.Scales(sigma_w=jnp.asarray(sigma_w), sigma_b=jnp.asarray(sigma_b))
    static, traced = piece_of_sweep(parameters, x, u, grid)
    plain = {
        "stem": parameters.stem["kernel"],
        "stem bias": parameters.stem["bias"],
        "kernels": parameters.stages[0]["kernel"],
        "biases": parameters.stages[0]["bias"],
        "head": parameters.head["kernel"],
    }
    phi = PHI[activation]
    # Unit-gain kernels keep the norm of these, so nothing over- or underflows.
    states, tangents = jax.random.normal(jax.random.key(3), (2, points, WIDTH))
    both = jnp.concatenate([states, tangents])

    def measure() -> Any:
        return job._measure_points(*static, *traced)

    def bare_stacked() -> Any:
        return one_product(plain["kernels"], both)

    first = {"map": first_call(measure), "bare, stacked": first_call(bare_stacked)}

    few = np.linspace(0, points - 1, ROUNDS).round().astype(int)
    part = np.linspace(0, points - 1, OWN_WEIGHTS).round().astype(int)
    owned = scaled_one_by_one(plain, jnp.asarray(sigma_w[part]), jnp.asarray(sigma_b[part]))
    work: dict[str, Callable[[], Any]] = {
        "bare, two products": lambda: two_products(plain["kernels"], states, tangents),
        "bare, stacked": bare_stacked,
        "map": measure,
        "draw of the weights": lambda: vg.init(key, network),
        "jax.grad, whole grid, shared draw": lambda: shared_grid(phi, plain, grid.sigma_w, grid.sigma_b, x, label),
        "vmap, own weights": lambda: own_grid(phi, owned, 1.0, 1.0, x, label),
    }
    one_by_one: dict[str, Callable[[float, float], Any]] = {
        "jax.grad loop": lambda w, b: state_gradients(phi, plain, w, b, x, label)
    }
    if torch:
        rival = Torch(activation, plain, x, label)
        one_by_one |= {
            "torch (i), module built and drawn": rival.module,
            "torch (i), redrawn in place": rival.redrawn,
            "torch (ii), shared draw, parameters": rival.with_parameters,
            "torch (iii), shared draw, states": rival.states_alone,
        }
        one_by_one |= {f"{name}{ONE_THREAD}": on_one_thread(f) for name, f in one_by_one.items() if "torch" in name}
        work["torch, whole grid, shared draw"] = lambda: rival.grid(sigma_w, sigma_b)
    for name, f in one_by_one.items():
        turns = itertools.cycle([(float(sigma_w[i]), float(sigma_b[i])) for i in few])
        work[name] = lambda f=f, turns=turns: f(*next(turns))
    check_agreement(parameters, x, label, one_by_one)

    measured = {"vmap, own weights": OWN_WEIGHTS, **dict.fromkeys(one_by_one, 1)}
    seconds = {name: s * points / measured.get(name, points) for name, s in best_of(ROUNDS, work).items()}
    times_map = {name: s / seconds["map"] for name, s in seconds.items() if name != "map"}
    print(f"\n{activation}: {points} networks, width {WIDTH}, depth {DEPTH}")
    print("first call, with compiling: " + ", ".join(f"{name} {s:.2f} s" for name, s in first.items()))
    print_table([{"": name, "seconds": s, "times the map": s / seconds["map"]} for name, s in seconds.items()])
    return {
        "activation": activation,
        "seconds": seconds,
        "times_map": times_map,
        "first_call_seconds": first,
        "scaled_up_from": measured,
        "one_by_one_networks": ROUNDS,
    }


def check_agreement(
    parameters: vg.networks.Parameters, x: Array, label: int, one_by_one: dict[str, Callable[..., Any]]
) -> None:
    """The contenders with the shared draw compute what the library does, where plain floats can (the ordered phase)."""
    sigma_w, sigma_b = 1.0, 0.1
    scales = vg.Scales(sigma_w=sigma_w, sigma_b=sigma_b)
    truth = vg.gradient_flow(parameters, scales, x, label, loss="cross_entropy").log_gradient
    readable = truth > -40  # below, the square of a float32 is 0
    for name, f in one_by_one.items():
        if "(i)" not in name:  # those draw their own weights
            found = np.log(np.asarray(f(sigma_w, sigma_b))[readable])
            np.testing.assert_allclose(found, truth[readable], atol=1e-2, err_msg=name)


def targets(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the map must reach, and whether it did."""
    rows = []

    def target(activation: str, what: str, value: float, least: float) -> None:
        rows.append({"activation": activation, "what": what, "value": value, "least": least, "reached": value >= least})

    for found in cases:
        name, times = found["activation"], found["times_map"]
        if name in ("tanh", "relu"):
            for reading in ("bare, stacked", "bare, two products"):
                target(name, f"speed relative to {reading}", times[reading], LEAST_SHARE_OF_BARE)
        if torch:
            for reading, least in (
                ("torch (iii), shared draw, states", LEAST_OVER_TORCH_STATES),
                ("torch (i), module built and drawn", ABOUT_OVER_TORCH_MODULES),
            ):
                faster = min(times[reading], times[reading + ONE_THREAD])
                target(name, f"times faster than {reading}", faster, least)
    return rows


def main() -> None:
    """All activations; one JSON."""
    cases = [case(activation) for activation in ACTIVATIONS]
    reached = targets(cases)
    print()
    print_table(reached)
    write_json(
        "map",
        {
            "points": SIDE**2,
            "width": WIDTH,
            "depth": DEPTH,
            "dtype": "float32",
            "rounds": ROUNDS,
            "torch": f"{torch.__version__}, {torch.get_num_threads()} threads" if torch else "absent",
            "targets": reached,
            "activations": cases,
        },
    )


if __name__ == "__main__":
    main()
