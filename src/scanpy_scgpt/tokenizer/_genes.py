"""Names of genes to vocabulary ids, with a report of what was matched how and what was lost. No AnnData."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ._vocab import GeneVocab

_ENSEMBL = r"^ENSG0*(\d+)(?:\.\d+)?(?:_PAR_Y)?$"
_NULL_NAMES = frozenset({"", "nan", "none", "null", "na", "<na>"})
HOW = ("symbol", "column", "ensembl", "alias", "none")


class GeneMatchError(ValueError):
    """Too few genes of the data are in the vocabulary."""


class GeneTable:
    """Ensembl ids, symbols and former names of genes.

    Parameters
    ----------
    table
        Data frame with the columns `ensembl` (`ENSG...` or its number), `symbol`, and, when there, `aliases`
        (joined by a bar).
    """

    def __init__(self, table: pd.DataFrame) -> None:
        missing = {"ensembl", "symbol"} - set(table.columns)
        if missing:
            msg = (
                f"The gene table has no column {sorted(missing)[0]!r}; it needs 'ensembl' and 'symbol' "
                f"(and may have 'aliases'). Columns: {', '.join(map(str, table.columns))}."
            )
            raise ValueError(msg)
        numbers = ensembl_numbers(table["ensembl"].astype(str).map(lambda x: x if x.startswith("ENSG") else f"ENSG{x}"))
        self._row_of_ensembl = pd.Series(np.arange(len(table)), index=numbers)
        self._row_of_ensembl = self._row_of_ensembl[~self._row_of_ensembl.index.duplicated()]
        self._symbols = table["symbol"].astype(str).to_numpy()
        aliases = table["aliases"].astype(str) if "aliases" in table else pd.Series("", index=table.index)
        other = aliases.str.split("|").explode()
        rows = np.repeat(np.arange(len(table)), aliases.str.count(r"\|") + 1)
        other = pd.DataFrame({"name": other.to_numpy(), "row": rows, "symbol": self._symbols[rows]})
        other = other[(other["name"] != "") & ~other["name"].isin(self._symbols)]  # the name of a gene is that gene's
        other = other[other.groupby("name")["symbol"].transform("nunique") == 1]  # an alias of two genes is neither's
        own = pd.DataFrame({"name": self._symbols, "row": np.arange(len(table))})
        self._other = other[["name", "row"]].drop_duplicates()
        self._names = pd.concat([own, self._other], ignore_index=True)

    @classmethod
    def read(cls, path: str | Path) -> GeneTable:
        """Gene table from a tab-separated file (may be gzipped)."""
        return cls(pd.read_csv(path, sep="\t", dtype=str, na_filter=False))

    def _ids_of_rows(self, vocab: GeneVocab) -> pd.Series:
        """Vocabulary id of each row: its symbol, else the one of its other names that the vocabulary has."""
        by_symbol = vocab.ids(self._symbols)
        named = self._other.assign(id=vocab.ids(self._other["name"]))
        others = named[named["id"] >= 0].groupby("row")["id"].agg(["first", "nunique"])
        only = others.loc[others["nunique"] == 1, "first"]
        return pd.Series(by_symbol).where(by_symbol >= 0, only.reindex(range(len(by_symbol)), fill_value=-1))

    def ids_of_ensembl(self, numbers: np.ndarray, vocab: GeneVocab) -> np.ndarray:
        """Vocabulary ids of Ensembl numbers (-1: no such gene), shape `(n,)`, int64."""
        rows = self._row_of_ensembl.reindex(numbers, fill_value=-1).to_numpy()
        return np.where(rows >= 0, self._ids_of_rows(vocab).to_numpy()[rows], -1)

    def ids_of_aliases(self, names: Sequence[str], vocab: GeneVocab) -> np.ndarray:
        """Vocabulary ids of former names that mean exactly one gene, shape `(n,)`, int64; -1 otherwise."""
        wanted = self._names[self._names["name"].isin(set(names))]
        ids = self._ids_of_rows(vocab).to_numpy()[wanted["row"]]
        known = pd.DataFrame({"name": wanted["name"].to_numpy(), "id": ids})
        known = known[known["id"] >= 0].groupby("name")["id"].agg(["first", "nunique"])
        only = known.loc[known["nunique"] == 1, "first"]
        return only.reindex(list(names), fill_value=-1).to_numpy(dtype=np.int64)


@cache
def shipped_gene_table() -> GeneTable:
    """The human gene table of the package (GENCODE names and Ensembl ids, NCBI Gene aliases)."""
    with resources.as_file(resources.files(__package__) / "genes_human.tsv.gz") as path:
        return GeneTable.read(path)


def ensembl_numbers(names: Sequence[str] | pd.Series) -> np.ndarray:
    """Number of each Ensembl gene id with any version stripped, -1 for other names; int64."""
    found = pd.Series(names, dtype=str).str.extract(_ENSEMBL, expand=False)
    return pd.to_numeric(found).fillna(-1).astype(np.int64).to_numpy()


@dataclass(frozen=True)
class GeneMatch:
    """What each gene of the data became.

    Attributes
    ----------
    names
        Names of the genes as the data has them, shape `(n_vars,)`.
    ids
        Vocabulary ids, -1 where a gene was not found; int64, shape `(n_vars,)`.
    how
        One of `symbol`, `column`, `ensembl`, `alias`, `none` per gene.
    vocab_size
        Number of genes of the vocabulary.
    """

    names: np.ndarray
    ids: np.ndarray
    how: np.ndarray
    vocab_size: int

    @cached_property
    def n_matched(self) -> int:
        """Number of genes of the data that have an id."""
        return int((self.ids >= 0).sum())

    @cached_property
    def digest(self) -> str:
        """Short hash of the ids, the same for the same genes in the same columns."""
        return hashlib.blake2b(self.ids.astype("<i8").tobytes(), digest_size=8).hexdigest()

    @cached_property
    def n_null(self) -> int:
        """Number of genes without a name."""
        return sum(_named(x) == "" for x in self.names)

    @cached_property
    def duplicates(self) -> list[str]:
        """Names of genes that share their id with an earlier gene; their values are summed."""
        known = pd.Series(self.ids).where(self.ids >= 0)
        return [str(x) for x in self.names[(known.duplicated() & known.notna()).to_numpy()]]

    def among(self, names: Sequence[str]) -> GeneMatch:
        """The match for other genes by name (`var` where the counts are those of `raw`); itself for the same names."""
        names = pd.Index(names)
        if names.equals(pd.Index(self.names)):
            return self
        first = pd.Series(np.arange(len(self.ids)), index=self.names)
        at = first[~first.index.duplicated()].reindex(names, fill_value=-1).to_numpy()
        ids, how = (np.where(at >= 0, values[at], none) for values, none in ((self.ids, -1), (self.how, "none")))
        return GeneMatch(names.to_numpy(dtype=object), ids, how, self.vocab_size)

    def report(self) -> dict[str, Any]:
        """Plain counts and examples, as kept in `.uns`."""
        lost = [str(x) for x in self.names[self.ids < 0][:10]]
        counts = {f"n_{how}": int((self.how == how).sum()) for how in HOW}
        return {
            "n_genes": len(self.names),
            "n_matched": self.n_matched,
            **counts,
            "n_null_names": self.n_null,
            "n_duplicates": len(self.duplicates),
            "duplicates": self.duplicates[:10],
            "not_matched": lost,
        }

    def warning(self) -> str | None:
        """What to say when only few of the genes are known, else `None`."""
        share = self.n_matched / max(len(self.names), 1)
        if share >= _FEW or not len(self.names):
            return None
        lost = ", ".join(map(repr, self.report()["not_matched"][:3]))
        return (
            f"only {100 * share:.0f} % of the genes are in the vocabulary; expect less from the model. "
            f"First names without a match: {lost}."
        )

    def summary(self) -> str:
        """One phrase, such as `17,903/19,201 genes matched (412 via Ensembl id, 96 via alias)`."""
        ways = {"column": "a column", "ensembl": "Ensembl id", "alias": "alias"}
        via = [f"{n:,} via {ways[how]}" for how in ways if (n := int((self.how == how).sum()))]
        if self.duplicates:
            via.append(f"{len(self.duplicates):,} duplicated and summed")
        if self.n_null:
            via.append(f"{self.n_null:,} without a name")
        return f"{self.n_matched:,}/{len(self.names):,} genes matched" + (f" ({', '.join(via)})" if via else "")


_FEW = 0.6  # share of matched genes below which a warning is given


def match_genes(
    names: Sequence[str],
    vocab: GeneVocab,
    *,
    columns: Mapping[str, Sequence[str]] | None = None,
    gene_table: GeneTable | None = None,
    among: np.ndarray | None = None,
) -> GeneMatch:
    """Find the vocabulary id of every gene.

    Each gene is tried in turn as exact token, through the columns that the data has (symbols, or Ensembl ids), as
    Ensembl id with its version stripped, and as former name or alias where that names one gene only.

    Parameters
    ----------
    names
        Names of the genes, shape `(n_vars,)`.
    vocab
        Vocabulary to match against.
    columns
        Further names of the same genes, such as a symbol column; each of shape `(n_vars,)`.
    gene_table
        Ensembl ids and aliases; by default the human table of the package, read only when needed.
    among
        Which of them are genes at all, bool, shape `(n_vars,)`; all by default. The others match nothing.

    Returns
    -------
    The match, in the order of `names`.
    """
    names = np.asarray(names, dtype=object)
    genes = np.ones(len(names), dtype=bool) if among is None else among
    given = (names, *(np.asarray(column, dtype=object) for column in (columns or {}).values()))
    sources = [[_named(x) if is_gene else "" for x, is_gene in zip(column, genes, strict=True)] for column in given]
    ids, how = vocab.ids(sources[0]), np.full(len(names), "none", dtype=object)
    how[ids >= 0] = "symbol"

    def fill(found: np.ndarray, way: str) -> None:
        new = (ids < 0) & (found >= 0)
        ids[new], how[new] = found[new], way

    for column in sources[1:]:
        fill(vocab.ids(column), "column")
    if (ids < 0).any():
        table = gene_table or shipped_gene_table()
        for source in sources:
            numbers = ensembl_numbers(source)
            if (numbers >= 0).any():
                fill(table.ids_of_ensembl(numbers, vocab), "ensembl")
        for source in sources:
            found = table.ids_of_aliases(source, vocab)
            taken = np.isin(found, ids[ids >= 0])  # the gene itself is in the data: the alias means another one
            fill(np.where(taken, -1, found), "alias")
    return GeneMatch(names, ids, how, vocab_size=len(vocab.genes))


def _named(name: object) -> str:
    """The name as text; empty where it stands for no name."""
    text = str(name)
    return "" if text.lower() in _NULL_NAMES else text


def require_enough(
    match: GeneMatch, vocab: GeneVocab, *, min_genes: int, else_: str = "A small panel passes with min_genes=."
) -> None:
    """Refuse data of which too few genes are known.

    Parameters
    ----------
    match
        What the genes of the data became.
    vocab
        Vocabulary that they were matched against.
    min_genes
        Fewest genes that are needed.
    else_
        What to do when the names are right.

    Raises
    ------
    GeneMatchError
        When fewer than `min_genes` genes were matched; the text says what the names look like.
    """
    n_distinct = np.unique(match.ids[match.ids >= 0]).size
    lost = [name for name in map(_named, match.names[match.ids < 0]) if name]
    if n_distinct >= max(min_genes, 1) and not (n_distinct < _FEW * len(match.names) and _mouse_like(lost, vocab)):
        return
    msg = (
        f"{n_distinct:,} of {len(match.names):,} genes are in the vocabulary of {match.vocab_size:,} genes, "
        f"at least {max(min_genes, 1):,} are needed. "
    )
    if lost:
        msg += f"First names without a match: {', '.join(map(repr, lost[:3]))}. {_advice(lost, vocab, else_)}"
    else:
        msg += f"It is a small panel: allow it with min_genes={n_distinct}."
    raise GeneMatchError(msg)


def _mouse_like(lost: list[str], vocab: GeneVocab) -> bool:
    """Many names without a match would match in capitals."""
    sample = lost[:500]
    return bool(sample) and np.mean([name.upper() in vocab for name in sample]) > 0.3


def _advice(lost: list[str], vocab: GeneVocab, else_: str) -> str:
    if any(name.startswith("ENSMUSG") for name in lost[:500]):
        return "These are mouse Ensembl ids and the vocabulary is human: rename the genes to their human orthologs."
    if lost and np.mean([name.isdigit() for name in lost[:500]]) > 0.9:
        return "These are numbers, not names: set them with adata.var_names = adata.var['<column with symbols>']."
    if _mouse_like(lost, vocab):
        return (
            "They would match in capitals, so they look like mouse symbols and the vocabulary is human: rename the "
            "genes to their human orthologs (right for most: adata.var_names = adata.var_names.str.upper())."
        )
    near = difflib.get_close_matches(lost[0], vocab.genes, n=1) if lost else []
    hint = f" ({lost[0]!r} is close to {near[0]!r})" if near else ""
    return (
        f"Give gene symbols or Ensembl ids as adata.var_names, or name the column that holds them: "
        f"gene_symbols='<column>'{hint}. The vocabulary has names such as {', '.join(map(repr, vocab.genes[:3]))}. "
        f"{else_}"
    )
