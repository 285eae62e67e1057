"""`embodied judge benchmark=…`: public benchmarks from their own folders, and their own figures."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy import stats

from embodied import cli
from embodied.datasets import Dataset, Writer
from embodied.datasets.video import VideoError, read_frames, sampled, write_video
from rewards.clip_goal import clip_scorer
from rewards.encoders import OpenCLIPEncoder

SIZE = 32
ENDS = {"failure": 0.1, "suboptimal": 0.5, "success": 1.0}


def bar(end: float, count: int, seed: int) -> np.ndarray:
    """A red bar that grows to a share of the picture."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(100, 140, (count, SIZE, SIZE, 3), np.uint8)
    for t, frame in enumerate(frames):
        frame[:, : round(end * SIZE * t / (count - 1))] = (220, 20, 20)
    return frames


@pytest.fixture
def judge(tiny_clip, tmp_path, monkeypatch, capsys):
    """Run the verb; its exit status, what it wrote, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        encoder = ["encoder=open_clip", f"encoder.model={tiny_clip}", "encoder.precision=fp32"]
        status = cli.main(["judge", "reward=clip", "resamples=20", "run=out", *encoder, *words])
        file = tmp_path / "out" / "benchmark.json"
        out = capsys.readouterr()
        return status, json.loads(file.read_text()) if file.is_file() else None, out.out + out.err

    return run


@pytest.fixture
def scores(tiny_clip):
    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32", device="cpu")

    def score(task: str, frames: np.ndarray) -> np.ndarray:
        return clip_scorer(encoder=encoder, goal=task).score(torch.from_numpy(frames)).double().numpy()

    return score


def rbm_rows(root, path):
    """Three qualities of two tasks of two sources, two episodes each; films at `path(number)`."""
    rows = []
    for number, (source, task, label, k) in enumerate(
        itertools.product(("usc_koch", "usc_xarm"), ("fill the bar", "paint it red"), ENDS, range(2))
    ):
        file = root / path(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_video(file, bar(ENDS[label], 6 + k, number), 10)
        rows.append({"task": task, "data_source": source, "quality_label": label, "path": path(number)})
    return rows


def average_precision(labels, scores):
    """By thresholds: at each score, the precision of all that reach it, weighted by the recall that it adds."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        fired = scores >= threshold
        reached = (labels * fired).sum() / labels.sum()
        total += (reached - recall) * (labels * fired).sum() / fired.sum()
        recall = reached
    return total


def published_kendall(rows, ends):
    """The mean over tasks of τ over every choice of one episode of each quality; then over sources."""
    per_source = []
    for source in ("usc_koch", "usc_xarm"):
        per_task = []
        for task in ("fill the bar", "paint it red"):
            mine = [k for k, row in enumerate(rows) if (row["data_source"], row["task"]) == (source, task)]
            levels = [[ends[k] for k in mine if rows[k]["quality_label"] == label] for label in ENDS]
            taus = [stats.kendalltau(range(3), choice).statistic for choice in itertools.product(*levels)]
            per_task.append(np.mean(taus))
        per_source.append(np.mean(per_task))
    return np.mean(per_source)


@pytest.mark.parametrize("form", ["table beside the films", "the converter's"])
def test_rbm_eval(judge, scores, tmp_path, form):
    root = tmp_path / "rbm"
    if form == "the converter's":
        rows = rbm_rows(root, lambda n: f"usc/batch_0000/trajectory_{n:04d}.mp4")
        films = [root / row["path"] for row in rows]
        told = [{**row, "frames": row["path"], "id": str(k)} for k, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(told), root / "usc/train-00000-of-00001.parquet")
    else:
        rows = rbm_rows(root / "train", lambda n: f"{n}.mp4")
        films = [root / "train" / row["path"] for row in rows]
        other = {"task": "x", "data_source": "usc_human", "quality_label": "success", "file_name": "gone.mp4"}
        told = [{**row, "file_name": row["path"]} for row in rows] + [other]  # a source that is not evaluated
        pq.write_table(pa.Table.from_pylist(told), root / "train/metadata.parquet")
        (root / "meta").mkdir()
        (root / "meta/info.json").write_text(json.dumps({"eval_data_sources": ["usc_koch", "usc_xarm"]}))
    status, found, out = judge("benchmark=rbm-ood", f"data={root}", "confusion=2")
    assert status == 0, out
    said = [scores(row["task"], sampled(film, 64)) for row, film in zip(rows, films, strict=True)]
    ends = [each[-1] for each in said]
    figures = found["rewards"]["clip"]["figures"]
    assert figures["kendall_tau"]["value"] == pytest.approx(published_kendall(rows, ends), abs=1e-5)
    good = [k for k, row in enumerate(rows) if row["quality_label"] == "success"]
    pearson = np.mean([stats.pearsonr(range(len(said[k])), said[k]).statistic for k in good])
    assert figures["voc_pearson"]["value"] == pytest.approx(pearson, abs=1e-4)
    per_source = []
    for source in ("usc_koch", "usc_xarm"):  # a success is solved in its last frame
        mine = [k for k, row in enumerate(rows) if row["data_source"] == source]
        solved = np.concatenate([np.eye(1, len(said[k]), len(said[k]) - 1)[0] * (k in good) for k in mine])
        per_source.append(average_precision(solved, np.concatenate([said[k] for k in mine])))
    assert figures["success_auprc"]["value"] == pytest.approx(np.mean(per_source), abs=1e-4)
    frames = sum(len(each) for each in said)
    assert found["rewards"]["constant"]["figures"]["success_auprc"]["value"] == pytest.approx(8 / frames)
    low, value, high = (figures["kendall_tau"][key] for key in ("low", "value", "high"))
    assert low <= value <= high
    assert figures["confusion_margin"]["value"] is not None
    assert found["rewards"]["constant"]["figures"]["kendall_tau"]["value"] == 0
    assert set(found["rewards"]["clip"]["sources"]) == {"usc_koch", "usc_xarm"}
    assert (found["episodes"], found["tasks"]) == (24, 4)
    assert "Robometer-4B, published" in out


def test_a_reward_that_reads_first_frames_needs_no_calibration(tmp_path, monkeypatch, capsys):
    """Keypoints are found in the first frame, and the gripper in each frame's vector."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["collect", "env=desk-drawer", "policy=random", "episodes=1", "cameras=[front]", "out=drawer"]) == 0
    drawer, instruction = Dataset(tmp_path / "drawer"), Dataset(tmp_path / "drawer").instruction(0)
    (tmp_path / "rbm/train").mkdir(parents=True)
    write_video(tmp_path / "rbm/train/0.mp4", drawer.frames(0, "front", range(0, 50, 10)), 10)
    row = {"task": instruction, "data_source": "a", "quality_label": "success", "file_name": "0.mp4"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rbm/train/metadata.parquet")
    words = ["judge", "benchmark=rbm-ood", "data=rbm", "reward=keypoint", "resamples=10", "run=out"]
    assert cli.main(words) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "out/benchmark.json").read_text())["rewards"]["keypoint"]["figures"]
    assert -1 <= found["voc_pearson"]["value"] <= 1
    assert found["kendall_tau"]["value"] is None  # there is but one quality


def test_roborewardbench(judge, scores, tmp_path):
    root, rows = tmp_path / "roboreward", []
    for number, level in enumerate((1, 3, 5, 5, 2)):
        file = root / "test" / "droid" / f"{number}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_video(file, bar((level - 1) / 4, 5, number), 10)
        rows.append({"file_name": f"droid/{number}.mp4", "task": f"task {number}", "reward": level})
    (root / "test/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    status, found, out = judge("benchmark=roboreward", f"data={root}")
    assert status == 0, out
    ends = [scores(row["task"], sampled(root / "test" / row["file_name"], 64))[-1] for row in rows]
    expected = np.mean(
        [abs(1 + round(4 * min(max(e, 0), 1)) - row["reward"]) for e, row in zip(ends, rows, strict=True)]
    )
    told = found["rewards"]["clip"]["figures"].get("mae_ordinal")
    if min(ends) >= 0 and max(ends) <= 1:
        assert told["value"] == pytest.approx(expected)
    else:
        assert told is None
    assert found["rewards"]["constant"]["figures"]["mae_ordinal"]["value"] == pytest.approx(11 / 5)  # all are level 1


def test_robo_dopamine_bench(judge, scores, tmp_path):
    root = tmp_path / "dopamine"
    frames = bar(1.0, 90, 0)
    for name in ("libero/a", "libero/b"):
        folder = root / "images" / name / "cam_high"
        folder.mkdir(parents=True)
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"frame_{t:06d}.png")
    (root / "jsons").mkdir()
    listed = {"sample_path_list": ["libero/a", "libero/b"], "sample_path_task": ["fill the bar"] * 2}
    (root / "jsons/libero_test_100.json").write_text(json.dumps(listed))
    status, found, out = judge("benchmark=robo-dopamine", f"data={root}")
    assert status == 0, out
    shown = frames[[0, 44, 89]]  # 90 // 30 of them
    expected = stats.spearmanr(range(3), scores("fill the bar", shown)).statistic
    assert found["rewards"]["clip"]["figures"]["voc_spearman"]["value"] == pytest.approx(expected)
    clock = found["rewards"]["clock"]["figures"]
    assert (clock["voc_spearman"]["value"], clock["voc_reversed"]["value"]) == pytest.approx((1, -1))


def test_order_on_oxe(judge, scores, tmp_path):
    root = tmp_path / "oxe"
    for number, name in enumerate(("jaco", "bridge")):
        with Writer(root / name, fps=10, features={}, cameras={"front": (SIZE, SIZE)}) as writer:
            for k in range(1 + number):
                frames = bar(1.0, 40, 10 * number + k)
                writer.add({}, {"front": frames}, instruction="fill the bar")
    status, found, out = judge("benchmark=oxe", f"data={root}")
    assert status == 0, out
    assert found["rewards"]["clock"]["figures"]["voc_spearman"]["value"] == pytest.approx(1)
    per_source = found["rewards"]["clip"]["sources"]
    assert found["rewards"]["clip"]["figures"]["voc_spearman"]["value"] == pytest.approx(
        np.mean([per_source[name]["voc_spearman"] for name in ("jaco", "bridge")]), abs=1e-5
    )


@pytest.mark.parametrize(
    ("name", "made", "text"),
    [
        ("rbm-odd", {}, "benchmark must be one of ours; got 'rbm-odd'"),
        ("rbm-ood", {}, "must hold train/metadata.parquet"),
        ("roboreward", {"test/metadata.jsonl": '{"file_name": "../x.mp4", "task": "a", "reward": 1}'}, "stay inside"),
        (
            "roboreward",
            {"test/metadata.jsonl": '{"file_name": "x.mp4", "task": "a", "reward": 6}'},
            "from 1 to 5; got 6",
        ),
        ("roboreward", {"test/metadata.jsonl": '{"file_name": "x.mp4", "task": "a", "reward": 5}'}, "no such video"),
        ("roboreward", {"test/metadata.jsonl": "[1]"}, "must be a JSON object"),
        ("robo-dopamine", {"jsons/a.json": '{"sample_path_list": ["a"]}'}, "must be lists of one length"),
        ("oxe", {}, "must be a LeRobot dataset"),
    ],
)
def test_what_is_no_benchmark_is_told(judge, tmp_path, name, made, text):
    root = tmp_path / "root"
    root.mkdir()
    for file, content in made.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(content)
    status, found, out = judge(f"benchmark={name}", f"data={root}")
    assert (status, found) == (2, None)
    assert text in out


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        ("process", "reward.demos must be a dataset, or reward.model a fitted head"),
        ("[clip,xirl]", "Add reward.xirl.demos=FOLDER"),
    ],
)
def test_a_reward_that_a_benchmark_cannot_show_anything_is_told_before_it_is_read(judge, tmp_path, reward, text):
    status, found, out = judge("benchmark=oxe", f"data={tmp_path}", f"reward={reward}")
    assert (status, found) == (2, None)
    assert text in out


def test_frames_are_spread_over_a_film(tmp_path):
    file = tmp_path / "film.mp4"
    write_video(file, bar(1.0, 20, 0), 10)
    shown = sampled(file, 5)
    np.testing.assert_array_equal(shown, read_frames(file, np.array([0, 5, 10, 14, 19]) / 10))
    assert len(sampled(file, 64)) == 20
    (tmp_path / "bad.mp4").write_bytes(file.read_bytes()[:200])
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        sampled(tmp_path / "bad.mp4", 5)
