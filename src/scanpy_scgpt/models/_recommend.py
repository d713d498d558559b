"""Which checkpoint fits the cells, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scanpy_scgpt._counts import ENSEMBL_COLUMNS, SYMBOL_COLUMNS
from scanpy_scgpt._settings import settings
from scanpy_scgpt._validate import check_anndata, check_key
from scanpy_scgpt.tokenizer import GeneVocab, match_genes

from . import _records
from ._catalogue import BUNDLED, ORIGINALS, bundled_folder, get_line
from ._zoo import info_of

if TYPE_CHECKING:
    from anndata import AnnData

TISSUE_COLUMNS = ("tissue_general", "tissue", "organ")
_DISEASE = "disease"
_CANCER, _WHOLE, _CONTINUAL = "pan-cancer", "whole-human", "continual"
_MOST = 0.5  # share of the cells that must be of a tissue
_SAME_SPECIES = 0.2  # share of the genes that a human vocabulary has of human data, at the least
_MANY_CELLS = 100_000
_UNKNOWN = "unknown"  # tissue of cells whose files name none


def recommend(adata: AnnData, *, tissue_key: str | None = None, gene_symbols: str | None = None) -> pd.DataFrame:
    """Which checkpoints fit the cells, the best first, with the reason.

    By the tissue and disease that `obs` names, by how many genes are in the vocabulary, and by what is on this machine.
    It is advice from what the models were trained on, no measurement: compare on your cells, with PCA too
    (:func:`scanpy_scgpt.baselines.embed_pca`). Nothing is downloaded and nothing is written.

    Parameters
    ----------
    adata
        Cells. Only `obs`, `var` and the number of cells are looked at.
    tissue_key
        Column of `obs` with the tissue; by default the first of `tissue_general`, `tissue`, `organ`.
    gene_symbols
        Column of `var` with the names of the genes, when `var_names` are something else.

    Returns
    -------
    A table whose index are names, the best first, with the columns `reason`, `local` (whether it is on this machine),
    `gene_match` (share of the genes of the data that its vocabulary has; missing where it is not local) and `how` (the
    line that uses or gets it).

    Raises
    ------
    TypeError
        When `adata` is no AnnData.
    KeyError
        When there is no such column.
    """
    check_anndata(adata, function="models.recommend")
    shares = _gene_shares(adata, gene_symbols)
    human = max(shares[name] for name in BUNDLED) >= _SAME_SPECIES
    reasons = _for_humans(adata, tissue_key) if human else {}
    own = sorted(set(shares) - {*BUNDLED, *ORIGINALS}, key=lambda name: -shares[name])
    reasons.update({name: "a model of yours" for name in own if shares[name] >= _SAME_SPECIES})
    if human:
        reasons.update(dict.fromkeys(BUNDLED, _bundled_reason()))
    else:
        lost = ", ".join(map(repr, adata.var_names[:3]))
        reasons[_WHOLE] = (
            f"the originals know human genes, and few of these ({lost}, ...) are: rename them to their human "
            "orthologs, or train a model with their own vocabulary, scgpt.pretrain.run"
        )
    rows = [(name, reason, name in shares, shares.get(name), _how(name, shares)) for name, reason in reasons.items()]
    columns = ["name", "reason", "local", "gene_match", "how"]
    return pd.DataFrame(rows, columns=columns).set_index("name").astype({"gene_match": float})


def better_than_default(adata: AnnData | None = None) -> str | None:
    """What to say beside a result of the bundled model: which checkpoint would fit better, and the line for it.

    Parameters
    ----------
    adata
        Cells whose `obs` may name their tissue; None where there is none at hand.

    Returns
    -------
    A phrase for a receipt; None when the default is another model (`settings.model`).
    """
    if os.fspath(settings.model) not in BUNDLED:
        return None
    name, _ = _by_tissue(adata, None) if adata is not None else (None, "")
    name = name or _WHOLE
    how = f"model={name!r}" if _records.find(name) else get_line(name)
    return f"{settings.model} is a demonstration; better for results: {name}, {ORIGINALS[name].trained_on} ({how})"


def _how(name: str, shares: dict[str, float]) -> str:
    return f"scgpt.tl.embed(adata, {name!r})" if name in shares else get_line(name)


def _bundled_reason() -> str:
    return f"in the package, for trying out: a small network, {_training(info_of(bundled_folder(BUNDLED[0])))}"


def _training(info: Mapping[str, Any]) -> str:
    """What a model of this package was trained on, as far as its record says."""
    text = f"trained on {info['n_training_cells']:,} cells"
    if info.get("studies"):
        text += f" of {len(info['studies']):,} studies"
    tissues = {name: n for name, n in info.get("tissues", {}).items() if name != _UNKNOWN}
    top = max(tissues, key=tissues.__getitem__, default="")
    return f"{text}, most of them {top}" if tissues.get(top, 0) > _MOST * info["n_cells"] else text


def _gene_shares(adata: AnnData, gene_symbols: str | None) -> dict[str, float]:
    """Share of the genes of the data that the vocabulary of each model on this machine has."""
    if gene_symbols is not None:
        check_key(adata.var, gene_symbols, where="adata.var")
    usual = SYMBOL_COLUMNS + ENSEMBL_COLUMNS if gene_symbols is None else (gene_symbols,)
    columns = {name: adata.var[name].astype(str) for name in usual if name in adata.var}
    vocabularies = {name: bundled_folder(name) / "vocab.json" for name in BUNDLED}
    for name, record in _records.known().items():
        vocabularies[name] = Path(record.vocab or Path(record.folder) / "vocab.json")
    return {
        name: match_genes(adata.var_names, GeneVocab.read(path), columns=columns).n_matched / max(adata.n_vars, 1)
        for name, path in vocabularies.items()
        if path.is_file()
    }


def _for_humans(adata: AnnData, tissue_key: str | None) -> dict[str, str]:
    """Originals that fit, with the reason."""
    name, why = _by_tissue(adata, tissue_key)
    reasons = {}
    if name is not None:
        reasons[name] = f"{why}, and it was trained on {_cells(name)}{ORIGINALS[name].trained_on}"
        why = "for comparison"
    many = f"; {adata.n_obs:,} cells are many: compare with training on them, scgpt.pretrain.run"
    many = many if adata.n_obs >= _MANY_CELLS else ""
    reasons[_WHOLE] = f"{why}: {_cells(_WHOLE)}{ORIGINALS[_WHOLE].trained_on}, recommended by its authors{many}"
    reasons[_CONTINUAL] = ORIGINALS[_CONTINUAL].trained_on
    return reasons


def _cells(name: str) -> str:
    cells = ORIGINALS[name].cells
    return "" if cells is None else f"{cells:,} "


def _by_tissue(adata: AnnData, tissue_key: str | None) -> tuple[str | None, str]:
    """The original of the tissue that most cells are of, and the reason; None with the reason why there is none."""
    if tissue_key is not None:
        check_key(adata.obs, tissue_key, where="adata.obs")
    keys = [key for key in ((tissue_key,) if tissue_key else TISSUE_COLUMNS) if key in adata.obs]
    candidates = {_CANCER: ORIGINALS[_CANCER], **ORIGINALS}  # a tumour of the lung is a tumour first
    for key in [*[key for key in (_DISEASE,) if key in adata.obs], *keys[:1]]:
        counts = adata.obs[key].value_counts()
        for name, original in candidates.items():
            if not original.tissues or (key == _DISEASE and name != _CANCER):
                continue
            of_it = counts[counts.index.astype(str).str.lower().str.contains(original.tissues)]
            share = of_it.sum() / max(adata.n_obs, 1)
            if share > _MOST:
                return name, f"obs[{key!r}] says {', '.join(map(repr, of_it.index[:2]))} for {share:.0%} of the cells"
    if not keys:
        return None, f"obs names no tissue ({', '.join(TISSUE_COLUMNS)})"
    top = ", ".join(map(repr, adata.obs[keys[0]].value_counts().index[:3]))
    return None, f"no original is of the tissues of obs[{keys[0]!r}] ({top}) alone"
