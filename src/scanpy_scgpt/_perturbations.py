"""A column of perturbations, read: which cells are controls, which genes each condition changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ._logging import get_logger
from ._perturbation_names import QUIET, STIMULI, Grammar, Spelled, is_control, plain, text_of
from ._validate import near_names

logger = get_logger(__name__)

CONTROL, NO_LABEL = -1, -2
CONTROL_NAME = "control"
FEW_CONTROLS = 20
_GENETIC = ("single", "combination")
_SHOWN = 8  # names in a message
_NEAR = 20  # unclear names for which the nearest genes are looked up


@dataclass(frozen=True, eq=False)
class Perturbations:
    """A column of perturbations, read.

    Attributes
    ----------
    conditions
        Canonical names without the control, in the order of the alphabet: `"A"`, `"A+B"`, `"dexamethasone"`.
    control
        Canonical name of the control.
    codes
        Condition of each cell, int32, shape `(n_cells,)`: its place in `conditions`; -1 for a control, -2 for a cell
        without a label.
    targets
        Genes that each condition changes; empty for a drug or a stimulus.
    modes
        `"CRISPRi"`, `"CRISPRa"`, `"ko"` or `""` for each condition, as far as its spellings say.
    spellings
        Preview: one row for each spelling of the column with `spelling`, `condition`, `targets` (genes joined by `+`),
        `n_cells`, `kind` (`control`, `single`, `combination`, `stimulus`, `unclear`, `missing`) and `note`.
    """

    conditions: tuple[str, ...]
    control: str
    codes: np.ndarray
    targets: tuple[tuple[str, ...], ...]
    modes: tuple[str, ...]
    spellings: pd.DataFrame

    @property
    def n_control(self) -> int:
        """Number of control cells."""
        return int((self.codes == CONTROL).sum())

    @property
    def n_cells(self) -> pd.Series:
        """Number of cells of each condition, int64, by its name."""
        known = self.codes[self.codes >= 0]
        sizes = np.bincount(known, minlength=len(self.conditions)).astype(np.int64)
        return pd.Series(sizes, index=pd.Index(self.conditions, name="condition"), name="n_cells")

    @property
    def target_table(self) -> dict[str, tuple[str, ...]]:
        """Genes of each condition, by its name."""
        return dict(zip(self.conditions, self.targets, strict=True))

    def take(self, rows: np.ndarray) -> Perturbations:
        """Perturbations of some of the cells (their places, or a mask); the conditions stay the same."""
        codes = self.codes[np.asarray(rows)]
        codes.flags.writeable = False
        return replace(self, codes=codes)

    def labels(self) -> pd.Categorical:
        """Canonical name of each cell, shape `(n_cells,)`; missing where there is no label."""
        names = [self.control, *self.conditions]
        return pd.Categorical.from_codes(np.where(self.codes == NO_LABEL, -1, self.codes + 1), categories=names)

    def describe(self) -> str:
        """What was found, in a few lines, with all that needs a look."""
        sizes, kinds = self.n_cells, self.spellings.drop_duplicates("condition")["kind"].value_counts()
        counted = ", ".join(f"{kinds[kind]} {kind}" for kind in (*_GENETIC, "stimulus", "unclear") if kind in kinds)
        lines = [
            f"{len(self.conditions)} conditions ({counted or 'none'}), {self.n_control:,} control cells, "
            f"{int((self.codes == NO_LABEL).sum()):,} cells without a label",
        ]
        if len(sizes):
            lines.append(f"cells per condition: {sizes.min():,} to {sizes.max():,}, median {int(sizes.median()):,}")
        looked = self.spellings.assign(note=self.spellings["note"].str.split("; ")).explode("note")
        looked = looked[~looked["note"].isin(["", "guide"])]
        for note, rows in looked.groupby("note", sort=False):
            lines.append(f"{note}: {_listed(rows['spelling'])}")
        return "\n".join(lines)


def parse_perturbations(
    column: pd.Series,
    *,
    control: str | Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
    targets: Mapping[str, Sequence[str]] | None = None,
    needs_control: bool = True,
) -> Perturbations:
    """Read a column of perturbations in any of the usual spellings.

    Understood are `A`, `A+B`, `A+ctrl`, `ctrl+A`, `A,B`, `A_B` (when both are genes of the cells or stand alone in the
    column); guides `sgA-1`, `A_g2`, `Ag2`, `A-1`, which are taken together by gene; `A_CRISPRi`, `A KO`; the columns
    `condition` and `condition_name` of GEARS and those of pertpy; `ctrl`, `control`, `non-targeting`, `NT` and
    the like for the control. Drugs and stimuli are conditions without a target.

    Parameters
    ----------
    column
        One text per cell; NaN, `unassigned` and the like are cells without a label.
    control
        Spelling, or spellings, of the control. By default every usual name of a control; names such as `untreated`,
        `DMSO` or `none` count only when there is no other.
    genes
        Symbols of the measured genes. A target that is none of them is kept and noted.
    targets
        Genes of spellings that the rules read otherwise; an empty one for a stimulus, such as `{"IFNG": ()}`.
    needs_control
        Whether a column without a control is an error; a table of effects has none.

    Returns
    -------
    The conditions, their genes and the code of each cell.

    Raises
    ------
    ValueError
        Without a control, without a condition, or when `control` or `targets` names a spelling that the column lacks.
    """
    codes, uniques = pd.factorize(pd.Series(column).astype(object), use_na_sentinel=True)
    names = [_text(value) for value in uniques]
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    controls = _controls(names, control, needed=needs_control)
    measured = frozenset(map(str, genes if genes is not None else ()))
    grammar = Grammar(measured, frozenset(names))
    given = _given(targets, names)
    read = [given.get(name) or (Spelled("control") if name in controls else _read(grammar, name)) for name in names]
    read = [given.get(name, one) for name, one in zip(names, _unclear(read, names, measured), strict=True)]
    conditions = _names(read, names)
    table = _preview(names, conditions, read, sizes, None if genes is None else measured)
    if (codes < 0).any():
        absent = {"spelling": "", "condition": "", "targets": "", "n_cells": int((codes < 0).sum())}
        table.loc[len(table)] = {**absent, "kind": "missing", "note": ""}
    return _assemble(codes, read, conditions, table, needs_control=needs_control)


def _text(value: object) -> str:
    """A value of the column as text; 0.0 is 0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _read(grammar: Grammar, name: str) -> Spelled:
    found = grammar.read(name)
    if (
        name not in grammar.genes
        and found.kind in {"single", "stimulus"}
        and (is_control(name) or plain(name) in QUIET)
    ):
        return Spelled("stimulus", (), (name,), notes=("could be a control: name it in control=",))
    return found


def _controls(names: list[str], control: str | Sequence[str] | None, *, needed: bool) -> set[str]:
    """Spellings of the control."""
    if control is not None:
        single = isinstance(control, str) or not isinstance(control, Iterable)
        wanted = [_text(one) for one in ([control] if single else control)]
        for name in wanted:
            if name not in names:
                near = near_names(name, names, cutoff=0.5)
                hint = f" Near: {_listed(near)}." if near else ""
                msg = f"control={name!r}: no cell has this name.{hint} The column has {_listed(names)}."
                raise ValueError(msg)
        return set(wanted)
    found = {name for name in names if is_control(name)} or {name for name in names if plain(name) in QUIET}
    if not found and needed:
        msg = (
            "There is no control: looked for names such as 'control', 'ctrl', 'non-targeting', 'NT', 'untreated' and "
            f"'DMSO'; the column has {_listed(names)}. Name it: control='...'."
        )
        raise ValueError(msg)
    return found


def _given(targets: Mapping[str, Sequence[str]] | None, names: list[str]) -> dict[str, Spelled]:
    """Spellings whose genes the user says."""
    found = {}
    for name, genes in {_text(key): genes for key, genes in (targets or {}).items()}.items():
        if name not in names:
            msg = f"targets: no cell has the name {name!r}. The column has {_listed(names)}."
            raise ValueError(msg)
        several = tuple(sorted((genes,) if isinstance(genes, str) else genes))
        kind = "stimulus" if not several else "single" if len(several) == 1 else "combination"
        found[name] = Spelled(kind, several, () if several else (name,))
    return found


def _unclear(read: list[Spelled], names: list[str], measured: frozenset[str]) -> list[Spelled]:
    """In a column of genes, a name that is none may be misspelled; the nearest genes are noted."""
    genetic = sum(found.kind in _GENETIC for found in read)
    others = [
        i for i, found in enumerate(read) if found.kind == "stimulus" and not found.notes and names[i] not in STIMULI
    ]
    known = sorted(measured | {gene for found in read for gene in found.genes})
    if genetic > len(others):
        for i in others:
            read[i] = replace(read[i], kind="unclear", notes=("no gene, no control: kept without a target",))
    for i in [i for i, found in enumerate(read) if found.kind == "unclear"][:_NEAR]:
        near = near_names((read[i].others or (names[i],))[0], known, cutoff=0.75)
        if near:
            read[i] = replace(read[i], notes=(*read[i].notes, f"near {', '.join(near)}"))
    return read


def _names(read: list[Spelled], names: list[str]) -> list[str]:
    """Canonical name of each spelling; with its mode where the column changes a gene in more than one way."""
    modes: dict[str, set[str]] = {}
    bare = []
    for found in read:
        bare.append(text_of(found.genes, found.others))
        if found.genes:
            modes.setdefault(bare[-1], set()).add(found.mode)
    out = []
    for found, name, spelling in zip(read, bare, names, strict=True):
        if found.kind in {"control", "missing"}:
            out.append(CONTROL_NAME if found.kind == "control" else "")
        elif found.mode and found.genes and len(modes[name]) > 1:
            out.append(f"{name} {found.mode}")
        else:
            out.append(name if name and found.genes else spelling.strip())
    return [
        f"{name} (condition)" if name == CONTROL_NAME and f.kind != "control" else name
        for name, f in zip(out, read, strict=True)
    ]


def _preview(
    names: list[str], conditions: list[str], read: list[Spelled], sizes: np.ndarray, measured: frozenset[str] | None
) -> pd.DataFrame:
    rows = []
    for name, condition, found, n in zip(names, conditions, read, sizes, strict=True):
        lacking = [gene for gene in found.genes if measured is not None and gene not in measured]
        notes = [*dict.fromkeys(found.notes)]
        if lacking:
            whole = len(lacking) == len(found.genes)
            notes.append("target not among the genes" + ("" if whole else f": {', '.join(lacking)}"))
        rows.append((name, condition, "+".join(found.genes), int(n), found.kind, "; ".join(notes)))
    return pd.DataFrame(rows, columns=["spelling", "condition", "targets", "n_cells", "kind", "note"])


def _assemble(
    codes: np.ndarray, read: list[Spelled], conditions: list[str], table: pd.DataFrame, *, needs_control: bool
) -> Perturbations:
    first = {
        name: found for name, found in zip(conditions, read, strict=True) if found.kind not in {"control", "missing"}
    }
    ordered = tuple(sorted(first))
    if not ordered:
        msg = f"There is no condition beside the control: the column has {_listed(table['spelling'])}."
        raise ValueError(msg)
    place = {name: i for i, name in enumerate(ordered)}
    own = [
        CONTROL if f.kind == "control" else place.get(name, NO_LABEL) for name, f in zip(conditions, read, strict=True)
    ]
    cells = np.append(np.array(own, dtype=np.int32), np.int32(NO_LABEL))[codes]
    cells.flags.writeable = False
    result = Perturbations(
        ordered,
        CONTROL_NAME,
        cells,
        tuple(first[name].genes for name in ordered),
        tuple(first[name].mode for name in ordered),
        table,
    )
    if needs_control and result.n_control < FEW_CONTROLS:
        logger.warning(
            "warning: %d control cells; an effect is a difference to their mean, and under %d it is mostly noise.",
            result.n_control,
            FEW_CONTROLS,
        )
    if (table["kind"] == "unclear").any():
        unclear = table.loc[table["kind"] == "unclear", "spelling"]
        logger.warning("warning: unclear spellings, kept without what is no gene: %s.", _listed(unclear))
    return result


def _listed(names: Sequence[str] | pd.Series) -> str:
    shown = [repr(str(name)) for name in list(names)[:_SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "") if shown else "nothing"
