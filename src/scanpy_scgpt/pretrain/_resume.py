"""What a run leaves in its folder so that a killed one can go on: its identity and its metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.disk import write_file
from scanpy_scgpt.tokenizer import GeneVocab

from ._curves import SPEED

logger = get_logger(__name__)
_FORMAT = 3  # of what a checkpoint says about the steps that were taken
_METRICS, _EARLIER = "metrics.csv", "metrics-earlier.csv"


def identity_of(
    data: str, vocab: GeneVocab, config: Mapping[str, Any], *, parent: str | None, rng: int
) -> dict[str, Any]:
    """What makes a run this run, as JSON holds it; `max_steps` stands beside `config`, for it may change.

    So may `max_tokens` where no term depends on it, and the number of devices.

    Parameters
    ----------
    data
        Hash of the token store.
    vocab
        Genes of the model.
    config
        Settings.
    parent
        Label of the checkpoint that is trained on, None for a new model.
    rng
        Seed.
    """
    config = dict(config)
    max_steps = config.pop("max_steps")
    if not config["contrast"]:
        config.pop("max_tokens")
    record = {"format": _FORMAT, "config": config, "vocab": vocab.digest, "rng": rng, "data": data}
    return json.loads(json.dumps({**record, "continue_from": parent, "max_steps": max_steps}))


def _different(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    parts = [key for key in ("format", "vocab", "rng", "data", "continue_from") if old.get(key) != new[key]]
    before, now = old.get("config"), new["config"]
    before = before if isinstance(before, dict) else {}
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key)) + parts


def checkpoint_to_resume(out: Path, identity: Mapping[str, Any], *, resume: bool) -> Path | None:
    """The last checkpoint of this very run in `out`, or None; changes nothing.

    Raises
    ------
    ValueError
        When the checkpoint is of another run.
    """
    last = out / "checkpoints" / "last.ckpt"
    if not (resume and last.is_file()):
        return None
    try:
        old = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = None
    differs = _different(old, identity) if isinstance(old, dict) else ["no readable run.json"]
    if differs:
        msg = (
            f"{out} holds checkpoints of another run (different: {', '.join(differs)}). Choose another folder, or pass "
            "resume=False to start anew; that deletes them."
        )
        raise ValueError(msg)
    if old.get("max_steps") != identity["max_steps"]:
        logger.warning(
            "max_steps=%s, the run in %s was started with %s: the cosine of the learning rate changes from here on.",
            identity["max_steps"],
            out,
            old.get("max_steps"),
        )
    return last


def prepare_folder(out: Path, identity: Mapping[str, Any], *, resumed: bool) -> None:
    """Write `run.json`; put the metrics of a resumed run aside, or remove what an earlier run left."""
    out.mkdir(parents=True, exist_ok=True)
    if resumed:
        _merge(out, target=out / _EARLIER)
    else:
        if (out / "checkpoints").is_dir():
            shutil.rmtree(out / "checkpoints")
        (out / _EARLIER).unlink(missing_ok=True)
    (out / _METRICS).unlink(missing_ok=True)
    write_file(out / "run.json", [(json.dumps(identity, indent=2) + "\n").encode()])


def join_metrics(out: Path) -> float | None:
    """Put the metrics from before the last resume in front of those in `metrics.csv`.

    Returns
    -------
    Median of the cells a second in them, None where no epoch was trained.
    """
    if (out / _EARLIER).is_file():
        _merge(out, target=out / _METRICS)
        (out / _EARLIER).unlink()
    speeds = pd.read_csv(out / _METRICS).get(SPEED[0], pd.Series(dtype=float)).dropna()
    return float(speeds.median()) if len(speeds) else None


def _merge(out: Path, *, target: Path) -> None:
    tables: list[pd.DataFrame] = []
    for path in (out / _METRICS, out / _EARLIER):  # later rows first: they replace what was taken back
        if path.is_file() and path.stat().st_size:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)  # text stays as it is
            step = pd.to_numeric(table["step"], errors="coerce") if "step" in table else pd.Series(dtype=float)
            first = min((pd.to_numeric(later["step"]).min() for later in tables), default=float("inf"))
            table = table[(step < first).reindex(table.index, fill_value=False)]
            if len(table):
                tables.insert(0, table)
    if tables:
        write_file(target, [pd.concat(tables).to_csv(index=False).encode()])
