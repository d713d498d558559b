"""Groups of genes: nearest neighbours of their vectors, then Leiden."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import anndata as ad
import numpy as np
import pandas as pd

_STEPS = 6  # of the search for a resolution
_RANGE = 4.0  # times lower and higher


class GeneGraph:
    """The graph of nearest neighbours of genes, by Euclidean distance, weighted as scanpy does.

    Parameters
    ----------
    vectors
        Shape `(n_genes, d)`, without NaN.
    names
        Names of the genes.
    n_neighbors
        Neighbours of each gene.
    seed
        Seed of the graph and of Leiden.
    """

    def __init__(self, vectors: np.ndarray, names: Sequence[str], *, n_neighbors: int, seed: int) -> None:
        import scanpy as sc

        self._seed = seed % 2**31
        self._cells = ad.AnnData(np.asarray(vectors, dtype=np.float32), obs=pd.DataFrame(index=pd.Index(names)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sc.pp.neighbors(self._cells, n_neighbors=n_neighbors, use_rep="X", random_state=self._seed)

    def clusters(self, resolution: float) -> list[list[str]]:
        """Genes of each cluster of Leiden, the largest first."""
        import scanpy as sc

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = {"flavor": "leidenalg", "random_state": self._seed, "key_added": "cluster"}
            sc.tl.leiden(self._cells, resolution=resolution, **settings)
        codes = self._cells.obs["cluster"].cat.codes.to_numpy()
        names = self._cells.obs_names.to_numpy(dtype=object)
        order = np.argsort(codes, kind="stable")
        parts = np.split(names[order], np.cumsum(np.bincount(codes))[:-1])
        return sorted((list(part) for part in parts), key=len, reverse=True)

    def matched(self, sizes: Sequence[int], resolution: float, *, min_size: int) -> list[list[str]]:
        """Clusters at the resolution that gives programs as many and as large as those given.

        Parameters
        ----------
        sizes
            Sizes of the programs to match.
        resolution
            Where they are from; the search goes from a quarter of it to four times it.
        min_size
            Fewest genes of a program.
        """
        wanted, best = program_mates(sizes), (np.inf, [])
        low, high = np.log(resolution / _RANGE), np.log(resolution * _RANGE)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            found = self.clusters(float(np.exp(middle)))
            mates = program_mates([len(genes) for genes in found if len(genes) >= min_size])
            best = min(best, (abs(np.log(mates / wanted)), found), key=lambda one: one[0])
            low, high = (middle, high) if mates > wanted else (low, middle)
        return best[1]


def program_mates(sizes: Sequence[int]) -> float:
    """Sum over genes of the size of their program: falls as programs get smaller, and as fewer genes are in one."""
    return max(float((np.asarray(sizes, dtype=np.float64) ** 2).sum()), 1.0)


def programs_of(
    graph: GeneGraph, resolutions: Sequence[float], *, min_size: int
) -> tuple[dict[str, list[str]], dict[str, float], dict[float, list[int]]]:
    """Programs by name, the resolution of each, and the sizes of all clusters at each resolution."""
    programs: dict[str, list[str]] = {}
    of: dict[str, float] = {}
    sizes: dict[float, list[int]] = {}
    for resolution in resolutions:
        found = graph.clusters(resolution)
        sizes[resolution] = [len(genes) for genes in found]
        for i, genes in enumerate(genes for genes in found if len(genes) >= min_size):
            programs[program_name(resolution, i)], of[program_name(resolution, i)] = genes, resolution
    return programs, of, sizes


def program_name(resolution: float, number: int) -> str:
    """Name of a program, such as `r40_p3`."""
    return f"r{resolution:g}_p{number}"


def as_table(programs: Mapping[str, Sequence[str]], of: Mapping[str, float]) -> pd.DataFrame:
    """A row for each gene of each program: `program`, `resolution`, `gene`."""
    rows = [(name, float(of[name]), gene) for name, genes in programs.items() for gene in genes]
    table = pd.DataFrame(rows, columns=["program", "resolution", "gene"])
    return table.astype({"program": object, "resolution": float, "gene": object})
