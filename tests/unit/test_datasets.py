"""LeRobot datasets: what is written is read back, by ours and by the format's letter; damage is named."""

import io
import json
import shutil

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from embodied.collecting.opening import open_dataset
from embodied.datasets import Dataset, Writer, layout
from embodied.datasets.encoding import encode, fingerprint
from embodied.datasets.video import VideoError, concatenate, read_frames, write_video
from embodied.errors import UserError
from tests.fakes import FakeEncoder

FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": ["gripper_x", "gripper_y"]},
    "action": {"dtype": "float32", "shape": [3], "names": None},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "next.success": {"dtype": "bool", "shape": [1], "names": None},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "next.truncated": {"dtype": "bool", "shape": [1], "names": None},
}
SIZES = {"front": (32, 48), "side": (16, 16)}
LENGTHS = (5, 9, 4, 7)


def smooth(length, size, shift):
    """Frames that differ from each other by far more than compression does."""
    height, width = size
    ramp = np.linspace(0, 60, width) + np.linspace(0, 40, height)[:, None]
    return np.stack([np.stack([ramp + 14 * t + shift] * 3, -1) for t in range(length)]).clip(0, 255).astype(np.uint8)


def episode(k, length):
    rng = np.random.default_rng(k)
    ended = np.arange(length) == length - 1
    columns = {
        "observation.state": rng.normal(size=(length, 2)).astype(np.float32),
        "action": rng.normal(size=(length, 3)).astype(np.float32),
        "next.reward": rng.random(length, np.float32),
        "next.success": np.arange(length) > 2 if k % 2 else np.zeros(length, bool),
        "next.done": ended,
        "next.truncated": ended & (k != 1),
    }
    return columns, {name: smooth(length, size, 5 * k) for name, size in SIZES.items()}


def writer(root, **options):
    return Writer(root, fps=20, features=FEATURES, cameras=SIZES, env={"id": "w"}, **options)


def add(to, k):
    columns, frames = episode(k, LENGTHS[k])
    to.add(
        columns, frames, instruction=f"task {k % 2}", kind="expert" if k % 2 else "random", steps=[2, LENGTHS[k] - 1]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "set"
    with writer(root) as to:
        for k in range(4):
            add(to, k)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(made, tmp_path / "set")


def check(dataset):
    assert len(dataset) == 4
    assert (dataset.fps, dataset.cameras, dataset.env_id) == (20, ("front", "side"), "w")
    for k, length in enumerate(LENGTHS):
        columns, frames = episode(k, length)
        got = dataset.recording(k)
        assert (got.instruction, got.kind, got.steps) == (f"task {k % 2}", ("random", "expert")[k % 2], (2, length - 1))
        np.testing.assert_array_equal(got.actions, columns["action"])
        np.testing.assert_array_equal(got.signals["gripper_y"], columns["observation.state"][:, 1])
        np.testing.assert_array_equal(got.env_rewards, columns["next.reward"])
        np.testing.assert_array_equal(got.success, columns["next.success"])
        assert got.terminated.tolist() == [False] * (length - 1) + [k == 1]
        for name in SIZES:
            assert np.abs(got.frames[name].astype(int) - frames[name]).mean() < 2  # frames lie 14 levels apart


def test_what_is_written_is_read_back(made):
    check(Dataset(made))
    assert sorted(path.name for path in made.iterdir()) == ["data", "meta", "videos"]


def test_files_are_split_by_size(tmp_path):
    with writer(tmp_path / "a", data_mb=0.01, video_mb=0.004) as to:
        for k in range(4):
            add(to, k)
    check(Dataset(tmp_path / "a"))
    assert len(list((tmp_path / "a" / "videos" / "observation.images.front").glob("*/*.mp4"))) > 1
    files = sorted((tmp_path / "a" / "data").glob("*/*.parquet"))
    assert len(files) > 1


def test_row_groups_are_whole_episodes_and_short_ones_share_one(tmp_path):
    """Readers hold the description of every row group, so many of two rows would take more room than the rows."""
    lengths = [2] * 300 + [700, 2, 2]
    with Writer(tmp_path / "a", fps=20, features=FEATURES, cameras={}) as to:
        for k, length in enumerate(lengths):
            to.add(episode(k, length)[0], {}, instruction="move")
    (file,) = (tmp_path / "a" / "data").glob("*/*.parquet")
    head = pq.read_metadata(file)
    assert [head.row_group(k).num_rows for k in range(head.num_row_groups)] == [512, 44 * 2 + 700, 4]
    dataset = Dataset(tmp_path / "a")
    for i in (0, 255, 256, 299, 300, 301, 302):
        np.testing.assert_array_equal(
            dataset.columns(i, ["action"])["action"], episode(i, lengths[i])[0]["action"].astype(np.float32)
        )


def test_a_files_head_is_read_once_and_again_when_it_has_changed(made, tmp_path, monkeypatch):
    """With thousands of row groups, it is most of the work."""
    heads, read = [], pq.read_metadata
    monkeypatch.setattr(pq, "read_metadata", lambda file: heads.append(file) or read(file))
    shutil.copytree(made, tmp_path / "copy")
    dataset = Dataset(tmp_path / "copy")
    first = [dataset.columns(i, ["action"])["action"] for i in (3, 0, 2, 1)]
    assert len(heads) == len(set(heads))
    (file,) = (tmp_path / "copy").glob("data/*/*.parquet")
    table = pq.read_table(file)
    order = pa.array(np.random.default_rng(0).permutation(len(table)))  # no episode's rows are together any more
    pq.write_table(table.take(order), file)
    for before, i in zip(first, (3, 0, 2, 1), strict=True):
        np.testing.assert_array_equal(dataset.columns(i, ["action"])["action"], before)


def test_the_letter_of_the_format(made):
    info = json.loads((made / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", 4, 25)
    assert info["features"]["observation.images.front"]["names"] == ["height", "width", "channels"]
    assert info["splits"] == {"train": "0:4"}
    tasks = pq.read_table(made / "meta" / "tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    table = pq.read_table(made / "data" / "chunk-000" / "file-000.parquet")
    assert table.schema.field("action").type == pa.list_(pa.float32(), 3)
    assert table.schema.field("next.reward").type == pa.float32()
    np.testing.assert_array_equal(table["index"], np.arange(25))
    expected = np.concatenate([np.arange(n) / 20 for n in LENGTHS]).astype(np.float32)
    np.testing.assert_array_equal(table["timestamp"], expected)
    rows = pq.read_table(made / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [
        (0, 5),
        (5, 14),
        (14, 18),
        (18, 25),
    ]
    assert rows[2]["videos/observation.images.side/from_timestamp"] == pytest.approx(14 / 20)
    stats = json.loads((made / "meta" / "stats.json").read_text())
    every = np.concatenate([episode(k, n)[0]["action"] for k, n in enumerate(LENGTHS)]).astype(np.float64)
    np.testing.assert_allclose(stats["action"]["std"], every.std(0), rtol=1e-9)
    np.testing.assert_allclose(stats["action"]["mean"], every.mean(0), rtol=1e-9)
    assert np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)
    assert 0 < stats["observation.images.front"]["mean"][0][0][0] < 1


class Killed(BaseException):
    pass


def killed(*args):
    raise Killed


def test_a_killed_writer_goes_on(tmp_path, monkeypatch):
    """Killed while an episode is encoded, and again between the renames of the meta data."""
    from embodied.datasets import writer as module

    root = tmp_path / "a"
    to = writer(root)
    add(to, 0)
    add(to, 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_video", killed)
        with pytest.raises(Killed):
            add(to, 2)
    to.__exit__(Killed, Killed(), None)
    assert len(Dataset(root)) == 2  # what was left is packed by whoever reads it
    assert not (root / layout.STAGING).exists()
    to = writer(root)
    add(to, 2)
    add(to, 3)
    with monkeypatch.context() as patch:
        patch.setattr(module, "sync", killed)
        with pytest.raises(Killed):
            to.close()
    assert len(Dataset(root)) == 2
    to._lock.close()
    (root / "meta").rename(root / ".meta.old")
    with writer(root) as to:
        assert len(to) == 4
    check(Dataset(root))


def test_one_writer_at_a_time_and_no_other_folder(tmp_path, made):
    with writer(tmp_path / "a"), pytest.raises(UserError, match="another process"):
        writer(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        writer(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="must have the fps"):
        Writer(made, fps=10, features=FEATURES, cameras=SIZES, env={"id": "w"})
    assert sorted(path.name for path in made.iterdir()) == ["data", "meta", "videos"]


def test_episodes_are_checked(tmp_path):
    with writer(tmp_path / "a") as to:
        columns, frames = episode(0, 5)
        for wrong, message in (
            (columns | {"next.reward": np.full(5, np.nan, np.float32)}, "finite"),
            (columns | {"action": np.zeros((5, 2), np.float32)}, "shape"),
            (columns | {"action": np.zeros((4, 3), np.float32)}, "one length"),
            ({"action": columns["action"]}, "columns must be"),
        ):
            with pytest.raises(UserError, match=message):
                to.add(wrong, frames, instruction="")
        with pytest.raises(UserError, match=r"observation\.images\.side must be uint8"):
            to.add(columns, frames | {"side": frames["side"][:, :8]}, instruction="")
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="even"):
        Writer(tmp_path / "a", fps=20, features={}, cameras={"front": (31, 32)})


@pytest.mark.parametrize("keep", [0, 60, 0.4, 0.9])
@pytest.mark.parametrize(
    "kind", ["data/chunk-000/file-000.parquet", "videos/observation.images.side/chunk-000/file-000.mp4"]
)
def test_truncated_files_are_named_with_the_episode(root, kind, keep):
    file = root / kind
    raw = file.read_bytes()
    file.write_bytes(raw[: keep if isinstance(keep, int) else int(keep * len(raw))])
    with pytest.raises(UserError, match=r"episode 3.*") as caught:
        Dataset(root).recording(3)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["info.json", "embodied.json", "episodes/chunk-000/file-000.parquet"])
def test_damaged_meta_files_are_named(root, name):
    file = root / "meta" / name
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=name):
        Dataset(root)


def test_missing_and_foreign_files(root, tmp_path):
    (root / "videos/observation.images.front/chunk-000/file-000.mp4").unlink()
    with pytest.raises(UserError, match=r"episode 1, camera front: .*no such video"):
        Dataset(root).recording(1)
    assert len(Dataset(root).recording(1, cameras=["side"]).frames["side"]) == 9
    with pytest.raises(UserError, match=r"no camera 'fornt'.*did you mean front"):
        Dataset(root).recording(1, cameras=["fornt"])
    with pytest.raises(UserError, match="must be a LeRobot dataset"):
        Dataset(tmp_path)
    info = root / "meta" / "info.json"
    text = info.read_text()
    info.write_text(text.replace('"v3.0"', '"v1.6"'))
    with pytest.raises(UserError, match=r"codebase_version must be v2.x or v3.x; got 'v1.6'"):
        Dataset(root)
    info.write_text(text.replace('"data/chunk', '"../../data/chunk'))
    with pytest.raises(UserError, match="inside the dataset"):
        Dataset(root)
    with pytest.raises(UserError, match="Did you mean desk-drawer-mixed"):
        open_dataset("desk-drawer-mixd")


def test_frames_are_found_by_time(tmp_path):
    """At any place of a joined file, also with reordered frames and far key frames; never a neighbour."""
    parts = [tmp_path / f"{k}.mp4" for k in range(3)]
    films = [smooth(n, (32, 32), 40 * k) for k, n in enumerate((7, 5, 8))]
    for part, film in zip(parts, films, strict=True):
        write_video(part, film, 30)
    concatenate(parts, tmp_path / "all.mp4", [7, 5, 8], 30)
    joined = np.concatenate(films)
    single = np.concatenate([read_frames(part, np.arange(len(f)) / 30) for part, f in zip(parts, films, strict=True)])
    for rows in ([0], [6, 7], [11, 12, 13], [19], list(range(20)), [3, 9, 18]):
        np.testing.assert_array_equal(read_frames(tmp_path / "all.mp4", np.array(rows) / 30), single[rows])
    assert np.abs(single.astype(int) - joined).mean() < 2
    for wrong in (0.5 / 30, 20 / 30):
        with pytest.raises(VideoError, match="no frame at"):
            read_frames(tmp_path / "all.mp4", [wrong])
    with av.open(str(tmp_path / "b.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"g": "50", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in joined:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    for row in range(20):
        (found,) = read_frames(tmp_path / "b.mp4", [row / 30])
        assert np.abs(joined.astype(int) - found).mean((1, 2, 3)).argmin() == row


def test_names_decide_what_is_height(tmp_path):
    assert layout.image_shape({"shape": [3, 20, 30], "names": ["channels", "height", "width"]}) == (20, 30)
    assert layout.image_shape({"shape": [20, 30, 3], "names": ["height", "width", "channel"]}) == (20, 30)
    assert layout.image_shape({"shape": [3, 20, 30], "names": None}) == (20, 30)
    assert layout.column_names({"shape": [2], "names": {"motors": ["a", "b"]}}, "state") == ["a", "b"]
    assert layout.column_names({"shape": [2], "names": {"b": 1, "a": 0}}, "state") == ["a", "b"]
    assert layout.column_names({"shape": [2], "names": ["a"]}, "state") == ["state_0", "state_1"]


def old_dataset(root, kind):
    """A v2.1 dataset as its own writer lays it out, one file an episode; images in parquet or videos."""
    (root / "meta").mkdir(parents=True)
    shape, names = ([3, 32, 48], ["channels", "height", "width"]) if kind == "image" else ([32, 48, 3], None)
    info = {
        "codebase_version": "v2.1", "fps": 20, "chunks_size": 2,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "action": {"dtype": "float32", "shape": [3], "names": None},
            "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["pan", "lift"]}},
            "observation.images.top": {"dtype": kind, "shape": shape, "names": names},
            **layout.COUNTERS,
        },
    }  # fmt: skip
    (root / "meta" / "info.json").write_text(json.dumps(info))
    lines = [json.dumps({"episode_index": k, "tasks": [f"task {k}"], "length": 4 + k}) for k in range(3)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    for k in range(3):
        length = 4 + k
        film = smooth(length, (32, 48), 10 * k)
        table = {
            "action": pa.array([[float(k)] * 3] * length, pa.list_(pa.float32(), 3)),
            "observation.state": pa.array([[1.0, 2.0 + t] for t in range(length)], pa.list_(pa.float32(), 2)),
            "timestamp": pa.array(np.arange(length, dtype=np.float32) / 20),
            **{name: pa.array(np.arange(length)) for name in ("frame_index", "index")},
            **{name: pa.array(np.full(length, k)) for name in ("episode_index", "task_index")},
        }
        data = root / f"data/chunk-{k // 2:03d}/episode_{k:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        if kind == "image":
            cells = []
            for frame in film:
                buffer = io.BytesIO()
                Image.fromarray(frame).save(buffer, "PNG")
                cells.append({"bytes": buffer.getvalue(), "path": None})
            table["observation.images.top"] = pa.array(cells)
        else:
            video = root / f"videos/chunk-{k // 2:03d}/observation.images.top/episode_{k:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            write_video(video, film, 20)
        pq.write_table(pa.table(table), data)
    return root


@pytest.mark.parametrize("kind", ["image", "video"])
def test_version_2(tmp_path, kind):
    dataset = Dataset(old_dataset(tmp_path / "old", kind))
    assert (len(dataset), dataset.cameras, dataset.env_id) == (3, ("top",), None)
    got = dataset.recording(2)
    assert (len(got), got.instruction, got.kind, got.steps) == (6, "task 2", "", ())
    assert got.env_rewards is None
    assert got.success is None
    assert not got.terminated.any()
    np.testing.assert_array_equal(got.signals["lift"], 2 + np.arange(6))
    error = np.abs(got.frames["top"].astype(int) - smooth(6, (32, 48), 20))
    assert error.max() == 0 if kind == "image" else error.mean() < 2
    (tmp_path / "old/meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 4}\n{"episode_in')
    with pytest.raises(UserError, match=r"episodes.jsonl: line 2 \(episode 1\)"):
        Dataset(tmp_path / "old")


def test_where_features_cannot_be_kept_is_said_with_what_to_do(made, tmp_path):
    (tmp_path / "runs").write_text("in the way")  # a folder that forbids it forbids a test's root nothing
    with pytest.raises(UserError, match=r"runs/cache.*cannot be made: Not a directory\. Change to a folder"):
        encode(Dataset(made), SizedEncoder(), cameras=["front"], cache=tmp_path / "runs" / "cache")


def test_each_frame_is_encoded_once(made, tmp_path):
    dataset, encoder = Dataset(made), SizedEncoder()
    episodes = encode(dataset, encoder, cameras=["front"], frames_read="first", cache=tmp_path)
    assert encoder.encoded == sum(LENGTHS)
    recording = dataset.recording(1)
    direct = encoder.encode_images(torch.from_numpy(recording.frames["front"]))
    torch.testing.assert_close(episodes[1].features.main[0], direct, rtol=0, atol=1e-6)
    assert (episodes[1].success, episodes[0].success) == (True, False)
    assert (episodes[1].instruction, episodes[1].steps, len(episodes[1])) == ("task 1", (2, 8), 9)
    assert episodes[1].features.signals["gripper_x"].shape == (1, 9)
    np.testing.assert_array_equal(episodes[1].features.frames["front"][0], recording.frames["front"][:1])
    count = encoder.encoded
    again = encode(dataset, encoder, cameras=["front"], indices=[3, 1], frames_read="all", cache=tmp_path)
    assert encoder.encoded == count
    torch.testing.assert_close(again[1].features.main, episodes[1].features.main, rtol=0, atol=0)
    assert again[0].features.frames["front"].shape == (1, 7, 32, 48, 3)
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:40])
    encode(dataset, encoder, cameras=["front"], cache=tmp_path)
    assert count < encoder.encoded <= count + max(LENGTHS)
    other = SizedEncoder()
    other.projection = other.projection + 1e-3
    assert fingerprint(other) != fingerprint(encoder)
    encode(dataset, other, cameras=["front"], indices=[0], cache=tmp_path)
    assert other.encoded == LENGTHS[0]


class SizedEncoder(FakeEncoder):
    """Reads frames of any size."""

    def encode_images(self, frames):
        return super().encode_images(frames[:, :: frames.shape[1] // 8, :: frames.shape[2] // 8][:, :8, :8])
