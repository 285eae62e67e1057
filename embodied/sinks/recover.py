"""Finish what a killed run left unfinished in a record's folder. Nothing that was recorded is lost or recorded twice.

python -m embodied.sinks.recover FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from embodied.errors import UserError
from embodied.sinks.record import Folder


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m embodied.sinks.recover FOLDER", file=sys.stderr)
        return 2
    try:
        folder = Folder(Path(arguments[0]), new=False)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    folder.close()
    print("\n".join(folder.recovered) or "nothing was left unfinished")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
