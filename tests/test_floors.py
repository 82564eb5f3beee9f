"""The house rules that no other test would notice.

Imports point down, nothing private, nothing heavy, the README runs.
"""

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    {"checks", "exponents", "files"},
    {"activations", "initializers", "data", "chunks", "products"},
    {"theory._chebyshev", "theory._free_curve", "theory._quadrature", "theory._scales"},
    {"theory._pieces", "theory.attention", "theory.linear_dynamics"},
    {"theory._gaussian"},
    {"theory._moments", "theory._pairs", "theory._slopes", "theory.normalization", "theory.shaping"},
    {"theory._level_sets", "theory._propagation", "theory.free_probability", "theory.residual"},
    {"theory._critical", "theory._mean_field"},
    {"theory._finite_width", "theory.recurrent"},
    {"theory"},
    {"blocks.protocol", "results"},
    {"blocks.dense", "blocks.composed", "blocks.normalization", "blocks.noise", "blocks.reading", "blocks.recurrent"},
    {"blocks.attention"},
    {"blocks"},
    {"networks"},
    {"layers"},
    {"builders.parts"},
    {"builders.dense", "builders.convolutional", "builders.recurrent", "builders.transformers", "builders.own"},
    {"builders", "flow"},
    {"calibration", "losses", "tokens"},
    {"gradients", "objective", "spectrum"},
    {"continuous", "plans", "sweeps", "teachers", "treatments"},
    {"comparison", "training"},
    {"trainability"},
    {"boundary", "plots.style"},
    {"plots.maps", "plots.profiles", "plots.training", "plots.treatments"},
    {"plots"},
    {"cli"},
    {"__main__"},
)
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
PATHS = {
    ".".join(path.relative_to(ROOT / "vgjax").with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "vgjax").rglob("*.py")
    if path != ROOT / "vgjax" / "__init__.py"
}
MODULES = sorted(PATHS)


def imports(module: str, *, top_level: bool) -> set[str]:
    """Full dotted names that a module imports: at its top only, or anywhere."""
    tree = ast.parse(PATHS[module].read_text())
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(module: str) -> set[str]:
    """Modules of the library that a module imports at its top."""
    names = (name.removeprefix("vgjax.") for name in imports(module, top_level=True) if name.startswith("vgjax."))
    return {next(own for own in (name, name.rpartition(".")[0]) if own in FLOOR) for name in names}


def test_every_module_has_a_floor():
    assert set(MODULES) == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for name in ours(module):
        assert FLOOR[name] < FLOOR[module], f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("theory")])
def test_theory_borrows_nothing_from_the_simulator(module):
    assert {name for name in ours(module) if not name.startswith("theory")} <= {"checks", "activations", "initializers"}


@pytest.mark.parametrize("module", MODULES)
def test_only_public_names_of_jax_and_flax(module):
    for name in imports(module, top_level=False):
        assert not (name.startswith(("jax.", "flax.")) and "._" in name), name


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("plots")])
def test_plots_know_no_jax(module):
    assert not any(name.split(".")[0] in ("jax", "flax") for name in imports(module, top_level=False))


def test_importing_the_library_imports_nothing_heavy():
    heavy = ("matplotlib", "xarray", "sklearn", "scipy.stats", "diffrax")
    code = f"import sys, vgjax; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 15
    assert result.failed == 0
