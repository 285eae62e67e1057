"""Datasets and fitted rewards of the Hugging Face hub, by id: `hub:OWNER/NAME`, or `hub:OWNER/NAME@REVISION`.

What is fetched lies below `runs/hub`; nothing that could be run is taken. What is pushed gets a generated card. The
hub's own settings count (`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`). Texts of a dataset, such as its tasks, stand in
a card as data, quoted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from embodied.errors import UserError

PREFIX = "hub:"
ROOT = Path("runs", "hub")
DATASET, MODEL = "dataset", "model"
FILES = {  # what is fetched: tables, films, pictures, words
    DATASET: ("meta/*", "data/*", "videos/*", "images/*", "last/*", "*.parquet", "*.json", "*.md"),
    MODEL: ("*.safetensors", "*.json", "*.md"),
}
NEVER = ("*.py", "*.pkl", "*.pickle", "*.pt", "*.pth", "*.bin")
ID = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w./-]{1,200}))?")


def is_hub(source: object) -> bool:
    """Whether a source is the hub's."""
    return isinstance(source, str) and source.startswith(PREFIX)


def fetched(source: str, kind: str, setting: str) -> Path:
    """The folder of a dataset or model of the hub, downloaded, or as it was where it is there.

    Args:
        source: `hub:OWNER/NAME`, with `@REVISION` where one is meant.
        kind: `DATASET` or `MODEL`.
        setting: what errors call it.

    Raises:
        UserError: no such id, none there, or no network.
    """
    found = ID.fullmatch(source.removeprefix(PREFIX))
    if not found or ".." in source:
        raise UserError(f"{setting} must be hub:OWNER/NAME or hub:OWNER/NAME@REVISION; got {source!r}.")
    name, revision = found[1], found[2]
    folder = ROOT / f"{kind}s" / source.removeprefix(PREFIX).replace("/", "--")
    from huggingface_hub import snapshot_download

    with _told(setting, source):
        snapshot_download(
            name, repo_type=kind, revision=revision, local_dir=folder, allow_patterns=list(FILES[kind]),
            ignore_patterns=list(NEVER), endpoint=_endpoint(),
        )  # fmt: skip
    return folder


def check_id(repo: str | None) -> None:
    """Refuse a place to push to that is no id, before anything is made.

    Raises:
        UserError: it is none.
    """
    if repo is not None and not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repo):
        raise UserError(f"push must be OWNER/NAME; got {repo!r}.")


def push(files: Mapping[str, Path | bytes], repo: str, kind: str, *, private: bool) -> str:
    """Put files into a repository of the hub, which is made where it is not there, in one commit.

    Args:
        files: path there -> file here, or its bytes.
        repo: OWNER/NAME.
        kind: `DATASET` or `MODEL`.
        private: of a repository that is made now; one that is there stays as it is.

    Returns:
        Its address.

    Raises:
        UserError: it is refused, or there is no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with _told("push", repo):
        api = HfApi(endpoint=_endpoint())
        url = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        operations = [
            CommitOperationAdd(path, file if isinstance(file, bytes) else str(file)) for path, file in files.items()
        ]
        api.create_commit(repo, operations, commit_message="Rewards by embodied", repo_type=kind)
    return str(url)


def folder_files(root: Path) -> dict[str, Path | bytes]:
    """Every file below a folder, by its path there; hidden ones are left out."""
    found = sorted(file for file in root.rglob("*") if file.is_file())
    relative = {file.relative_to(root): file for file in found}
    return {path.as_posix(): file for path, file in relative.items() if not any(p.startswith(".") for p in path.parts)}


def card(title: str, sentences: Sequence[str], facts: Mapping[str, Any], tags: Sequence[str]) -> bytes:
    """A README.md: what it is, and the facts of its making as JSON.

    Args:
        title: of the page; ours, not a dataset's text.
        sentences: paragraphs, ours too.
        facts: JSON values; texts of others stand here alone.
        tags: for the hub's search.
    """
    told = json.dumps(facts, indent=1, ensure_ascii=False)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", told)), default=0))
    head = "\n".join(["---", "tags:", *(f"- {tag}" for tag in tags), "---"])
    body = "\n\n".join([f"# {title}", *sentences, f"{fence}json\n{told}\n{fence}"])
    return f"{head}\n\n{body}\n".encode()


def encoder(config: Mapping[str, Any]) -> str:
    """What a card calls a verb's encoder: its model's name without the folder that it lies in here."""
    about: Any = config["encoder"]
    target = str(about.get("_target_")).rpartition(".")[2].removesuffix("_encoder")
    return f"{target} {PurePath(str(about['model'])).name}" if about.get("model") else target


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _told(setting: str, source: str) -> Iterator[None]:
    """Errors of the hub in one line."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # Its errors of HTTP are those of whichever client it has, as are those of a network that is not there.
    bases: Any = HfHubHTTPError.__bases__
    refused: tuple[type[Exception], ...] = (*bases, EntryNotFoundError, OSError, ValueError)
    try:
        yield
    except refused as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{setting}: the hub must have {source!r}, and let you at it (hf auth login); got: {reason}"
        ) from error
