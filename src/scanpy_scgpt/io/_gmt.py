"""Sets of genes on disk."""

from __future__ import annotations

import gzip
import os
from pathlib import Path


def read_gmt(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Sets of genes out of a GMT file: name, description, then genes, with tabs between them.

    Parameters
    ----------
    path
        File, also one that ends in `.gz`.

    Returns
    -------
    Genes by name of the set, in the order of the file.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it holds no set, or a line is none; the line is named.
    """
    path = Path(path).expanduser()
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *others = line.split("\t")
        if len(others) < 2:  # noqa: PLR2004 - a description and a gene
            msg = f"{path}, line {number}: {line[:40]!r} is no set: name, description, genes, with tabs "
            raise ValueError(msg + "between them.")
        genes = [gene for gene in (other.strip() for other in others[1:]) if gene]
        sets[name] = list(dict.fromkeys([*sets.get(name, []), *genes]))
    if not any(sets.values()):
        msg = f"{path} holds no gene set. A line is: name, description, genes, with tabs between them."
        raise ValueError(msg)
    return sets
