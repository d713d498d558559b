"""A checkpoint to a hub, with its card as the page."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from scanpy_scgpt.io import Checkpoint, write_checkpoint

from ._hub import first_line, hub_of, is_repo
from ._zoo import load

_SERVER_ERROR, _TOO_MANY = 500, 429
_TAGS = ("scgpt", "single-cell", "biology", "scanpy")


def push(
    model: Checkpoint | str | os.PathLike[str],
    repo: str,
    *,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    licence: str = "other",
    message: str = "Checkpoint of scanpy-scgpt",
) -> str:
    """Put a checkpoint on a hub, with its card as the page of the repository.

    Parameters
    ----------
    model
        A checkpoint, a name that :func:`load` knows, or a folder.
    repo
        `org/name`; it is made if there is none.
    private
        Whether a repository that is made is hidden from others. One that exists stays as it is.
    token
        Token with the right to write; that of `hf auth login` by default. It is neither kept nor shown.
    revision
        Branch to push to, made if there is none; the main branch by default.
    licence
        Identifier of the licence of the weights as the hub spells it, such as `"mit"`, for the head of the page.
    message
        Message of the commit.

    Returns
    -------
    Address of the commit.

    Raises
    ------
    ImportError
        Without `huggingface_hub` (extra `hub`).
    ValueError
        When `repo` is not `org/name`, or there is no such model.
    ConnectionError
        When the hub cannot be reached, or refuses; the text says which.
    """
    if not is_repo(repo):
        msg = f"repo={repo!r}: write 'org/name', such as 'my-lab/my-model'."
        raise ValueError(msg)
    checkpoint, hub = load(model), hub_of("models.push")
    api = hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as draft:
        folder = Path(draft) / "checkpoint"
        write_checkpoint(checkpoint, folder)
        (folder / "README.md").write_text(page(checkpoint, licence=licence), encoding="utf-8")
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            done = api.upload_folder(repo_id=repo, folder_path=folder, revision=revision, commit_message=message)
        except (OSError, hub.errors.HTTPError) as error:
            raise ConnectionError(_trouble(repo, error)) from error
    return str(done.commit_url)


def _trouble(repo: str, error: Exception) -> str:
    """What stopped a push: no answer, an answer that asks for patience, or one that refuses."""
    first, response = first_line(error), getattr(error, "response", None)
    if response is None:
        return (
            f"{repo} was not pushed: the hub cannot be reached ({first}). Check the network, the proxy if there is one "
            "(HTTPS_PROXY) and that HF_HUB_OFFLINE is not set, and repeat the call."
        )
    if response is not None and (response.status_code >= _SERVER_ERROR or response.status_code == _TOO_MANY):
        return f"{repo} was not pushed: the hub has trouble of its own ({first}). Repeat the call later."
    return f"{repo} cannot be written to ({first}). Sign in with a token for it: hf auth login."


def page(checkpoint: Checkpoint, *, licence: str) -> str:
    """The page of a repository: what the hub reads about the model, and its card."""
    head = ["---", f"license: {licence}", "library_name: scanpy-scgpt", "tags:"]
    head += [f"- {tag}" for tag in _TAGS]
    return "\n".join([*head, "---", "", checkpoint.card or f"# {checkpoint.name}\n"])
