"""Finish what a killed run left unfinished in a record's folder. Nothing that was recorded is lost or recorded twice.

python -m embodied.sinks.recover FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path


def recover(root: Path) -> list[str]:
    """What was done, in words; nothing where all is whole.

    Args:
        root: of a record nobody is writing.

    Raises:
        OSError: something could not be finished, for want of room; what was recorded is still there.
    """
    done: list[str] = []
    for part in root.glob("*.part"):
        part.unlink()
    for lines in sorted(root.glob("readings*.jsonl")):
        if not lines.with_suffix(".parquet").exists():
            from embodied.sinks.jsonl import make_parquet

            done.append(f"{make_parquet(lines).name}: made from {lines.name}")
    for log in sorted(root.glob("watch*.mcap")):
        from embodied.sinks.mcap_file import finish

        if finish(log):
            done.append(f"{log.name}: finished")
    from embodied.sinks import dataset

    return [*done, *dataset.recover(root)]


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m embodied.sinks.recover FOLDER", file=sys.stderr)
        return 2
    from embodied.errors import UserError
    from embodied.sinks.record import Folder

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
