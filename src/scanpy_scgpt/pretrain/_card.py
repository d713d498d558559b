"""Model card from the record of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from scanpy_scgpt.tokenizer import GeneVocab

from ._comparison import NETWORK, RIVALS, wins

_TEXTS = {
    "gep": "`gep`: from the known genes",
    "masked_gep": "`masked_gep`: from the known genes, unknown ones masked in their place",
    "gepc": "`gepc`: from the cell vector alone",
    "masked_gepc": "`masked_gepc`: from the cell vector alone, unknown genes masked in their place",
    "prompt": "`prompt`: from the known genes and the cell vector in the place of `<cls>`",
    "mean_digit": "mean bin of all genes, for every gene",
    "gene_mean": "mean bin of the gene",
    "ridge": "ridge regression on the known genes",
}
_OTHERS = {
    "distribution": "distribution, cross entropy of the bins in nats",
    "contrast": "contrast, a cross entropy",
}


def model_card(name: str, info: Mapping[str, Any], *, vocab: GeneVocab, n_parameters: int) -> str:
    """Card in Markdown: what the model is, what it saw, how it did."""
    settings = info["settings"]
    shape = f"{settings['n_layers']} layers, width {settings['d_model']}, {settings['n_heads']} heads"
    parts = [
        f"# {name}",
        f"A scGPT transformer ({shape}, {n_parameters / 1e6:.2f} million parameters, {len(vocab.genes):,} genes) "
        f"pretrained with\nscanpy-scgpt {info['version']} on {info['n_training_cells']:,} cells; "
        f"{info['n_validation_cells']:,} were held out.",
        _repeats(info["n_repeated_cells"]),
        _uses(info),
        "## Training data",
        _data(info),
        "## Errors on held-out cells",
        _errors(info),
        "## Settings",
        "\n".join(f"- {key}: {_shown(value)}" for key, value in settings.items()),
        _effort(info),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f"{key} {entry}" for key, entry in value.items()]
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _repeats(n: int | None) -> str:
    if n is None:
        return "Whether training cells have the counts of held-out cells is not known: the token store does not tell."
    return f"{n:,} cells with the counts of a training cell were neither trained on nor held out." if n else ""


def _uses(info: Mapping[str, Any]) -> str:
    lines = [f"- intended use: {info['notes']}"] if info["notes"] else []
    lines += [f"- licence: {info['licence']}"] if info["licence"] else []
    lines += [f"- trained on from: {info['parent']}"] if info["parent"] else []
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _data(info: Mapping[str, Any]) -> str:
    corpus = info["corpus"]
    removed = sum((Counter(entry["removed"]) for entry in corpus["files"].values()), Counter())
    limits = {key: value for key, value in corpus["filters"].items() if value is not None}
    lines = [f"{info['n_cells']:,} cells, digest of the token store `{info['data']}`."]
    lines += [f"Filters: {_shown(limits)}." if limits else "No quality filters."]
    if removed:
        lines.append(f"Cells removed: {', '.join(f'{n:,} by {reason}' for reason, n in sorted(removed.items()))}.")
    if corpus["skipped"]:
        lines.append(f"Files that could not be read and were left out: {', '.join(corpus['skipped'])}.")
    groups = [
        _table([kind, "cells"], [[name, f"{n:,}"] for name, n in info[kinds].items()])
        for kind, kinds in (("study", "studies"), ("tissue", "tissues"))
    ]
    return "\n\n".join(["\n".join(lines), *groups])


def _errors(info: Mapping[str, Any]) -> str:
    settings, errors, losses, compared = (info[key] for key in ("settings", "errors", "losses", "compared_cells"))
    first = next(iter(errors.values()))
    rows = [
        [_TEXTS[name], *(f"{found[name]:.1f}" for found in errors.values())]
        for name in (*NETWORK, *RIVALS)
        if name in first
    ]
    head = ["prediction", *(f"{float(ratio):.0%} unknown" for ratio in errors)]
    text = (
        f"Mean squared errors of unknown genes on the scale of the {settings['n_bins']} bins, ties "
        f'"{settings["ties"]}", by the share of\nunknown genes. The last three rows are predictors without a network, '
        "on the same genes of the same cells. "
        f"From {compared['held_out']:,} of the {info['n_validation_cells']:,} held-out cells;\nthe ridge regression "
        f"learned from {compared['ridge']:,} of the {info['n_training_cells']:,} training cells."
    )
    others = [
        f"- {text}: {losses[f'{key}_validation']:.2f}" for key, text in _OTHERS.items() if f"{key}_validation" in losses
    ]
    others.append(f"- weighted total of all terms, which training lowers: {losses['validation_loss']:.2f}")
    return "\n\n".join(
        [text, _table(head, rows), _verdict(errors), "Not on that scale, over all shares:", "\n".join(others)]
    )


def _verdict(errors: Mapping[str, Mapping[str, float]]) -> str:
    """Which predictions beat the best predictor without a network, and which do not."""
    lines = []
    for won, word in ((True, "Better than"), (False, "**Not better** than")):
        at: dict[str, list[str]] = {}
        for ratio, name, _, gap in wins(errors):
            if (gap < 0) == won:
                at.setdefault(name, []).append(f"{float(ratio):.0%}")
        if at:
            found = ", ".join(f"`{name}` at {_shown(ratios)}" for name, ratios in at.items())
            lines.append(f"{word} the best predictor without a network: {found}.")
    return "\n\n".join(lines)


def _effort(info: Mapping[str, Any]) -> str:
    speed = info["cells_per_second"]
    return f"- seconds: {info['seconds']:.0f}\n- cells a second while training: {_shown(speed and round(speed))}"
