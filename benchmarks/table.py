"""The pages of `docs/results/` and the README's headline figures: python -m benchmarks.table [--check]

One page a file of `benchmarks/results/`, an index of them, and a few rows between the README's markers. With --check it
writes nothing, names what is out of date, and exits with 1 if anything is.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import RESULTS, load

ROOT = Path(__file__).resolve().parents[1]
README, PAGES = ROOT / "README.md", ROOT / "docs" / "results"
BEGIN, END = "<!-- results: python -m benchmarks.table -->", "<!-- end of results -->"
INDEX = "README.md"  # of the pages, so that a browsed folder shows it


class Headline(NamedTuple):
    """A row that the README shows: of a benchmark, the one with this claim, else the first whose claim begins so."""

    benchmark: str
    claim: str


# Chosen to say what works and what does not, before anyone looks for it; missed bars are among them.
HEADLINES = (
    Headline("demo", "`make demo`: success"),
    Headline("learners", "desk-drawer: the sentence"),
    Headline("dm_control", "walker-walk, RLPD"),
    Headline("finetune", "imitation, place, 50 demonstrations"),
    Headline(
        "finetune", "language, 4 tasks (drawer, press, place, lift), 25 demonstrations of each, one policy: success"
    ),
    Headline("own_rollouts", "place, 8 demonstrations: success with chunked RL"),
    Headline("safety", "random policies with faults"),
    Headline("practise", "forward from a reset"),
)

# What the first line of a benchmark's docstring does not say of a page.
_STATE = "Otherwise here: policies of SAC, which read the simulator's state, and rewards not held to their outcome."
NOTES = dict.fromkeys([f"families_{task}_earlier" for task in ("close", "drawer", "press")], _STATE) | {
    "text_goals": "All policies are of SAC and read the simulator's state.",
    "text_goals_earlier": "All policies are of SAC and read the simulator's state; the encoders are earlier ones.",
    "demo": "Downloads are as fast as the machine's; before 1 December 2026 pip's cache could serve.",
    "drive_policies_earlier": "Otherwise here: the encoder is one that `benchmarks.own_scenes` taught.",
}
INTRODUCTION = """\
# Results

Every page is generated from a file of `benchmarks/results/` by `python -m benchmarks.table`. Below each table stands
the command that measured it, with hardware, versions and commit; a `+` after the commit means that the tree had changes
that were not committed. What was finished before is not run again, so a row can rest on runs of earlier commits than
its own. A missed bar stays on its page with its number.

An interval (95 %) is of the episodes, frames or repeats behind a figure, those of all training seeds together: it does
not tell how far another seed would be. The least and the greatest of the seeds stand behind their number. Training
seeds that follow one another are judged on starts that are nearly the same.

| benchmark | what it asks | bars met |
|---|---|---|
"""


def pages(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """File name -> Markdown: a page for each benchmark, and the index."""
    by_benchmark = _by_benchmark(rows)
    made = {f"{name}.md": _page(name, part) for name, part in by_benchmark.items()}
    lines = [f"| [{name}]({name}.md) | {_asks(part)} | {_met(part)} |" for name, part in by_benchmark.items()]
    return made | {INDEX: INTRODUCTION + "\n".join(lines) + "\n"}


def headlines(rows: Iterable[Mapping[str, Any]], wanted: Iterable[Headline] = HEADLINES) -> str:
    """The README's table.

    Raises:
        ValueError: no row of a benchmark begins as a headline says.
    """
    by_benchmark = _by_benchmark(rows)
    found = []
    for headline in wanted:
        part = by_benchmark.get(headline.benchmark, [])
        fitting = [row for row in part if row["claim"].startswith(headline.claim)]
        row = next((row for row in fitting if row["claim"] == headline.claim), fitting[0] if fitting else None)
        if row is None:
            raise ValueError(
                f"headlines: a claim of {headline.benchmark!r} must begin with {headline.claim!r}; none does. "
                "Choose another row in HEADLINES of benchmarks/table.py."
            )
        found.append(row)
    return _table(found, linked=True)


def updated(readme: str, content: str) -> str:
    """The README's text with the table between its markers.

    Raises:
        ValueError: the markers are not there, once each.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must have {BEGIN!r} and {END!r}, once each.")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.split(END)[1]}"


def files(rows: Iterable[Mapping[str, Any]], readme: Path = README, folder: Path = PAGES) -> dict[Path, str | None]:
    """Every generated file with what must stand in it; None: a page whose results are gone, to be deleted."""
    rows = list(rows)
    made: dict[Path, str | None] = {folder / name: text for name, text in pages(rows).items()}
    made |= {old: None for old in folder.glob("*.md") if old not in made}
    return made | {readme: updated(readme.read_text("utf-8"), headlines(rows))}


def stale(wanted: Mapping[Path, str | None]) -> list[Path]:
    """The files that do not hold what they must."""
    return [file for file, text in wanted.items() if (file.read_text("utf-8") if file.exists() else None) != text]


def _by_benchmark(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["benchmark"], []).append(row)
    return found


def _page(name: str, rows: list[Mapping[str, Any]]) -> str:
    where = sorted({_where(row) for row in rows})
    return "\n".join(
        [f"# {name}", "", _asks(rows), "", *_noted(name), f"{_met(rows)}.", "", _table(rows), "", *where, ""]
    )


def _noted(name: str) -> list[str]:
    return [NOTES[name], ""] if name in NOTES else []


def _table(rows: Iterable[Mapping[str, Any]], *, linked: bool = False) -> str:
    """One row a result; `linked` adds where the README finds its page."""
    heads = ["claim", "measured", "bar", "met", "how often", *(["page"] if linked else [])]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        value = f"{_number(row['value'])} {row['unit']}".strip()
        if row.get("interval"):
            value += " (" + " to ".join(_number(v) for v in row["interval"]) + ")"
        met = {True: "yes", False: "**no**", None: ""}[row.get("met")]
        often = ", ".join(
            part for part in (f"n = {row['n']}" if row.get("n") else "", _seeds(row, ranged=not linked)) if part
        )
        cells = [row["claim"], value, row.get("bar") or "", met, often]
        cells += [f"[{row['benchmark']}](docs/results/{row['benchmark']}.md)"] if linked else []
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _met(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    judged = [row["met"] for row in rows if row.get("met") is not None]
    if judged:
        return f"{sum(judged)} of {len(judged)} bars met"
    return f"{len(rows)} figures, no bar" + " decided" * any(row.get("bar") for row in rows)


def _asks(rows: Iterable[Mapping[str, Any]]) -> str:
    """The first line of the benchmark's own docstring."""
    words = next(iter(rows))["command"].split()
    module = words[2].removeprefix("benchmarks.") if words[1:2] == ["-m"] else ""
    file = Path(__file__).with_name(f"{module}.py")
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) if file.is_file() else None
    return (text or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _seeds(row: Mapping[str, Any], *, ranged: bool) -> str:
    """How many seeds, and the least and the greatest of them where each is known."""
    seeds = row.get("seeds")
    if not seeds:
        return ""
    count, each = len(seeds) if isinstance(seeds, list) else int(seeds), row.get("by_seed") or []
    told = f"{count} seed{'s' if count > 1 else ''}"
    if ranged and len(each) > 1 and not isinstance(each[0], list):  # practise has pairs
        told += f" ({_number(min(each))} to {_number(max(each))})"
    return told


def _where(row: Mapping[str, Any]) -> str:
    hardware, versions = row["hardware"], row["versions"]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores" + (f", {hardware['gpu']}" if hardware.get("gpu") else "")
    names = ("python", "torch", "mujoco")
    commit = (row.get("commit") or "unknown").split()[0]
    commit = commit[:10] + "+" * commit.endswith("+")
    told = ", ".join(f"{n} {versions[n]}" for n in names)
    return f"- `{row['command']}`: {machine}; {told}; {row['date']}, {commit}"


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value if abs(value) > 1e-12 else 0:.4g}"  # what rounding leaves of 0 is 0


def main() -> int:
    """Write the pages and the README's table, or check them."""
    wanted = files(load(RESULTS))
    changed = stale(wanted)
    names = ", ".join(str(file.relative_to(ROOT)) for file in changed)
    if "--check" in sys.argv[1:]:
        print(f"Out of date: {names}. Run python -m benchmarks.table." if changed else "All pages are up to date.")
        return int(bool(changed))
    PAGES.mkdir(parents=True, exist_ok=True)
    for file in changed:
        text = wanted[file]
        if text is None:
            file.unlink()
        else:
            file.write_text(text, "utf-8")
    print(f"Written: {names}." if changed else "All pages were up to date.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
