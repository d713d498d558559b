"""The bundled model and the eight checkpoints of the original release: what is known about each, and how to get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

BUNDLED = ("mini",)
DRIVE = "https://drive.google.com/drive/folders/"
ORIGINAL_SHAPE = {"width": 512, "layers": 12}  # of all eight
ORIGINAL_FILES = ("best_model.pt", "args.json", "vocab.json")


@dataclass(frozen=True)
class Mirror:
    """A repository of a hub that carries the weights, pinned.

    Attributes
    ----------
    repo, revision
        `org/name`, and the commit.
    checksums
        SHA-256 of files, as far as known.
    size
        Bytes of the weights.
    """

    repo: str
    revision: str
    checksums: Mapping[str, str]
    size: int


@dataclass(frozen=True)
class Original:
    """A checkpoint of the original release.

    Attributes
    ----------
    trained_on
        The cells, in words.
    cells
        Their number as the authors give it, None where they do not.
    drive_id
        Id of its folder on the authors' drive.
    licence
        As stated at its source.
    tissues
        Pattern of the names of its tissue in the columns of atlases, in lower case; empty for all tissues.
    n_tokens
        Length of its vocabulary, None where it is not known for sure.
    mirror
        Where it can be downloaded from by a program.
    """

    trained_on: str
    cells: int | None
    drive_id: str
    licence: str = "not stated (repository: MIT)"
    tissues: str = ""
    n_tokens: int | None = None
    mirror: Mirror | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """Where the authors keep it, for a browser."""
        return DRIVE + self.drive_id


WHOLE_HUMAN = Mirror(
    "tdc/scGPT",
    "7cab06906aeb51983612aa42980c5efc958f975b",
    {"hf_pytorch_model.bin": "fa45e6763d7c3e73c66d2386aebe98cbf930649a838a83626221cb9caab7f54f"},
    203_273_199,
)
ORIGINALS: Mapping[str, Original] = {
    "whole-human": Original(
        "normal human cells of all tissues",
        33_000_000,
        "1oWh_-ZRdhtoGQ2Fw24HP41FgLoomVo-y",
        "MIT (repository)",
        n_tokens=60_697,
        mirror=WHOLE_HUMAN,
    ),
    "continual": Original(
        "whole-human, continued for zero-shot cell embedding", None, "1_GROJTzXiAV8HB4imruOTk6PEGuNOcgB"
    ),
    "brain": Original(
        "brain cells",
        13_200_000,
        "1vf1ijfQSk7rGdDGpBntR5bi5g6gNt-Gx",
        tissues=r"\bbrain|cerebr|cerebell|hippocamp|(?:fore|mid|hind)brain|thalam|striatum|neocortex|frontal cortex",
    ),
    "blood": Original(
        "blood and bone-marrow cells",
        10_300_000,
        "1kkug5C7NjvXIwQGGaGoqXTk_Lb_pDrBU",
        tissues=r"\bblood\b(?! vessel)|\bpbmc|\bbone.marrow",
    ),
    "heart": Original(
        "heart cells", 1_800_000, "1GcgXrd7apn6y4Ze_iSCncskX3UsWPY2r", tissues=r"\bheart|cardiac|myocard"
    ),
    "lung": Original("lung cells", 2_100_000, "16A1DJ30PT6bodt4bWLa4hpS7gbWZQFBG", tissues=r"\blung|\bbronch|\balveol"),
    "kidney": Original("kidney cells", 814_000, "1S-1AR65DF120kNFpEbWCvRHPhpkGK3kK", tissues=r"\bkidney|\brenal"),
    "pan-cancer": Original(
        "cells of several cancers",
        5_700_000,
        "13QzLHilYUd0v3HTwa_9n4G4yEF-hdkqa",
        tissues=r"tumou?r|cancer|carcinoma|glioma|blastoma|melanoma|leuk(?:a)?emia|lymphoma|sarcoma|myeloma",
    ),
}


def bundled_folder(name: str) -> Path:
    """Folder of a checkpoint inside the package."""
    return Path(str(resources.files(__package__) / name))


def get_line(name: str) -> str:
    """The line that gets an original checkpoint, or says how."""
    if ORIGINALS[name].mirror is None:
        return f"by hand: scgpt.models.load({name!r}) says how"
    return f"scgpt.models.download({name!r})"


def manual_step(name: str, address: str, folder: Path) -> str:
    """How to get a checkpoint by hand, down to the line that loads it."""
    return (
        f"Open {address} in a browser, download {', '.join(ORIGINAL_FILES)}, put the three files into {folder}, and "
        f"load them: scgpt.models.load({name!r}). Files that lie elsewhere get the name with "
        f"scgpt.models.register({name!r}, 'path/to/folder')."
    )


def is_drive(address: str) -> bool:
    """Whether an address is one of the drive, which gives files to browsers only."""
    return address.startswith("https://drive.google.com/")


def name_of_drive_folder(address: str) -> str | None:
    """Name of the original whose folder on the drive this address is."""
    return next((name for name, original in ORIGINALS.items() if original.drive_id in address), None)
