"""Pages of the reference, made while the site is built (a hook of MkDocs): a verb's help, and a module's docstrings.

The help is that of `embodied VERB --help`, asked of the interpreter in EMBODIED_PYTHON; docstrings are read by
mkdocstrings without importing anything.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "rewards": "rewards",
    "policies": "policies",
    "worlds": "embodied/envs",
    "datasets": "embodied/datasets",
    "cameras": "embodied/cameras",
    "training": "embodied/training",
    "robots": "embodied/robots",
    "serving": "embodied/serving",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each verb and each package, and list them where the reference begins."""
    pages = {f"commands/{verb}": _help(verb) for verb in _verbs()}
    pages |= {f"python/{name}": _package(name, folder) for name, folder in PACKAGES.items()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    start = files.get_file_from_path("reference/README.md")
    assert start is not None
    listed = "".join(f"- [{name}]({name}.md)\n" for name in pages)
    files.remove(start)
    files.append(File.generated(config, "reference/README.md", content=f"{start.content_string}\n{listed}"))
    return files


def _verbs() -> list[str]:
    folder = ROOT / "embodied" / "commands"
    return sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))


def _help(verb: str) -> str:
    python = os.environ.get("EMBODIED_PYTHON", sys.executable)
    command = [python, "-m", "embodied.cli", verb, "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return f"# embodied {verb}\n\n```text\n{told.rstrip()}\n```\n"


def _package(name: str, folder: str) -> str:
    files = sorted(file for file in (ROOT / folder).rglob("*.py") if not file.stem.startswith("_"))
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return f"# {name}\n\n" + "".join(f"::: {module}\n\n" for module in modules)
