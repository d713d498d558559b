"""Build the gene table that the package ships: Ensembl ids and former names of human genes.

    python scripts/build_gene_table.py KNOWLEDGE_FOLDER

The folder holds `genes_human_gencode.tsv.gz` (GENCODE: symbol, ensembl_id, biotype) and
`gene_aliases_human.tsv.gz` (NCBI Gene, public domain: symbol, ensembl_ids, aliases). Genes without a name of their
own are left out. One line a gene: Ensembl number, symbol, former names and aliases joined by a bar.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import pandas as pd

OUT = Path(__file__).parents[1] / "src/scanpy_scgpt/tokenizer/genes_human.tsv.gz"
BIOTYPES = r"^(protein_coding|lncRNA|IG_|TR_|transcribed_|polymorphic_|Mt_|ribozyme|processed_transcript)"


def build(knowledge: Path) -> pd.DataFrame:
    """Table with the columns `ensembl` (int), `symbol`, `aliases`."""
    genes = pd.read_csv(knowledge / "genes_human_gencode.tsv.gz", sep="\t", dtype=str, na_filter=False)
    named = ~genes.symbol.str.match(r"^ENSG\d+") & genes.biotype.str.match(BIOTYPES)
    genes = genes[named].drop_duplicates("ensembl_id")
    former = pd.read_csv(knowledge / "gene_aliases_human.tsv.gz", sep="\t", dtype=str, na_filter=False)
    aliases = {
        row.symbol: {row.symbol, *filter(None, row.aliases.split("|"))} for row in former.itertuples(index=False)
    }
    by_ensembl: dict[str, set[str]] = {}
    for row in former.itertuples(index=False):
        for ensembl in filter(None, row.ensembl_ids.split("|")):
            by_ensembl.setdefault(ensembl, set()).update(aliases[row.symbol])
    joined = [
        "|".join(sorted((by_ensembl.get(row.ensembl_id, set()) | aliases.get(row.symbol, set())) - {row.symbol}))
        for row in genes.itertuples(index=False)
    ]
    numbers = genes.ensembl_id.str.removeprefix("ENSG").astype(int)
    return pd.DataFrame({"ensembl": numbers, "symbol": genes.symbol, "aliases": joined}).sort_values("ensembl")


def main() -> None:
    """Write the table; the same input gives the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("knowledge", type=Path)
    table = build(parser.parse_args().knowledge)
    with OUT.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed:
        packed.write(table.to_csv(sep="\t", index=False).encode())
    print(f"{len(table):,} genes, {OUT.stat().st_size / 1e6:.2f} MB -> {OUT.name}")


if __name__ == "__main__":
    main()
