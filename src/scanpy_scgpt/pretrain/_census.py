"""Cells of an atlas by a query: CELLxGENE Census, or a SOMA of the same layout; read in blocks, nothing downloaded."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from scipy import sparse

from scanpy_scgpt._optional import require

if TYPE_CHECKING:
    import tiledbsoma

_ROWS = 4096  # cells that are asked for at a time


@dataclass(frozen=True)
class CensusQuery:
    """Cells of CELLxGENE Census, or of a SOMA of its layout, as input of pretraining (extra `census`).

    The cells are read in blocks over the network and never stored as a whole; what stays in memory is 16 bytes a cell.

    Attributes
    ----------
    obs_value_filter
        Condition on the columns of `obs`, such as `"tissue == 'blood' and disease == 'normal'"`; None takes all cells.
    organism
        Organism as the Census names it, such as `"homo_sapiens"` or `"mus_musculus"`.
    census_version
        Release, such as `"2025-01-30"`. `"stable"` moves on with time: name a release when the corpus shall repeat.
    uri
        Address or folder of a SOMA instead of a release.
    primary_only
        Leave out cells that another data set of the Census holds as well.
    study_key, tissue_key
        Columns of `obs` that give the study and the tissue of a cell.
    max_cells
        Most cells; of more a random choice is taken, the same each time.

    Raises
    ------
    ValueError
        When `max_cells` is below 1.
    """

    obs_value_filter: str | None = None
    organism: str = "homo_sapiens"
    census_version: str = "stable"
    uri: str | None = None
    primary_only: bool = True
    study_key: str = "dataset_id"
    tissue_key: str = "tissue"
    max_cells: int | None = None

    def __post_init__(self) -> None:
        if self.max_cells is not None and self.max_cells < 1:
            msg = f"max_cells={self.max_cells}: use a number of cells, such as 1_000_000, or None for all of them."
            raise ValueError(msg)

    @property
    def value_filter(self) -> str | None:
        """The whole condition, as the Census reads it."""
        parts = ["is_primary_data == True"] if self.primary_only else []
        if self.obs_value_filter:
            parts.append(f"({self.obs_value_filter})" if parts else self.obs_value_filter)
        return " and ".join(parts) or None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to JSON."""
        return asdict(self)


class CensusCells:
    """The cells of a query with the slots of a file of cells: `X`, `var`, names and columns of `obs`.

    Raises
    ------
    ImportError
        When the packages of the extra `census` are not installed.
    OSError
        When there is no Census at the address.
    ValueError
        When the condition cannot be read, or no cell fulfils it.
    """

    raw, layers = None, {}

    def __init__(self, query: CensusQuery) -> None:
        require("tiledbsoma", extra="census", needed_for="A query of CELLxGENE Census")
        self._census = require("cellxgene_census", extra="census", needed_for="A query of CELLxGENE Census")
        self.query, self._handle = query, None
        self._obs = self._read_obs()
        self.joinids = self._obs.pop("soma_joinid").to_numpy()
        self.n_obs = len(self._obs)
        self.obs_columns = list(self._obs)
        self.X = _CensusMatrix(self)

    def experiment(self) -> tiledbsoma.Experiment:
        """The open experiment of the organism."""
        if self._handle is None:
            query = self.query
            try:
                handle = self._census.open_soma(census_version=query.census_version, uri=query.uri)
            except Exception as error:
                where = f"uri={query.uri!r}" if query.uri else f"census_version={query.census_version!r}"
                msg = (
                    f"CensusQuery: {where} cannot be opened ({error}). Check it and the network, then repeat the call."
                )
                raise OSError(msg) from error
            organisms = list(handle["census_data"])
            if query.organism not in organisms:
                handle.close()
                listed = ", ".join(map(repr, organisms))
                msg = f"CensusQuery: organism={query.organism!r} is not there. Use one of {listed}."
                raise ValueError(msg)
            self._handle = handle
        return self._handle["census_data"][self.query.organism]

    def close(self) -> None:
        """Close the connection; a later read opens it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _read_obs(self) -> pd.DataFrame:
        """Id, study and tissue of the cells that fulfil the condition, in the order of the ids."""
        query, obs = self.query, self.experiment().obs
        keys = list(dict.fromkeys([query.study_key, query.tissue_key]))
        missing = [key for key in keys if key not in obs.schema.names]
        if missing:
            listed = ", ".join(name for name in obs.schema.names if not name.startswith("soma_"))
            msg = f"CensusQuery: obs has no column {missing[0]!r}. Columns: {listed}."
            raise ValueError(msg)
        try:
            tables = list(obs.read(value_filter=query.value_filter, column_names=["soma_joinid", *keys]))
        except Exception as error:
            msg = (
                f"CensusQuery: obs_value_filter={query.obs_value_filter!r} cannot be read ({error}). Write it as in "
                "\"tissue_general == 'blood' and disease == 'normal'\"."
            )
            raise ValueError(msg) from error
        frames = [table.select(["soma_joinid", *keys]).to_pandas() for table in tables]
        if not sum(map(len, frames)):
            msg = f"CensusQuery: no cell fulfils {query.value_filter!r}. Loosen obs_value_filter."
            raise ValueError(msg)
        columns = {key: union_categoricals([pd.Categorical(frame[key]) for frame in frames]) for key in keys}
        found = pd.DataFrame({"soma_joinid": np.concatenate([frame["soma_joinid"] for frame in frames]), **columns})
        found = found.sort_values("soma_joinid", ignore_index=True)
        if query.max_cells is not None and len(found) > query.max_cells:
            chosen = np.random.default_rng(0).choice(len(found), query.max_cells, replace=False)
            found = found.iloc[np.sort(chosen)].reset_index(drop=True)
        return found

    @cached_property
    def var(self) -> pd.DataFrame:
        """Annotation of the genes: symbols as index, the Ensembl ids in `feature_id`."""
        table = self.experiment().ms["RNA"].var.read(column_names=["soma_joinid", "feature_id", "feature_name"])
        frame = table.concat().to_pandas().sort_values("soma_joinid")
        return pd.DataFrame({"feature_id": frame["feature_id"].to_numpy()}, index=pd.Index(frame["feature_name"]))

    @cached_property
    def digest(self) -> str:
        """Short hash of the ids of the cells: a release that has moved on gives another one."""
        return hashlib.blake2b(self.joinids.astype("<i8").tobytes(), digest_size=8).hexdigest()

    def names(self, start: int, stop: int) -> np.ndarray:
        """Names of the cells `start:stop`: their ids in the Census, str."""
        return self.joinids[start:stop].astype(str)

    def obs_texts(self, name: str, start: int, stop: int) -> np.ndarray:
        """Values `start:stop` of study or tissue as str; `nan` where there is none."""
        return np.asarray(self._obs[name].iloc[start:stop].astype(object)).astype(str)


class _CensusMatrix:
    """The counts of the cells of a query, read by rows."""

    def __init__(self, cells: CensusCells) -> None:
        self._cells = cells
        array = cells.experiment().ms["RNA"].X["raw"]
        self.shape = (cells.n_obs, array.shape[1])
        self.dtype = np.dtype(array.schema.field("soma_data").type.to_pandas_dtype())

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        start, stop, _ = rows.indices(self.shape[0])
        starts = range(start, max(stop, start + 1), _ROWS)
        return sparse.vstack([self._block(i, min(i + _ROWS, stop)) for i in starts], format="csr")

    def _block(self, start: int, stop: int) -> sparse.csr_matrix:
        ids = self._cells.joinids[start:stop]
        array = self._cells.experiment().ms["RNA"].X["raw"]
        tables = [table for table in array.read(coords=(ids, slice(None))).tables() if ids.size]
        cells, genes, values = (
            np.concatenate([np.zeros(0, dtype), *(table.column(name).to_numpy() for table in tables)]).astype(dtype)
            for name, dtype in (("soma_dim_0", np.int64), ("soma_dim_1", np.int64), ("soma_data", self.dtype))
        )
        shape = (stop - start, self.shape[1])
        return sparse.coo_matrix((values, (np.searchsorted(ids, cells), genes)), shape=shape).tocsr()
