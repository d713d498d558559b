"""What genes are known to do, as numbers."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pandas as pd


def gene_features() -> pd.DataFrame:
    """Features of human genes from Gene Ontology and Reactome: 64 numbers a gene, no expression data.

    Genes that share biological processes and pathways have similar features. They are the factorised membership of the
    genes in the sets of both collections, as in latent semantic analysis; `scripts/build_gene_features.py` makes them.
    The file is part of the package; nothing is downloaded.

    Returns
    -------
    Features, float32, shape `(n_genes, 64)`; the index holds current gene symbols, the columns `k0` to `k63` fall in
    strength, the mean square of all entries is 1. `.attrs` holds `method`, `sources`, `licence` (CC BY 4.0: name the
    sources when you pass the features on), `explained_variance`, and the digests of the source files.
    """
    with (
        (resources.files(__package__) / "gene_features.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        genes, values, about = stored["genes"].astype(str), stored["features"], json.loads(str(stored["about"]))
    columns = [f"k{i}" for i in range(values.shape[1])]
    table = pd.DataFrame(values.astype(np.float32), index=pd.Index(genes, name="gene"), columns=columns)
    table.attrs.update(about)
    return table
