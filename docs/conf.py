"""Configuration of the documentation.

Nothing is fetched while building. Set `SCANPY_SCGPT_DOCS_INTERSPHINX=1` to link to the pages of other projects.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import is_dataclass
from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import NumpyDocstring

warnings.filterwarnings("ignore", message=r".*_RstSnippetParser\.set_application")  # sphinx_autodoc_typehints

project = "scanpy-scgpt"
author = "scanpy-scgpt developers"
copyright = author
version = release = version_of(project)

online = os.environ.get("SCANPY_SCGPT_DOCS_INTERSPHINX", "0") not in {"", "0"}
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",  # after napoleon
    "sphinxcontrib.bibtex",
    *(["sphinx.ext.intersphinx"] if online else []),
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}  # stubs of the API get the first
nb_execution_mode = "off"  # notebooks are stored with their outputs; the tests run them
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]
default_role = "literal"
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
myst_enable_extensions = ["substitution"]
card = "src/scanpy_scgpt/models/mini/card.md"  # written by scripts/train_mini.py
found = (Path(__file__).parents[1] / card).is_file()
myst_substitutions = {"card": f"{{download}}`Its card <../{card}>`" if found else f"Its card (`{card}`)"}
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "none"  # sphinx_autodoc_typehints writes them beside the parameters
always_use_bars_union = True
always_document_param_types = True
typehints_defaults = "comma"
typehints_document_rtype_none = False
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = True

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2, "use_download_button": False}
html_show_sourcelink = False

_OTHERS = (
    "Ellipsis|anndata|annbatch|collections|dask|distributed|h5py|lightning|matplotlib|mudata|numpy|os|pandas|pathlib|scipy|"
    "torch|types|typing|zarr"
)
nitpicky = True
nitpick_ignore_regex = [
    # Internal folders: their classes stand in the signature of a public function, but have no page.
    (r"py:.*", r"scanpy_scgpt\.(_counts|data|module|objectives|train)\..*"),
    # Number types are written in docstrings without the name of their package.
    (r"py:class", r"u?int\d+|float\d+"),
    # Other projects have a target only when their inventories are loaded.
    (r"py:.*", rf"({_OTHERS})(\..*)?"),
]
if online:
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

_PUBLIC = {
    "anndata._core.anndata.AnnData": "anndata.AnnData",
    "matplotlib.axes._axes.Axes": "matplotlib.axes.Axes",
    "numpy.random._generator.Generator": "numpy.random.Generator",
    "pandas.core.frame.DataFrame": "pandas.DataFrame",
    "pandas.core.indexes.base.Index": "pandas.Index",
    "pandas.core.series.Series": "pandas.Series",
    "pathlib._local.Path": "pathlib.Path",
    "scipy.sparse._csr.csr_matrix": "scipy.sparse.csr_matrix",
    "torch._C.device": "torch.device",
    "torch._tensor.Tensor": "torch.Tensor",
}


def _public_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, child: nodes.TextElement) -> nodes.Node | None:
    """Resolve a class by its public place when its type hint names the file that defines it."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    if target.startswith("scanpy_scgpt."):
        target = re.sub(r"\._\w+", "", target)
        domain = env.domains.python_domain
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, child)
    node["reftarget"] = _PUBLIC.get(target, target)  # found by intersphinx, when that is on
    return None


def _skip(_app: Sphinx, _what: str, name: str, obj: object, skip: bool, _options: object) -> bool:  # noqa: FBT001
    """Leave out what Python writes itself: the fields of a named tuple."""
    return skip or str(getattr(obj, "__doc__", "")).startswith("Alias for field number") or name == "__new__"


def _returns_as_prose(self: NumpyDocstring, _section: str) -> list[str]:
    """Sections "Returns" and "Yields" are text with a list of slots, not a list of types."""
    lines = self._dedent(self._consume_to_next_section())
    lines = lines[1:] if lines[:1] == [":"] else lines  # a mark of sphinx_autodoc_typehints
    return [*self._format_block(":returns: ", lines), ""]


def _attributes_by_name(self: NumpyDocstring, _section: str) -> list[str]:
    """Attributes may be described together (`first, second`); those of a dataclass are its parameters."""
    kind = "param" if is_dataclass(self._obj) else "ivar"
    lines = []
    for name, _, description in self._consume_fields(prefer_type=False, multiple=True):
        lines += self._format_block(f":{kind} {name}: ", description)
    return [*lines, ""]


def _like_a_function(self: NumpyDocstring) -> list[str]:
    """Properties and data are described in sentences and sections, not as `type: text`."""
    self._what = "function"
    self._parse()
    return []


def setup(app: Sphinx) -> None:
    """Connect the handlers above."""
    NumpyDocstring._parse_returns_section = _returns_as_prose
    NumpyDocstring._parse_attributes_section = _attributes_by_name
    NumpyDocstring._parse_attribute_docstring = _like_a_function
    app.connect("missing-reference", _public_name, priority=400)
    app.connect("autodoc-skip-member", _skip)
