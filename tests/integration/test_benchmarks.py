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
from tests.chat_server import chat_server, images

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


EIGHT = ("start", "end", "before", "before_left", "before_right", "after", "after_left", "after_right")


@pytest.fixture
def robopulse(tmp_path):
    """Make a folder of pairs of two sources; a function of a pair's pictures says which moment is further."""

    def make(truth, change=lambda entry: entry):
        root, rng, entries = tmp_path / "pulse", np.random.default_rng(5), []
        for number in range(8):
            source, task = ("agilex", "libero")[number % 2], ("fill the bar", "paint it red")[number // 4]
            names = [f"images/{source}/{number}_{place}.png" for place in EIGHT]
            pictures = rng.integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
            (root / "images" / source).mkdir(parents=True, exist_ok=True)
            for name, picture in zip(names, pictures, strict=True):
                Image.fromarray(picture).save(root / name)
            said = truth(number, task, dict(zip(EIGHT, pictures, strict=True)))
            turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": f"<score>{100 * said:+.3f}%</score>"}]
            entry = {"id": str(number), "image": names, "task": task, "conversations": turns, "source": source}
            entries.append(change(entry | {"bin": "small" if number < 3 else "large"}))
        (root / "RoboPulse.json").write_text(json.dumps(entries))
        return root

    return make


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, 0.0)])
def test_robopulse(judge, scores, robopulse, sign, expected):
    def truth(_, task, shown):
        said = scores(task, np.stack([shown["start"], shown["before"], shown["after"]]))
        return sign * (0.5 if said[2] > said[1] else -0.5)

    status, found, out = judge("benchmark=robopulse", f"data={robopulse(truth)}")
    assert status == 0, out
    told = found["rewards"]["clip"]
    assert {name: each["value"] for name, each in told["figures"].items()} == {
        "pairwise_acc": expected,
        "pairwise_macro": expected,
    }
    assert {name: [*each] for name, each in told["parts"].items()} == {
        "bin": ["small", "large"],
        "source": ["agilex", "libero"],
    }
    for control in ("constant", "clock"):  # a tie counts half, and time alone knows nothing
        assert found["rewards"][control]["figures"]["pairwise_acc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert (found["episodes"], found["sources"]) == (8, ["agilex", "libero"])
    assert "Robo-Dopamine GRM, published" in out
    assert "by bin" in out


def test_robopulse_tells_bins_and_sources_apart(judge, scores, robopulse):
    """Wrong in two of three small pairs alone, which are of two sources."""

    def truth(number, task, shown):
        said = scores(task, np.stack([shown["before"], shown["after"]]))
        return (0.5 if said[1] > said[0] else -0.5) * (-1 if number < 2 else 1)

    status, found, out = judge("benchmark=robopulse", f"data={robopulse(truth)}")
    assert status == 0, out
    told = found["rewards"]["clip"]
    assert {name: each["value"] for name, each in told["parts"]["bin"].items()} == {
        "small": pytest.approx(1 / 3),
        "large": 1.0,
    }
    assert {name: each["value"] for name, each in told["parts"]["source"].items()} == {"agilex": 0.75, "libero": 0.75}
    assert told["figures"]["pairwise_acc"]["low"] < 0.75 < told["figures"]["pairwise_acc"]["high"]


def test_robopulse_by_other_names_and_words(judge, robopulse):
    def change(entry):
        return {
            "label": {"answer": "progress" if "+" in entry["conversations"][-1]["value"] else "regress"},
            "images": [entry["image"][k] for k in (0, 2, 3, 4, 5, 6, 7, 1)],
            "instruction": entry["task"],
        }

    root = robopulse(lambda number, *_: number - 3.5, change)
    words = ["fields.task=instruction", "fields.pictures=images", "fields.answer=label.answer", "fields.bin=null"]
    words += ["fields.words=[progress,regress]", "fields.source=null"]
    words += ["fields.order=[start,before,before_left,before_right,after,after_left,after_right,end]"]
    status, found, out = judge("benchmark=robopulse", f"data={root}", *words)
    assert status == 0, out
    assert found["rewards"]["clip"]["parts"]["bin"] == {}
    assert found["sources"] == ["pulse"]


def test_a_reward_that_compares_is_asked_robopulse_s_own_question(judge, robopulse):
    shown, answers = {}, ("+40%", "-7%", "0%", "?")

    def truth(number, _, pictures):
        shown[pictures["start"].tobytes()] = (number, pictures)
        return 0.5

    def answer(body):
        number, pictures = shown[images(body)[0].tobytes()]
        assert [each.tobytes() for each in images(body)] == [pictures[place].tobytes() for place in EIGHT]
        return f"<score>{answers[number % 4]}</score>"

    with chat_server(answer) as served:
        words = ["reward=pretrained", "reward.model=grm-3b", f"reward.vlm.url={served.url}"]
        status, found, out = judge("benchmark=robopulse", f"data={robopulse(truth)}", *words)
    assert status == 0, out
    assert len(served.bodies) == 8
    assert found["rewards"]["pretrained"]["figures"]["pairwise_acc"]["value"] == (1 + 0 + 0.5 + 0.5) / 4


def test_a_reward_of_films_is_asked_about_each_moment_of_robopulse(judge, robopulse):
    with chat_server(lambda _: "ANSWER: 3") as served:
        words = ["reward=pretrained", "reward.model=roboreward-4b", f"reward.vlm.url={served.url}"]
        root = robopulse(lambda *_: 0.5)
        status, found, out = judge("benchmark=robopulse", f"data={root}", *words)
        assert status == 0, out
        assert found["rewards"]["pretrained"]["figures"]["pairwise_macro"]["value"] == 0.5
        assert len(served.bodies) == 24  # start, BEFORE and AFTER
        status, _, out = judge("benchmark=robopulse", f"data={root}", *words, "reward.stride=2", "run=again")
    assert status == 2
    assert "reward.stride must be left out with robopulse" in out


@pytest.mark.parametrize(
    ("change", "words", "text"),
    [
        (
            lambda entry: {"prompt" if key == "task" else key: value for key, value in entry.items() if key != "bin"},
            [],
            "must have task, bin; it has id, image, prompt, conversations, source. Say which fields hold them: "
            "fields.task=NAME fields.bin=NAME; bin and source may be null",
        ),
        (lambda entry: entry, ["fields.answer=conversations.-1.score"], "must have conversations.-1.score; it has id,"),
        (lambda entry: entry | {"image": entry["image"][:7]}, [], "image must list 8 pictures; got 7"),
        (lambda entry: entry | {"image": "a.png"}, [], "image must list 8 pictures; got 'a.png'"),
        (lambda entry: entry | {"image": ["../a.png", *entry["image"][1:]]}, [], "must stay inside the folder"),
        (
            lambda entry: entry | {"image": ["a.png", *entry["image"][1:]]},
            [],
            "a.png must be a picture; it is not there",
        ),
        (lambda entry: entry | {"conversations": [{"value": "no"}]}, [], "above 0 where AFTER is further"),
        (lambda entry: entry | {"gain": 0}, ["fields.answer=gain"], "gain must be a number"),
        (lambda entry: entry | {"gain": "A"}, ["fields.answer=gain", "fields.words=[X,Y]"], "must be 'X' or 'Y'"),
        (lambda entry: [entry], [], "must be a JSON object; got list"),
        (lambda entry: entry, ["fields.order=[start,end]"], "fields.order must name each of start, end, before"),
        (lambda entry: entry, ["fields.words=[X]"], "fields.words must be two words"),
    ],
)
def test_what_is_no_robopulse_is_told(judge, robopulse, change, words, text):
    status, found, out = judge("benchmark=robopulse", f"data={robopulse(lambda *_: 0.5, change)}", *words)
    assert (status, found) == (2, None)
    assert text in out


@pytest.mark.parametrize("words", [["benchmark=oxe"], []])
def test_fields_are_robopulse_s_alone(judge, tmp_path, words):
    status, found, out = judge(f"data={tmp_path}", "fields.task=prompt", *words)
    assert (status, found) == (2, None)
    assert "fields must be left out but with benchmark=robopulse" in out


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
        ("robopulse", {}, "must hold RoboPulse.json beside images/"),
        ("robopulse", {"RoboPulse.json": "{}"}, "must be a list of entries; got dict"),
        ("robopulse", {"RoboPulse.json": "[]"}, "must hold episodes of robopulse"),
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
