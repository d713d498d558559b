"""What the studies share: settings, corpora, trained networks, frozen probes, and runs that are kept."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

import scanpy_scgpt
from benchmarks import _harness as harness
from benchmarks.studies._tables import Arms, print_result
from scanpy_scgpt import baselines, metrics, pretrain, settings, tl
from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.io import Checkpoint, read_checkpoint
from scanpy_scgpt.pretrain._comparison import add_rivals
from scanpy_scgpt.tokenizer import GeneVocab, match_genes

RESULTS = Path(__file__).parent / "results"
CORPUS = (
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
QUERIES = {  # file: column with the labels; none of these studies is in the corpus
    "pbmc3k_10x.h5ad": "cell_type",
    "pbmc_facs_zheng2017.h5ad": "subtype",
    "pbmc_kang2018_ctrl_8donors.h5ad": "cell_type",
    "pbmc_onek1k_30donors.h5ad": "cell_type",
    "pancreas_panc8_5tech_500.h5ad": "cell_type",
    "tumour_lung_zilionis2019_300.h5ad": "cell_type",
}
NETWORK = {
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 2,
    "d_ff": 128,
    "dropout": 0.0,
    "max_length": 160,
    "batch_size": 48,
    "lr": 2e-3,
    "quiet_start": True,
    "pooling": "weighted",
    "gene_lr_scale": 0.1,
    "prompt_after": None,  # the pass from the cell vector more than doubles the time of a step
    "validation_share": 0.05,
}
TRAINS = ("tokenizer", "data", "nn", "objectives", "module", "train", "pretrain", "model")  # folders of the package
RIVALS_OF: dict[str, dict] = {}  # errors of the linear rivals, by what is asked
ASKED = ("batch_size", "max_length", "ratios", "validation_share", "validation_by", "validation_studies")  # decide it
MIN_CELLS = 20
RARE = 5  # labels of fewer cells are left out
PCA = ("PCA of the query, Euclidean", "PCA of the query, cosine")
UNTRAINED = "untrained network"
F1, ERROR = "macro F1", "error at 50 %"
DIRECTIONS = {F1: "higher", "accuracy": "higher", **{f"error at {n} %": "lower" for n in (25, 50, 75)}}


@dataclass(frozen=True)
class Setup:
    """Where a study reads and writes, and how large it is."""

    name: str
    data: Path
    out: Path
    work: Path = harness.ROOT / ".bench" / "studies"
    seeds: int = 5
    steps: int = 250
    corpus: tuple[str, ...] = CORPUS
    queries: Mapping[str, str] = field(default_factory=lambda: dict(QUERIES))
    query_cells: int = 400
    network: Mapping[str, Any] = field(default_factory=lambda: dict(NETWORK))

    def config(self, **changes: Any) -> pretrain.PretrainConfig:
        """Settings of a training run."""
        steps = {"max_steps": self.steps, "epoch_steps": min(100, self.steps), "warmup_steps": self.warmup}
        return pretrain.PretrainConfig(**{**self.network, **steps, **changes})

    @property
    def warmup(self) -> int:
        """Steps to warm up."""
        return self.steps // 10


@cache
def code_digest() -> str:
    """Short name of the code that trains and embeds: runs of other code are not taken up."""
    package = Path(scanpy_scgpt.__file__).parent
    files = sorted(path for folder in TRAINS for path in (package / folder).glob("*.py"))
    return digest([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])


def digest(*content: Any) -> str:
    """Short name of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def run(study: Callable[[Setup], dict[str, Any]], name: str, doc: str, *, seeds: int = 5) -> int:
    """The command of a study: options, runs, table, JSON."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.studies.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = Path(os.environ.get("SCANPY_SCGPT_DATA", harness.ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=folder, help="folder with the files of cells")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--steps", type=int, default=250, help="of each training run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    args = parser.parse_args()
    harness.single_thread()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    with settings.override(verbosity="error", progress_bar=False):
        result = study(Setup(name, args.data, args.out, seeds=args.seeds, steps=args.steps))
    print_result(result)
    return 0


class Kept:
    """Finished runs of a study, one line of JSON each; a run that is there is not repeated.

    Other settings have another file. The result is written anew after each seed, so that a study that was stopped has
    one too.
    """

    def __init__(self, setup: Setup, **more: Any) -> None:
        self.setup = setup
        self.settings = {"steps": setup.steps, "query_cells": setup.query_cells, **setup.network, **more}
        files = sorted((path.name, path.stat().st_size) for path in setup.data.glob("*.h5*"))
        key = digest(self.settings, setup.corpus, setup.queries, files, code_digest())
        self.path = setup.work / setup.name / f"{key}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.runs = [json.loads(line) for line in lines if line.endswith("}")]
        self.asked: list[tuple] = []

    def once(self, key: str, make: Callable[[], Arms], *, seed: int | None = None, x: float | None = None) -> Arms:
        """What a run found for one or more arms: `{arm: {measure: value}}`."""
        self.asked.append((key, seed, x))
        for line in self.runs:
            if (line["key"], line["seed"], line["x"]) == (key, seed, x):
                return line["arms"]
        arms = {arm: {name: float(value) for name, value in values.items()} for arm, values in make().items()}
        self.runs.append({"key": key, "seed": seed, "x": x, "arms": arms})
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(self.runs[-1]))  # a line that a kill cut short stays alone
        where = "".join(f", {name} {value}" for name, value in (("seed", seed), ("x", x)) if value is not None)
        print(f"{self.setup.name}: {key}{where}", flush=True)
        return arms

    def result(self, **content: Any) -> dict[str, Any]:
        """The result as far as it goes; written to the file of the study."""
        by_key = {(line["key"], line["seed"], line["x"]): line["arms"] for line in self.runs}
        records = [
            {"arm": arm, "seed": seed, "x": x, "values": values}
            for key, seed, x in self.asked
            for arm, values in by_key[key, seed, x].items()
        ]
        seeds = len({record["seed"] for record in records} - {None})
        result = {
            "study": self.setup.name,
            "settings": {**self.settings, "seeds": seeds},
            "environment": {**harness.environment(), "code": code_digest()},
            "directions": DIRECTIONS,
            **content,
            "records": records,
        }
        self.setup.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, default=lambda value: value.item())
        self.setup.out.write_text(text + "\n", encoding="utf-8")
        return result


def vocabulary(setup: Setup) -> GeneVocab:
    """GENCODE symbols that enough cells of the corpus express."""
    files = [setup.data / name for name in setup.corpus]
    path = setup.work / f"vocab-{digest([(file.name, file.stat().st_size) for file in files])}.json"
    if not path.is_file():
        with gzip.open(setup.data / "knowledge" / "genes_human_gencode.tsv.gz", "rt") as table:
            symbols = pd.read_csv(table, sep="\t", na_filter=False)["symbol"]
        named = symbols[~symbols.str.match(r"^ENSG\d+")].drop_duplicates()
        path.parent.mkdir(parents=True, exist_ok=True)
        pretrain.build_vocab(files, named, min_cells=MIN_CELLS).write(path)
    return GeneVocab.read(path)


def read(path: Path) -> ad.AnnData:
    """Cells of a file, RNA alone."""
    if path.suffix == ".h5mu":
        with h5py.File(path) as file:
            return ad.io.read_elem(file["mod/rna"])
    return ad.read_h5ad(path)


def on_genes(adata: ad.AnnData, vocab: GeneVocab) -> sparse.csr_matrix:
    """Counts of the genes of a vocabulary, `(n_cells, n_genes)` CSR float32; columns of one gene are added up."""
    genes = GeneVocab(vocab.genes)  # ids without special tokens between them
    ids = match_genes(adata.var_names, genes).ids
    found = np.flatnonzero(ids >= 0)
    shape = (adata.n_vars, len(vocab.genes))
    to_gene = sparse.csr_matrix((np.ones(len(found), np.float32), (found, ids[found])), shape=shape)
    return sparse.csr_matrix(sparse.csr_matrix(adata.X, dtype=np.float32) @ to_gene)


def cells_of(setup: Setup, files: Iterable[str], vocab: GeneVocab) -> ad.AnnData:
    """Counts of all cells of files over the genes of a vocabulary, with their study."""
    parts = []
    for name in files:
        adata = read(setup.data / name)
        stem = Path(name).stem
        obs = pd.DataFrame({"study": stem}, index=[f"{stem}/{cell}" for cell in adata.obs_names])
        parts.append(ad.AnnData(on_genes(adata, vocab), obs=obs, var=pd.DataFrame(index=list(vocab.genes))))
    return ad.concat(parts)


def store_of(setup: Setup, name: str, vocab: GeneVocab, make: Callable[[], ad.AnnData]) -> TokenStore:
    """Token store of cells, made once."""
    folder = setup.work / "corpora"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{vocab.digest}.h5ad"
    if not path.is_file():
        make().write_h5ad(path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return pretrain.prepare(path, path.with_suffix(".tokens"), vocab=vocab)


def whole_corpus(setup: Setup) -> TokenStore:
    """Token store of the corpus that most studies share."""
    vocab = vocabulary(setup)
    return store_of(setup, f"corpus-{digest(setup.corpus)}", vocab, lambda: cells_of(setup, setup.corpus, vocab))


def trained(setup: Setup, store: TokenStore, *, seed: int, **changes: Any) -> Checkpoint:
    """A network after the steps of the study; the same call, of any study, trains once."""
    config = setup.config(**changes)
    out = setup.work / "models" / digest(asdict(config), store.digest, seed, code_digest())
    if (out / "model").is_dir():
        return read_checkpoint(out / "model")
    asked = digest([getattr(config, name) for name in ASKED], store.digest, seed)
    with mock.patch("scanpy_scgpt.pretrain._run.add_rivals", partial(with_rivals, asked)):
        checkpoint = pretrain.run(store.folder, out, config=config, name="study", accelerator="cpu", rng=seed)
    shutil.rmtree(out / "checkpoints")
    return checkpoint


def with_rivals(asked: str, errors: Mapping[str, dict], *batches: Any, rng: int) -> dict[str, dict]:
    """The errors with those of the linear rivals, which are fitted once for all networks that are asked the same."""
    if asked not in RIVALS_OF:
        RIVALS_OF[asked] = add_rivals({ratio: {} for ratio in errors}, *batches, rng=rng)
    return {ratio: {**network, **RIVALS_OF[asked][ratio]} for ratio, network in errors.items()}


def started(setup: Setup, store: TokenStore, *, seed: int, gene_table: str) -> Checkpoint:
    """A network with its first gene table that has learned nothing: one step that moves no weight."""
    nothing = {"max_steps": 1, "epoch_steps": 1, "warmup_steps": 0, "lr": 1e-12, "ratios": (0.5,)}
    return trained(setup, store, seed=seed, gene_table=gene_table, **nothing)


def errors_of(checkpoint: Checkpoint, name: str) -> dict[str, float]:
    """Mean squared error on unknown digits of held-out cells of the corpus, at each share of unknown genes."""
    return {
        f"error at {float(ratio):.0%}".replace("%", " %"): x[name] for ratio, x in checkpoint.info["errors"].items()
    }


def queries_of(setup: Setup) -> dict[str, ad.AnnData]:
    """Random labelled cells of each study that is evaluated, with the column `label`; by the name of the file."""
    found = {}
    for name, column in setup.queries.items():
        adata = read(setup.data / name)
        labels = adata.obs[column].astype(str)
        counts = labels.value_counts()
        rows = np.flatnonzero((labels != "unlabelled") & labels.isin(counts.index[counts >= RARE]))
        rows = np.sort(np.random.default_rng(0).permutation(rows)[: setup.query_cells])
        found[Path(name).stem] = adata[rows].copy()
        found[Path(name).stem].obs["label"] = labels.to_numpy()[rows]
    return found


def agreement(
    queries: Mapping[str, ad.AnnData], vectors: Mapping[str, np.ndarray], *, cosine: bool = True
) -> dict[str, float]:
    """Labels found from the nearest neighbours: mean over the studies, and macro F1 of each."""
    found = {
        name: metrics.knn_agreement(vectors[name], adata.obs["label"], cosine=cosine) for name, adata in queries.items()
    }
    return {
        F1: np.mean([x.macro_f1 for x in found.values()]),
        "accuracy": np.mean([x.accuracy for x in found.values()]),
        **{name: x.macro_f1 for name, x in found.items()},
    }


def probe(checkpoint: Checkpoint, queries: Mapping[str, ad.AnnData]) -> dict[str, float]:
    """:func:`agreement` in the frozen embedding of a network."""
    vectors = {}
    for name, adata in queries.items():
        tl.embed(adata, checkpoint, key_added="X_study", device="cpu", backend="torch")
        vectors[name] = adata.obsm["X_study"]
    return agreement(queries, vectors)


def pca_probes(queries: Mapping[str, ad.AnnData]) -> Arms:
    """:func:`agreement` in PCA of the very cells, by both distances."""
    vectors = {}
    for name, adata in queries.items():
        baselines.embed_pca(adata)
        vectors[name] = adata.obsm["X_pca_baseline"]
    return {arm: agreement(queries, vectors, cosine=cosine) for arm, cosine in zip(PCA, (False, True), strict=True)}


def best_of(arms: Arms, measure: str) -> str:
    """The arm with the highest value: the bar."""
    return max(arms, key=lambda arm: arms[arm][measure])
