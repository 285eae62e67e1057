"""Datasets that are broken, by accident or on purpose: each ends in one error of ours, or is read as it is."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embodied.cameras import recorded
from embodied.datasets import Dataset, Writer
from embodied.errors import UserError
from tests.lerobot_folders import folder, picture

ONE = {"shape": [1], "names": None}
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
    "action": {"dtype": "float32", "shape": [2], "names": None},
    "next.success": {"dtype": "bool", **ONE},
    "next.reward": {"dtype": "float32", **ONE},
    "next.done": {"dtype": "bool", **ONE},
}
CAMERA, LENGTHS, ROUNDS = "observation.images.front", (4, 3, 5), 240
INFO, OWN, TASKS = "meta/info.json", "meta/embodied.json", "meta/tasks.parquet"
EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"
FILM = f"videos/{CAMERA}/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole") / "set"
    with Writer(root, fps=20, features=FEATURES, cameras={"front": (32, 32)}, env={"id": "w"}) as writer:
        for k, n in enumerate(LENGTHS):
            columns = {name: np.zeros((n, 2), np.float32) for name in ("observation.state", "action")}
            columns |= {name: np.zeros(n, bool) for name in ("next.success", "next.done")}
            columns["next.reward"] = np.zeros(n, np.float32)
            frames = {"front": np.stack([picture(10 * k + row) for row in range(n)])}
            writer.add(columns, frames, instruction=f"task {k}", kind="expert", steps=[n - 1])
    return root


@pytest.fixture
def root(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


def read_all(root):
    """Whatever a verb may read of it."""
    dataset = Dataset(root)
    for i in range(len(dataset)):
        dataset.recording(i)
        dataset.instructions(i)
        dataset.columns(i, [name for name, f in dataset.features.items() if f["dtype"] not in ("video", "image")])
        for camera in dataset.cameras:
            assert sum(len(batch) for batch in dataset.batches(i, camera)) == dataset.length(i)
            for shot in recorded.episode(dataset, dataset.span(i).index, camera):
                assert shot.image is not None
        assert all(0 <= row < dataset.length(i) for row in dataset.steps(i))
    return dataset


def change_json(file, change):
    value = json.loads(file.read_text("utf-8"))
    changed = change(value)
    file.write_text(json.dumps(value if changed is None else changed), "utf-8")


def put(*path):
    """A change of JSON: the last of `path` is put where the others lead."""
    *where, last, value = path

    def change(found):
        for key in where:
            found = found[key]
        found[last] = value

    return change


def cut(*path):
    *where, last = path

    def change(found):
        for key in where:
            found = found[key]
        del found[last]

    return change


STATE, FILM_FEATURE = ("features", "observation.state"), ("features", CAMERA)
HUGE = 2**33
JSON = {
    "features null": (INFO, put("features", None)),
    "features a list": (INFO, put("features", [])),
    "features empty": (INFO, put("features", {})),
    "a feature null": (INFO, put(*STATE, None)),
    "no dtype": (INFO, cut(*STATE, "dtype")),
    "dtype a number": (INFO, put(*STATE, "dtype", 4)),
    "dtype objects": (INFO, put(*STATE, "dtype", "object")),
    "dtype unknown": (INFO, put(*STATE, "dtype", "float33")),
    "no shape": (INFO, cut(*STATE, "shape")),
    "shape a number": (INFO, put(*STATE, "shape", 2)),
    "shape huge": (INFO, put(*STATE, "shape", [HUGE])),
    "shape huge in parts": (INFO, put(*STATE, "shape", [2**17, 2**17])),
    "shape negative": (INFO, put(*STATE, "shape", [-2])),
    "shape of floats": (INFO, put(*STATE, "shape", [2.5])),
    "another shape": (INFO, put(*STATE, "shape", [3])),
    "names a number": (INFO, put(*STATE, "names", 7)),
    "an image of no shape": (INFO, put(*FILM_FEATURE, "shape", [])),
    "an image of no pixels": (INFO, put(*FILM_FEATURE, "shape", [0, 32, 3])),
    "an image of another size": (INFO, put(*FILM_FEATURE, "shape", [16, 32, 3])),
    "a film that is images": (INFO, put(*FILM_FEATURE, "dtype", "image")),
    "info of a film a text": (INFO, put(*FILM_FEATURE, "info", "depth")),
    "fps 0": (INFO, put("fps", 0)),
    "fps negative": (INFO, put("fps", -3)),
    "fps a text": (INFO, put("fps", "20")),
    "fps null": (INFO, put("fps", None)),
    "fps infinite": (INFO, put("fps", math.inf)),
    "fps no number": (INFO, put("fps", math.nan)),
    "fps huge": (INFO, put("fps", 10**300)),
    "info a list": (INFO, lambda found: [found]),
    "version a number": (INFO, put("codebase_version", 3)),
    "no data path": (INFO, cut("data_path")),
    "data path a number": (INFO, put("data_path", 3)),
    "data path outside": (INFO, put("data_path", "/etc/passwd")),
    "data path above": (INFO, put("data_path", "../{chunk_index}/{file_index}")),
    "data path of attributes": (INFO, put("data_path", "data/{chunk_index.__class__}")),
    "data path very wide": (INFO, put("data_path", "data/{chunk_index:>999999999999}.parquet")),
    "data path of other names": (INFO, put("data_path", "data/{HOME}.parquet")),
    "no film path": (INFO, put("video_path", None)),
    "chunks of none": (INFO, put("chunks_size", 0)),
    "own a list": (OWN, lambda found: [found]),
    "own env a list": (OWN, put("env", [1])),
    "own id a list": (OWN, put("env", "id", [])),
    "own made a list": (OWN, put("made", [1])),
    "own made a text": (OWN, put("made", {"seed": "all"})),
    "own episodes a list": (OWN, put("episodes", [1])),
    "an own episode a number": (OWN, put("episodes", "1", 4)),
    "own steps beyond": (OWN, put("episodes", "1", "steps", [99])),
    "own steps a text": (OWN, put("episodes", "1", "steps", "all")),
    "own steps huge": (OWN, put("episodes", "1", "steps", [10**30])),
}


@pytest.mark.parametrize("name", JSON)
def test_broken_json_ends_in_one_error(root, name):
    file, change = JSON[name]
    change_json(root / file, change)
    with pytest.raises(UserError):
        read_all(root)


@pytest.mark.parametrize("text", ["", "{", "null", "[" * 100_000, '{"fps":' + "9" * 5000 + "}", b"\xff\xfe\x00\xd8"])
@pytest.mark.parametrize("name", [INFO, OWN])
def test_files_that_are_no_json_end_in_one_error(root, name, text):
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=name.rpartition("/")[2]):
        read_all(root)


def column(name, value, row=1):
    """A change of a table: one cell is another value."""

    def change(table):
        values = table[name].to_pylist()
        values[row] = value
        return table.set_column(table.column_names.index(name), name, pa.array(values))

    return change


def without(name):
    return lambda table: table.drop_columns([name])


TABLES = {
    "length huge": (EPISODES, column("length", 10**12)),
    "length more than there is": (EPISODES, column("length", 10**8)),
    "length one more": (EPISODES, column("length", LENGTHS[1] + 1)),
    "length negative": (EPISODES, column("length", -1)),
    "length null": (EPISODES, column("length", None)),
    "episode twice": (EPISODES, column("episode_index", 0)),
    "every episode the same": (EPISODES, lambda t: t.set_column(0, "episode_index", pa.array([0] * len(t)))),
    "an episode missing": (EPISODES, lambda t: t.take([0, 2])),
    "episode null": (EPISODES, column("episode_index", None)),
    "episode huge": (EPISODES, column("episode_index", 10**15)),
    "no tasks": (TASKS, without("task")),
    "no task numbers": (TASKS, without("task_index")),
    "task number null": (TASKS, column("task_index", None)),
    "task number twice": (TASKS, column("task_index", 0)),
    "tasks a number": (EPISODES, lambda t: t.set_column(t.column_names.index("tasks"), "tasks", pa.array([1, 2, 3]))),
    "place null": (EPISODES, column("data/file_index", None)),
    "place huge": (EPISODES, column("data/file_index", 10**15)),
    "place of no file": (EPISODES, column("data/file_index", 7)),
    "film of no file": (EPISODES, column(f"videos/{CAMERA}/file_index", 7)),
    "film null": (EPISODES, column(f"videos/{CAMERA}/file_index", None)),
    "film begins at the end of time": (EPISODES, column(f"videos/{CAMERA}/from_timestamp", 1e300)),
    "film begins nowhere": (EPISODES, column(f"videos/{CAMERA}/from_timestamp", math.nan)),
    "film begins before itself": (EPISODES, column(f"videos/{CAMERA}/from_timestamp", -5.0)),
    "film begins too late": (EPISODES, column(f"videos/{CAMERA}/from_timestamp", 90.0)),
    "film ends before it begins": (EPISODES, column(f"videos/{CAMERA}/to_timestamp", 0.01)),
    "no film column": (EPISODES, without(f"videos/{CAMERA}/from_timestamp")),
    "no length column": (EPISODES, without("length")),
    "state null": (DATA, column("observation.state", None)),
    "state without a number": (DATA, column("observation.state", [None, 1.0])),
    "states of two lengths": (DATA, column("observation.state", [1.0])),
    "no state": (DATA, without("observation.state")),
    "no episode index": (DATA, without("episode_index")),
    "frame twice": (DATA, column("frame_index", 0)),
    "frame null": (DATA, column("frame_index", None)),
    "frame huge": (DATA, column("frame_index", 2**62)),
    "time null": (DATA, column("timestamp", None)),
    "time nan": (DATA, column("timestamp", math.nan)),
    "time infinite": (DATA, column("timestamp", math.inf)),
    "time huge": (DATA, column("timestamp", 1e30)),
    "task unknown": (DATA, column("task_index", 99)),
    "task null": (DATA, column("task_index", None)),
    "rewards are texts": (DATA, lambda t: t.set_column(t.column_names.index("next.reward"), "next.reward",
                                                       pa.array(["a"] * len(t)))),
    "states are texts": (DATA, lambda t: t.set_column(t.column_names.index("observation.state"), "observation.state",
                                                      pa.array([["a", "b"]] * len(t)))),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_broken_tables_end_in_one_error(root, name):
    file, change = TABLES[name]
    pq.write_table(change(pq.read_table(root / file)), root / file)
    with pytest.raises(UserError):
        read_all(root)


def test_places_that_are_folders_links_or_missing(root, tmp_path):
    for name in (INFO, EPISODES, DATA, FILM):
        spoilt = shutil.copytree(root, tmp_path / name.replace("/", "-"))
        (spoilt / name).unlink()
        (spoilt / name).mkdir()
        with pytest.raises(UserError):
            read_all(spoilt)
        (spoilt / name).rmdir()
        (spoilt / name).symlink_to("nowhere")
        with pytest.raises(UserError):
            read_all(spoilt)


def test_a_zero_length_episode_is_left_out_and_a_camera_may_have_seen_nothing(root):
    file = root / EPISODES
    table = pq.read_table(file).to_pylist()
    empty = table[0] | {"episode_index": 3, "length": 0, "tasks": None}
    for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp"):
        empty[f"videos/{CAMERA}/{name}"] = None
    pq.write_table(pa.Table.from_pylist([*table, empty]), file)
    change_json(root / INFO, put("total_episodes", 4))
    dataset = read_all(root)
    assert [dataset.length(i) for i in range(len(dataset))] == list(LENGTHS)


VALUES = (None, True, -1, 0, 2**70, 1e300, math.nan, "", "x" * 3000, [], {}, [[[]]], {"a": {"b": []}}, "\0", "../..")


def spoil_json(value, rng):
    """One place of a JSON value, replaced or removed."""
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[rng.integers(len(keys))]
        if rng.random() < 0.35 or not isinstance(value[key], dict | list) or not value[key]:
            if rng.random() < 0.2:
                del value[key]
            else:
                value[key] = VALUES[rng.integers(len(VALUES))]
            return
        value = value[key]


def spoil_table(file, rng):
    table = pq.read_table(file)
    name = table.column_names[rng.integers(table.num_columns)]
    kind = rng.integers(5)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.slice(0, int(rng.integers(len(table) + 1)))
    elif kind == 2:
        table = pa.concat_tables([table, table.slice(0, 1)])
    else:
        values = table[name].to_pylist()
        odd = [None, -1, 2**40, 1e300, math.nan, "x", [], b"x"][rng.integers(8)]
        values = [odd] * len(values) if kind == 3 else [odd if k == 1 else each for k, each in enumerate(values)]
        try:
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # no column can hold both
            return
    pq.write_table(table, file)


def spoil_bytes(file, rng):
    raw = bytearray(file.read_bytes())
    for _ in range(int(rng.integers(1, 20))):
        raw[rng.integers(len(raw))] = rng.integers(256)
    file.write_bytes(raw[: int(rng.integers(len(raw)))] if rng.random() < 0.3 else raw)


@pytest.mark.parametrize("part", range(12))
def test_whatever_is_broken_is_read_or_ends_in_our_own_error(tmp_path, whole, part, monkeypatch):
    """Two hundred and forty breaks drawn at random, of one to three places each."""
    monkeypatch.setenv("SVT_LOG", "1")
    other = tmp_path / "other"
    folder(other, 1000 + part)
    told = 0
    for seed in range(part, ROUNDS, 12):
        rng = np.random.default_rng(seed)
        root = shutil.copytree(whole if seed % 2 else other, tmp_path / f"{seed}", symlinks=False)
        for _ in range(int(rng.integers(1, 4))):
            files = [file for file in sorted(root.rglob("*")) if file.is_file() and file.stat().st_size]
            meta = [file for file in files if "meta" in file.parts]
            chosen = meta if meta and rng.random() < 0.6 else files
            file = chosen[rng.integers(len(chosen))]
            if file.suffix == ".json" and rng.random() < 0.8:
                try:
                    change_json(file, lambda value, rng=rng: spoil_json(value, rng))
                except (ValueError, TypeError):  # it is no JSON any more
                    spoil_bytes(file, rng)
            elif file.suffix == ".parquet" and rng.random() < 0.7:
                try:
                    spoil_table(file, rng)
                except (pa.ArrowException, OSError, ValueError):
                    spoil_bytes(file, rng)
            else:
                spoil_bytes(file, rng)
        try:
            read_all(root)
        except UserError:
            told += 1
        shutil.rmtree(root)
    assert told > 0
