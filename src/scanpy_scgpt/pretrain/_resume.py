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
from scanpy_scgpt.io import Checkpoint, read_checkpoint
from scanpy_scgpt.tokenizer import GeneVocab

from ._curves import SPEED

logger = get_logger(__name__)
_FORMAT = 5  # of what a checkpoint says about the steps that were taken
_MAY_CHANGE = ("max_steps", "lr", "warmup_steps", "precision")  # settings that a run goes on with
_METRICS, _EARLIER = "metrics.csv", "metrics-earlier.csv"


def identity_of(
    data: str, vocab: GeneVocab, config: Mapping[str, Any], *, parent: str | None, rng: int
) -> dict[str, Any]:
    """What makes a run this run, as JSON holds it; settings that may change stand beside `config`.

    These are `max_steps` and what mends a loss that is not finite: `lr`, `warmup_steps` and `precision`. So may
    `max_tokens` where no term depends on it, and the number of devices.

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
    may_change = {name: config.pop(name) for name in _MAY_CHANGE}
    if not config["contrast"]:
        config.pop("max_tokens")
        config.pop("positives")
    record = {"format": _FORMAT, "config": config, "vocab": vocab.digest, "rng": rng, "data": data}
    return json.loads(json.dumps({**record, "continue_from": parent, **may_change}))


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
    changed = {name: old.get(name) for name in _MAY_CHANGE if old.get(name) != identity[name]}
    if changed:
        logger.warning(
            "%s; the run in %s had %s until now: its steps are other ones from the last checkpoint on.",
            ", ".join(f"{name}={identity[name]}" for name in changed),
            out,
            ", ".join(f"{name}={value}" for name, value in changed.items()),
        )
    return last


def finished_model(out: Path, identity: Mapping[str, Any], asked: Mapping[str, Any]) -> Checkpoint | None:
    """The model of this very run in `out`, with its record as it was written; None where it is still to be written.

    Parameters
    ----------
    out
        Folder of the run.
    identity
        What :func:`identity_of` gave.
    asked
        What decides about the files of the model besides: name, notes, ...
    """
    try:
        written = json.loads((out / "run.json").read_text(encoding="utf-8"))
        digest = written.pop("finished", {}).get("digest")
        if written != {**identity, "model": dict(asked)} or digest is None:
            return None
        model = read_checkpoint(out / "model")
    except (OSError, ValueError):
        return None
    return model if model.digest == digest else None


def note_finished(out: Path, identity: Mapping[str, Any], asked: Mapping[str, Any], *, digest: str) -> None:
    """Write into `run.json` that the model of the run, with the weights `digest`, is in its place."""
    _write_record(out, {**identity, "model": dict(asked), "finished": {"digest": digest}})


def prepare_folder(out: Path, identity: Mapping[str, Any], *, resumed: bool) -> None:
    """Write `run.json`; put the metrics of a resumed run aside, or remove what an earlier run left."""
    out.mkdir(parents=True, exist_ok=True)
    if resumed:
        _merge(out, target=out / _EARLIER)
    else:
        last = out / "checkpoints" / "last.ckpt"  # what else is there, a run did not write
        shutil.rmtree(last) if last.is_dir() else last.unlink(missing_ok=True)  # a folder where the weights were spread
        (out / _EARLIER).unlink(missing_ok=True)
    (out / _METRICS).unlink(missing_ok=True)
    _write_record(out, identity)


def _write_record(out: Path, record: Mapping[str, Any]) -> None:
    write_file(out / "run.json", [(json.dumps(record, indent=2) + "\n").encode()])


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
