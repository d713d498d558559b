"""Train the bundled model `mini` and put it into the package.

    python scripts/train_mini.py DATA_FOLDER OUT_FOLDER

The data folder holds the files named below and `knowledge/genes_human_gencode.tsv.gz`. A run that was killed goes on
from its last checkpoint when it is started again. About an hour on one core.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pandas as pd
import torch

from scanpy_scgpt import pretrain
from scanpy_scgpt.tokenizer import GeneVocab

# Raw counts of at least 4,000 genes. Left out, by study: all that the model is evaluated on (Zheng 2017 with its four
# files, Kang 2018, OneK1K, Zilionis 2019, and the pancreas studies of panc8, Baron 2016 among them).
FILES = (
    "pbmc_3chemistries_10x.h5ad",
    "pbmc_hao2021_1k.h5ad",
    "tumour_breast_gao2021.h5ad",
    "pbmc5k_10x_4000g.h5ad",
    "cite_pbmc10k_10x.h5mu",
    "cite_mimitou2019_500.h5mu",
    "pancreas_fetal_cimseq.h5ad",
    "brain_npc_pollen2014_64.h5ad",
    "celllines_cimseq_81.h5ad",
    "pbmc_celltypist_sample.h5ad",
)
MIN_CELLS = 20
NOTES = "demonstration, teaching and tests; a small corpus, most of it blood"
PACKAGE = Path(__file__).parents[1] / "src/scanpy_scgpt/models/mini"
CONFIG = pretrain.PretrainConfig(
    d_model=192,
    n_heads=4,
    n_layers=2,
    d_ff=384,
    dropout=0.0,
    quiet_start=True,
    pooling="layers",
    max_length=200,
    batch_size=64,
    max_steps=900,
    epoch_steps=50,
    lr=7e-4,
    warmup_steps=50,
    gene_lr_scale=0.0,
    prompt_after=600,
    weights={"gep": 0.01, "gepc": 0.01, "prompt": 0.01, "contrast": 1.0, "distribution": 0.2},
    contrast=True,
    positives="similar",
    balance="study",
    step_from="study",
    panel_share=0.3,
)


def main() -> None:
    """Build the vocabulary, pretrain, copy the finished model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-steps", type=int, default=CONFIG.max_steps)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep", action="store_true", help="leave the model of the package as it is")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    files = [args.data / name for name in FILES]
    symbols = pd.read_csv(args.data / "knowledge" / "genes_human_gencode.tsv.gz", sep="\t", na_filter=False)
    symbols = symbols.symbol[~symbols.symbol.str.match(r"^ENSG\d+")]
    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / "vocab.json"
    vocab = GeneVocab.read(saved) if saved.is_file() else pretrain.build_vocab(files, symbols, min_cells=MIN_CELLS)
    vocab.write(saved)
    checkpoint = pretrain.run(
        files,
        args.out,
        vocab=vocab,
        name="mini",
        config=CONFIG,
        max_steps=args.max_steps,
        accelerator="cpu",
        half=True,
        notes=NOTES,
    )
    print(checkpoint.card)
    if not args.keep:
        shutil.copytree(args.out / "model", PACKAGE, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
