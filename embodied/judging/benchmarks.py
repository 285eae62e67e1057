"""Public benchmarks of reward models, read from their folders as they are published.

    rbm-ood, rbm-id   Robometer's RBM-EVAL (arXiv 2603.02115). Two layouts: `train/metadata.parquet` beside the films
                      (`robometer/rbm-1m-ood`), and the parquet files that Robometer's own converter writes, whose
                      `frames` names a film (`jesbu1/…_rfm`, `aliangdw/…_policy_ranking`)
    roboreward        RoboRewardBench, the test part of `teetone/RoboReward` (arXiv 2601.00675): `test/metadata.jsonl`
    robo-dopamine     `tanhuajie2001/Robo-Dopamine-Bench` (arXiv 2512.23703): `jsons/*.json`, `images/<name>/cam_high`
    robopulse         `yuheng2000/RoboPulse` (arXiv 2603.21669): `RoboPulse.json` beside `images/`, pairs of
                      moments (`embodied.judging.robopulse`)
    oxe               datasets of Open X-Embodiment as LeRobot has them: order along demonstrations, as GVL and
                      TOPReward tell it (arXiv 2411.04549): 15 frames of up to 50 episodes of each

What the files say is data by others: paths must stay in the folder, and values be of their kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from embodied.datasets import Dataset, layout
from embodied.datasets.video import VideoError, sampled
from embodied.errors import UserError
from embodied.judging.benchmark_films import BenchmarkFilm, inside, text
from embodied.judging.quality import LEVELS
from embodied.judging.robopulse import robopulse

PICTURES = (".png", ".jpg", ".jpeg")
QUALITY = {"failure": 0.0, "suboptimal": 1.0, "success": 2.0, "successful": 2.0}  # as RBM-EVAL's files call them
RBM_FRAMES = 64  # of a film, as Robometer's evaluation prepares them
OXE_FRAMES, OXE_EPISODES = 15, 50
DOPAMINE_STEP = 30  # pictures from one that is shown to the next
MAIN = "cam_high"


@dataclass(frozen=True)
class Benchmark:
    """What is read, and what is told of it.

    Attributes:
        films: root -> its episodes; of pairs, root and the setting `fields`.
        figures: names, as the benchmark's own authors tell them (`embodied.judging.published.NAMES`).
        published: figure -> model -> what was published of it.
        pairs: whether it holds pairs of moments instead of episodes.
    """

    films: Callable[..., Iterator[BenchmarkFilm]]
    figures: tuple[str, ...]
    published: Mapping[str, Mapping[str, float]]
    pairs: bool = False


def _rbm(root: Path) -> Iterator[BenchmarkFilm]:
    table = root / "train" / "metadata.parquet"
    if table.is_file():
        wanted = _eval_sources(root / "meta" / "info.json")
        for where, row in _rows(table, ("file_name", "task", "quality_label", "data_source")):
            if not wanted or row["data_source"] in wanted:
                yield _graded(where, row, inside(where, table.parent, row["file_name"]))
        return
    found = False
    for file in sorted(root.rglob("*.parquet")):
        if not {"task", "frames", "quality_label", "data_source"} <= _columns(file):
            continue
        found = True
        for where, row in _rows(file, ("frames", "task", "quality_label", "data_source")):
            bases = [base for base in (file.parent, *file.parent.parents) if base.is_relative_to(root)]
            paths = [inside(where, base, row["frames"]) for base in bases]
            yield _graded(where, row, next((path for path in paths if path.is_file()), paths[0]))
    if not found:
        raise UserError(
            f"{root}: must hold train/metadata.parquet, or parquet files with task, frames and quality_label; it has "
            "none. Give the folder that the hub's dataset was downloaded to."
        )


def _graded(where: str, row: Mapping[str, str], path: Path) -> BenchmarkFilm:
    label = row["quality_label"]
    if label not in QUALITY:
        raise UserError(f"{where}: quality_label must be {', '.join(QUALITY)}; got {label[:40]!r}.")
    quality = QUALITY[label]
    return BenchmarkFilm(
        task=row["task"], source=row["data_source"], frames=_film(path, RBM_FRAMES), success=quality == 2,
        quality=quality,
    )  # fmt: skip


def _eval_sources(info: Path) -> list[str]:
    told: Any = layout.read_json(info).get("eval_data_sources", []) if info.is_file() else []
    if not isinstance(told, list) or not all(isinstance(name, str) for name in told):
        raise UserError(f"{info}: eval_data_sources must be a list of names.")
    return told


def _roboreward(root: Path) -> Iterator[BenchmarkFilm]:
    file = next((f for f in (root / "test" / "metadata.jsonl", root / "metadata.jsonl") if f.is_file()), None)
    if file is None:
        raise UserError(f"{root}: must hold test/metadata.jsonl, as teetone/RoboReward has it; it has none.")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            where = f"{file}: line {number + 1}"
            row = _object(where, line)
            task, level = text(where, "task", row), row.get("reward")
            if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= LEVELS:
                raise UserError(f"{where}: reward must be a whole number from 1 to {LEVELS}; got {level!r:.40}.")
            name = text(where, "file_name", row)
            yield BenchmarkFilm(
                task=task, source=name.split("/")[0], frames=_film(inside(where, file.parent, name), RBM_FRAMES),
                success=level == LEVELS, quality=float(level), level=level,
            )  # fmt: skip


def _dopamine(root: Path) -> Iterator[BenchmarkFilm]:
    files = sorted((root / "jsons").glob("*.json"))
    if not files:
        raise UserError(f"{root}: must hold jsons/*.json, as Robo-Dopamine-Bench has them; it has none.")
    for file in files:
        told = _object(str(file), file.read_text("utf-8"))
        names, tasks = told.get("sample_path_list"), told.get("sample_path_task")
        if not isinstance(names, list) or not isinstance(tasks, list) or len(names) != len(tasks):
            raise UserError(f"{file}: sample_path_list and sample_path_task must be lists of one length.")
        for number, (name, task) in enumerate(zip(names, tasks, strict=True)):
            where = f"{file}: sample {number}"
            row = {"name": name, "task": task}
            folder = inside(where, root / "images", text(where, "name", row)) / MAIN
            yield BenchmarkFilm(
                task=text(where, "task", row), source=file.stem, frames=_folder(folder), success=True, quality=2.0
            )


def _oxe(root: Path) -> Iterator[BenchmarkFilm]:
    roots = [info.parent.parent for info in sorted(root.rglob("meta/info.json"))]
    if not roots:
        raise UserError(f"{root}: must be a LeRobot dataset, or hold some; it has no meta/info.json.")
    for each in roots:
        dataset = Dataset(each)
        for i in range(min(len(dataset), OXE_EPISODES)):
            yield BenchmarkFilm(
                task=dataset.instruction(i), source=each.name, frames=_recorded(dataset, i), success=True, quality=2.0
            )


# Frames -------------------------------------------------------------------------------------------------------


def _film(path: Path, most: int) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        try:
            return sampled(path, most)
        except (VideoError, FileNotFoundError) as error:
            raise UserError(str(error)) from error

    return read


def _folder(folder: Path) -> Callable[[], np.ndarray]:
    """The pictures of a folder in the order of their names, evenly spaced, first and last among them."""

    def read() -> np.ndarray:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES) if folder.is_dir() else []
        if len(files) < 2:
            raise UserError(f"{folder}: must hold pictures of an episode; it has {len(files)}.")
        rows = np.linspace(0, len(files) - 1, max(len(files) // DOPAMINE_STEP, 2)).round().astype(int)
        try:
            return np.stack([np.asarray(Image.open(files[row]).convert("RGB")) for row in rows])
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise UserError(f"{folder}: its pictures cannot be read ({error}).") from error

    return read


def _recorded(dataset: Dataset, i: int) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        rows = np.unique(np.linspace(0, dataset.length(i) - 1, OXE_FRAMES).round().astype(int))
        return dataset.frames(i, dataset.cameras[0], rows.tolist())

    return read


# What others wrote --------------------------------------------------------------------------------------------


def _rows(file: Path, names: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of texts, each with where it stands."""
    table = layout.read_parquet(file, "episodes", columns=list(names))
    if missing := [name for name in names if name not in table.column_names]:
        raise UserError(f"{file}: column {missing[0]} is missing.")
    for number, row in enumerate(layout.python(table, file)):
        where = f"{file} (row {number})"
        yield where, {name: text(where, name, row) for name in names}


def _columns(file: Path) -> set[str]:
    try:
        return set(pq.read_schema(file).names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}). The file is damaged or cut short.") from error


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        made = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: must be JSON; {error}.") from error
    if not isinstance(made, dict):
        raise UserError(f"{where}: must be a JSON object; got {type(made).__name__}.")
    return made


RANKING = {"Robometer-4B": 0.655, "RynnValue-8B": 0.675, "RoboReward": 0.502}
BENCHMARKS = {
    "rbm-ood": Benchmark(
        _rbm,
        (
            "kendall_tau",
            "ranking_acc",
            "succ_fail_diff",
            "success_auprc",
            "voc_pearson",
            "voc_spearman",
            "confusion_margin",
        ),
        {"kendall_tau": RANKING, "voc_pearson": {"Robometer-4B": 0.93}},
    ),
    "rbm-id": Benchmark(_rbm, ("voc_pearson", "voc_spearman"), {"voc_pearson": {"Robometer-4B": 0.84}}),
    "roboreward": Benchmark(_roboreward, ("mae_ordinal", "ranking_acc"), {}),
    "robo-dopamine": Benchmark(_dopamine, ("voc_spearman", "voc_reversed", "pairwise_acc"), {}),
    "robopulse": Benchmark(
        robopulse,
        ("pairwise_acc", "pairwise_macro"),
        {"pairwise_acc": {"Robo-Dopamine GRM": 0.80, "best general VLM": 0.54, "worst general VLM": 0.47}},
        pairs=True,
    ),
    "oxe": Benchmark(_oxe, ("voc_spearman",), {"voc_spearman": {"TOPReward (Qwen3-VL-8B)": 0.857, "GVL": 0.194}}),
}
