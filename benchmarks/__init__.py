"""Measurements of speed and memory beside the original's way of working.

Run one with `python -m benchmarks.<name>` from the root of the repository: `tokenize`, `embed`, `memory`. Each prints a
table, writes `.bench/<name>.json`, and ends with a non-zero status when a bar does not hold.
"""
