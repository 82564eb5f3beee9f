"""The site: ``make docs`` runs every page and fails on any error or warning."""

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

import pages  # noqa: E402 - beside this file

import vgjax  # noqa: E402

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
python_use_unqualified_type_names = True
add_module_names = False


def escaped(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """The bars and stars of formulas (|x|, q*), which are markup elsewhere; what stands in literals stays."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"(?<=\w)\*", r"\*", part.replace("|", r"\|")) for part in parts[::2]]
        lines[i] = "``".join(parts)


def setup(app: Any) -> None:
    """Pages that are made of the code and of its measurements."""
    pages.write(DOCS / "generated")
    app.connect("autodoc-process-docstring", escaped, priority=400)  # before napoleon
