"""Models that other people have published, as they are, in small: what `bench_diagnosis.py` diagnoses.

Nothing of theirs is kept here. Packages come from the package index (`PACKAGES`), two repositories from GitHub: their
folders are named by the environment variables ``FLAX`` (github.com/google/flax) and ``BONSAI``
(github.com/jax-ml/bonsai). What is not there is left out and said to be.
"""

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

PACKAGES = ("transformers==4.46.3", "dm-haiku", "equinox", "diffrax", "jraph", "brax", "flaxmodels")

KEY = jax.random.key(0)
CLASSES, BATCH, TOKENS = 10, 4, 12

Case = tuple[Any, Any, Callable[..., Any]]
"""Model, batch and loss, as `vgjax.diagnose` takes them."""

CASES: dict[str, Callable[[], Case]] = {}
"""By library and model."""


def case(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a model."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        CASES[name] = make
        return make

    return register


# --- data and losses ------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labels(*shape: int, count: int = CLASSES) -> np.ndarray:
    return np.random.default_rng(2).integers(0, count, shape).astype(np.int32)


def cross_entropy(output: Any, targets: Any) -> Any:
    """Of logits, or of what holds them."""
    logits = getattr(output, "logits", output)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def next_token(output: Any, targets: Any) -> Any:
    """Of the token that follows."""
    logits = getattr(output, "logits", output)
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], targets[:, 1:]).mean()


# --- from a checkout ------------------------------------------------------------------------------------------------


def module_of(variable: str, path: str) -> Any:
    """A file of a checkout as a module."""
    root = Path(os.environ[variable])
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), root / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def classes_of(variable: str, path: str, *names: str, **given: Any) -> dict[str, Any]:
    """Classes of a script, without running the rest of it."""
    file = Path(os.environ[variable]) / path
    tree = ast.parse(file.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in names]
    space = {"__name__": "__public__", **given}
    exec(compile(tree, str(file), "exec"), space)
    return space


@case("Flax NNX: MNIST CNN")
def flax_mnist() -> Case:
    from functools import partial

    cnn = classes_of("FLAX", "examples/mnist/train.py", "CNN", nnx=nnx, partial=partial)["CNN"](nnx.Rngs(0))

    def loss(model: Any, batch: Any) -> Any:
        return cross_entropy(model(batch[0], nnx.Rngs(1)), batch[1])

    return cnn, (normal(BATCH, 28, 28, 1), labels(BATCH)), loss


@case("Flax NNX: scan over layers")
def flax_scan() -> Case:
    given = {"nnx": nnx, "jax": jax, "jnp": jnp}
    script = classes_of("FLAX", "examples/nnx_toy_examples/06_scan_over_layers.py", "Block", "ScanMLP", **given)
    model = script["ScanMLP"](10, n_layers=5, rngs=nnx.Rngs(0))
    return model, (normal(BATCH, 10), normal(BATCH, 10, seed=3)), lambda output, y: jnp.mean((output - y) ** 2)


@case("Flax Linen: lm1b transformer")
def flax_lm1b() -> Case:
    models = module_of("FLAX", "examples/lm1b/models.py")
    sizes = {"emb_dim": 32, "num_heads": 4, "num_layers": 4, "qkv_dim": 32, "mlp_dim": 64, "max_len": TOKENS}
    config = models.TransformerConfig(vocab_size=50, output_vocab_size=50, **sizes)
    model, tokens = models.TransformerLM(config), labels(BATCH, TOKENS, count=50)
    variables = model.init({"params": KEY, "dropout": KEY}, tokens)
    return (model, variables), (tokens, tokens), cross_entropy


@case("Flax Linen: seq2seq LSTM")
def flax_seq2seq() -> Case:
    models = module_of("FLAX", "examples/seq2seq/models.py")
    model = models.Seq2seq(teacher_force=True, hidden_size=16, vocab_size=13)
    inputs, outputs = (jax.nn.one_hot(labels(BATCH, n, count=13), 13) for n in (5, 4))
    variables = model.init({"params": KEY, "lstm": KEY}, inputs, outputs)

    def loss(variables: Any, batch: Any) -> Any:
        logits, _ = model.apply(variables, *batch, rngs={"lstm": KEY})
        return optax.softmax_cross_entropy(logits, batch[1][:, 1:]).mean()

    return (lambda variables, *batch: None, variables), (inputs, outputs), loss


@case("Flax Linen: VAE")
def flax_vae() -> Case:
    models = module_of("FLAX", "examples/vae/models.py")
    model, x = models.VAE(8), jax.nn.sigmoid(normal(BATCH, 784))
    variables = model.init(KEY, x, KEY)

    def loss(output: Any) -> Any:
        logits, mean, log_variance = output
        divergence = -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance))
        return optax.sigmoid_binary_cross_entropy(logits, x).sum() + divergence

    return (model, variables), (x, KEY), loss


@case("Flax Linen: ImageNet ResNet-18")
def flax_resnet() -> Case:
    models = module_of("FLAX", "examples/imagenet/models.py")
    model, x = models.ResNet18(num_classes=CLASSES, num_filters=8), normal(BATCH, 32, 32, 3)
    variables = model.init(KEY, x, train=False)

    def loss(variables: Any, batch: Any) -> Any:
        return cross_entropy(model.apply(variables, batch[0], train=False), batch[1])

    return (lambda variables, *batch: None, variables), (x, labels(BATCH)), loss


@case("Flax Linen: OGB graph network (jraph)")
def flax_graph() -> Case:
    import jraph

    models = module_of("FLAX", "examples/ogbg_molpcba/models.py")
    sizes = {"latent_size": 16, "num_mlp_layers": 2, "message_passing_steps": 3, "output_globals_size": CLASSES}
    model = models.GraphNet(**sizes)
    graph = jraph.GraphsTuple(
        nodes=normal(9, 5),
        edges=normal(14, 3),
        globals=normal(2, 4),
        senders=labels(14, count=9),
        receivers=labels(14, count=9)[::-1].copy(),
        n_node=np.array([5, 4]),
        n_edge=np.array([8, 6]),
    )
    return (model, model.init(KEY, graph)), (graph,), lambda output: jnp.mean(output.globals**2)


@case("Flax Linen: PPO actor-critic")
def flax_ppo() -> Case:
    models = module_of("FLAX", "examples/ppo/models.py")
    model, x = models.ActorCritic(num_outputs=4), jax.nn.sigmoid(normal(2, 84, 84, 4))

    def loss(output: Any) -> Any:
        log_probabilities, values = output
        return jnp.mean(values**2) - jnp.mean(log_probabilities[:, 0])

    return (model, model.init(KEY, x)), (x,), loss


def bonsai(name: str) -> Any:
    return module_of("BONSAI", f"bonsai/models/{name}/modeling.py")


@case("Bonsai NNX: U-Net")
def bonsai_unet() -> Case:
    modeling = bonsai("unet")
    model = modeling.UNet(modeling.ModelConfig(features=(4, 8, 16, 32, 64)), rngs=nnx.Rngs(0))
    return model, (normal(2, 32, 32, 1), labels(2, 32, 32, count=2)), cross_entropy


@case("Bonsai NNX: ViT")
def bonsai_vit() -> Case:
    modeling = bonsai("vit")
    sizes = {"image_size": (16, 16), "patch_size": (4, 4), "num_channels": 3, "hidden_dim": 32, "mlp_dim": 64}
    rest = {"num_heads": 4, "num_layers": 4, "num_labels": CLASSES, "eps": 1e-12}
    config = modeling.ModelConfig(**sizes, **rest, attn_dropout_prob=0.0, dropout_prob=0.0)
    model = modeling.ViTClassificationModel(config, rngs=nnx.Rngs(0))

    def loss(model: Any, batch: Any) -> Any:
        return cross_entropy(model(batch[0], rngs=None), batch[1])

    return model, (normal(BATCH, 16, 16, 3), labels(BATCH)), loss


@case("Bonsai NNX: Mamba-2")
def bonsai_mamba() -> Case:
    modeling = bonsai("mamba2")
    sizes = {"vocab_size": 50, "hidden_size": 16, "state_size": 8, "head_dim": 8, "chunk_size": 4}
    model = modeling.Mamba2ForCausalLM(modeling.ModelConfig(**sizes, num_hidden_layers=3), rngs=nnx.Rngs(0))
    tokens = labels(2, TOKENS, count=50)
    return model, (tokens, tokens), lambda output, y: next_token(output["logits"], y)


@case("Bonsai NNX: ResNet")
def bonsai_resnet() -> Case:
    modeling = bonsai("resnet")
    model = modeling.ResNet(modeling.ModelConfig([1, 1, 1, 1], num_classes=CLASSES), rngs=nnx.Rngs(0))
    model.eval()
    return model, (normal(2, 32, 32, 3), labels(2)), cross_entropy


@case("Bonsai NNX: DenseNet")
def bonsai_densenet() -> Case:
    modeling = bonsai("densenet121")
    model = modeling.DenseNet(modeling.ModelConfig(CLASSES, [2, 3, 2, 2], 8), rngs=nnx.Rngs(0))
    model.eval()
    return model, (normal(2, 32, 32, 3), labels(2)), cross_entropy


# --- from the package index -----------------------------------------------------------------------------------------


def hugging_face(kind: str, config: Any, **options: Any) -> tuple[Any, Any]:
    import transformers

    model = getattr(transformers, f"Flax{kind}")(config, **options)
    return model.module, {"params": model.params} if "params" not in model.params else model.params


@case("Transformers Linen: GPT-2")
def gpt2() -> Case:
    import transformers

    config = transformers.GPT2Config(n_layer=4, n_embd=32, n_head=4, vocab_size=50, n_positions=TOKENS)
    model = hugging_face("GPT2LMHeadModel", config)
    tokens, positions = labels(BATCH, TOKENS, count=50), np.tile(np.arange(TOKENS), (BATCH, 1))
    return model, (tokens, np.ones_like(tokens), positions, tokens), next_token


@case("Transformers Linen: BERT")
def bert() -> Case:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=TOKENS, **sizes)
    model = hugging_face("BertForSequenceClassification", config)
    tokens, positions = labels(BATCH, TOKENS, count=50), np.tile(np.arange(TOKENS), (BATCH, 1))
    ones = np.ones_like(tokens)
    return model, (tokens, ones, 0 * ones, positions, np.ones((4, 4)), labels(BATCH, count=2)), cross_entropy


@case("Transformers Linen: ViT")
def vit() -> Case:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=CLASSES, **sizes)
    model = hugging_face("ViTForImageClassification", config)
    return model, (normal(BATCH, 3, 16, 16).transpose(0, 2, 3, 1), labels(BATCH)), cross_entropy


@case("Haiku: ResNet-18")
def haiku_resnet() -> Case:
    import haiku

    def network(x: Any) -> Any:
        return haiku.nets.ResNet18(CLASSES, resnet_v2=True)(x, is_training=True)

    transformed, x = haiku.transform_with_state(network), normal(2, 32, 32, 3)
    return (transformed, transformed.init(KEY, x)), (x, labels(2)), cross_entropy


@case("Haiku: two LSTMs")
def haiku_lstm() -> Case:
    import haiku

    def network(x: Any) -> Any:
        core = haiku.DeepRNN([haiku.LSTM(16), jax.nn.relu, haiku.LSTM(16)])
        outputs, _ = haiku.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
        return haiku.Linear(CLASSES)(outputs[-1])

    transformed, x = haiku.transform(network), normal(20, BATCH, 5)
    return (transformed, transformed.init(KEY, x)), (x, labels(BATCH)), cross_entropy


@case("Haiku: MobileNet")
def haiku_mobilenet() -> Case:
    import haiku

    network = lambda x: haiku.nets.MobileNetV1((1, 2, 1), (8, 16, 16), num_classes=CLASSES)(x, True)  # noqa: E731
    transformed, x = haiku.transform_with_state(network), normal(2, 32, 32, 3)
    return (transformed, transformed.init(KEY, x)), (x, labels(2)), cross_entropy


@case("Equinox: MLP")
def equinox_mlp() -> Case:
    import equinox

    model = equinox.nn.MLP(8, CLASSES, width_size=32, depth=6, key=KEY)
    return model, (normal(BATCH, 8), labels(BATCH)), cross_entropy


@case("Diffrax: neural ODE (Equinox)")
def neural_ode() -> Case:
    import diffrax
    import equinox

    field = equinox.nn.MLP(4, 4, width_size=16, depth=2, activation=jax.nn.softplus, key=KEY)

    def solve(field: Any, y0: Any) -> Any:
        term = diffrax.ODETerm(lambda t, y, args: jax.vmap(field)(y))
        adjoint = diffrax.DirectAdjoint()
        solution = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 1.0, 0.1, y0, max_steps=16, adjoint=adjoint)
        return solution.ys[-1]

    return (solve, field), (normal(BATCH, 4), normal(BATCH, 4, seed=3)), lambda y, z: jnp.mean((y - z) ** 2)


@case("Brax Linen: PPO policy")
def brax_policy() -> Case:
    from brax.training import networks

    policy = networks.make_policy_network(6, 8, hidden_layer_sizes=(32, 32, 32, 32))
    parameters = policy.init(KEY)
    return (lambda p, x: policy.apply(None, p, x), parameters), (normal(BATCH, 8),), lambda out: jnp.mean(out**2)
