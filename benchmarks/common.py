"""Results as files, each number with its bar, interval, hardware, versions and commit; and the training behind them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embodied import runs
from embodied.files import write_text
from rewards.metrics import wilson_interval

RESULTS = Path(__file__).resolve().parent / "results"
GIVEN = ("claim", "value", "unit", "bar", "met", "n", "seeds", "interval")  # of every row, by the benchmark
REQUIRED = ("claim", "value", "unit")


def read_options(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The `key=value` words of the command line over the defaults; JSON, but for what is text by default.

    Raises:
        SystemExit: a key that is not there, or a value that is not JSON.
    """
    given: dict[str, Any] = {}
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        try:
            given[key] = value if isinstance(defaults[key], str) else json.loads(value)
        except (KeyError, json.JSONDecodeError):
            sys.exit(f"options are key=value with {', '.join(defaults)}, values in JSON; got {word}.")
    return {**defaults, **given}


def record(name: str, rows: Iterable[Mapping[str, Any]], *, folder: Path = RESULTS) -> Path:
    """Write one benchmark's rows to `benchmarks/results/NAME.json`, whole or not at all.

    Args:
        name: of the benchmark.
        rows: mappings with `claim` (a sentence), `value` and `unit`; and where they apply `bar` (text such as
            ">= 0.9"), `met`, `n` (measurements behind the value), `seeds`, `interval` ([low, high], 95 %). Other
            keys are kept as detail. Each gets hardware, versions, commit, command and date, unless it has its own: a
            row that `load` gave stays as it was measured.
        folder: where to.

    Returns:
        The file.

    Raises:
        ValueError: no rows, a row without a claim, a value or a unit, or a number that is not finite.
    """
    rows = [dict(row) for row in rows]
    if not rows:
        raise ValueError(f"record: rows must hold at least one result; got none for {name!r}.")
    facts = runs.facts()
    module = Path(sys.argv[0]).stem
    command = shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])
    date = datetime.now(UTC).date().isoformat()
    results = []
    for row in rows:
        if missing := [key for key in REQUIRED if row.get(key) is None]:
            raise ValueError(
                f"record: every row must have {', '.join(REQUIRED)}; {', '.join(missing)} missing in {row}."
            )
        given = {key: row.get(key) for key in GIVEN}
        detail = {key: value for key, value in row.items() if key not in GIVEN}
        detail.pop("benchmark", None)  # the file's name
        results.append(given | facts | {"command": command, "date": date} | detail)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    write_text(file, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return file


def load(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every recorded row, files in the order of their names, each with its file's name as `benchmark`."""
    return [
        row | {"benchmark": file.stem}
        for file in sorted(folder.glob("*.json"))
        for row in json.loads(file.read_text("utf-8"))
    ]


def others(name: str, rows: Sequence[Mapping[str, Any]], folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows on record of one benchmark that speak of something else than these: claims before their colon tell."""
    about = {row["claim"].partition(":")[0] for row in rows}
    kept = [row for row in load(folder) if row["benchmark"] == name]
    return [row for row in kept if row["claim"].partition(":")[0] not in about]


def record_part(name: str, rows: Sequence[Mapping[str, Any]], *, folder: Path = RESULTS) -> None:
    """`record` these rows of a benchmark, and let those on record stay that speak of something else."""
    record(name, [*rows, *others(name, rows, folder)], folder=folder)


def success_row(claim: str, done: Mapping[int, Mapping[str, Any]], episodes: int) -> dict[str, Any]:
    """A row of the success of one way by training seed, with the interval over all episodes.

    Args:
        claim: of the row.
        done: training seed -> the last evaluation, with `success_rate`; at least one.
        episodes: of each.
    """
    rates = [done[seed]["success_rate"] for seed in sorted(done)]
    return {
        "claim": claim,
        "value": sum(rates) / len(rates),
        "unit": "share",
        "n": episodes * len(rates),
        "seeds": sorted(done),
        "interval": wilson_interval(round(sum(rates) * episodes), episodes * len(rates)),
        "by_seed": rates,
    }


def train(folder: Path, settings: Sequence[str], *, verb: str = "train", free: Collection[str] = ()) -> dict[str, Any]:
    """The last evaluation of `embodied VERB` with these settings; run now, on one thread, unless it was before.

    Args:
        folder: of the run.
        settings: words of the verb.
        verb: which.
        free: settings that say nothing of the run, such as where a server was.

    Raises:
        SystemExit: the run that is there was made with other settings.
    """
    if (done := trained(folder)) is not None:
        words = json.loads((folder / "run.json").read_text("utf-8"))["command"][2:]
        same_words(folder, words, settings, ("run", *free))
        return done
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        command = [sys.executable, "-m", "embodied.cli", verb, *settings, f"run={folder}"]
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    result = trained(folder)
    assert result is not None, f"{folder} must be finished"
    return result


def begun_with(folder: Path, words: Sequence[str]) -> None:
    """Keep the settings that a folder is begun with, and refuse to take what lies in it for that of others.

    Args:
        folder: where a benchmark goes on; made if it is not there.
        words: `key=value`.

    Raises:
        SystemExit: it was begun with others.
    """
    file = folder / "settings.json"
    if file.is_file():
        same_words(folder, json.loads(file.read_text("utf-8")), words)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(list(words)) + "\n")


def same_words(folder: Path, before: Iterable[str], now: Iterable[str], free: Collection[str] = ()) -> None:
    """Raises: SystemExit: the settings are others, but for the free ones."""
    old, new = ({word for word in words if word.partition("=")[0] not in free} for words in (before, now))
    if old != new:
        sys.exit(
            f"{folder} was made with {shlex.join(sorted(old - new)) or 'less'}, and {shlex.join(sorted(new - old))} "
            "is asked for now. Move it away to measure anew."
        )


def trained(folder: Path) -> dict[str, Any] | None:
    """The last evaluation of a run that is finished."""
    state = folder / "run.json"
    if not state.exists() or json.loads(state.read_text())["status"] != "finished":
        return None
    lines = evaluations_of(folder)
    return next(line for line in reversed(lines) if line.get("final"))


def evaluations_of(folder: Path) -> list[dict[str, Any]]:
    """A run's evaluations, the last one at the end."""
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text("utf-8").splitlines()]
