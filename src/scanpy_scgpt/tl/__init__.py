"""Tools: one function per task."""

from ._annotate import annotate
from ._build_index import build_index
from ._denoise import denoise
from ._embed import embed
from ._enrich import enrich
from ._gene_programs import gene_programs
from ._generate import generate
from ._grn import grn
from ._integrate import integrate
from ._map_reference import map_reference

__all__ = [
    "annotate",
    "build_index",
    "denoise",
    "embed",
    "enrich",
    "gene_programs",
    "generate",
    "grn",
    "integrate",
    "map_reference",
]
