"""`tl.target_overlap`: known targets among the genes that an attention network puts first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt import metrics
from scanpy_scgpt._keys import UNS, AttentionKeys
from scanpy_scgpt._validate import check_anndata, check_one_of

if TYPE_CHECKING:
    from anndata import AnnData

BY = ("received", "exerted", "weight", "absolute", "z")


def target_overlap(
    adata: AnnData,
    targets: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    source: str | None = None,
    by: str | None = None,
    groups: Sequence[str] | str | None = None,
    n_top: Sequence[int] = (20, 100),
    key: str | None = None,
) -> pd.DataFrame:
    """Known targets among the first genes of each network, beside chance.

    Parameters
    ----------
    adata
        After :func:`attention_network`.
    targets
        Known targets; or such a list for each group, by its name.
    source
        Rank the targets of this gene; without one all genes, by what they have to do with all others.
    by
        Of a source: `"weight"` (the default), `"absolute"` weight, or absolute `"z"` of its edges. Without one:
        `"received"` (the default) or `"exerted"`, as in `.uns["scgpt_grn_influence"]`; a gene of the name of the group,
        which was perturbed itself, is left out.
    groups
        Networks; all by default.
    n_top
        Numbers of first genes.
    key
        The `key_added` of the network.

    Returns
    -------
    The table of :func:`scanpy_scgpt.metrics.target_overlap` for each group: columns `group`, `n_top`, ...

    Raises
    ------
    KeyError
        When there is no such network.
    ValueError
        For a group or gene that is not there, `by` without what it needs, or targets that are not among the genes.
    """
    check_anndata(adata, function="tl.target_overlap")
    keys = AttentionKeys.named(key)
    record = adata.uns.get(UNS, {}).get(keys.uns, {})
    if record.get("method") == "embedding" or "genes" not in record or keys.influence not in adata.uns:
        msg = f"adata has no attention network {keys.edges!r}. Make it first: scgpt.tl.attention_network(adata, ...)."
        raise KeyError(msg)
    by = by or ("received" if source is None else "weight")
    check_one_of(by, BY[:2] if source is None else BY[2:], name="by")
    there = [str(name) for name in record["groups"]]
    groups = there if groups is None else [groups] if isinstance(groups, str) else list(map(str, groups))
    for group in groups:
        check_one_of(group, there, name="a group of the network")
    tables = []
    for group in groups:
        wanted = targets
        if isinstance(targets, Mapping):
            check_one_of(group, targets, name="a list of targets")
            wanted = targets[group]
        ranked = _ranked(adata, record, keys, group, there.index(group), source, by)
        table = metrics.target_overlap(ranked, wanted, n_top=n_top).reset_index()
        table.insert(0, "group", group)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _ranked(
    adata: AnnData, record: Mapping[str, Any], keys: AttentionKeys, group: str, number: int, source: str | None, by: str
) -> list[str]:
    """Genes, best first."""
    if source is None:
        table = adata.uns[keys.influence]
        table = table[(table["group"].astype(str) == group) & (table["gene"].astype(str) != group)]
        return table.sort_values(by, ascending=False, kind="stable")["gene"].astype(str).tolist()
    genes = np.asarray(record["genes"], dtype=object)
    check_one_of(source, genes.tolist(), name="source")
    kind = "z" if by == "z" else "weights"
    if kind not in record:
        msg = (
            f"The network was made without the {kind} of all edges, by={by!r} needs them. Make it anew: "
            "scgpt.tl.attention_network(adata, matrices=True, legacy=False, ...)."
        )
        raise ValueError(msg)
    row = np.asarray(record[kind])[number, int(np.flatnonzero(genes == source)[0])]
    order = np.argsort(-(row if by == "weight" else np.abs(row)), kind="stable")
    return [str(gene) for gene in genes[order] if gene != source]
