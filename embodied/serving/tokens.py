"""Tokens of this machine's servers, in files that only their user can read: what serves is told apart by its port.

A server that was given no token makes one, and its user's other programs on this machine find it by the port. Another
user of the machine does not, though they can connect.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from embodied.errors import UserError

SERVE, CONTROL = "serve", "control"


@contextlib.contextmanager
def made(what: str, port: int) -> Iterator[tuple[str, Path]]:
    """A new token and the file that holds it, which goes at the end.

    Args:
        what: `SERVE` or `CONTROL`.
        port: that is listened on.

    Raises:
        UserError: there is no folder that is this user's alone.
    """
    token, file = secrets.token_urlsafe(24), path(what, port)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        if not _is_own(file.parent):
            raise PermissionError("others can read or write it")
        file.touch(mode=0o600, exist_ok=False)
        file.write_text(token + "\n", "ascii")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"a token must be kept in {file.parent}, which must be yours alone: {reason}. Set XDG_RUNTIME_DIR to a "
            "folder that is, or turn the token off."
        ) from error
    try:
        yield token, file
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def found(what: str, port: int) -> str | None:
    """The token of this user's server on that port of this machine; None where there is none."""
    try:
        file = path(what, port)
        return (file.read_text("ascii").strip() or None) if _is_own(file.parent) else None
    except (OSError, UnicodeDecodeError, UserError):
        return None


def path(what: str, port: int) -> Path:
    """Where a server's token lies.

    Raises:
        UserError: a user without a home, as many a container runs as, and no XDG_RUNTIME_DIR.
    """
    try:
        folder = Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache")
    except RuntimeError as error:
        raise UserError(
            "a token must be kept in a folder that is yours alone, and you have no home. Set XDG_RUNTIME_DIR to such a "
            "folder, or turn the token off."
        ) from error
    return folder / "embodied-tokens" / f"{what}-{port}"


def _is_own(folder: Path) -> bool:
    """Whether a folder is this user's, and no other can look into it."""
    about = folder.lstat()
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077
