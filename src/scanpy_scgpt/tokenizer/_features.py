"""Tokens of proteins and of peaks: one spelling for each, and peaks matched by overlap."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from scanpy_scgpt._modalities import KINDS, PEAK

PROTEIN_PREFIX = "p_"
"""Start of the token of a protein, as in the original: `p_CD3`."""
_SUFFIX = re.compile(r"[_-]TotalSeq[-_]?[ABC]?$|_TotalA$|-ADT$|_PROT$", re.IGNORECASE)  # what vendors append
_OWN = re.compile(r"^chr[^:]+:[0-9]+-[0-9]+$")


def protein_tokens(names: Sequence[str]) -> list[str]:
    """Tokens of proteins: the name without what vendors append, after `p_`; a name that repeats then keeps its own."""
    names = [str(name) for name in names]
    short = [_SUFFIX.sub("", name.removeprefix(PROTEIN_PREFIX)) for name in names]
    counts: dict[str, int] = {}
    for name in short:
        counts[name] = counts.get(name, 0) + 1
    return [PROTEIN_PREFIX + (s if counts[s] == 1 else name) for s, name in zip(short, names, strict=True)]


def peak_tokens(names: Sequence[str]) -> list[str | None]:
    """Tokens of peaks, `chr1:10-20` whatever the spelling; None for a name that is no peak."""
    found = (PEAK.match(str(name)) for name in names)
    return [None if x is None else f"chr{_chromosome(x[1])}:{x[2]}-{x[3]}" for x in found]


def _chromosome(name: str) -> str:
    name = name.upper() if len(name) <= 2 else name
    return "M" if name == "MT" else name


def kinds_of_tokens(tokens: Sequence[str]) -> np.ndarray:
    """Code of the kind of each token, int64: its place in :data:`scanpy_scgpt._modalities.KINDS`."""
    codes = np.zeros(len(tokens), dtype=np.int64)
    for i, token in enumerate(tokens):
        if token.startswith(PROTEIN_PREFIX):
            codes[i] = KINDS.index("protein")
        elif _OWN.match(token):
            codes[i] = KINDS.index("atac")
    return codes


def match_peaks(found: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """For each peak the known peak that it overlaps most.

    Parameters
    ----------
    found, known
        Tokens of peaks.

    Returns
    -------
    Positions among `known`, int64, shape `(len(found),)`; -1 without any overlap.
    """
    place = {token: i for i, token in enumerate(known)}
    out = np.asarray([place.get(token, -1) for token in found], dtype=np.int64)
    if (out >= 0).all() or not len(known):
        return out
    there, own = _intervals(known), _intervals(found)
    for name in np.unique(own["chromosome"][out < 0]):
        rows = np.flatnonzero((own["chromosome"] == name) & (out < 0))
        candidates = np.flatnonzero(there["chromosome"] == name)
        if len(candidates):
            out[rows] = _best(own[rows], there[candidates], candidates)
    return out


def _intervals(tokens: Sequence[str]) -> np.ndarray:
    parts = [re.split("[:-]", token) for token in tokens]
    kind = [("chromosome", "U32"), ("start", np.int64), ("end", np.int64)]
    return np.asarray([(x[0], int(x[1]), int(x[2])) for x in parts], dtype=kind)


def _best(own: np.ndarray, there: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Of each interval the position of the one that it overlaps most; -1 for none. All are of one chromosome."""
    order = np.argsort(there["start"], kind="stable")
    there, positions = there[order], positions[order]
    longest = int((there["end"] - there["start"]).max())
    first = np.searchsorted(there["start"], own["start"] - longest, side="left")
    last = np.searchsorted(there["start"], own["end"], side="left")
    n = last - first
    row = np.repeat(np.arange(len(own)), n)
    candidate = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first, n)
    shared = np.minimum(own["end"][row], there["end"][candidate]) - np.maximum(
        own["start"][row], there["start"][candidate]
    )
    best = np.full(len(own), -1, dtype=np.int64)
    order = np.lexsort([-candidate, shared])  # the largest comes last and stays; of equal ones the first
    order = order[shared[order] > 0]
    best[row[order]] = positions[candidate[order]]
    return best
