"""Columns of `obs` that were asked for: in all files, in some, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scanpy_scgpt._logging import get_logger

logger = get_logger(__name__)
_USUAL = {"study_key": "study", "tissue_key": "tissue"}  # files may lack these
_INSTEAD = {"study_key": "the name of the file", "tissue_key": "'unknown'"}
_SHOWN = 3  # files that a warning names


class Columns:
    """Which files have the columns with study and tissue.

    Parameters
    ----------
    keys
        Names of the columns by the arguments that they were given as: `study_key`, `tissue_key`.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = {name: key for name, key in keys.items() if key != _USUAL[name]}
        self._without: dict[str, list[str]] = {name: [] for name in self._keys}
        self._there: dict[str, None] = {}
        self._n_files = 0

    def add(self, label: str, columns: Sequence[str]) -> None:
        """Note the columns of a file."""
        self._n_files += 1
        self._there.update(dict.fromkeys(columns))
        for name, key in self._keys.items():
            if key not in columns:
                self._without[name].append(label)

    def check(self) -> None:
        """Warn of a column that some files lack.

        Raises
        ------
        KeyError
            When no file has a column.
        """
        for name, files in self._without.items():
            if files and len(files) == self._n_files:
                listed = ", ".join(self._there) or "none"
                msg = (
                    f"obs of no file has a column {self._keys[name]!r} ({name}=). Columns: {listed}. Name one of them, "
                    f"or leave {name} out."
                )
                raise KeyError(msg)
            if files:
                more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
                logger.warning(
                    "corpus: %s of %s files have no column %r (%s=): %s%s; their cells get %s.",
                    len(files), self._n_files, self._keys[name], name, ", ".join(files[:_SHOWN]), more, _INSTEAD[name],
                )  # fmt: skip
