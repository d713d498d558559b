"""Model card from the record of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scanpy_scgpt.tokenizer import GeneVocab

_SQUARED = {
    "gep": "gep: unknown genes from the known genes",
    "gepc": "gepc: unknown genes from the cell vector alone",
    "prompt": "prompt: unknown genes from the known genes and the cell vector in the place of `<cls>`",
}


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def model_card(name: str, info: Mapping[str, Any], *, vocab: GeneVocab, n_parameters: int) -> str:
    """Card in Markdown: what the model is, what it saw, how it did."""
    settings, losses, floor = info["settings"], info["losses"], info["mean_bin_mse"]
    studies = "\n".join(f"| {study} | {n:,} |" for study, n in info["studies"].items())
    shape = f"{settings['n_layers']} layers, width {settings['d_model']}, {settings['n_heads']} heads"
    terms = "\n".join(
        f"| {text} | {losses[f'{key}_validation']:.1f} |"
        for key, text in _SQUARED.items()
        if f"{key}_validation" in losses
    )
    others = [f"- weighted total of all terms, which training lowers: {losses['validation_loss']:.2f}"]
    if "contrast_validation" in losses:
        others.insert(0, f"- contrast, a cross entropy: {losses['contrast_validation']:.2f}")
    return f"""# {name}

A scGPT transformer ({shape}, {n_parameters / 1e6:.2f} million parameters, {len(vocab.genes):,} genes) pretrained with
scanpy-scgpt {info["version"]} on {info["n_training_cells"]:,} cells; {info["n_validation_cells"]:,} were held out.

## Training data

| study | cells |
|---|---|
{studies}

## Losses on held-out cells

Mean squared errors on the scale of the {settings["n_bins"]} bins, ties "{settings["ties"]}"; shares of unknown genes
{_shown(settings["ratios"])}. The last two rows are predictors without a network.

| prediction | mean squared error |
|---|---|
{terms}
| mean digit of all genes, for every gene | {floor["constant"]:.1f} |
| mean digit of the gene | {floor["per_gene"]:.1f} |

Not on that scale:

{chr(10).join(others)}

## Settings

{chr(10).join(f"- {key}: {_shown(value)}" for key, value in settings.items())}
- seconds: {info["seconds"]:.0f}
"""
