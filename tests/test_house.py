"""The house rules that no other test would notice.

Wings import only downwards, nothing private, nothing heavy; names are unique and listed; the README runs.
"""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import vgjax as vg

ROOT = Path(__file__).parent.parent
GROUND = {
    "version", "interrupts", "checks", "values", "files", "memory", "floatexp", "activations", "initializers", "data"
}  # fmt: skip
BELOW: dict[str, set[str]] = {"blocks": GROUND}
"""What each wing may import, from the ground up; nobody imports what stands on him."""
for wing, below in (
    ("networks", "blocks"),
    ("measure", "networks"),
    ("implicit", "measure"),
    ("ensembles", "implicit"),
    ("training", "ensembles"),
):
    BELOW[wing] = BELOW[below] | {below}
BELOW["theory"] = {"checks", "values", "activations", "initializers"}
BELOW["comparison"] = BELOW["ensembles"] | {"ensembles", "theory"}
BELOW["edges"] = BELOW["comparison"]
BELOW["plots"] = BELOW["training"] | {"training", "theory", "comparison", "edges"}
BELOW["diagnosis"] = BELOW["plots"] | {"plots"}
BELOW["cli"] = BELOW["diagnosis"] | {"diagnosis", "compilation_cache", ""}
BELOW["__main__"] = {"cli"}
ORDER = {  # within the ground
    "version": set(),
    "checks": set(),
    "values": set(),
    "interrupts": set(),
    "files": {"interrupts"},
    "compilation_cache": {"files"},
    "memory": set(),
    "floatexp": set(),
    "activations": {"checks", "floatexp", "values"},
    "initializers": {"checks", "values"},
    "data": {"checks", "values"},
}
PATHS = {
    ".".join(path.relative_to(ROOT / "vgjax").with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "vgjax").rglob("*.py")
    if path != ROOT / "vgjax" / "__init__.py"
}
MODULES = sorted(PATHS)


def imports(module: str) -> Iterator[str]:
    """Full dotted names that a module imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(PATHS[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wings(module: str) -> set[str]:
    """Wings (and ground rooms) that a module imports; "" for the library as a whole."""
    names = [name.removeprefix("vgjax").lstrip(".") for name in imports(module) if name.split(".")[0] == "vgjax"]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_wings_import_only_downwards(module):
    wing = module.split(".")[0]
    allowed = {**ORDER, **BELOW}[wing] | {wing}
    assert wings(module) <= allowed, f"{module} imports {sorted(wings(module) - allowed)}"


def test_an_import_that_runs_up_is_seen_wherever_it_stands(tmp_path, monkeypatch):
    """The kind of fault, also inside a function."""
    path = tmp_path / "room.py"
    path.write_text("def late():\n    from vgjax.ensembles.sweep import sweep\n    return sweep\n")
    monkeypatch.setitem(PATHS, "measure.room", path)
    with pytest.raises(AssertionError, match=r"measure\.room imports \['ensembles'\]"):
        test_wings_import_only_downwards("measure.room")


@pytest.mark.parametrize("module", MODULES)
def test_only_public_names_of_jax_and_flax(module):
    for name in imports(module):
        assert not (name.startswith(("jax.", "flax.")) and "._" in name), name


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("plots")])
def test_plots_know_no_jax(module):
    assert not any(name.split(".")[0] in ("jax", "flax") for name in imports(module))


def test_importing_the_library_imports_nothing_heavy():
    heavy = ("matplotlib", "xarray", "sklearn", "scipy.stats", "diffrax")
    code = f"import sys, vgjax; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# --- names ----------------------------------------------------------------------------------------------------------


def defined(module: str) -> set[str]:
    """Public functions and classes that a module defines."""
    nodes = ast.parse(PATHS[module].read_text()).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in nodes if isinstance(node, kinds) and not node.name.startswith("_")}


def test_the_public_page_fits_on_a_page_and_is_all_there_is():
    assert len(vg.__all__) == len(set(vg.__all__)) <= 64
    assert sorted(vg.__all__) == dir(vg)
    assert all(hasattr(vg, name) for name in vg.__all__)


def test_the_signatures_in_the_design_are_those_of_the_code():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        signatures = importlib.import_module("signatures")
    finally:
        sys.path.remove(str(ROOT / "docs"))
    assert signatures.table() in (ROOT / "docs" / "design.md").read_text(), "run: python docs/signatures.py --write"


def test_no_public_function_has_more_than_twelve_parameters():
    """But for the sweep, where six of fifteen say where and how its work is done."""
    for name in vg.__all__:
        function = getattr(vg, name)
        if inspect.isfunction(function):
            kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            count = sum(p.kind not in kinds for p in inspect.signature(function).parameters.values())
            assert count <= (15 if name == "sweep" else 12), f"{name} has {count}"


def test_no_name_stands_for_two_things():
    """A class has one home; and nothing of the simulator's has the name of something of the theory's."""
    rooms = [module for module in MODULES if module.split(".")[0] not in ("plots", "cli", "__main__")]
    homes: dict[str, set[str]] = {}
    for module in rooms:
        for name in defined(module):
            homes.setdefault(name, set()).add(module)
    for name, modules in homes.items():
        assert not name[0].isupper() or len(modules) == 1, f"{name} is in {' and '.join(sorted(modules))}"
        sides = {module.startswith("theory") for module in modules}
        assert len(sides) == 1, f"{name} is in {' and '.join(sorted(modules))}"


@pytest.mark.parametrize("module", [module for module in MODULES if "." in module])
def test_a_module_is_what_its_path_says(module):
    """`import vgjax.plots.curves as c` gives the module, whatever its package hands on."""
    package, _, name = f"vgjax.{module}".rpartition(".")
    assert getattr(importlib.import_module(package), name) is sys.modules.get(f"vgjax.{module}") or (
        getattr(importlib.import_module(package), name) is importlib.import_module(f"vgjax.{module}")
    )


def test_the_version_is_that_of_the_package():
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert vg.__version__ == said


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_no_kind_is_a_lambda_whose_source_beartype_would_parse_at_import(module):
    assert "Is[lambda" not in PATHS[module].read_text()


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_can_be_read_at_once(module):
    text = PATHS[module].read_text()
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                assert body[-1].end_lineno - body[0].lineno < 50, f"{module}.{node.name}"


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted >= 15
    assert result.failed == 0
