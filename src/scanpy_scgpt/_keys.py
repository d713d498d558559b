"""Every name that the package writes into an object. No other file spells one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNS = "scgpt"
"""`.uns` slot that holds one record per verb."""


@dataclass(frozen=True)
class TokenizeKeys:
    """Slots of `pp.tokenize`."""

    token: str = "scgpt_token"
    match: str = "scgpt_match"
    layer: str = "scgpt_bins"
    uns: str = "tokenize"


@dataclass(frozen=True)
class EmbedKeys:
    """Slots of `tl.embed`."""

    obsm: str = "X_scgpt"
    varm: str = "scgpt_genes"
    quality: str = "scgpt_qc"
    uns: str = "embed"

    @classmethod
    def named(cls, key_added: str | None) -> EmbedKeys:
        """Slots for a given `key_added`; the default names without one."""
        return cls() if key_added is None else cls(obsm=key_added, uns=f"embed_{key_added}")


@dataclass(frozen=True)
class IntegrateKeys:
    """Slots of `tl.integrate`."""

    obsm: str = "X_scgpt_integrated"
    uns: str = "integrate"
    modalities: str = "scgpt_modalities"

    @classmethod
    def named(cls, key_added: str | None) -> IntegrateKeys:
        """Slots for a given `key_added`; the default names without one."""
        return cls() if key_added is None else cls(obsm=key_added, uns=f"integrate_{key_added}")


@dataclass(frozen=True)
class GrnKeys:
    """Slots of `tl.grn`: vectors of genes in `.varm`, the table of edges in `.uns`, the record in `.uns["scgpt"]`."""

    edges: str = "scgpt_grn"
    varm: str = "scgpt_genes"
    uns: str = "grn"

    @classmethod
    def named(cls, key_added: str | None) -> GrnKeys:
        """Slots for a given `key_added`; the default names without one."""
        return cls() if key_added is None else cls(key_added, f"{key_added}_genes", f"grn_{key_added}")

    def of_group(self, group: str) -> str:
        """Slot of the vectors of a group of cells; a name with a slash cannot be written to a file."""
        return f"{self.varm}_{group.replace('/', '|')}"


@dataclass(frozen=True)
class ProgramKeys:
    """Slots of `tl.gene_programs` (`table` in `.uns`, `scores` in `.obsm`) and of `tl.enrich` (in `.uns`)."""

    table: str = "scgpt_programs"
    scores: str = "scgpt_programs"
    tests: str = "scgpt_enrichment"
    hits: str = "scgpt_enrichment_hits"
    uns: str = "gene_programs"
    uns_tests: str = "enrich"

    @classmethod
    def named(cls, key_added: str | None) -> ProgramKeys:
        """Slots for a given `key_added`; the default names without one."""
        if key_added is None:
            return cls()
        return cls(
            table=key_added,
            scores=key_added,
            tests=f"{key_added}_enrichment",
            hits=f"{key_added}_enrichment_hits",
            uns=f"gene_programs_{key_added}",
            uns_tests=f"enrich_{key_added}",
        )


@dataclass(frozen=True)
class LabelKeys:
    """Slots of `tl.annotate`: `label`, `confidence`, `unknown`, `rollup` in `.obs`, `prob`, `sets` in `.obsm`."""

    label: str = "scgpt_label"
    confidence: str = "scgpt_confidence"
    unknown: str = "scgpt_unknown"
    prob: str = "scgpt_label_prob"
    sets: str = "scgpt_label_sets"
    rollup: str = "scgpt_label_rollup"
    uns: str = "annotate"

    @classmethod
    def named(cls, key_added: str | None = None) -> LabelKeys:
        """Slots for a given `key_added`; the default names without one, and for the default name of the label."""
        if key_added is None or key_added == cls.label:
            return cls()
        return cls(
            label=key_added,
            confidence=f"{key_added}_confidence",
            unknown=f"{key_added}_unknown",
            prob=f"{key_added}_prob",
            sets=f"{key_added}_sets",
            rollup=f"{key_added}_rollup",
            uns=f"annotate_{key_added}",
        )


@dataclass(frozen=True)
class LayerKeys:
    """Slots of a verb that writes values and their standard deviation as layers."""

    layer: str
    spread: str
    uns: str

    def named(self, key_added: str | None) -> LayerKeys:
        """Slots for a given `key_added`; the default names without one."""
        if key_added is None:
            return self
        return LayerKeys(layer=key_added, spread=f"{key_added}_sd", uns=f"{self.uns}_{key_added}")


@dataclass(frozen=True)
class PerturbKeys:
    """Slots of `tl.perturb`, `tl.perturb_space` and `tl.reverse_perturb`, in their results."""

    uns: str = "perturb"
    space: str = "perturb_space"
    reverse: str = "reverse_perturb"


@dataclass(frozen=True)
class MapKeys:
    """Slots of `tl.map_reference`."""

    prefix: str = "scgpt_map"
    uns: str = "map_reference"

    @classmethod
    def named(cls, key_added: str | None) -> MapKeys:
        """Slots for a given `key_added`; the default names without one."""
        return cls() if key_added is None else cls(prefix=key_added, uns=f"map_reference_{key_added}")

    def label(self, key: str) -> str:
        """Column of the label that was voted for."""
        return f"{self.prefix}_{key}"

    def share(self, key: str) -> str:
        """Column of the share of the vote."""
        return f"{self.prefix}_{key}_share"

    @property
    def distance(self) -> str:
        """Column of the mean distance."""
        return f"{self.prefix}_distance"

    @property
    def nearest(self) -> str:
        """Column of the distance of the nearest neighbour."""
        return f"{self.prefix}_nearest"


@dataclass(frozen=True)
class ImputeKeys:
    """Slots of `tl.impute_modality`: prediction and interval in `.obsm`."""

    obsm: str
    lower: str
    upper: str
    uns: str

    @classmethod
    def named(cls, modality: str, key_added: str | None) -> ImputeKeys:
        """Slots for a modality, or for a given `key_added`."""
        name = f"scgpt_{modality}" if key_added is None else key_added
        uns = f"impute_{modality if key_added is None else key_added}"
        return cls(name, f"{name}_lower", f"{name}_upper", uns)


@dataclass(frozen=True)
class AttentionKeys:
    """Slots of `tl.attention_network`, all in `.uns`: edges, one row for each gene, record."""

    edges: str = "scgpt_grn"
    influence: str = "scgpt_grn_influence"
    uns: str = "grn"

    @classmethod
    def named(cls, key_added: str | None) -> AttentionKeys:
        """Slots for a given `key_added`; the default names without one."""
        if key_added is None:
            return cls()
        return cls(edges=key_added, influence=f"{key_added}_influence", uns=f"grn_{key_added}")


FILE = "scgpt_file"
"""`.obs` column of a result over several files: which file a cell is of."""
TOKENIZE = TokenizeKeys()
EMBED = EmbedKeys()
PERTURB = PerturbKeys()
GENERATE = LayerKeys("scgpt_generated", "scgpt_generated_sd", "generate")
DENOISE = LayerKeys("scgpt_denoised", "scgpt_denoised_sd", "denoise")
SIMULATION = "simulation"
"""`.uns` slot of simulated cells: that they are, and the truth behind them."""


def center_of(uns: Mapping[str, Any], slot: str) -> Any:
    """What is taken off the vectors of genes in `.varm[slot]` before they are compared; 0.0 where nothing is."""
    records = (record for record in uns.get(UNS, {}).values() if isinstance(record, Mapping))
    return next((record["centers"][slot] for record in records if slot in record.get("centers", {})), 0.0)
