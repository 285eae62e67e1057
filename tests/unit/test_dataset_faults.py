"""What real datasets have that ours have not: uneven times, tasks a frame, depth, odd rates, labels of other names."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embodied.cameras import open_source
from embodied.datasets import Dataset, Writer, layout
from embodied.datasets import encoding as module
from embodied.datasets.encoding import encode
from embodied.datasets.video import read_frames
from embodied.errors import UserError
from tests.fakes import FakeEncoder
from tests.lerobot_folders import SIZE, number_of, picture

CAMERA = "observation.images.cam"
ONE = {"shape": [1], "names": None}
INTEGER = {"dtype": "int64", **ONE}


def film(path, numbers, rate, at=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.codec_context.thread_count = 1
        for i, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = i if at is None else at[i], 1 / Fraction(rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def made(
    root, lengths, *, fps=30, rate=None, begins=None, columns=None, features=None, tasks=("do it",), pictures=None
):
    """A v3 dataset by hand: one data file, one film, whose picture i shows number i."""
    count, starts = sum(lengths), np.concatenate([[0], np.cumsum(lengths)])
    rows = np.concatenate([np.arange(n) for n in lengths])
    counters = dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), INTEGER)
    declared = {CAMERA: {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]},
                "timestamp": {"dtype": "float32", **ONE}, **counters, **(features or {})}  # fmt: skip
    info = {"codebase_version": "v3.0", "fps": fps, "features": declared, "total_episodes": len(lengths),
            "data_path": layout.DATA_PATH, "video_path": layout.VIDEO_PATH}  # fmt: skip
    table = {"timestamp": pa.array((rows / fps).astype(np.float32)), "frame_index": pa.array(rows),
             "episode_index": pa.array(np.repeat(np.arange(len(lengths)), lengths)),
             "index": pa.array(np.arange(count)), "task_index": pa.array(np.zeros(count, np.int64)),
             **(columns or {})}  # fmt: skip
    episodes = [
        {"episode_index": k, "tasks": list(tasks), "length": n, "data/chunk_index": 0, "data/file_index": 0,
         f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": 0,
         f"videos/{CAMERA}/from_timestamp": float(starts[k] / fps if begins is None else begins[k])}
        for k, n in enumerate(lengths)
    ]  # fmt: skip
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    pq.write_table(pa.table({"task_index": range(len(tasks)), "task": list(tasks)}), root / "meta/tasks.parquet")
    pq.write_table(pa.Table.from_pylist(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table(table), root / "data/chunk-000/file-000.parquet")
    film(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", range(pictures or count), rate or fps)
    return root


def shown(images):
    return [number_of(image) for image in images]


# Times --------------------------------------------------------------------------------------------------


def test_a_sum_of_lengths_that_has_drifted_is_followed(tmp_path):
    root = made(tmp_path / "a", [5, 5], begins=[0, 5 / 30 + 1.5e-4])
    assert shown(Dataset(root).frames(1, "cam")) == [5, 6, 7, 8, 9]


def test_rates_that_differ_by_a_rounding_are_followed(tmp_path):
    root = made(tmp_path / "a", [3300], fps=29.97, rate=Fraction(30000, 1001))
    dataset = Dataset(root)
    assert dataset.fps == 29.97
    assert shown(dataset.frames(0, "cam", [0, 3290, 3299])) == [0, 3290, 3299]


def test_times_of_float32_are_followed_beyond_half_an_hour(tmp_path):
    """Between 2,048 and 4,096 s they lie 0.24 ms apart."""
    root = made(tmp_path / "a", [4], fps=30, begins=[0])
    file = root / "data/chunk-000/file-000.parquet"
    times = (np.arange(61_441, 61_445) / 30).astype(np.float32)
    assert np.abs(times.astype(np.float64) - np.arange(61_441, 61_445) / 30).max() > 1e-5
    table = pq.read_table(file)
    pq.write_table(table.set_column(0, "timestamp", pa.array(times)), file)
    film(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", range(8), 30, at=[0, *range(61_440, 61_447)])
    assert shown(Dataset(root).frames(0, "cam")) == [2, 3, 4, 5]


def test_uneven_times_are_taken_to_the_nearest_picture_within_a_share_that_can_be_set(tmp_path):
    late = np.array([0, 1e-3, -1e-3, 1e-3, 0, -9e-3])
    times = np.arange(6) / 30 + late
    root = made(tmp_path / "a", [6], columns={"timestamp": pa.array(times.astype(np.float32))})
    assert shown(Dataset(root).frames(0, "cam", range(5))) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"no frame at 0.1577 s.*8.33 ms.*raise tolerance="):
        Dataset(root).frames(0, "cam")
    assert shown(Dataset(root, tolerance=0.4).frames(0, "cam")) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(UserError, match="tolerance must be a share"):
        Dataset(root, tolerance=0.6)


def test_a_film_of_another_rate_is_no_film_of_these_rows(tmp_path):
    root = made(tmp_path / "a", [20], fps=30, rate=25)
    with pytest.raises(UserError, match="no frame at"):
        Dataset(root).frames(0, "cam")


def test_rows_may_be_asked_for_in_any_order_and_twice(tmp_path):
    dataset = Dataset(made(tmp_path / "a", [6, 4]))
    assert shown(dataset.frames(1, "cam", [3, 0, 0, 2])) == [9, 6, 6, 8]
    assert dataset.frames(1, "cam", []).shape == (0, SIZE, SIZE, 3)
    for rows in ([-1], [4], [0, 10**9]):
        with pytest.raises(UserError, match="rows must be from 0 to 3"):
            dataset.frames(1, "cam", rows)


@pytest.mark.parametrize("fps", [29.97, 0.5, 23.976, 1000 / 33])
def test_rates_that_are_no_whole_numbers_are_written_read_and_watched(tmp_path, fps):
    root, features = tmp_path / "a", {"action": {"dtype": "float32", "shape": [1], "names": None}}
    lengths = (5, 120, 4)
    with Writer(root, fps=fps, features=features, cameras={"cam": (SIZE, SIZE)}) as writer:
        for k, n in enumerate(lengths):
            images = np.stack([picture(1000 * k + t) for t in range(n)])
            writer.add({"action": np.zeros(n, np.float32)}, {"cam": images}, instruction="")
    dataset = Dataset(root)
    assert dataset.fps == fps
    for k, n in enumerate(lengths):
        assert shown(dataset.frames(k, "cam")) == [1000 * k + t for t in range(n)]
    with open_source(f"dataset:{root}#1") as source:
        assert source.fps == fps
        frames = [source.next()["main"] for _ in range(120)]
    assert frames[119].captured_s == pytest.approx(119 / fps, abs=1e-9)
    assert shown(frame.image for frame in frames) == [1000 + t for t in range(120)]


def test_a_rate_that_is_none_is_refused(tmp_path):
    for fps in (0, -1, float("nan"), True):
        with pytest.raises(UserError, match="fps must be a number above 0"):
            Writer(tmp_path / "a", fps=fps, features={}, cameras={})


def test_a_film_longer_than_its_rows_is_refused_unless_it_is_said_where_the_rest_lies(tmp_path):
    root = made(tmp_path / "a", [6], pictures=9)
    with pytest.raises(UserError, match=r"has 3 pictures more than its episodes have rows.*surplus=before"):
        Dataset(root).frames(0, "cam")
    assert shown(Dataset(root, surplus="after").frames(0, "cam")) == [0, 1, 2, 3, 4, 5]
    assert shown(Dataset(root, surplus="before").frames(0, "cam")) == [3, 4, 5, 6, 7, 8]
    with pytest.raises(UserError, match="surplus must be refuse, after, before; got 'both'"):
        Dataset(root, surplus="both")
    file = root / "data/chunk-000/file-000.parquet"  # rows whose times say where they lie need no word
    table = pq.read_table(file)
    pq.write_table(table.set_column(0, "timestamp", pa.array((np.arange(3, 9) / 30).astype(np.float32))), file)
    assert shown(Dataset(root).frames(0, "cam")) == [3, 4, 5, 6, 7, 8]


def test_a_film_of_twice_the_rate_has_no_surplus(tmp_path):
    root = made(tmp_path / "a", [4, 3], fps=15, rate=30, pictures=14)
    assert shown(Dataset(root).frames(1, "cam")) == [8, 10, 12]


# Tasks --------------------------------------------------------------------------------------------------


def test_each_frame_has_its_own_task(tmp_path):
    tasks = ("close the drawer", "open the drawer")
    columns = {"task_index": pa.array([1, 1, 1, 0, 0, 0, 1, 1])}
    dataset = Dataset(made(tmp_path / "a", [6, 2], tasks=tasks, columns=columns))
    assert dataset.instructions(0) == ["open the drawer"] * 3 + ["close the drawer"] * 3
    with pytest.raises(
        UserError, match=r"goal must be given: the frames of episode 0 .*'open the drawer', then 'close"
    ):
        dataset.instruction(0)
    assert (dataset.recording(0).instruction, dataset.recording(1).instruction) == ("", "open the drawer")
    (episode,) = encode(dataset, Sized(), indices=[0], cache=tmp_path / "cache", goal="tidy up")
    assert episode.instruction == "tidy up"


def test_a_list_of_tasks_without_a_column_is_refused(tmp_path):
    root = made(tmp_path / "a", [3], tasks=("b", "a"))
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["task_index"]
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"has 2 tasks, and no task_index .* Add goal="):
        Dataset(root).instruction(0)
    assert Dataset(root).recording(0).instruction == ""


# Labels -------------------------------------------------------------------------------------------------


def labelled(root, rewards, done):
    features = {"next.reward": {"dtype": "float32", **ONE}, "next.done": {"dtype": "bool", **ONE}}
    columns = {"next.reward": pa.array(rewards, pa.float32()), "next.done": pa.array(done)}
    return made(root, [len(rewards)], features=features, columns=columns)


def test_success_of_another_name_is_told_by_a_setting(tmp_path):
    root = labelled(tmp_path / "a", [0.0, 0.0, 1.0, 1.0], [False, False, False, True])
    assert Dataset(root).recording(0).success is None
    assert Dataset(root, success="next.reward").recording(0).success.tolist() == [False, False, True, True]
    with pytest.raises(UserError, match=r"no column 'next.rewrad'.*did you mean next.reward"):
        Dataset(root, success="next.rewrad")


def test_a_reward_told_once_holds_for_what_follows_the_end(tmp_path):
    root = labelled(tmp_path / "a", [0.0, 0.0, 1.0, 0.0], [False, False, True, True])
    assert Dataset(root, success="next.reward").recording(0).success.tolist() == [False, False, True, True]


def test_a_label_that_is_missing_is_unknown_and_not_no(tmp_path):
    root = labelled(tmp_path / "a", [0.0, 1.0, None], [False, False, True])
    assert Dataset(root, success="next.reward").recording(0).success is None
    rewards = Dataset(root).recording(0).env_rewards
    assert rewards[:2].tolist() == [0.0, 1.0]
    assert np.isnan(rewards[2])


# Episodes -----------------------------------------------------------------------------------------------


def test_an_episode_taken_out_of_a_v2_dataset_leaves_the_others_by_their_numbers(tmp_path):
    root = tmp_path / "old"
    features = {CAMERA: {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": None}, **layout.COUNTERS}
    info = {"codebase_version": "v2.1", "fps": 10, "chunks_size": 1000, "features": features, "total_episodes": 4,
            "data_path": "data/episode_{episode_index:06d}.parquet",
            "video_path": "videos/{video_key}/episode_{episode_index:06d}.mp4"}  # fmt: skip
    for folder in ("meta", "data"):
        (root / folder).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    lines = [{"episode_index": k, "tasks": [f"task {k}"], "length": 2 + k} for k in (0, 2, 3)]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for k in (0, 2, 3):
        n = 2 + k
        columns = {"timestamp": (np.arange(n) / 10).astype(np.float32), "frame_index": np.arange(n),
                   "index": np.arange(n), "task_index": np.full(n, k), "episode_index": np.full(n, k)}  # fmt: skip
        pq.write_table(pa.table(columns), root / f"data/episode_{k:06d}.parquet")
        film(root / f"videos/{CAMERA}/episode_{k:06d}.mp4", range(10 * k, 10 * k + n), 10)
    dataset = Dataset(root)
    assert [dataset.length(i) for i in range(len(dataset))] == [2, 4, 5]
    assert [dataset.instruction(i) for i in range(3)] == ["task 0", "task 2", "task 3"]
    assert shown(dataset.frames(1, "cam")) == [20, 21, 22, 23]
    with open_source(f"dataset:{root}#3") as source:
        assert number_of(source.next()["main"].image) == 30
    with pytest.raises(UserError, match="episode must be one of 0, 2, 3; got 1"):
        open_source(f"dataset:{root}#1")


def test_what_a_killed_writer_left_is_read(tmp_path):
    root, features = tmp_path / "a", {"action": {"dtype": "float32", "shape": [1], "names": None}}
    writer = Writer(root, fps=29.97, features=features, cameras={"cam": (SIZE, SIZE)}, env={"id": "w"})
    for k in range(2):
        writer.add({"action": np.zeros(3, np.float32)}, {"cam": np.stack([picture(10 * k + t) for t in range(3)])},
                   instruction="lift")  # fmt: skip
    with pytest.raises(UserError, match="is being written"):
        Dataset(root)
    writer._lock.close()  # as a kill leaves it
    dataset = Dataset(root)
    assert (len(dataset), dataset.instruction(1), dataset.env_id) == (2, "lift", "w")
    assert shown(dataset.frames(1, "cam")) == [10, 11, 12]
    assert sorted(path.name for path in root.iterdir()) == ["data", "meta", "videos"]


# Memory and colours -------------------------------------------------------------------------------------


class Sized(FakeEncoder):
    """Reads frames of any size, and notes how many it got at a time."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def encode_images(self, frames):
        self.sizes.append(len(frames))
        return super().encode_images(frames[:, ::4, ::4][:, :8, :8])


def test_an_episode_is_encoded_in_parts_and_its_pictures_stay_on_the_disk(tmp_path, monkeypatch):
    dataset, encoder = Dataset(made(tmp_path / "a", [150])), Sized()
    asked = []
    read = Dataset.frames
    monkeypatch.setattr(Dataset, "frames", lambda self, *args: asked.append(args) or read(self, *args))
    (episode,) = encode(dataset, encoder, frames_read="all", cache=tmp_path / "cache")
    assert encoder.sizes == [64, 64, 22]
    assert asked == []  # nobody asked for all of them
    frames = episode.features.frames["cam"]
    assert shown(frames[0].numpy()) == list(range(150))
    assert "(deleted)" in mapping(frames.data_ptr())
    whole = Sized().encode_images(torch.from_numpy(read(dataset, 0, "cam")))
    torch.testing.assert_close(episode.features.main[0], whole, rtol=0, atol=1e-6)
    assert module.BATCH == 64


def mapping(address):
    """The line of this process's memory map that an address lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(each, 16) for each in line.split()[0].split("-"))
        if first <= address < last:
            return line
    raise AssertionError(address)


@pytest.mark.parametrize("limited", [True, False])
def test_films_of_cameras_and_telephones_come_in_their_true_colours(tmp_path, limited):
    """BT.709, which PyAV before 17 took for BT.601: 200, 30, 30 came out as 186, 12, 32."""
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (180, 120, 60)]
    path = tmp_path / "hd.mp4"
    with av.open(str(path), "w") as out:
        tags = {"colormatrix": "bt709", "colorprim": "bt709", "transfer": "bt709"}
        stream = out.add_stream("libx264", rate=10, options={"crf": "1", **tags})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p" if limited else "yuvj420p"
        stream.codec_context.colorspace = 1
        for i, (red, green, blue) in enumerate(colours):
            luma = (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255
            base, wide, tall = (16, 224, 219) if limited else (0, 255, 255)
            chroma = (blue / 255 - luma) / 1.8556, (red / 255 - luma) / 1.5748
            levels = round(base + tall * luma), *(round(128 + wide * each) for each in chroma)
            frame = av.VideoFrame(64, 64, stream.pix_fmt)
            for plane, level in zip(frame.planes, levels, strict=True):
                plane.update(bytes([level]) * plane.buffer_size)
            frame.colorspace, frame.pts, frame.time_base = 1, i, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    found = read_frames(path, np.arange(4) / 10)[:, 32, 32].astype(int)
    assert np.abs(found - colours).max() <= 2
    with open_source(path) as source:
        watched = np.array([source.next()["main"].image[32, 32] for _ in colours])
    np.testing.assert_array_equal(watched, found)


def test_depth_that_nobody_flags_is_no_camera(tmp_path):
    import io

    from PIL import Image

    def cell(millimetres):
        buffer = io.BytesIO()
        Image.fromarray(np.full((SIZE, SIZE), millimetres, np.uint16)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    depth, infrared = "observation.images.a_depth", "observation.images.b_infrared"
    features = {depth: {"dtype": "image", "shape": [SIZE, SIZE, 1], "names": None},
                infrared: {"dtype": "video", "shape": [SIZE, SIZE, 1], "names": None,
                           "info": {"video.pix_fmt": "gray12le"}}}  # fmt: skip
    columns = {depth: pa.array([cell(500 * 2**k) for k in range(4)])}
    root = made(tmp_path / "a", [4], features=features, columns=columns)
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    for name in ("chunk_index", "file_index", "from_timestamp"):
        rows[0][f"videos/{infrared}/{name}"] = rows[0][f"videos/{CAMERA}/{name}"]
    pq.write_table(pa.Table.from_pylist(rows), file)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] = {key: info["features"][key] for key in (depth, infrared, *info["features"])}
    (root / "meta/info.json").write_text(json.dumps(info))
    dataset = Dataset(root)
    assert dataset.cameras == ("cam",)
    with pytest.raises(UserError, match=r"no camera 'a_depth'. It is depth or infrared"):
        dataset.frames(0, "a_depth")


def test_grey_cameras_come_after_those_with_colours(tmp_path):
    root = made(tmp_path / "a", [2])
    info = json.loads((root / "meta/info.json").read_text())
    grey = "observation.images.grey"
    info["features"] = {grey: {"dtype": "video", "shape": [SIZE, SIZE, 1], "names": None}, **info["features"]}
    (root / "meta/info.json").write_text(json.dumps(info))
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    for row in rows:
        row |= {name.replace(CAMERA, grey): value for name, value in row.items() if CAMERA in name}
    pq.write_table(pa.Table.from_pylist(rows), file)
    shutil.copytree(root / "videos" / CAMERA, root / "videos" / grey)
    dataset = Dataset(root)
    assert dataset.cameras == ("cam", "grey")
    assert shown(dataset.frames(0, "grey")) == [0, 1]
