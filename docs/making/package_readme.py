"""README.md for a package index, which shows neither pictures nor files that lie beside it (hatch's metadata hook)."""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[([^]]*)\]\((?!https?:)[^)]*\)")
LINK = re.compile(r"(?<!!)\[([^]]*)\]\((?!https?:|#)([^)]*)\)")


def packaged(readme: str) -> str:
    """Pictures as what they show, and links to files as their names in the source."""
    return LINK.sub(r"\1 (`\2`)", PICTURE.sub(r"*\1*", readme))


class PackageReadme(MetadataHookInterface):
    """Fills in `readme`, which pyproject.toml declares dynamic."""

    def update(self, metadata: dict) -> None:
        text = packaged(Path(self.root, "README.md").read_text("utf-8"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
