"""How perturbations are spelled: one text in, its genes and its kind out."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

MISSING = frozenset({"", "nan", "na", "n/a", "<na>", "unassigned", "unknown", "multiplet", "doublet", "ambiguous"})
# Without case and separators; a number may follow. The second set counts only where the column has none of the first.
CONTROLS = re.compile(
    r"(?:(?:crispr[iako]*|sg|k562|rpe1|a549)?"
    r"(?:ctrl|controls?|no(?:n)?target(?:ing|s)?(?:control|ctrl)?|nt|ntc|ntg|neg(?:ative)?(?:ctrl|control)|neg|"
    r"scrambled?|safe(?:target(?:ing)?|harbou?r)?|aavs1|rosa26|lacz|e?gfp|mcherry|luciferase|intergenic))"
    r"(?:(?:sg|g|guide|grna|sgrna)?\d+)*"
)
QUIET = frozenset({
    "none", "unperturbed", "untreated", "unstimulated", "unstim", "vehicle", "dmso", "mock", "wt", "wildtype", "pbs",
    "resting", "baseline", "empty", "0", "0h", "nostimulus", "notreatment", "healthy", "normal", "negative",
})  # fmt: skip
STIMULI = frozenset({
    "LPS", "PMA", "TCR", "BCR", "DMSO", "PBS", "IFN", "IFNA", "IFNB", "TGFB", "TNFA", "R848", "DEX", "ATRA",
})  # fmt: skip
STIMULUS = " (stimulus)"  # marks a condition that has the name of a gene and changes none
_PAIR = 2
_SYMBOL = re.compile(r"(?:[A-Z][A-Z0-9]*(?:[-.][A-Z0-9]+)*|C\d+orf\d+|ENS[A-Z]*G\d{11})")
_FAMILY = re.compile(r"(?:NKX\d|HLA|MT|KRTAP\d+|ERV\w+|GAGE\d*|H[1-4]|TR[ABDG]|IG[HKL]|RP\d+)")  # X-1 is a gene
_MODES = {
    "crispri": "CRISPRi", "interference": "CRISPRi", "kd": "CRISPRi", "knockdown": "CRISPRi",
    "crispra": "CRISPRa", "activation": "CRISPRa", "oe": "CRISPRa", "overexpression": "CRISPRa",
    "ko": "ko", "crisprko": "ko", "knockout": "ko", "cas9": "ko", "crispr": "ko",
}  # fmt: skip
_MODE = "|".join(("crispr[- ]?ko", "knock[- ]?down", "knock[- ]?out", *sorted(_MODES, key=len, reverse=True)))
_MODE_FIRST = re.compile(rf"(?P<mode>{_MODE})[\s_:.-]+(?P<rest>.+)", re.IGNORECASE)
_MODE_LAST = re.compile(rf"(?P<rest>.+?)(?:[\s_:.-]+|\s*\()(?P<mode>{_MODE})\)?", re.IGNORECASE)
_ESCAPED = re.compile(r".+\sNP")
_DOSE = re.compile(r"(?:[^_+]+_)??(?P<rest>[^_]+)_\d+(?:\+\d+)+")
_LINE_CONTROL = re.compile(r"^[^_+]+_(ctrl_\d)$")  # cell line, control, dose
_GUIDE_FIRST = re.compile(r"(?:sgRNA|gRNA|guide|sg)[-_:. ]?(?P<rest>[A-Z].*)")
_GUIDES_LAST = (
    re.compile(r"(?P<rest>.+)[-_:.][ACGT]{15,}"),
    re.compile(r"(?P<rest>.+?)[-_:. ]?(?:sgRNA|gRNA|guide|sg|g)[-_ ]?\d+"),
    re.compile(r"(?P<rest>.+)[_: ]\d+"),
)
_STRAND = re.compile(r"(?P<rest>[^+]+?)_[+-]_\d+(?:\.\d+)?(?:-\w+)?")  # name, strand, place
_GUIDE_DASH = re.compile(r"(?P<rest>.+)[-.]\d+")
_TOGETHER = re.compile(r"\s*[+,;|&]\s*")


def plain(text: str) -> str:
    """Without case and separators."""
    return re.sub(r"[\s_.:-]+", "", text).lower()


def is_control(text: str) -> bool:
    """Whether a text is one of the usual names of a control, or a combination of such."""
    text = _LINE_CONTROL.sub(r"\1", re.sub(r"_\d+\+\d+$", "", text))
    parts = [part for part in re.split(r"[+,;|&]|__", text) if part]
    return bool(parts) and all(_is_one(part) or all(map(_is_one, part.split("_"))) for part in parts)


def _is_one(part: str) -> bool:
    return CONTROLS.fullmatch(plain(part)) is not None


def looks_like_gene(text: str) -> bool:
    """Whether a text has the form of a gene symbol and is no usual stimulus."""
    return _SYMBOL.fullmatch(text) is not None and text not in STIMULI and not text.isdigit()


@dataclass(frozen=True)
class Spelled:
    """What one spelling says: genes, the parts that are none, how the genes were changed, and remarks."""

    kind: str
    genes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    mode: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grammar:
    """Reads spellings, knowing the measured genes and the other spellings of the column."""

    genes: frozenset[str] = frozenset()
    column: frozenset[str] = frozenset()
    _lower: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for gene in self._alone:
            self._lower[gene.lower()] = "" if gene.lower() in self._lower else gene

    @cached_property
    def _alone(self) -> frozenset[str]:
        """Names that stand for one gene: those measured, and those that the column has alone or with a control."""
        parts = [part for text in self.column for part in _TOGETHER.split(text)]
        return self.genes | {part for part in parts if looks_like_gene(part) and not is_control(part)}

    @cached_property
    def _stems(self) -> dict[str, int]:
        """How often a name is followed by `-1`, `-2`, ... in the column."""
        found: dict[str, int] = {}
        for text in self.column:
            if match := _GUIDE_DASH.fullmatch(text):
                found[match["rest"]] = found.get(match["rest"], 0) + 1
        return found

    def read(self, text: str) -> Spelled:
        """Genes and kind of one spelling: `single`, `combination`, `stimulus`, `missing` or `unclear`."""
        text = text.strip()
        if text.lower() in MISSING:
            return Spelled("missing")
        if _ESCAPED.fullmatch(text):
            return Spelled("missing", notes=("not perturbed in spite of its guide: left out",))
        if text in self.genes:
            return Spelled("single", (text,))
        text, mode = _mode(text)
        notes: list[str] = []
        for pattern, note in ((_DOSE, ""), (_STRAND, "guide")):
            if match := pattern.fullmatch(text):
                text = match["rest"]
                notes += [note] if note else []
        halves = text.split("__")
        if len(halves) == _PAIR and halves[0] == halves[1]:
            text = halves[0]
        genes: list[str] = []
        others: list[str] = []
        for part in self._parts(text):
            gene, note = self._gene(part)
            (others if gene is None else genes).append(part if gene is None else gene)
            notes += [note] if note else []
        found = tuple(sorted(dict.fromkeys(genes)))
        if len(found) < len(genes):
            notes.append("one gene twice: counted once")
        if len(found) > _PAIR:
            notes.append(f"{len(found)} genes")
        kind = "stimulus" if not found else "unclear" if others else "single" if len(found) == 1 else "combination"
        return Spelled(kind, found, tuple(others), mode, tuple(notes))

    def _parts(self, text: str) -> list[str]:
        parts = [part for part in _TOGETHER.split(text) if part]
        if len(parts) > 1:
            return [part for part in parts if not is_control(part)]
        for sign in ("_", "-", " "):
            halves = text.split(sign)
            if len(halves) < _PAIR or text in self.genes:
                continue
            rest = [half for half in halves if not is_control(half)]
            if all(half in self._alone for half in rest) and rest and (len(rest) > 1 or len(rest) < len(halves)):
                return rest
        return [text]

    def _gene(self, part: str) -> tuple[str | None, str]:
        """Symbol behind one part, None without; and a remark."""
        if part in self.genes:
            return part, ""
        name = part
        if match := _GUIDE_FIRST.fullmatch(name):
            name = match["rest"]
        stem = name if name in self.genes else self._without_guide(name)
        if stem in self._alone or (looks_like_gene(stem) and not self._lower.get(stem.lower())):
            return stem, "" if stem == part else "guide"
        if known := self._lower.get(stem.lower()):
            return known, f"{stem} read as {known}"
        return None, ""

    def _without_guide(self, name: str) -> str:
        for pattern in _GUIDES_LAST:
            match = pattern.fullmatch(name)
            if match and (match["rest"] in self._alone or looks_like_gene(match["rest"])):
                return match["rest"]
        match = _GUIDE_DASH.fullmatch(name)
        if match is None or not (match["rest"] in self.genes or looks_like_gene(match["rest"])):
            return name
        stem = match["rest"]
        several = self._stems.get(stem, 0) > 1 and not _FAMILY.fullmatch(stem)
        return stem if stem in self._alone or several else name


def _mode(text: str) -> tuple[str, str]:
    """Text without CRISPRi, KO and the like, and the mode in its usual spelling."""
    match = _MODE_LAST.fullmatch(text) or _MODE_FIRST.fullmatch(text)
    if match is None:
        return text, ""
    return match["rest"], _MODES[re.sub(r"[- ]", "", match["mode"].lower())]


def text_of(genes: Collection[str], others: Collection[str] = ()) -> str:
    """Canonical name: the genes in the order of the alphabet, then what is no gene."""
    return "+".join((*sorted(genes), *others))
