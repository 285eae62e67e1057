"""`embodied watch` as its user runs it: on recordings, on a camera in the network, on one of our worlds."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from embodied import cli
from embodied.building import scorers
from embodied.commands import watch as verb
from embodied.commands.watch import stopping
from embodied.datasets import Dataset, Writer
from embodied.serving import tokens
from rewards import process
from rewards.clip_goal import CalibratedThreshold, clip_scorer
from rewards.combine import WeightedSum
from rewards.core import Scorer
from rewards.encoders import OpenCLIPEncoder
from rewards.shaping import PotentialShaping
from tests.mjpeg_server import MjpegServer
from tests.reward_server import Running, serving

STATE = {"dtype": "float32", "shape": [1], "names": ["gripper_opening"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset of two episodes of two cameras, 12 frames each: a bright square that moves."""
    root = tmp_path_factory.mktemp("watch") / "moving"
    features = {"observation.state": STATE, "action": STATE | {"names": None}}
    cameras = {"front": (32, 32), "side": (32, 32)}
    with Writer(root, fps=20, features=features, cameras=cameras, env={"id": "w"}) as writer:
        for shift in (0, 4):
            frames = np.full((12, 32, 32, 3), 30, np.uint8)
            frames[:, 8 + shift : 14 + shift, 2:8] = 220
            moved = np.stack([np.roll(frame, 2 * t, 1) for t, frame in enumerate(frames)])
            columns = {key: np.zeros((12, 1), np.float32) for key in features}
            writer.add(columns, {"front": moved, "side": moved[:, ::-1]}, instruction="move it right", steps=[11])
    return root


@pytest.fixture(scope="module")
def encoder(tiny_clip):
    return ["encoder=open_clip", f"encoder.model={tiny_clip}", "encoder.precision=fp32"]


@pytest.fixture
def watch(encoder, tiny_clip, capfd, tmp_path, monkeypatch):
    """Run the verb; (exit status, lines, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))

    def run(*words):
        status = cli.main(["watch", *encoder, *words])
        out, err = capfd.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err

    run.model = tiny_clip
    return run


@pytest.fixture(scope="module")
def fitted(data, encoder, tmp_path_factory):
    """A folder of a process model, fitted badly but for real."""
    out = tmp_path_factory.mktemp("fitted") / "head"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        patch.setattr(process, "Recipe", partial(process.Recipe, steps=5))
        assert cli.main(["fit", "reward=process", f"demos=[{data}]", f"out={out}", *encoder]) == 0
    return out


def _encoder(watch):
    """The encoder that `watch` uses."""
    return OpenCLIPEncoder(watch.model, precision="fp32")


REWARDS = {
    "clip": ["reward=clip", "reward.goal=the square is right"],
    "goals": ["reward=clip", "reward.goals=[left of it,right of it]"],
    "composed": ["reward=[clip,process]", "reward.process.model={fitted}", "reward.goal=move it right"],
    "instruction": ["reward=process", "reward.model={fitted}"],
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_stream_gets_the_numbers_of_embodied_label(name, data, encoder, fitted, watch, capfd):
    words = [word.format(fitted=fitted) for word in REWARDS[name]]
    status, lines, _ = watch(f"source=[front=dataset:{data}#1/front,side=dataset:{data}#1/side]", *words)
    assert status == 0
    assert cli.main(["label", f"data={data}", "out=all.parquet", *encoder, *words]) == 0
    table = pq.read_table("all.parquet", filters=[("episode_index", "==", 1)])
    np.testing.assert_allclose([line["combined"] for line in lines], table["potential"], atol=1e-5)
    np.testing.assert_allclose([line["reward"] for line in lines[1:]], table["reward"][:-1], atol=1e-5)
    assert np.std(table["potential"]) > 1e-4
    assert [line["row"] for line in lines] == list(range(12))
    assert len(lines[0]["potentials"]) == {"goals": 2, "composed": 2}.get(name, 1)


def test_a_video_file_is_scored_frame_by_frame_and_recorded(data, tiny_clip, watch, tmp_path):
    dataset = Dataset(data)
    film, _ = dataset.place(0, "front")
    frames = np.concatenate([dataset.frames(i, "front") for i in range(2)])
    status, lines, err = watch(
        f"source={film}", "reward.goal=the square is right", "record=out", "threshold=-1", "view=none"
    )
    assert status == 0
    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32")
    expected = clip_scorer(encoder=encoder, goal="the square is right").score(torch.from_numpy(frames))
    np.testing.assert_allclose([line["potentials"]["clip"] for line in lines], expected, atol=1e-5)
    assert {line["success"] for line in lines} == {True}
    assert f"{len(frames)} moments scored" in err
    assert err.rstrip().endswith("Record: out")
    kept = [json.loads(line) for line in (tmp_path / "out/readings.jsonl").read_text().splitlines()]
    assert [line["combined"] for line in kept] == [line["combined"] for line in lines]
    assert len(pq.read_table(tmp_path / "out/readings.parquet")) == len(frames)
    with av.open(tmp_path / "out/overlay.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == len(frames)


def test_a_record_that_was_given_up_is_a_failure(data, watch, tmp_path, size_limit):
    film, _ = Dataset(data).place(0, "front")
    words = [f"source={film}", "reward.goal=the square is right", "view=none", "json=false", "formats=[jsonl]"]
    with size_limit(4000):
        status, _, err = watch(*words, "record=small")
    assert status == 2
    assert "24 moments scored" in err  # it went on
    last = err.splitlines()[-1]
    assert last.startswith(
        "embodied watch: record=small: not everything was kept: readings.jsonl given up: File too large"
    )
    assert "record=FOLDER" in last
    assert "Traceback" not in err
    assert watch(*words, "record=large")[0] == 0


def test_lines_that_could_not_be_written_are_a_failure(data, encoder, tmp_path):
    film, _ = Dataset(data).place(0, "front")
    words = [f"source={film}", "reward.goal=the square is right", "view=none", "json=true", *encoder]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "embodied.cli", "watch", *words], stdout=full, stderr=subprocess.PIPE, text=True,
            env=environment, check=False,
        )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert "not everything was kept: standard output given up: No space left on device" in run.stderr


def test_a_world_of_ours_is_watched(watch):
    status, lines, err = watch("source=env:reacher-red", "reward.goal=a red ball", "resize=[32,32]")
    assert status == 0
    assert len(lines) == 51
    assert "51 moments scored" in err
    assert "combined=" in err  # the view, where standard error is no terminal


def test_a_slow_camera_s_own_max_age_counts(watch):
    source = "source={spec: env:reacher-red, live: true, fps: 1.5, max_age_s: 3}"
    status, lines, err = watch(source, "reward.goal=a red ball", "duration_s=2.5", "view=none")
    assert status == 0
    assert len(lines) >= 2
    assert not any(line["stale"] for line in lines)
    assert "0 stale lines" in err


# A camera in the network --------------------------------------------------------------------------------


class Told:
    """What arrives on standard output, line by line, while the verb runs in this thread."""

    def __init__(self, do):
        self.errors = []
        self._thread = threading.Thread(target=self._run, args=(do,))
        self._thread.start()

    def _run(self, do):
        try:
            do()
        except BaseException as error:
            self.errors.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def join(self):
        self._thread.join()
        if self.errors:
            raise self.errors[0]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def ask(port, path, body=None, **headers):
    """(status, answer) of the control API, with its token."""
    token = tokens.found(tokens.CONTROL, port)
    headers = {"Authorization": f"Bearer {token}", **headers}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def until(condition, limit_s=30.0):
    """Wait for something to become true."""
    ends = time.monotonic() + limit_s
    while True:
        try:
            if found := condition():
                return found
        except OSError:  # not there yet
            pass
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)


def test_a_live_camera_with_faults_another_goal_and_ctrl_c(watch, tmp_path):
    port = free_port()
    with MjpegServer(fps=30, size=(32, 32)) as server:

        def scored():
            return ask(port, "/status")[1].get("scored", 0)  # none while its token is not there yet

        def steer():
            until(lambda: scored() > 5)
            assert ask(port, "/goal", {"goal": "a red ball"}, Authorization="")[0] == 401
            assert ask(port, "/goal", {"goal": "a red square"})[0] == 200
            code, answer = ask(port, "/goal", {"goal": "x" * 10_000})
            assert (code, "at most 1000 characters; got 10000" in answer["error"]) == (400, True)
            before = scored()
            server.send("truncated", "garbage", "empty", "huge", "text")
            until(lambda: scored() > before + 5)
            server.leave()
            until(lambda: ask(port, "/status")[1]["stale"] > 1)
            gone = scored()
            server.come_back()
            until(lambda: scored() > gone + 5)
            assert ask(port, "/episode", {})[0] == 200
            before = scored()
            until(lambda: scored() > before + 3)
            assert ask(port, "/mark", {"text": "here"})[0] == 200

        steering = Told(steer)
        status, lines, err = watch(
            f"source={server.url}",
            "reward.goal=a square",
            f"control={port}",
            "record=out",
            "formats=[jsonl,parquet,overlay]",
        )
        steering.join()
    assert status == 0  # Ctrl-C is how a watch ends
    stale = [line for line in lines if line["stale"]]
    assert len(stale) > 1
    assert {(line["combined"], line["reward"], line["success"], line["episode"]) for line in stale} == {(None,) * 4}
    assert all(line["age_s"] > 0.5 for line in stale)
    fresh = [line for line in lines if not line["stale"]]
    assert all(line["combined"] is not None and line["latency_s"] is not None for line in fresh)
    indices = [line["frame_index"]["main"] for line in fresh]
    assert len(set(indices)) == len(indices)  # no frame twice
    said = " ".join(line["event"] or "" for line in lines)
    for word in ("goal: a red square", "lost", "back", "new episode", "mark: here", "broken"):
        assert word in said
    assert {line["goal"] for line in lines} == {"a square", "a red square"}
    assert {line["episode"] for line in fresh} == {0, 1}
    assert "moments scored in 2 episodes" in err
    assert "Capture to reward: p50" in err
    assert str(tokens.path(tokens.CONTROL, port)) in err
    assert not tokens.path(tokens.CONTROL, port).exists()
    kept = [json.loads(line) for line in (tmp_path / "out/readings.jsonl").read_text().splitlines()]
    assert len(pq.read_table(tmp_path / "out/readings.parquet")) == len(kept)
    with av.open(tmp_path / "out/overlay.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_run_and_the_second_is_as_ever(number):
    stopped, heard = [], []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        with stopping(lambda: stopped.append(number)):
            signal.raise_signal(number)
            assert (stopped, heard) == ([number], [])
            signal.raise_signal(number)
        assert (stopped, heard) == ([number], [number])
    finally:
        signal.signal(number, before)


def test_a_terminal_that_goes_away_ends_the_run_once_unless_that_is_ignored():
    stopped, heard = [], []

    def tell(*_):
        heard.append(True)

    before = signal.signal(signal.SIGHUP, tell)
    try:
        with stopping(lambda: stopped.append(True)):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)  # the shell's, while files are being finished
            assert (stopped, heard) == ([True], [])
        assert signal.getsignal(signal.SIGHUP) is tell
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stopping(lambda: stopped.append(True)):
            signal.raise_signal(signal.SIGHUP)
        assert stopped == [True]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_images_of_a_recording_that_are_read_again_do_not_fill_the_memory(data, watch, monkeypatch):
    class Looks:
        name, frames_read = "looks", "all"

        def score(self, features):
            return features.frames["front"].float().mean((2, 3, 4))

    scorer = Scorer(_encoder(watch), {"looks": Looks()}, WeightedSum(), PotentialShaping())
    monkeypatch.setattr(scorers, "make_scorer", lambda *given, **how: scorer)
    source = [f"source=dataset:{data}#0/front", "goal=a square"]
    _, lines, _ = watch(*source)
    assert {line["episode"] for line in lines} == {0}
    height, width = Dataset(data).frames(0, "front").shape[1:3]
    monkeypatch.setattr(verb, "RECORDED_PIXELS", 3 * height * width)
    _, lines, _ = watch(*source)
    assert [line["episode"] for line in lines[:7]] == [0, 0, 0, 1, 1, 1, 2]
    _, lines, _ = watch(*source, "max_rows=3000")  # what a person asks for is kept
    assert {line["episode"] for line in lines} == {0}


# Through a server ---------------------------------------------------------------------------------------


def test_a_server_gives_the_numbers_of_this_machine(data, watch):
    source = [f"source=[front=dataset:{data}#0/front,side=dataset:{data}#0/side]"]
    _, here, _ = watch(*source, "reward.goal=the square is right")
    scorer = clip_scorer(encoder=_encoder(watch), goal="the square is right")
    with serving(scorer) as server:
        status, there, _ = watch(*source, f"server={server.url}")
    assert status == 0
    for key in ("combined", "reward"):
        np.testing.assert_allclose([line[key] for line in there[1:]], [line[key] for line in here[1:]], atol=1e-5)
    assert {"server", "network"} <= set(there[0]["latencies_s"])


@pytest.mark.parametrize("here", [True, False])
def test_a_success_head_tells_success_wherever_it_scores(here, data, watch, monkeypatch):
    head = CalibratedThreshold("a square", encoder=_encoder(watch), threshold=-0.99, penalty=0.0)  # always 1
    scorer = Scorer(_encoder(watch), {"success": head}, WeightedSum(), PotentialShaping())
    source = f"source=dataset:{data}#0/front"
    if here:
        monkeypatch.setattr(scorers, "make_scorer", lambda *given, **how: scorer)
        _, lines, _ = watch(source, "goal=a square")
    else:
        with serving(scorer) as server:
            _, lines, _ = watch(source, f"server={server.url}")
            _, above, _ = watch(source, f"server={server.url}", "threshold=2")
        assert {line["success"] for line in above} == {False}
    assert {line["success"] for line in lines} == {True}


def test_a_server_that_goes_away_is_marked_and_comes_back(watch):
    port, scorer = free_port(), clip_scorer(encoder=_encoder(watch), goal="a square")
    with MjpegServer(fps=20, size=(32, 32)) as camera:
        server = Running(scorer)

        def count(key):
            return ask(port, "/status")[1][key]

        def steer():
            nonlocal server
            until(lambda: count("scored") > 3)
            server.stop()
            until(lambda: count("unscorable") > 3)
            before = count("scored")
            server = Running(scorer, port=server.port)
            until(lambda: count("scored") > before + 3)

        steering = Told(steer)
        status, lines, err = watch(f"source={camera.url}", f"server={server.url}", f"control={port}", "view=none")
        steering.join()
        server.stop()
    assert status == 0
    away = [line for line in lines if line["combined"] is None]
    assert len(away) > 3
    assert {(line["stale"], line["reward"], line["success"]) for line in away} == {(False, None, None)}
    said = [
        line["event"] for line in lines if line["event"] and ("no reading" in line["event"] or "back" in line["event"])
    ]
    assert "no reading" in said[0]
    assert "readings are back" in said[-1]
    assert {line["episode"] for line in lines} == {0, 1, None}
    assert "no reading" in err


# What a person can get wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["source=nowhere.mp4"], "nowhere.mp4: no such file"),
        (["source=/dev/video99"], "/dev/video99"),
        (["source=http://127.0.0.1:{port}/stream.mjpg"], "127.0.0.1"),
        (["source=env:reacher-red", "reward=true"], "reward=true watches nothing"),
        (["source=env:reacher-red", "reward.goal=" + "x" * 10_000], "at most 1000 characters; got 10000"),
        (["source=env:reacher-red", "goal=" + "x" * 10_000], "at most 1000 characters; got 10000"),
        (["source=env:reacher-red", "view=hologram"], "view must be one of terminal"),
        (["source=env:reacher-red", "ranges={clip: [1, 0]}"], "low < high"),
        (["source=env:reacher-red", "ranges={clip: 1}"], "ranges.clip"),
        (["source=env:reacher-red", "duration_s=-1"], "duration_s"),
        (["source=env:reacher-red", "duration_s=nan"], "duration_s must be a number"),
        (["source=env:reacher-red", "max_rows=1"], "max_rows"),
        (["source=env:reacher-red", "threads=1.5"], "threads must be a whole number"),
        (["source=env:reacher-red", "ranges=5"], "ranges must be {head: [low, high]}"),
        (["source=env:reacher-red", "ranges={clip: [-inf, inf]}"], "ranges.clip"),
        (["source=env:reacher-red", "smoothing_s=null"], "smoothing_s must be a number; got None"),
        (["source=env:reacher-red", "record=[a]"], "record"),
        (["source=env:reacher-red", "formats=jsonl"], "formats must be a list, as [jsonl]"),
        (["source=env:reacher-red", "formats=[gif]", "record=out"], "formats"),
        (["source=env:reacher-red", "server=http://127.0.0.1:{port}"], "127.0.0.1:{port}"),
        (["source=env:reacher-red", "control=99999999"], "control=99999999"),
        ([], "source is missing"),
    ],
)
def test_mistakes_end_in_one_line(words, match, watch):
    port = free_port()
    defaults = [] if any("goal=" in word or word == "reward=true" for word in words) else ["reward.goal=a goal"]
    status, lines, err = watch(*defaults, *[word.replace("{port}", str(port)) for word in words])
    assert (status, lines) == (2, [])
    assert match.replace("{port}", str(port)) in err
    assert "Traceback" not in err
    assert "Watched" not in err  # there was nothing to sum up
    assert len(err) < 1000
