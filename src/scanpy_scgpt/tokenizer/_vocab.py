"""Gene vocabulary: an immutable map between tokens and ids. No download, no AnnData."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

PAD, CLS, EOC = "<pad>", "<cls>", "<eoc>"
SPECIAL_TOKENS = (PAD, CLS, EOC)


class GeneVocab:
    """Immutable map gene token <-> id, with the special tokens `<pad>`, `<cls>`, `<eoc>`.

    Parameters
    ----------
    tokens
        Token of each id, in the order of the ids. Special tokens that are absent are appended.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        listed = list(tokens)
        index = {token: i for i, token in enumerate(listed)}
        if len(index) != len(listed):
            twice = next(token for i, token in enumerate(listed) if index[token] != i)
            msg = f"Token {twice!r} stands more than once in the vocabulary; every token needs one id."
            raise ValueError(msg)
        for token in SPECIAL_TOKENS:
            if token not in index:
                index[token] = len(listed)
                listed.append(token)
        self._tokens = tuple(listed)
        self._index = index

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, int], *, source: str = "vocabulary") -> GeneVocab:
        """Vocabulary from a `{token: id}` mapping whose ids run from 0 without a gap.

        Raises
        ------
        ValueError
            When ids repeat, are missing or are not integers.
        """
        tokens: list[str | None] = [None] * len(mapping)
        for token, i in mapping.items():
            if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < len(tokens) or tokens[i] is not None:
                msg = (
                    f"{source}: token {token!r} has id {i!r}; the {len(tokens)} ids must be the integers "
                    f"0 to {len(tokens) - 1}, each once. The file is damaged or is no vocabulary."
                )
                raise ValueError(msg)
            tokens[i] = token
        return cls(token for token in tokens if token is not None)

    @classmethod
    def read(cls, path: str | Path) -> GeneVocab:
        """Vocabulary from a JSON file `{token: id}`, as in the original checkpoints."""
        mapping = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(mapping, dict):
            msg = f"{path} holds a JSON {type(mapping).__name__}; a vocabulary is an object {{token: id}}."
            raise ValueError(msg)
        return cls.from_mapping(mapping, source=str(path))

    def write(self, path: str | Path) -> None:
        """Write the vocabulary as JSON `{token: id}`."""
        Path(path).write_text(json.dumps(self._index, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._index

    def __getitem__(self, token: str) -> int:
        return self._index[token]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeneVocab) and self._tokens == other._tokens

    def __hash__(self) -> int:
        return hash(self._tokens)

    def __repr__(self) -> str:
        return f"GeneVocab({len(self.genes):,} genes + {len(SPECIAL_TOKENS)} special tokens, hash {self.digest})"

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens in the order of their ids."""
        return self._tokens

    @property
    def genes(self) -> tuple[str, ...]:
        """All tokens that are no special token, in the order of their ids."""
        return tuple(token for token in self._tokens if token not in SPECIAL_TOKENS)

    @property
    def pad_id(self) -> int:
        """Id of `<pad>`."""
        return self._index[PAD]

    @property
    def cls_id(self) -> int:
        """Id of `<cls>`."""
        return self._index[CLS]

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the tokens: the same for the same vocabulary."""
        return hashlib.sha256("\n".join(self._tokens).encode()).hexdigest()[:12]

    def ids(self, tokens: Sequence[str]) -> np.ndarray:
        """Ids of tokens.

        Returns
        -------
        Array of shape `(len(tokens),)`, int64; -1 where a token is not in the vocabulary.
        """
        return np.fromiter((self._index.get(token, -1) for token in tokens), dtype=np.int64, count=len(tokens))
