"""Tools: one function per task."""

from ._annotate import annotate
from ._attention_grn import attention_network
from ._build_index import build_index
from ._denoise import denoise
from ._embed import embed
from ._enrich import enrich
from ._gene_programs import gene_programs
from ._generate import generate
from ._grn import grn
from ._impute import impute_modality
from ._integrate import integrate
from ._map_reference import map_reference
from ._perturb import perturb
from ._perturb_space import perturb_space, space_changes
from ._reverse import hit_rates, reverse_perturb
from ._target_overlap import target_overlap

__all__ = [
    "annotate",
    "attention_network",
    "build_index",
    "denoise",
    "embed",
    "enrich",
    "gene_programs",
    "generate",
    "grn",
    "hit_rates",
    "impute_modality",
    "integrate",
    "map_reference",
    "perturb",
    "perturb_space",
    "reverse_perturb",
    "space_changes",
    "target_overlap",
]
