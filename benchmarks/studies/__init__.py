"""Five studies in miniature: what the objective, the corpus and the start of the gene table are worth.

Run one with `python -m benchmarks.studies.<name>` from the root of the repository: `mask`, `scaling`, `context`,
`few_shot`, `gene_table`; it writes `benchmarks/studies/results/<name>.json`. `python -m benchmarks.studies.report` then
writes the tables and figures of `docs/studies.md`. A finished run is kept in `.bench/studies` and not repeated.
"""
