"""Actions read off play: what must agree, what is held out, what is told, and how a copy gets its columns."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from embodied.datasets import Dataset, Writer
from embodied.datasets.columns import with_columns
from embodied.datasets.inferring import LEAST_STEPS, Agreement, Play, infer
from embodied.datasets.seen import SeenEpisode, changes, in_common, read_episode
from embodied.errors import UserError
from tests.fakes import FakeEncoder

SIZE = 16
MOVE = {"dtype": "float32", "shape": [2], "names": ["x", "y"]}


def write(
    root,
    *,
    fps=10,
    states=("a", "b"),
    action=MOVE,
    cameras=("front",),
    size=SIZE,
    episodes=3,
    length=60,
    last=True,
    seed=0,
):
    """Readings that an action moves, one step late at the border; cameras that show nothing."""
    rng = np.random.default_rng(seed)
    features = {"action": action} if action else {}
    if states:
        features["observation.state"] = {"dtype": "float32", "shape": [len(states)], "names": list(states)}
    with Writer(root, fps=fps, features=features, cameras=dict.fromkeys(cameras, (SIZE, size))) as writer:
        for _ in range(episodes):
            done = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
            at = np.concatenate([np.zeros((1, 2)), np.cumsum(0.1 * done, 0)]).astype(np.float32)
            at = at[:, ::-1] if states == ("b", "a") else at
            columns = {"action": done} if action else {}
            if states:
                columns["observation.state"] = at[:-1, : len(states)]
            frames = {name: np.zeros((length, SIZE, size, 3), np.uint8) for name in cameras}
            ending = {name: frames[name][0] for name in cameras}
            ending |= {"observation.state": at[-1, : len(states)]} if states else {}
            writer.add(columns, frames, instruction="go", last=ending if last else None)
    return Dataset(root)


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    return write(tmp_path_factory.mktemp("play") / "play")


@pytest.mark.parametrize(
    ("made", "asked", "said"),
    [
        ({"fps": 20}, {}, r"rate of data.*got 10 and 20 fps"),
        ({"states": ("a", "c")}, {"read": "state"}, r"read=state needs the same own readings.*a, c.*play has a, b"),
        ({"states": ()}, {"read": "both"}, r"data has none; play has a, b"),
        ({"cameras": ("top",)}, {"read": "pictures"}, r"needs a camera.*data has top; play has front"),
        ({"cameras": ("top",), "states": ()}, {}, r"must share a camera or own readings"),
        ({"size": 32}, {}, r"front in one shape.*got 16 x 32 and 16 x 16 pixels"),
        ({}, {"cameras": ["wrist"]}, r"cameras: 'wrist' must be in data and in play"),
        ({}, {"read": "picture"}, r"read must be one of.*'picture'.*pictures"),
    ],
)
def test_what_does_not_fit_is_named(play, tmp_path, made, asked, said):
    with pytest.raises(UserError, match=said):
        in_common(write(tmp_path / "films", action=None, **made), play, **asked)


def test_play_must_have_actions(play, tmp_path):
    lacking = write(tmp_path / "films", action=None)
    with pytest.raises(UserError, match=r"play: .*must have actions.*no action"):
        in_common(play, lacking)


def test_all_that_both_have_is_read_in_the_order_of_play(play, tmp_path):
    films = write(tmp_path / "films", action=None, states=("b", "a"), cameras=("top", "front"))
    common = in_common(films, play)
    assert (common.cameras, common.states, common.actions) == (("front",), ("a", "b"), ("x", "y"))
    assert in_common(films, play, read="state").cameras == ()
    assert in_common(films, play, read="pictures").states == ()
    other = write(tmp_path / "other", action=None, states=("a", "c"))
    assert in_common(other, play).states == ()  # other readings are not taken for these


def settings(**changed):
    known = {"layer": None, "channels": 8, "held_out": 3, "steps": 250, "batch_size": 64, "learning_rate": 0.01,
             "members": 1, "seed": 0, "places": 2, "inner": 4, "widths": ()}  # fmt: skip
    return known | changed


@pytest.mark.parametrize("last", [True, False])
def test_actions_are_read_off_own_readings_whatever_their_order(play, tmp_path, last):
    films = write(tmp_path / "films", states=("b", "a"), last=last, seed=9)
    common = in_common(films, play, read="state")
    made = infer(films, play, common, None, **settings())
    assert made.held_out.overall > 0.97
    assert made.held_out.count == 60  # one episode of three, all of its steps
    episode = read_episode(films, 0, common, {})
    said, done = made.actions(episode), films.recording(0, cameras=()).actions
    assert said.shape == done.shape
    assert Agreement.of(said[:-1], done[:-1]).overall > 0.97
    if last:
        assert np.abs(said[-1] - done[-1]).max() < 0.3
    else:  # nobody looked after the last action
        np.testing.assert_array_equal(said[-1], said[-2])
    assert np.abs(said).max() <= 1  # never beyond what play did
    assert made.outside(episode).mean() < 0.25
    wild = SeenEpisode({}, {}, 20 * episode.state, episode.actions, episode.closed)
    assert made.outside(wild).mean() > 0.9


def test_shuffled_play_explains_nothing(play, tmp_path):
    part = tmp_path / "shuffled"
    rng = np.random.default_rng(0)
    with_columns(play, part, {"action": MOVE}, lambda i: {"action": rng.permutation(play.recording(i).actions)}, {})
    common = in_common(play, Dataset(part), read="state")
    assert infer(play, Dataset(part), common, None, **settings()).held_out.overall < 0.1


def test_an_encoder_without_maps_is_refused(play):
    with pytest.raises(UserError, match="must give maps"):
        infer(play, play, in_common(play, play), FakeEncoder(dim=4), **settings())


def test_too_little_play_is_refused(play, tmp_path):
    few = write(tmp_path / "few", episodes=2, length=LEAST_STEPS - 1)
    with pytest.raises(UserError, match=rf"{LEAST_STEPS} steps.*2 episodes and {LEAST_STEPS - 1} such steps"):
        infer(play, few, in_common(play, few, read="state"), None, **settings())
    one = write(tmp_path / "one", episodes=1, length=200)
    with pytest.raises(UserError, match=r"two episodes or more.*1 episodes"):
        infer(play, one, in_common(play, one, read="state"), None, **settings())


def test_steps_without_a_finite_action_are_left_out():
    actions = np.zeros((150, 2), np.float32)
    actions[:10] = np.nan
    episode = SeenEpisode({}, {}, torch.zeros(151, 1), actions, True)
    known = Play([episode, episode], every=5, where="here")
    assert len(known.taught) == len(known.held) == 140
    assert {e for e, _ in known.held} == {1}


def test_a_pair_holds_the_moment_before_too():
    episode = SeenEpisode({}, {}, torch.arange(5.0)[:, None], np.zeros((4, 1), np.float32), True)
    assert changes([episode], [(0, 0), (0, 3)]).state[..., 0].tolist() == [[0, 0, 1], [2, 3, 4]]


def test_agreement_says_nothing_of_what_never_changed():
    done = np.array([[0.0, 1], [1, 1], [2, 1], [np.nan, 1]], np.float32)
    told = Agreement.of(np.array([[0.0, 1], [1, 1], [2, 1], [9, 9]], np.float32), done)
    assert (told.overall, told.entries[0], told.count) == (1.0, 1.0, 3)
    assert np.isnan(told.entries[1])
    assert np.isnan(Agreement.of(done[:0], done[:0]).overall)


# Copies -------------------------------------------------------------------------------------------------


def test_a_copy_has_its_columns_rows_and_statistics(play, tmp_path):
    part = tmp_path / "part"
    new = {"action": MOVE, "speed": {"dtype": "float32", "shape": [1], "names": None}}
    made = {i: {"action": np.full((60, 2), i, np.float32), "speed": np.arange(60, dtype=np.float32)} for i in range(3)}
    with_columns(play, part, new, made.__getitem__, {"episodes": {"9": {"kind": "x"}}, "actions": {"a": 1}})
    copied = Dataset(part)
    for i in range(3):
        np.testing.assert_array_equal(copied.recording(i).actions, made[i]["action"])
        np.testing.assert_array_equal(copied.columns(i, ["speed"])["speed"], made[i]["speed"])
        for name in ("observation.state", "timestamp"):
            np.testing.assert_array_equal(copied.columns(i, [name])[name], play.columns(i, [name])[name])
    stats = json.loads((part / "meta/stats.json").read_text())
    assert stats["action"]["mean"] == [1.0, 1.0]
    assert stats["speed"]["max"] == [59.0]
    episodes = pq.read_table(part / "meta/episodes/chunk-000/file-000.parquet")
    assert episodes["stats/action/mean"].to_pylist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    assert episodes["stats/speed/count"].to_pylist() == [[60]] * 3
    own = json.loads((part / "meta/embodied.json").read_text())
    assert own["actions"] == {"a": 1}
    assert {"0", "9"} <= set(own["episodes"])  # what was noted stays
    np.testing.assert_array_equal(play.recording(1).actions[0] == 1.0, [False, False])


def old(dataset, root):
    """The same as LeRobot v2.1: one file an episode, statistics as lines."""
    root.mkdir()
    (root / "meta").mkdir()
    info = json.loads((dataset.root / "meta/info.json").read_text())
    info["features"] = {n: f for n, f in info["features"].items() if f["dtype"] != "video"}
    info |= {"codebase_version": "v2.1", "data_path": "data/e{episode_index:06d}.parquet", "video_path": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "data").mkdir()
    table, lines, stats = pq.read_table(dataset.root / "data/chunk-000/file-000.parquet"), [], []
    for i in range(len(dataset)):
        of = table.slice(60 * i, 60)
        pq.write_table(of, root / f"data/e{i:06d}.parquet")
        lines.append({"episode_index": i, "length": 60, "tasks": ["go"]})
        stats.append({"episode_index": i, "stats": {"observation.state": {"mean": [0.0, 0.0]}}})
    for name, each in (("episodes", lines), ("episodes_stats", stats)):
        (root / f"meta/{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in each))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "go"}\n')
    return Dataset(root)


def test_an_older_dataset_keeps_its_form(play, tmp_path):
    films, part = old(play, tmp_path / "old"), tmp_path / "part"
    made = [np.full((60, 2), i, np.float32) for i in range(3)]
    with_columns(films, part, {"action": MOVE}, lambda i: {"action": made[i]}, {"actions": {}})
    copied = Dataset(part)
    assert [copied.recording(i).actions[0, 0] for i in range(3)] == [0, 1, 2]
    lines = [json.loads(line) for line in (part / "meta/episodes_stats.jsonl").read_text().splitlines()]
    assert [line["stats"]["action"]["mean"] for line in lines] == [[0, 0], [1, 1], [2, 2]]
    assert lines[0]["stats"]["observation.state"] == {"mean": [0.0, 0.0]}
    assert json.loads((part / "meta/info.json").read_text())["codebase_version"] == "v2.1"


def test_a_copy_that_fails_leaves_nothing(play, tmp_path):
    shutil.rmtree(tmp_path / "part", ignore_errors=True)
    with pytest.raises(KeyError):
        with_columns(play, tmp_path / "part", {"action": MOVE}, lambda i: {}, {})
    assert not (tmp_path / "part").exists()


def test_readings_that_are_no_numbers_teach_nothing_and_give_no_such_actions(tmp_path):
    play, films = write(tmp_path / "play", cameras=(), episodes=4), write(tmp_path / "films", cameras=(), episodes=1)
    common = in_common(films, play)
    holes = read_episode(play, 0, common, {})
    holes.state[[10, 30]] = float("nan")
    assert np.flatnonzero(~holes.readable).tolist() == [9, 10, 11, 29, 30, 31]
    taught = Play([holes, *(read_episode(play, i, common, {}) for i in (1, 2))], every=3, where="here").taught
    assert [t for e, t in taught if e == 0] == [t for t in range(60) if t not in (9, 10, 11, 29, 30, 31)]
    model = infer(
        films, play, common, None, layer=None, channels=1, held_out=4, steps=5, batch_size=16, learning_rate=1e-2,
        members=1, seed=0, places=1, inner=4, grid=2, widths=(),
    )  # fmt: skip
    film = read_episode(films, 0, common, {})
    whole = model.actions(film)
    film.state[[0, 20]] = float("nan")
    said = model.actions(film)
    assert np.isfinite(said).all()
    np.testing.assert_allclose(said[22:], whole[22:], atol=1e-6)
    assert (said[19:22] == said[18]).all()
    assert (said[:2] == said[2]).all()
    assert len(model.outside(film)) == 60 - 5
    film.state[:] = float("nan")
    with pytest.raises(UserError, match="own readings that are numbers; an episode of 60 rows has none"):
        model.actions(film)
