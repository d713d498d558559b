"""Tools: one function per task."""

from ._annotate import annotate
from ._build_index import build_index
from ._denoise import denoise
from ._embed import embed
from ._generate import generate
from ._integrate import integrate
from ._map_reference import map_reference
from ._perturb import perturb
from ._perturb_space import perturb_space, space_changes
from ._reverse import hit_rates, reverse_perturb

__all__ = [
    "annotate",
    "build_index",
    "denoise",
    "embed",
    "generate",
    "hit_rates",
    "integrate",
    "map_reference",
    "perturb",
    "perturb_space",
    "reverse_perturb",
    "space_changes",
]
