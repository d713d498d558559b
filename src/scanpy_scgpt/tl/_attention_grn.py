"""Networks of attention: a stand-in."""

from __future__ import annotations

from typing import Any


def attention_network(_adata: Any, _model: Any = None, **_settings: Any) -> None:
    """Refuse, with the methods that there are.

    Raises
    ------
    ValueError
        Always.
    """
    msg = "method='attention' is not there yet: use 'embedding'."
    raise ValueError(msg)
