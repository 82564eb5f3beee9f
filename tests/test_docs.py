"""The documentation: every block of code runs somewhere, every public name is in the reference, every link leads
somewhere, every picture is in the gallery.

Cells of pages run when the site is built (``make docs``), lines with a prompt here, scripts in the tests of what they
show.
"""

import ast
import copy
import doctest
import importlib
import re
import tomllib
from pathlib import Path

import pytest

import vgjax as vg

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"_build", "generated"} & {*path.relative_to(DOCS).parts})
FRONT = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
REFERENCE = "\n".join(path.read_text() for path in PAGES if path.parent.name == "reference")
FENCE = re.compile(r"^```(\S*)\n(.*?)^```", re.S | re.M)


def name_of(path):
    return str(path.relative_to(ROOT))


def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(DOCS / "tour.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 60
    assert result.failed == 0


@pytest.mark.parametrize("path", [*FRONT, *PAGES], ids=name_of)
def test_every_block_of_code_runs_somewhere(path):
    """A cell at the build; a prompt in a doctest; Python without either only where a test runs the page's block."""
    text = path.read_text()
    for language, code in FENCE.findall(text):
        if language == "{code-cell}":
            assert text.startswith("---\nfile_format: mystnb"), "cells of a page that is no notebook"
            if not code.startswith("!"):
                ast.parse(re.sub(r"^:tags:.*\n", "", code))
        elif language == "python" and ">>>" in code:
            assert path.name in ("README.md", "tour.md"), "prompts of a page that no test runs"
        elif language == "python":
            assert path.name in ("more_than_one_machine.md", "implicit.md"), "code that nothing runs"
        else:
            assert language in ("", "sh", "{toctree}", "{eval-rst}", "{include}"), language


def test_the_page_on_networks_without_weights_runs():
    (code,) = [code for language, code in FENCE.findall((DOCS / "implicit.md").read_text()) if language == "python"]
    found: dict = {}
    exec(compile(code, "implicit.md", "exec"), found)
    assert abs(found["root"].value - 2**0.5) < 0.05
    assert found["m"].log_gain.shape == (16, 41, 101)


@pytest.mark.parametrize("path", [*FRONT, *PAGES], ids=name_of)
def test_every_link_leads_somewhere(path):
    """Within the repository: to a file, and to a heading of it."""
    text = FENCE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^:link: (\S+)$", text, re.M):
        if re.match(r"https?:", target):
            continue
        file, _, heading = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.exists() or found.with_suffix(".md").exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert heading in slugs, target


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"^([\w/]+)$", (DOCS / "index.md").read_text(), re.M))
    pages = {str(path.relative_to(DOCS).with_suffix("")) for path in PAGES} - {"index"}
    assert pages == listed


def modules():
    """Wings whose every name is documented by one line."""
    return set(re.findall(r"automodule:: (\S+)", REFERENCE))


@pytest.mark.parametrize("name", vg.__all__)
def test_every_public_name_is_in_the_reference_with_an_example(name):
    value = getattr(vg, name)
    directives = set(re.findall(r"auto(?:function|class):: (\S+)", REFERENCE))
    if isinstance(value, type(vg)):
        assert f"vgjax.{name}" in modules()
        return
    assert f"vgjax.{name}" in directives
    cells = [code for language, code in FENCE.findall(REFERENCE) if language == "{code-cell}"]
    assert any(re.search(rf"\bvg\.{name}\b", code) for code in cells) or name in ("Network", "Result")


def test_every_name_of_a_wing_that_is_documented_has_a_docstring():
    for module in modules():
        wing = importlib.import_module(module)
        for name in getattr(wing, "__all__", ()):
            value = getattr(wing, name)
            assert not callable(value) or value.__doc__, f"{module}.{name}"


def test_every_figure_is_in_the_gallery_with_its_script():
    gallery = (DOCS / "gallery.md").read_text()
    pictures = {path.stem for path in (ROOT / "figures" / "gallery").glob("*.png")}
    assert {name for name in pictures if f"gallery/{name}.png" not in gallery} == set()
    scripts = {path.stem for path in (ROOT / "figures").glob("*.py")} - {"common"}
    assert {name for name in scripts if f"`figures/{name}.py`" not in gallery} == set()


def test_the_front_page_can_be_read_in_a_minute():
    assert len((ROOT / "README.md").read_text()) < 12_000


def test_the_citation_is_of_this_version():
    said = dict(re.findall(r"^(\w[\w-]*): (.*)$", (ROOT / "CITATION.cff").read_text(), re.M))
    assert said["version"] == vg.__version__
    assert said["cff-version"] == "1.2.0"


def test_the_project_ships_what_it_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {"docs", "dev", "xarray", "data", "ode", "pickle", "dask", "zarr"} <= {*extras}


# --- the tables of what was measured --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("measured")


def test_the_measured_tables_are_those_of_the_json(measured):
    text = (DOCS / "measured.md").read_text()
    for name, made in measured.regions().items():
        assert f"<!-- {name} -->\n\n{made}\n\n<!-- /{name} -->" in text, "run: python docs/measured.py --write"


def test_no_verdict_is_typed(measured):
    text = (DOCS / "measured.md").read_text().replace('every "(missed)" in them', "")
    for made in measured.regions().values():
        text = text.replace(made, "")
    assert "missed" not in text


CROSSED = {
    "32 x 32 map": (("map", "activations", 0, "times_map", "bare, stacked"), 0.85, 0.849),
    "10,000 layers, float32": (("exactness", "largest at full depth"), 1e-5, 1.01e-5),
    "the same map without weights": (("implicit", "maps", 18, "times bare"), 600.0, 499.0),
    "the same: times its speed; tables, tanh, with": (("implicit", "maps", 1, "times bare"), 3.0, 2.9),
    "without weights, first call": (("implicit", "first_calls", 5, "seconds"), 7.9, 8.1),
    "without weights, 1,000,000 points": (("implicit", "many_points", 0, "peak GiB"), 1.9, 2.1),
    "without weights, digits at depth 10,000, float32": (("implicit", "exactness", 6, "float32 error"), 9e-6, 2e-5),
    "compile time": (("depth", "targets", 0, "value"), 1.3, 1.31),
    "working memory": (("depth", "targets", 1, "value"), 1.0, 1.02),
    "every ln s": (("spectrum", "targets", 1, "value"), 1.0, 1.1),
    "the whole spectrum": (("spectrum", "cost", 2, "ratio"), 3.0, 3.1),
    "largest s²": (("spectrum", "edges", 5, "ratio"), 1.09, 1.11),
    "sweeps of other": (("architectures", "sweeps", 5, "fraction_of_bare"), 0.5, 0.49),
    "gradients of every state": (("architectures", "profiles", 0, "seconds"), 1.9, 2.1),
    "a trainability map": (("training", "maps", 0, "seconds"), 599.0, 601.0),
    "dimension of their border": (("training", "boundary", "dimension", "linear"), 1.05, 1.06),
    "theory: a map": (("theory", "rows", 3, "map, q*"), 0.3, 0.31),
    "40 small models": (("diagnosis", "scores", 0, "right"), 38, 37),
    "`import vgjax`": (("import", "targets", 0, "value"), 1.3, 1.31),
    "of 20 sick ones": (("diagnosis", "mended"), 14, 13),
    "22 models that others": (("public_models", "right"), 20, 19),
    "a diagnosis over the gradient, first": (("diagnosis_cost", "networks", 0, "first"), 3.0, 3.1),
    "- `gradient_flow` of ResNet": (("first_call", "networks", "resnet", "gradient_flow", "ratio"), 3.0, 3.1),
    "`python -m vgjax map` takes": (("first_call", "map", "programs"), 25, 26),
}
"""Rows by their beginnings: where the JSON has a number of theirs, one that reaches its target, one that does not."""


@pytest.mark.parametrize("row", CROSSED, ids=lambda row: "-".join(map(str, CROSSED[row][0])))
def test_what_is_missed_follows_from_the_numbers(row, measured):
    """One word more or less, in this row and in no other."""
    (*path, last), reaching, missing = CROSSED[row]

    def lines(value):
        found = copy.deepcopy(measured.read())
        place = found
        for key in path:
            place = place[key]
        place[last] = value
        text = "\n".join((measured.table(found), measured.rest(found), measured.first_calls.table(found)))
        return text.splitlines()

    pairs = zip(lines(reaching), lines(missing), strict=True)
    ((reached, missed),) = (pair for pair in pairs if pair[0].count("missed") != pair[1].count("missed"))
    assert reached.removeprefix("| ").startswith(row)
    assert missed.count("missed") == reached.count("missed") + 1


def test_the_page_judges_as_the_benchmarks_do(measured):
    entries = [
        (name, entry)
        for name, found in measured.read().items()
        for entry in found.get("targets", ())
        if isinstance(entry, dict) and isinstance(entry["value"], int | float) and "wanted" not in entry
    ]
    assert len(entries) > 30
    for name, entry in entries:
        claim = measured.Claim(entry["value"], entry.get("least"), entry.get("most"))
        assert claim.is_missed != entry["reached"], (name, entry["what"])
