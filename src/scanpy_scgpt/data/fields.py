"""Fields of scvi-tools' data manager: genes by name, labels and batches that may be missing. Loads scvi-tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rich.pretty  # scvi-tools prints with it, and does not import it
import rich.table
from scvi import REGISTRY_KEYS
from scvi.data.fields import BaseAnnDataField, MuDataWrapper

from scanpy_scgpt._counts import CountSource, choose_counts
from scanpy_scgpt._logging import get_logger, quiet
from scanpy_scgpt._validate import check_key
from scanpy_scgpt.disk import as_cells

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)
MISSING_BATCH = "unknown_batch"
"""Name of the batch of cells whose batch is missing."""
_SHOWN = 20  # categories in a printed table


class CountsField(BaseAnnDataField):
    """Counts whose genes are known by their names, so that other genes in another order do no harm.

    Parameters
    ----------
    layer
        Layer with the counts; by default what :func:`scanpy_scgpt.pp.tokenize` would take.
    gene_symbols
        Column of `var` with the names of the genes, where the index has others.
    """

    registry_key = REGISTRY_KEYS.X_KEY
    attr_name, is_empty = "X", False

    def __init__(self, layer: str | None = None, *, gene_symbols: str | None = None) -> None:
        super().__init__()
        self.layer, self.gene_symbols = layer, gene_symbols
        self.attr_name = "X" if layer is None else "layers"

    @property
    def attr_key(self) -> str | None:
        """Name of the layer."""
        return self.layer

    def source(self, adata: AnnData) -> CountSource:
        """The matrix of an AnnData that is read."""
        with quiet("scanpy_scgpt._counts"):  # what was taken is said when the cells become tokens
            return choose_counts(as_cells(adata), layer=self.layer)

    def validate_field(self, adata: AnnData) -> None:
        """Refuse NaN, negative values and a layer that is not there."""
        source = self.source(adata)
        source.gene_columns(self.gene_symbols)

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Names of the genes and size of the matrix."""
        source = self.source(adata)
        names = np.asarray(source.var.index.astype(str))
        symbols = names if self.gene_symbols is None else source.var[self.gene_symbols].astype(str).to_numpy()
        state = {"n_obs": source.n_obs, "n_vars": len(names), "column_names": names, "where": source.where}
        return {**state, "symbols": symbols}

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **_kwargs: Any) -> dict[str, Any]:
        """Of other cells the same: their genes are matched by name when they are used."""
        self.validate_field(adata_target)
        return self.register_field(adata_target)

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """`n_vars` and `n_cells`."""
        return {"n_vars": state_registry["n_vars"], "n_cells": state_registry["n_obs"]}

    def view_state_registry(self, state_registry: dict[str, Any]) -> None:
        """There is nothing to show beyond the summary."""


def _name(value: object) -> str:
    """A value as text; 3.0 is 3, since a column of integers has floats as soon as one is missing."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


class CategoryField(BaseAnnDataField):
    """A column of `obs` as integers in `obs["_scvi_<registry key>"]`, below 0 where a cell has no category.

    Categories are sorted as text, and kept by name: numbers and booleans become text.

    Parameters
    ----------
    registry_key
        Name in the registry, such as `"labels"`.
    attr_key
        Column, or None for none.
    missing
        Name of the category of missing values, or None to leave them without one.
    unlabeled
        A category that means that there is none.
    """

    attr_name = "obs"

    def __init__(
        self, registry_key: str, attr_key: str | None, *, missing: str | None = None, unlabeled: str | None = None
    ) -> None:
        super().__init__()
        self.key, self.column = registry_key, attr_key
        self.missing, self.unlabeled = missing, unlabeled

    @property
    def registry_key(self) -> str:
        """Name in the registry."""
        return self.key

    @property
    def attr_key(self) -> str:
        """Column of `obs` with the integers."""
        return f"_scvi_{self.key}"

    @property
    def is_empty(self) -> bool:
        """Whether no column was named."""
        return self.column is None

    def validate_field(self, adata: AnnData) -> None:
        """The column must be there."""
        check_key(adata.obs, self.column, where="adata.obs")

    def _text(self, adata: AnnData) -> pd.Series:
        values = adata.obs[self.column]
        if not isinstance(values.dtype, pd.CategoricalDtype) and values.dtype.kind in "iufb":
            logger.info("note: obs[%r] holds numbers; they are taken as names of %s.", self.column, self.key)
        text = values.astype("object").map(_name, na_action="ignore")
        if self.unlabeled is not None:
            text = text.where(text != self.unlabeled)
        if self.missing is not None and text.isna().any():
            n_missing = f"{int(text.isna().sum()):,}"
            logger.warning("obs[%r] has %s missing values; they become %r.", self.column, n_missing, self.missing)
            text = text.fillna(self.missing)
        return text

    def _coded(self, adata: AnnData, text: pd.Series, categories: list[str]) -> dict[str, Any]:
        codes = pd.Categorical(text, categories=categories).codes
        adata.obs[self.attr_key] = codes.astype(np.int64)
        return {"categorical_mapping": np.asarray(categories, dtype=object), "original_key": self.column}

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Sorted categories."""
        self.validate_field(adata)
        text = self._text(adata)
        categories = sorted(text.dropna().unique())
        if not categories:
            msg = f"obs[{self.column!r}] has no value at all. Name a column with {self.key}."
            raise ValueError(msg)
        return self._coded(adata, text, categories)

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, *, extend_categories: bool = False, **_kwargs: Any
    ) -> dict[str, Any]:
        """Codes of the known categories; others get none, or with `extend_categories` a new one of a batch."""
        known = list(state_registry["categorical_mapping"])
        if self.column not in adata_target.obs:
            adata_target.obs[self.attr_key] = np.full(adata_target.n_obs, -1, dtype=np.int64)
            return {**state_registry}
        text = self._text(adata_target)
        new = sorted(set(text.dropna().unique()) - set(known))
        if new and extend_categories and self.key == REGISTRY_KEYS.BATCH_KEY:
            known += new
        elif new:
            named = ", ".join(map(repr, new[:5])) + (", ..." if len(new) > 5 else "")  # noqa: PLR2004
            logger.info("note: obs[%r] has %s that the model does not know: %s.", self.column, self.key, named)
        return self._coded(adata_target, text, known)

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Number of categories, 0 where no column was named."""
        return {f"n_{self.key}": len(state_registry.get("categorical_mapping", ()))}

    def view_state_registry(self, state_registry: dict[str, Any]) -> rich.table.Table | None:
        """Categories and their integers; nothing where no column was named."""
        if self.is_empty:
            return None
        table = rich.table.Table("Source Location", "Categories", "Encoding", title=f"{self.key} State Registry")
        categories = state_registry["categorical_mapping"]
        for i, category in enumerate(categories[:_SHOWN]):
            table.add_row(f"adata.obs[{self.column!r}]" if i == 0 else "", str(category), str(i))
        if len(categories) > _SHOWN:
            table.add_row("", f"and {len(categories) - _SHOWN} more", "")
        return table


MuDataCountsField, MuDataCategoryField = MuDataWrapper(CountsField), MuDataWrapper(CategoryField)
