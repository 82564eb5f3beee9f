"""The site: ``make docs`` runs every page and fails on any error or warning."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import vgjax

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project, author, copyright = "vgjax", "The vgjax developers", "the vgjax developers"
version = release = vgjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "scripts"]
html_theme = "furo"
html_title = "vgjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
templates_path: list[str] = []

# --- pages that run -------------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "dollarmath", "html_image", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_execution_in_temp = True  # what a page writes is gone with it
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True


def _state() -> str:
    """What an executed page depends on besides itself: the library."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "vgjax").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


nb_execution_cache_path = str(DOCS / "_build" / "executed" / _state())
# Compiled programs are shared by the pages; a page that is run anew starts at once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(DOCS / "_build" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# --- the reference --------------------------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes and units are in the docstrings
autodoc_preserve_defaults = True
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
python_use_unqualified_type_names = True
add_module_names = False


EMPHASIS = re.compile(r"(?<![\w*])\*(\w[\w ]*\w)\*(?![\w*])")


def escaped(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """The bars and stars of formulas (|x|, q*), which are markup elsewhere; what stands in literals stays, and so do
    emphasis and the names of arguments."""
    for i, line in enumerate(lines):
        start = re.match(r"\s*\**", line).end()  # type: ignore[union-attr]
        parts = line[start:].split("``")
        parts[::2] = [_escaped(part) for part in parts[::2]]
        lines[i] = line[:start] + "``".join(parts)


def _escaped(text: str) -> str:
    kept = EMPHASIS.sub("\x00\\1\x00", text.replace("|", r"\|"))
    return kept.replace("*", r"\*").replace("\x00", "*")


def setup(app: Any) -> None:
    """How docstrings are read."""
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True  # it adds a path, and does not say so
    app.connect("autodoc-process-docstring", escaped, priority=400)  # before napoleon
