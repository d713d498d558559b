"""Build the gene features that the package ships: factorised membership in GO and Reactome sets.

    python scripts/build_gene_features.py DATA_FOLDER

The data folder holds `knowledge/go_bp_2022.gmt.gz` (Gene Ontology, biological process) and
`knowledge/reactome_msigdb2023.gmt.gz` (Reactome as in MSigDB). Symbols are brought up to date by the gene table of the
package. The same input gives the same bytes. Writes the features and their card; half a minute on one core.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from scanpy_scgpt.tokenizer import GeneVocab, match_genes

PACKAGE = Path(__file__).parents[1] / "src/scanpy_scgpt"
OUT = PACKAGE / "datasets/gene_features.npz"
CARD = PACKAGE / "datasets/gene_features.md"
GENES = PACKAGE / "tokenizer/genes_human.tsv.gz"
N_FEATURES = 64
MIN_GENES = 5  # of a set
LICENCE = "CC BY 4.0"
SOURCES = {
    "go_bp_2022.gmt.gz": "Gene Ontology, biological process, release of July 2022 (GO.db and org.Hs.eg.db 3.16); "
    "Gene Ontology Consortium, CC BY 4.0, https://geneontology.org",
    "reactome_msigdb2023.gmt.gz": "Reactome pathways as in MSigDB of February 2023; Reactome, CC0 / CC BY 4.0, "
    "https://reactome.org; MSigDB, CC BY 4.0, https://www.gsea-msigdb.org",
}

METHOD = (
    "Membership of each gene in {n_sets:,} sets of {least} genes or more; a set weighted by the logarithm of (genes / "
    "size), a gene scaled to length 1, centred per set, factorised (truncated SVD to {n_features} components, as in "
    "latent semantic analysis)."
)


def read_sets(path: Path) -> dict[str, list[str]]:
    """Genes of each set of a gzipped GMT file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    return {f"{path.name}/{row[0]}/{row[1]}": [gene for gene in row[2:] if gene] for row in rows}


def membership(sets: dict[str, list[str]], symbols: Iterable[str]) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Which gene is in which set.

    Parameters
    ----------
    sets
        Names of the genes of each set, in any annotation release.
    symbols
        Current symbols.

    Returns
    -------
    Sorted current symbols of the genes that are in a set of `MIN_GENES` or more, shape `(n_genes,)`, and the matrix
    `(n_genes, n_sets)` of ones.
    """
    vocab = GeneVocab(dict.fromkeys(symbols))
    names = sorted({gene for genes in sets.values() for gene in genes})
    current = dict(zip(names, match_genes(names, vocab).ids, strict=True))
    ids = [np.unique([current[gene] for gene in genes if current[gene] >= 0]) for genes in sets.values()]
    ids = [of_set for of_set in ids if len(of_set) >= MIN_GENES]
    used = np.unique(np.concatenate(ids))
    used = used[np.argsort(np.array(vocab.tokens)[used])]
    row = pd.Series(np.arange(len(used)), index=used)
    indptr = np.concatenate([[0], np.cumsum([len(of_set) for of_set in ids])])
    rows = row[np.concatenate(ids)].to_numpy()
    matrix = sparse.csc_matrix((np.ones(len(rows)), rows, indptr), shape=(len(used), len(ids)))
    return np.array(vocab.tokens)[used], matrix.tocsr()


def factorise(matrix: sparse.csr_matrix, n_features: int) -> tuple[np.ndarray, float]:
    """Principal components of the weighted membership, as in latent semantic analysis.

    A set weighs the logarithm of `n_genes / size`; a gene's weights are scaled to length 1 and centred per set.

    Parameters
    ----------
    matrix
        Membership, shape `(n_genes, n_sets)`.
    n_features
        Number of components.

    Returns
    -------
    Components in falling order, shape `(n_genes, n_features)`, mean square 1 over all; and the share of the variance
    that they explain.
    """
    size = np.asarray(matrix.sum(axis=0)).ravel()
    x = matrix @ sparse.diags(np.log(matrix.shape[0] / size))
    length = np.sqrt(np.asarray(x.multiply(x).sum(axis=1)).ravel())
    x = sparse.diags(1 / np.maximum(length, np.finfo(float).tiny)) @ x
    mean = np.asarray(x.mean(axis=0)).ravel()
    centred = LinearOperator(
        x.shape, matvec=lambda v: x @ v - mean @ v, rmatvec=lambda u: x.T @ u - mean * u.sum(), dtype=x.dtype
    )
    start = np.random.default_rng(0).standard_normal(min(x.shape))
    left, strength, _ = svds(centred, k=n_features, v0=start)
    order = np.argsort(-strength)
    left, strength = left[:, order], strength[order]
    sign = np.sign(left[np.abs(left).argmax(axis=0), np.arange(n_features)])
    features = left * (strength * sign)
    explained = np.square(strength).sum() / (x.multiply(x).sum() - x.shape[0] * mean @ mean)
    return features / np.sqrt(np.square(features).mean()), float(explained)


def write_features(path: Path, genes: np.ndarray, features: np.ndarray, about: dict[str, object]) -> None:
    """Arrays `genes` (bytes), `features` (float16) and `about` (JSON text) in one `.npz` file without pickle."""
    arrays = {"genes": genes.astype(bytes), "features": features.astype(np.float16), "about": json.dumps(about)}
    np.savez_compressed(path, allow_pickle=False, **arrays)


def card(about: dict[str, object]) -> str:
    """What the features are, where they come from, under which licence."""
    sources = "\n".join(f"- {source}" for source in about["sources"])
    digests = "\n".join(f"- `{name}`: sha256 `{digest}`" for name, digest in about["sha256"].items())
    return f"""# Gene features

{about["n_features"]} numbers for each of {about["n_genes"]:,} human genes (current symbols): what the genes are known
to do, without any expression data. `scanpy_scgpt.datasets.gene_features()` reads them. Made by
`scripts/build_gene_features.py`.

## Method

{about["method"]}
The components explain {100 * about["explained_variance"]:.1f} % of the variance. Stored in half precision.

## Sources

{sources}

Files:

{digests}

## Licence

{about["licence"]}. Name the Gene Ontology Consortium, Reactome and MSigDB when you pass the features on. Changed
against the sources: symbols brought up to date, sets weighted and factorised.

## What they do not know

- Genes that are in no set: most non-coding genes, many poorly studied ones.
- Other species, cell types and tissues: membership is of genes alone.
- Well studied genes are in more sets; a short list of sets says little of a gene.
"""


def main() -> None:
    """Write the features and their card; the same input gives the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    paths = [parser.parse_args().data / "knowledge" / name for name in SOURCES]
    sets = {name: genes for path in paths for name, genes in read_sets(path).items()}
    symbols = pd.read_csv(GENES, sep="\t", dtype=str, na_filter=False)["symbol"]
    genes, matrix = membership(sets, symbols)
    features, explained = factorise(matrix, N_FEATURES)
    about = {
        "n_genes": len(genes),
        "n_features": N_FEATURES,
        "n_sets": matrix.shape[1],
        "method": METHOD.format(n_sets=matrix.shape[1], least=MIN_GENES, n_features=N_FEATURES),
        "explained_variance": round(explained, 4),
        "sources": list(SOURCES.values()),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
        "licence": LICENCE,
    }
    write_features(OUT, genes, features, about)
    CARD.write_text(card(about), encoding="utf-8")
    print(f"{len(genes):,} genes, {matrix.shape[1]:,} sets, {OUT.stat().st_size / 1e6:.2f} MB -> {OUT.name}")


if __name__ == "__main__":
    main()
