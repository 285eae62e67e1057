"""The README's results table, from `benchmarks/results/*.json`: python -m benchmarks.table [--check]

Writes the table between the README's markers; with --check only says whether it is up to date (exit 1 if not).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, load

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- results: python -m benchmarks.table -->", "<!-- end of results -->"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: a summary line and a folded table per benchmark, with what it was measured on."""
    by_benchmark: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_benchmark.setdefault(row["benchmark"], []).append(row)
    if not by_benchmark:
        return "Nothing measured yet."
    return "\n\n".join(_section(name, part) for name, part in by_benchmark.items())


def _section(name: str, rows: list[Mapping[str, Any]]) -> str:
    lines = ["| claim | measured | bar | met | how often |", "|---|---|---|---|---|"]
    for row in rows:
        value = f"{_number(row['value'])} {row['unit']}".strip()
        if row.get("interval"):
            value += " (" + " to ".join(_number(v) for v in row["interval"]) + ")"
        met = {True: "yes", False: "**no**", None: ""}[row.get("met")]
        often = ", ".join(
            part for part in (f"n = {row['n']}" if row.get("n") else "", _seeds(row.get("seeds"))) if part
        )
        cells = (row["claim"], value, row.get("bar") or "", met, often)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    judged = [row["met"] for row in rows if row.get("met") is not None]
    told = f"{sum(judged)} of {len(judged)} bars met" if judged else f"{len(rows)} figures, no bar"
    where = sorted({_where(row) for row in rows})
    return "\n".join(
        [f"<details><summary><code>{name}</code>: {told}</summary>", "", *lines, "", *where, "", "</details>"]
    )


def updated(readme: str, content: str) -> str:
    """The README's text with the table between its markers.

    Raises:
        ValueError: the markers are not there, once each.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must have {BEGIN!r} and {END!r}, once each.")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.split(END)[1]}"


def _seeds(seeds: Any) -> str:
    if not seeds:
        return ""
    count = len(seeds) if isinstance(seeds, list) else int(seeds)
    return f"{count} seed{'s' if count > 1 else ''}"


def _where(row: Mapping[str, Any]) -> str:
    hardware, versions = row["hardware"], row["versions"]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores" + (f", {hardware['gpu']}" if hardware.get("gpu") else "")
    names = ("python", "torch", "mujoco")
    commit = (row.get("commit") or "unknown").split()[0]
    commit = commit[:10] + "+" * commit.endswith("+")
    told = ", ".join(f"{n} {versions[n]}" for n in names)
    return f"`{row['command']}`: {machine}; {told}; {row['date']}, {commit}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Update or check the README."""
    old = README.read_text("utf-8")
    new = updated(old, table(load(RESULTS)))
    if "--check" in sys.argv[1:]:
        print("README.md is up to date." if new == old else "README.md is out of date: run python -m benchmarks.table")
        return int(new != old)
    README.write_text(new, "utf-8")
    print(table(load(RESULTS)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
