"""The documentation: every block of code runs somewhere, every public name is in the reference, every link leads
somewhere, every picture is in the gallery.

Cells of pages run when the site is built (``make docs``), lines with a prompt here, scripts in the tests of what they
show.
"""

import ast
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
