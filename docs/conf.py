"""Sphinx: the manual, with an API reference from the docstrings. `make docs` builds it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import torch_ext

project = "torch_ext"
copyright = "the torch_ext authors, BSD-3-Clause"
release = torch_ext.__version__.partition("+")[0]
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["requirements.txt"]
html_theme = "furo"
html_title = f"torch_ext {release}"
html_static_path = []

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True

# What belongs to others has no page here, and a build must not need the network for theirs.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|nn|collections|typing|typing_extensions|matplotlib)(\..*)?"),
    (r"py:.*", r"(Tensor|Module|Parameter|Any|Callable|Iterable|Mapping|Sequence|Self|optional)"),
    (r"py:.*", r"[A-Z][A-Za-z]+Error"),
    (r"py:.*", r"(bool|bytes|dict|float|int|list|object|str|tuple|type|None)(\[.*)?"),
]
