"""A model on disk: a checkpoint folder that every function takes, and `model.json` with what was registered."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from anndata import read_h5ad
from safetensors.numpy import load_file, save_file
from scvi.data import AnnDataManager

from scanpy_scgpt.io import CheckpointError, read_checkpoint, write_checkpoint

from ._devices import choose_device
from ._registry import from_plain, setup_of, to_plain
from ._weights import fill

if TYPE_CHECKING:
    from anndata import AnnData
    from lightning.pytorch import LightningDataModule

FORMAT_VERSION = 1
MODEL, ARRAYS = "model.json", "arrays.safetensors"
_ADATA, _MDATA = "adata.h5ad", "mdata.h5mu"
_OURS = ("config.json", "vocab.json", "weights.safetensors", "card.md", MODEL)


class StoreMixin:
    """`save`, `load`, `load_registry`."""

    def save(
        self,
        dir_path: str | os.PathLike[str],
        prefix: str | None = None,
        overwrite: bool = False,  # noqa: FBT001, FBT002 - the signature of scvi-tools
        save_anndata: bool = False,  # noqa: FBT001, FBT002
        save_kwargs: dict[str, Any] | None = None,
        legacy_mudata_format: bool = False,  # noqa: FBT001, FBT002
        datamodule: LightningDataModule | None = None,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Write the model to a folder.

        The folder holds all that is needed: `weights.safetensors`, `vocab.json`, `config.json`, `card.md` (a checkpoint
        that :func:`scanpy_scgpt.tl.embed` takes too), `model.json` (labels, batches, names of the genes, settings,
        history), and `model.pt`, which scvi-tools' own callbacks read. :meth:`load` never opens `model.pt`.

        Parameters
        ----------
        dir_path
            Folder.
        prefix
            Put everything into a folder of this name inside it.
        overwrite
            Replace the files of a model that is there.
        save_anndata
            Write the cells too.
        save_kwargs, legacy_mudata_format
            As scvi-tools takes them.
        datamodule
            Has no effect: the registry says what it would.
        **anndata_write_kwargs
            Of the function that writes the cells.

        Raises
        ------
        FileExistsError
            When the folder exists and `overwrite` is not set.
        ValueError
            When cells are to be saved and there are none.
        """
        if save_anndata and self.adata is None:
            msg = f"This {type(self).__name__} holds no cells: leave save_anndata out."
            raise ValueError(msg)
        folder = Path(dir_path).expanduser().resolve() / (prefix or "")
        self.check_place(folder, overwrite=overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            checkpoint = self.to_checkpoint(folder.name)
            write_checkpoint(checkpoint, draft / "ours")
            if arrays := self._arrays():
                save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, draft / "ours" / ARRAYS)
            (draft / "ours" / MODEL).write_text(json.dumps(self._plain()) + "\n", encoding="utf-8")
            with _without_advice():
                super().save(
                    str(draft / "theirs"),
                    save_anndata=save_anndata,
                    save_kwargs=save_kwargs,
                    legacy_mudata_format=legacy_mudata_format,
                    datamodule=self._stand_in(),
                    **anndata_write_kwargs,
                )
            _put(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _stand_in(self) -> SimpleNamespace:
        """What scvi-tools asks a data module for when a model that was made from one is saved."""
        n_labels, n_batch = len(self.labels_), len(self.batches_)
        none = {key: {"summary_stats": {f"n_{key}": 0}} for key in ("extra_categorical_covs", "extra_continuous_covs")}
        sizes = {"n_labels": n_labels, "n_batch": n_batch, "n_vars": self.summary_stats.n_vars, "n_samples": 0}
        names = {"batch_labels": self.batches_, "label_keys": self.labels_}
        return SimpleNamespace(registry={"field_registries": none}, **sizes, **names)

    @staticmethod
    def check_place(folder: str | os.PathLike[str], *, overwrite: bool) -> None:
        """Whether :meth:`save` may write a folder; changes nothing.

        Raises
        ------
        FileExistsError
            When it exists and `overwrite` is not set, or it holds something else than a model.
        """
        folder = Path(folder).expanduser()
        if folder.exists() and not overwrite:
            msg = f"{folder} exists. Choose another folder, or pass overwrite=True to replace the model in it."
            raise FileExistsError(msg)
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MODEL).is_file())):
            msg = f"{folder} is there and holds no model, so nothing is put into it. Choose another folder."
            raise FileExistsError(msg)

    def _arrays(self) -> dict[str, np.ndarray]:
        """What a class keeps besides weights and plain values."""
        return {}

    def _set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take back what :meth:`_arrays` gave."""

    def _plain(self) -> dict[str, Any]:
        """What `model.json` holds: public attributes whose name ends with an underscore, as plain values."""
        attributes = {
            name: to_plain(value)
            for name, value in vars(self).items()
            if name.endswith("_") and not name.startswith("_") and name not in {"init_params_", "registry_"}
        }
        return {
            "format_version": FORMAT_VERSION,
            "class": type(self).__name__,
            "init": to_plain(self.init_params_["non_kwargs"]),
            "registry": to_plain(dict(self.registry_)),
            "attributes": attributes,
        }

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike[str],
        adata: AnnData | bool | None = None,  # noqa: FBT001
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        backup_url: str | None = None,
        datamodule: LightningDataModule | None = None,
        allowed_classes_names_list: list[str] | None = None,
    ) -> Self:
        """Read a model that :meth:`save` wrote.

        Parameters
        ----------
        dir_path
            Folder.
        adata
            Cells, whose genes may be others and in another order; None for those that were saved with the model, if
            any; False for none.
        accelerator, device
            Where the network goes, as scvi-tools takes them.
        prefix
            As in :meth:`save`.
        backup_url
            Not supported; see :func:`scanpy_scgpt.models.download`.
        datamodule
            Has no effect.
        allowed_classes_names_list
            Other classes whose models may be read.

        Raises
        ------
        CheckpointError
            When the folder is incomplete, damaged, of another class or of a newer version.
        """
        if backup_url is not None:
            msg = "backup_url: download the folder first, with scgpt.models.download(address, name=...), and load it."
            raise ValueError(msg)
        folder = Path(dir_path).expanduser() / (prefix or "")
        saved = _read(folder)
        if saved["class"] not in {cls.__name__, *(allowed_classes_names_list or [])}:
            msg = f"{folder} holds a {saved['class']}, not a {cls.__name__}: scgpt.model.{saved['class']}.load(...)."
            raise CheckpointError(msg)
        registry = from_plain(saved["registry"])
        adata = _saved_cells(folder) if adata is None else (None if adata is False else adata)
        if adata is not None:
            setup_of(cls, registry)(adata, source_registry=registry, **registry["setup_args"])
        checkpoint = read_checkpoint(folder)
        model = cls(
            adata,
            registry=None if adata is not None else registry,
            **{**_taken(cls, from_plain(saved["init"])), "model": checkpoint, "from_scratch": False},
        )
        for name, value in saved["attributes"].items():
            setattr(model, name, from_plain(value))
        fill(model.module, checkpoint, own=True)
        model._knows_start = False
        if (folder / ARRAYS).is_file():
            model._set_arrays(load_file(folder / ARRAYS))
        model.to_device(_device(accelerator, device))
        model.module.eval()
        return model

    @staticmethod
    def load_registry(dir_path: str | os.PathLike[str], prefix: str | None = None) -> dict[str, Any]:
        """The registry of a saved model: what was set up, with which arguments."""
        return from_plain(_read(Path(dir_path).expanduser() / (prefix or ""))["registry"])

    @staticmethod
    def view_setup_args(dir_path: str | os.PathLike[str], prefix: str | None = None) -> None:
        """Print with which arguments the cells of a saved model were set up."""
        AnnDataManager.view_setup_method_args(StoreMixin.load_registry(dir_path, prefix))


def _taken(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings of a model those that a class takes: the model may be of another class."""
    parameters = inspect.signature(cls.__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(settings)
    return {name: value for name, value in settings.items() if name in parameters}


def _device(accelerator: str, device: int | str) -> Any:
    if accelerator in {"gpu", "cuda"}:
        return choose_device("cuda" if device == "auto" else f"cuda:{device}")
    if isinstance(device, int):
        return choose_device(f"cuda:{device}" if accelerator == "auto" else accelerator)
    return choose_device(accelerator if device == "auto" else device)


def _put(draft: Path, folder: Path) -> None:
    """Files of the draft into the folder, each replaced in one step; a new folder appears whole."""
    whole = draft / "whole"
    (draft / "ours").rename(whole)
    for path in (draft / "theirs").iterdir():
        path.rename(whole / path.name)
    if not folder.exists():
        os.replace(whole, folder)
        return
    for name in (ARRAYS, _ADATA, _MDATA):
        if not (whole / name).is_file():
            (folder / name).unlink(missing_ok=True)  # of the model that was there
    for path in sorted(whole.iterdir(), key=lambda path: path.name == MODEL):  # the one that is read first comes last
        os.replace(path, folder / path.name)


def _saved_cells(folder: Path) -> AnnData | None:
    if (folder / _ADATA).is_file():
        return read_h5ad(folder / _ADATA)
    if (folder / _MDATA).is_file():
        import mudata

        with _without_advice():
            return mudata.read_h5mu(folder / _MDATA)
    return None


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without the advice of mudata on how to write objects, which is not for who saves a model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="From 0.4 .update\\(\\) will not pull", category=FutureWarning)
        yield


def _read(folder: Path) -> Mapping[str, Any]:
    """`model.json` of a folder, checked."""
    missing = [name for name in _OURS if name != "card.md" and not (folder / name).is_file()]
    if missing:
        hint = ""
        if (folder / "model.pt").is_file():
            hint = " It holds a model.pt of scvi-tools alone, which is a pickle and is not opened."
        msg = f"{folder} lacks {', '.join(missing)}, which model.save(folder) writes.{hint} Copy the whole folder."
        raise CheckpointError(msg)
    try:
        saved = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"{folder / MODEL} is no valid JSON ({error}). The file is damaged: copy the folder again."
        raise CheckpointError(msg) from error
    version = saved.get("format_version")
    if version != FORMAT_VERSION:
        msg = (
            f"{folder / MODEL} has format_version {version!r}, this release reads {FORMAT_VERSION}. A newer file needs "
            "a newer release: pip install -U scanpy-scgpt."
        )
        raise CheckpointError(msg)
    return saved
