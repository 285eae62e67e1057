"""LeRobot's files by name, and the small ones among them: info, tasks, statistics.

A feature is an entry of `info.json`: {"dtype", "shape", "names", optional "info"}. Rows are one per frame; row t holds
what was seen before action t and what followed it (`next.…`). What LeRobot has no place for (which policy acted, where
a task's steps end, which world it was, own readings after the last action) lies in `meta/embodied.json`, pictures
after the last action in `last/`, which its readers pass by: extra columns in
`meta/episodes` would be read, but LeRobot takes the columns of the first file for those of all, so recording more
episodes with its own tools would make such a dataset unreadable.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from embodied.errors import UserError
from embodied.files import sync, whole

VERSION = "v3.0"
INFO, STATS, TASKS, EPISODES, OWN = "info.json", "stats.json", "tasks.parquet", "episodes", "embodied.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK = 1000  # files of a folder
DATA_MB, VIDEO_MB = 100, 200  # after which a new file begins
LAST = "last"  # folder of pictures after each episode's last action
MADE = "made"  # in our notes: the settings by which the episodes were made
LEFT_OUT = "left_out"  # in our notes: how many episodes were left out, whose pictures are still in the films
STAGING = ".staging"  # below the root: whole episodes that no meta data names yet
OPENED = "writer.json"  # there: with what the writer was opened, for whoever finishes what it left
COUNTERS: dict[str, dict[str, Any]] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    **{
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    },
}
IMAGES = ("video", "image")
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
STATISTICS = {"min", "max", "mean", "std", "count", *QUANTILES}
STAT_FRAMES, STAT_STRIDE = 20, 4  # of an episode's images, the frames and pixels that statistics read

Stats = dict[str, dict[str, Any]]  # feature -> statistic -> nested lists


# Features -----------------------------------------------------------------------------------------------


def short_name(key: str) -> str:
    """A camera's own name: `observation.images.front` -> `front`."""
    return key.removeprefix("observation.images.").removeprefix("observation.")


def column_names(feature: Mapping[str, Any], prefix: str) -> list[str]:
    """One name an entry of a flat feature; `prefix_0`… where the dataset does not tell.

    `names` is a list, a dictionary of lists ({"motors": […]}) or a dictionary name -> position.
    """
    width = int(np.prod(feature["shape"]))
    names: Any = feature.get("names")
    if isinstance(names, Mapping):
        values = list(names.values())
        if values and all(isinstance(value, int) for value in values):
            names = sorted(map(str, names), key={str(key): value for key, value in names.items()}.__getitem__)
        else:
            names = [each for value in values if isinstance(value, list) for each in value]
    texts = [str(name) for name in names] if isinstance(names, list) and len(names) == width else []
    if texts and len(set(texts)) == width and not any(isinstance(name, list | dict) for name in names):
        return texts
    return [f"{prefix}_{k}" for k in range(width)]


def image_shape(feature: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of an image feature, whose shape is HWC or CHW as its `names` tell."""
    shape, names = list(feature["shape"]), feature.get("names")
    if isinstance(names, list) and "height" in names and "width" in names and len(names) == len(shape):
        return int(shape[names.index("height")]), int(shape[names.index("width")])
    if shape[0] in (1, 3, 4) and shape[-1] not in (1, 3, 4):
        return int(shape[1]), int(shape[2])
    return int(shape[0]), int(shape[1])


def channels(feature: Mapping[str, Any]) -> int:
    """Of an image feature: 1 for greys and what may be depth, else 3."""
    shape, (height, width) = [int(size) for size in feature["shape"]], image_shape(feature)
    left = int(np.prod(shape)) // (height * width)
    return 1 if len(shape) == 2 or left == 1 else 3


def video_feature(height: int, width: int, fps: int | float) -> dict[str, Any]:
    """The entry of a camera that `embodied.datasets.video` encodes."""
    about = {"height": height, "width": width, "channels": 3, "codec": "h264", "pix_fmt": "yuv420p", "fps": fps}
    info = {f"video.{name}": value for name, value in about.items()}
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": {**info, "video.is_depth_map": False, "has_audio": False},
    }


def arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    """Of a column: a scalar for shape [1], else nested fixed-size lists."""
    kind = pa.string() if feature["dtype"] == "string" else pa.from_numpy_dtype(np.dtype(feature["dtype"]))
    if list(feature["shape"]) == [1]:
        return kind
    for size in reversed(feature["shape"]):
        kind = pa.list_(kind, int(size))
    return kind


def arrow_column(values: np.ndarray, feature: Mapping[str, Any]) -> pa.Array:
    """(T, *shape), or (T,) for shape [1], as a column."""
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(feature["shape"] if list(feature["shape"]) != [1] else ()):
        column = pa.FixedSizeListArray.from_arrays(column, int(size))
    return column


# Files --------------------------------------------------------------------------------------------------


def read_json(file: Path) -> Any:
    """A JSON file; errors name it."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # cut short, no text, digits or brackets without end
        raise UserError(f"{file}: must be JSON; {error}. The file is damaged or cut short.") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from error


def read_parquet(file: Path, about: str = "", *, without: str = "", **options: Any) -> pa.Table:
    """A parquet file; errors name it, and `about` what was looked for in it.

    Args:
        file: to be read.
        about: for errors.
        without: columns whose names begin so are not read; "": all are.
        options: of `pyarrow.parquet.read_table`.

    Raises:
        UserError: it is missing or damaged.
    """
    with reading(file, about):
        if without:
            names = pq.read_schema(file).names
            options["columns"] = [name for name in names if not name.startswith(without)]
        table = pq.read_table(file, partitioning=None, **options)  # pyright: ignore[reportArgumentType]
        if len(set(table.column_names)) != table.num_columns:  # names that are no text raise here
            raise ValueError("two columns have one name")
        return table


def read_episodes(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All of `meta/episodes`, however many files it has: LeRobot begins a new one each time it goes on with a dataset.

    Args:
        folder: `meta/episodes`.
        columns: those to read; None: all.

    Returns:
        One table; a column that some file lacks is null in its rows, and one of whole numbers in some file and others
        elsewhere (LeRobot's statistics of whole numbers) is of floats.

    Raises:
        UserError: there are none, one is damaged, or they do not fit together.
    """
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise UserError(f"{folder}: must hold the episodes' parquet files; there are none.")
    tables = [read_parquet(file, "episodes", columns=columns) for file in files]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(f"{folder}: its files must have columns of one kind; {error}. One is damaged.") from error


@contextmanager
def reading(file: Path, about: str = "") -> Iterator[None]:
    """Errors of reading a parquet file within it, in a person's words."""
    what = f"{file}{f' ({about})' if about else ''}"
    if not file.is_file():
        raise UserError(f"{what}: the file is missing{' (a link to nothing)' if file.is_symlink() else ''}.")
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if lacks := re.match(r"No match for FieldRef.Name\((.*?)\)", reason):
            raise UserError(f"{what}: column {lacks[1]} is missing, which info.json declares.") from error
        raise UserError(f"{what}: cannot be read ({reason}). The file is damaged or cut short.") from error


def python(values: pa.Table | pa.ChunkedArray, file: Path) -> list[Any]:
    """Rows or values as Python's; texts that are no UTF-8 are named."""
    try:
        return values.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise UserError(f"{file}: cannot be read ({error}). The file is damaged.") from error


def keep_last(folder: Path, frames: Mapping[str, np.ndarray]) -> None:
    """Write the pictures after an episode's last action into a staged episode's folder; camera -> (H, W, 3) uint8."""
    for camera, image in frames.items():
        Image.fromarray(image).save(folder / f"{LAST}-{camera}.png")


def place_last(folder: Path, root: Path, i: int) -> list[Path]:
    """Copy them to where `last_file` finds those of episode i, for good; where they are."""
    places = []
    for file in folder.glob(f"{LAST}-*.png"):
        place = last_file(root, file.stem.removeprefix(f"{LAST}-"), i)
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole(place) as part:
            shutil.copyfile(file, part)
            sync(part)
        places.append(place)
    return places


def last_file(root: Path, camera: str, i: int) -> Path:
    """What a camera saw after the last action of episode i."""
    return root / LAST / camera / f"episode-{i:06d}.png"


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """`tasks.parquet`, with the notes by which pandas takes `task` for the index: LeRobot looks tasks up by it."""
    fields = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, (kind, numpy) in fields.items()
    ]
    notes = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.2.3"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({b"pandas": json.dumps(notes).encode()})


def read_tasks(file: Path) -> dict[int, str]:
    """task_index -> text, whatever the index column is called."""
    table = read_parquet(file, "tasks")
    texts = [field.name for field in table.schema if field.name != "task_index" and _is_text(field.type)]
    if "task_index" not in table.column_names or not texts:
        raise UserError(f"{file}: must have a column task_index and one of texts; has {', '.join(table.column_names)}.")
    name = "task" if "task" in texts else texts[0]
    return _tasks(file, zip(python(table["task_index"], file), python(table[name], file), strict=True))


def read_old_tasks(file: Path) -> dict[int, str]:
    """task_index -> text of a v2 dataset's `tasks.jsonl`."""
    rows = read_lines(file)
    return _tasks(file, ((row.get("task_index"), row.get("task")) for row in rows))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; errors name the line."""
    if not file.is_file():
        raise UserError(f"{file}: the file is missing.")
    try:
        lines = [line for line in file.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}).") from error
    rows = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: line {number + 1} (episode {number}) is damaged: {error!r}.") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}: line {number + 1} (episode {number}) is damaged: it must be an object.")
        rows.append(row)
    return rows


def _tasks(file: Path, pairs: Iterable[tuple[Any, Any]]) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for index, text in pairs:
        if isinstance(index, bool) or not isinstance(index, int) or not isinstance(text, str | None):
            raise UserError(f"{file}: must give each text a whole number task_index; got {index!r} for {text!r}.")
        if index in tasks and tasks[index] != (text or ""):
            raise UserError(f"{file}: task_index {index} stands for two texts: {tasks[index]!r} and {text!r}.")
        tasks[index] = text or ""
    return tasks


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


# Statistics ---------------------------------------------------------------------------------------------


def statistics(values: np.ndarray) -> dict[str, Any]:
    """min, max, mean, std, count and quantiles of one feature of one episode, as LeRobot's normalisation reads them.

    Args:
        values: (T, *shape) numbers, or (T, H, W, 3) uint8 images, of which a sample is read; those come out in
            [0, 1] and shaped (3, 1, 1).
    """
    image = values.ndim == 4 and values.dtype == np.uint8
    if image:
        chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), STAT_FRAMES)).astype(int))
        count = len(chosen)
        sample = values[chosen, ::STAT_STRIDE, ::STAT_STRIDE].reshape(-1, values.shape[-1]) / 255
    else:
        count, sample = len(values), values.reshape(len(values), -1).astype(np.float64)
    found = {"min": sample.min(0), "max": sample.max(0), "mean": sample.mean(0), "std": sample.std(0)}
    found |= dict(zip(QUANTILES, np.quantile(sample, list(QUANTILES.values()), axis=0), strict=True))
    shape = (-1, 1, 1) if image else values.shape[1:] or (1,)
    return {name: value.reshape(shape).tolist() for name, value in found.items()} | {"count": [count]}


def pooled(table: pa.Table, former: Stats | None = None) -> Stats:
    """Statistics of several episodes together; exact but for quantiles, which are averaged by count as LeRobot does.

    Args:
        table: rows of meta/episodes, whose columns are `stats/<feature>/<statistic>`; they are not made
            Python's objects, which take many times their room.
        former: of episodes before them; its features alone are told then.

    Returns:
        Of each feature all of whose statistics every row has, in one shape.
    """
    names = [name.removeprefix("stats/").rpartition("/")[::2] for name in table.column_names if name[:6] == "stats/"]
    total: Stats = {}
    for feature in dict.fromkeys(feature for feature, _ in names) if former is None else former:
        held = {
            statistic: _stacked(table[f"stats/{feature}/{statistic}"]) for each, statistic in names if each == feature
        }
        stacked = {name: values for name, values in held.items() if values is not None}
        if stacked.keys() >= STATISTICS:
            if former is not None:
                before = {name: np.array(former[feature][name], np.float64)[None] for name in stacked}
                stacked = {name: np.concatenate([before[name], values]) for name, values in stacked.items()}
            total[feature] = pool(stacked)
    return total


def pool(stacked: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Statistics of one feature of N episodes, each (N, *shape), together."""
    counts = stacked["count"][:, 0].astype(np.float64)
    share = (counts / counts.sum()).reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    mean = (share * stacked["mean"]).sum(0)
    spread = (share * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(0)
    result = {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "mean": mean, "std": np.sqrt(spread)}
    result |= {name: (share * stacked[name]).sum(0) for name in QUANTILES}
    return {name: value.tolist() for name, value in result.items()} | {"count": [int(counts.sum())]}


def _stacked(column: pa.ChunkedArray) -> np.ndarray | None:
    """(N, *shape) float64; None where one is missing or has another shape."""
    values, shape = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type), []
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        sizes = pc.call_function("list_value_length", [values]).unique()
        if values.null_count or len(sizes) != 1:
            return None
        shape.append(sizes[0].as_py())
        values = values.flatten()
    if values.null_count:
        return None
    return values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(column), *shape)
