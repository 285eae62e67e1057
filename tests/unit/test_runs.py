"""The run folder: named, found, and never left with half a checkpoint."""

import copy
import json
import os
import resource
import signal
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3

from embodied import files, runs
from embodied.envs.vector import WorldVecEnv
from embodied.errors import BusyError, UserError
from embodied.training import checkpoints, loop
from embodied.training.collector import Collector
from embodied.training.experience import score_replay
from embodied.training.labeller import Labeller
from embodied.training.log import RunLog
from embodied.training.loop import Training, train
from embodied.training.perception import Perception
from policies import sb3
from policies.core import Pace
from policies.rlpd import rlpd
from rewards.combine import LagrangianConstraints, WeightedSum
from rewards.core import Scorer
from rewards.shaping import PotentialShaping
from tests.probe_rewards import ProbeEncoder, ProbeHead, RunningHead
from tests.probes import make_probe


@pytest.fixture
def setup():
    """Training of a learner in two worlds, closed at the end."""
    made = []

    def make(algorithm="sac", obs="state", limit=6, combine=WeightedSum, head=ProbeHead, **kwargs):
        scorer = Scorer(ProbeEncoder(), {"probe": head()}, combine(), PotentialShaping(kind="difference"))
        worlds = WorldVecEnv(partial(make_probe, limit=limit, obs=obs), 2, frame_size=16)
        made.append(collector := Collector(worlds, partial(Perception, scorer.encoder, form=obs), batch_size=8))
        small = {"rollout_steps": 4, "network": [8], "batch_size": 8}
        if algorithm != "ppo":
            small |= {"learning_starts": 10, "buffer_size": 80}
        spaces = (worlds.observation_space, worlds.action_space)
        common = {"num_worlds": 2, "total_steps": 128, "seed": 0, "device": "cpu"}
        if algorithm == "rlpd":
            small = {"batch_size": 8, "learning_starts": 10, "actor": (8,), "critic": (8,)}
        factory = rlpd if algorithm == "rlpd" else getattr(sb3, algorithm)
        learner = factory(*spaces, **common, **small | kwargs)
        rewards = Labeller(scorer, collector.layout, 2)
        return Training.of(collector, rewards, learner, demos=None, total=128, seed=0)

    yield make
    for collector in made:
        collector.close()


@pytest.fixture
def log(tmp_path):
    made = RunLog(tmp_path)
    yield made
    made.close()


def parameters(training):
    return training.learner.state()[0]


def stored(training):
    return training.replay.arrays()[0] if training.replay is not None else {}


@pytest.mark.parametrize("kwargs", [
    {}, {"algorithm": "rlpd"}, {"algorithm": "td3"}, {"algorithm": "ppo"}, {"n_steps": 3}, {"head": RunningHead},
    {"combine": partial(LagrangianConstraints, {"probe": 1.0}, start=0.5)},
])  # fmt: skip
@pytest.mark.parametrize("first", [32, 64])  # 64: in the middle of an episode; the ring has 40 slots and wraps at 80
def test_a_checkpoint_goes_on_to_the_same_curve(setup, log, tmp_path, kwargs, first):
    straight = setup(**kwargs)
    train(straight, 128, log)

    half = setup(**kwargs)
    train(half, first, log)
    checkpoint = checkpoints.save_checkpoint(tmp_path, half, log)
    np.random.rand(7), torch.rand(7), half.collector.worlds.action_space.sample()

    resumed = setup(**kwargs)
    assert checkpoints.load_checkpoint(checkpoint, resumed, log)
    assert resumed.steps == first
    train(resumed, 128, log)

    expected, found = parameters(straight), parameters(resumed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    assert straight.recent == resumed.recent
    assert straight.rewards.state()[1] == resumed.rewards.state()[1]
    for name, array in stored(straight).items():
        np.testing.assert_array_equal(array, stored(resumed)[name], err_msg=name)
    if "combine" in kwargs:
        learned = straight.rewards.scorer.combine.multipliers["probe"]
        assert learned != 0.5
        checkpoints.load_constraints(checkpoints.save_checkpoint(tmp_path, resumed, log), half.rewards.scorer)
        assert half.rewards.scorer.combine.multipliers == {"probe": learned}
    if straight.replay is not None:
        for training in (straight, resumed):
            score_replay(training.rewards.scorer, training.replay, training.collector.layout)
        np.testing.assert_array_equal(straight.replay.reward, resumed.replay.reward)


@pytest.mark.parametrize("algorithm", ["sac", "rlpd"])
@pytest.mark.parametrize("first", [0, 16])  # stopped while it catches up, and after
def test_training_from_experience_goes_on_to_the_same_curve(setup, log, tmp_path, algorithm, first, monkeypatch):
    """It begins with the other's steps and as many updates; stopped at any time it ends as straight on."""
    monkeypatch.setattr(loop, "CATCHING_UP", 16)
    source = setup(algorithm)
    train(source, 48, log)

    def fresh():
        made = setup(algorithm)
        made.past = copy.deepcopy(source.replay)
        return made

    straight = fresh()
    owed = []
    train(straight, 32, log, tick=lambda training: owed.append(training.owed))
    assert owed[:3] == [32, 16, 0]
    assert straight.steps == 32
    half = fresh()
    train(half, first or 32, log, stop=lambda: not first)
    assert (half.steps, half.owed > 0) == (first, not first or algorithm == "rlpd")
    checkpoint, resumed = checkpoints.save_checkpoint(tmp_path, half, log), setup(algorithm)
    assert checkpoints.load_checkpoint(checkpoint, resumed, log)
    train(resumed, 32, log)

    expected, found = parameters(straight), parameters(resumed)
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    for one, other in ((straight.replay, resumed.replay), (source.replay, resumed.past)):
        for name, array in one.arrays()[0].items():
            np.testing.assert_array_equal(array, other.arrays()[0][name], err_msg=name)
    alone = setup(algorithm)
    train(alone, 32, log)
    assert any(not torch.equal(value, expected[name]) for name, value in parameters(alone).items())


def test_updates_beside_the_worlds_change_no_number(setup, log):
    """And they are made: the same run without them ends elsewhere."""
    ends = []
    for overlap, pace in ((True, {}), (False, {}), (True, {"updates_per_step": 0.25})):
        training = setup("rlpd", **pace)
        train(training, 128, log, overlap=overlap)
        ends.append(parameters(training) | {"reward": torch.from_numpy(training.replay.reward.copy())})
    beside, between, fewer = ends
    for name, value in beside.items():
        np.testing.assert_array_equal(value, between[name], err_msg=name)
    assert any(not np.array_equal(value, fewer[name]) for name, value in beside.items())


def test_without_its_random_state_the_curve_would_differ(setup, log, tmp_path):
    """Negative control: the comparison above can fail."""
    half = setup()
    train(half, 32, log)
    checkpoint = checkpoints.save_checkpoint(tmp_path, half, log)
    train(half, 128, log)
    resumed = setup()
    checkpoints.load_checkpoint(checkpoint, resumed, log)
    torch.rand(1)
    train(resumed, 128, log)
    one, two = parameters(half), parameters(resumed)
    assert any(not np.array_equal(one[name], two[name]) for name in one)


def test_worlds_that_cannot_tell_their_state_begin_new_episodes(setup, log, tmp_path, monkeypatch):
    def get_state(self):
        raise UserError("hidden")

    monkeypatch.setattr("tests.probes.ProbeWorld.get_state", get_state)
    half = setup()
    train(half, 40, log)
    checkpoint = checkpoints.save_checkpoint(tmp_path, half, log)
    resumed = setup()
    assert not checkpoints.load_checkpoint(checkpoint, resumed, log)
    train(resumed, 80, log)
    assert resumed.steps == 80


def test_a_learner_takes_no_other_learners_state(setup, log, tmp_path):
    half = setup()
    train(half, 16, log)
    checkpoint = checkpoints.save_checkpoint(tmp_path, half, log)
    with pytest.raises(UserError, match=r"TD3\.load_state: the state must be its own; got SAC's"):
        checkpoints.load_checkpoint(checkpoint, setup("td3"), log)


def test_the_newest_checkpoints_are_kept(setup, log, tmp_path):
    training = setup()
    train(training, 8, log)
    for steps in (8, 16, 24):
        training.steps = steps
        checkpoints.save_checkpoint(tmp_path, training, log)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["0000000016", "0000000024"]
    assert files.latest_checkpoint(tmp_path).name == names[-1]


def test_a_full_disk_keeps_the_former_checkpoint(setup, log, tmp_path):
    training = setup()
    train(training, 40, log)
    former = checkpoints.save_checkpoint(tmp_path, training, log)
    before = {file.name: file.read_bytes() for file in former.iterdir()}
    train(training, 48, log)
    limit, ignore = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for size in (1000, max(map(len, before.values())) - 1):  # nothing fits; the larger of the files does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            with pytest.raises(UserError, match=r"0000000040 is whole; go on from it with resume=true"):
                checkpoints.save_checkpoint(tmp_path, training, log)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, ignore)
    assert files.latest_checkpoint(tmp_path) == former
    assert {file.name: file.read_bytes() for file in former.iterdir()} == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [former.name]


def test_a_kill_while_a_checkpoint_is_replaced_leaves_a_whole_one(tmp_path, monkeypatch):
    def write(place):
        for name in ("a", "b"):
            (place / name).write_text("whole")

    def killed(path, **options):
        if path.exists():
            next(path.iterdir()).unlink()
            raise KeyboardInterrupt

    files.write_checkpoint(tmp_path, 8, write)
    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            files.write_checkpoint(tmp_path, 8, write)
    assert sorted(path.name for path in files.latest_checkpoint(tmp_path).iterdir()) == ["a", "b"]
    files.write_checkpoint(tmp_path, 16, write)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0000000008", "0000000016"]


def test_a_run_is_held_by_one_process_and_let_go(tmp_path):
    busy = pytest.raises(BusyError, match="another process is at work in")
    with runs.working(tmp_path), busy, runs.working(tmp_path):
        pass
    with runs.working(tmp_path):
        pass


def test_a_run_of_another_verb_is_not_taken_for_ones_own(tmp_path):
    runs.write_run(tmp_path, verb="practise")
    assert runs.verb_of(tmp_path) == runs.verb_of(tmp_path, "practise") == "practise"
    with pytest.raises(UserError, match=r"run must be of embodied train or finetune; .* is of embodied practise"):
        runs.verb_of(tmp_path, "train", "finetune")
    (tmp_path / "run.json").write_text('{"status": ')
    with pytest.raises(UserError, match=r"run\.json must be an object in JSON; it is damaged"):
        runs.verb_of(tmp_path, "train")
    (tmp_path / "run.json").write_text("{}")  # of long ago
    assert runs.verb_of(tmp_path, "train") is None


def test_learners_load_without_unpickling(setup, log, tmp_path, monkeypatch):
    training = setup()
    train(training, 40, log)
    checkpoint = checkpoints.save_checkpoint(tmp_path, training, log)
    other = setup()

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr("cloudpickle.loads", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    checkpoints.load_learner(checkpoint, other.learner)
    for name, value in parameters(training).items():
        np.testing.assert_array_equal(value, parameters(other)[name])
    assert other.learner.model.log_ent_coef.item() == training.learner.model.log_ent_coef.item() != 0


def test_folders_are_new_and_found(tmp_path):
    one, two = (runs.new_folder(tmp_path, "desk-drawer", "clip", 3) for _ in range(2))
    assert one != two
    assert "-desk-drawer-clip-s3" in one.name
    with pytest.raises(UserError, match=r"a or .*b must hold a run; there is none. Begin one: embodied a or b"):
        runs.find("latest", tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="run folder"):
        runs.find(str(one), tmp_path)
    runs.write_run(two, status="running", seed=3)
    runs.write_run(two, status="finished")
    assert json.loads((two / "run.json").read_text()) == {"status": "finished", "seed": 3}
    assert runs.find("latest", tmp_path) == two
    newer = runs.new_folder(tmp_path / "finetune", "desk-place", "solved", 0)
    runs.write_run(newer, status="finished")
    os.utime(two / "run.json", (1, 1))
    assert runs.find("latest", tmp_path, tmp_path / "finetune") == newer
    assert runs.find(str(two), tmp_path) == two


def test_facts_are_json_and_name_what_matters():
    facts = json.loads(json.dumps(runs.facts()))
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["hardware"]["cores"] >= 1


def test_the_log_of_steps_after_the_checkpoint_is_dropped(tmp_path):
    log = RunLog(tmp_path)
    for steps in (10, 20, 30):
        log.record({"rollout/ep_rew_mean": steps / 10})
        log.write(steps)
        runs.append_line(tmp_path / "evaluations.jsonl", {"steps": steps})
    log.close()
    log = RunLog(tmp_path, steps=20)
    log.record({"rollout/ep_rew_mean": 9.0, "train/new": 1.0})
    log.record_mean("rollout/other", 1.0)
    log.record_mean("rollout/other", 3.0)
    log.write(30)
    log.write(40)
    log.close()
    header, *rows = (line.split(",") for line in (tmp_path / "progress.csv").read_text().splitlines())
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    names = ("time/total_timesteps", "rollout/ep_rew_mean", "train/new", "rollout/other")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("10", "1.0", "", ""), ("20", "2.0", "", ""), ("30", "9.0", "1.0", "2.0"), ("40", "", "", "")
    ]  # fmt: skip
    assert [json.loads(line)["steps"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()] == [10, 20]


def test_many_worlds_get_one_update_per_transition(setup):
    for kwargs, updates in (({}, 8), ({"updates_per_step": 0.25}, 2), ({"updates_per_step": 0.01}, 1)):
        pace = setup("sac", **kwargs).learner.pace
        assert (pace.rollout_steps, pace.updates(8, 100), pace.updates(8, 10)) == (4, updates, 0)


@pytest.mark.parametrize("collected", [1, 3, 12])
def test_rounds_of_any_size_make_the_updates_that_were_asked_for(collected):
    pace = Pace(updates_per_step=0.2, learning_starts=0, burst=5)
    assert sum(pace.updates(collected, total) for total in range(collected, 601, collected)) == 120 + 5


@pytest.mark.parametrize("n_steps", [1, 3])
def test_sb3s_algorithms_see_what_they_always_saw(setup, log, n_steps):
    """Every batch that reaches an update is of stored steps, with their rewards and ends; n-step sums from those."""
    training, seen = setup(n_steps=n_steps, gamma=0.5), []
    batches = training.learner.model.replay_buffer
    sample = batches.sample

    def spy(*args, **kwargs):
        seen.append(sample(*args, **kwargs))
        return seen[-1]

    batches.sample = spy
    train(training, 72, log)
    rewards, truncated = training.replay.reward, training.replay.arrays()[0]["truncated"]
    possible = set()
    for t, e in np.ndindex(*rewards.shape):
        total = 0.0
        for k in range(min(n_steps, len(rewards) - t)):  # the newest have fewer than three rewards yet
            total += 0.5**k * float(rewards[t + k, e])
            possible.add(round(total, 4))
            if truncated[t + k, e]:
                break
    assert len(seen) > 5
    for batch in seen:
        assert {round(float(x), 4) for x in batch.rewards} <= possible
        assert not batch.dones.any()  # these worlds only run out of time
        assert set(batch.discounts.flatten().tolist()) <= {0.5**k for k in range(1, n_steps + 1)}


def test_ppo_keeps_the_time_limit_bootstrap_and_its_advantages_follow(setup, log):
    training = setup("ppo", rollout_steps=8, batch_size=16, gamma=0.9, gae_lambda=0.95, n_epochs=1)
    model, kept = training.learner.model, {}
    learn, label = model.train, training.rewards.label

    def note():
        names = ("rewards", "values", "advantages")
        kept["buffer"] = {name: getattr(model.rollout_buffer, name).copy() for name in names}
        learn()

    def keep(collected):
        kept["rollout"], kept["labels"] = collected.rollout, label(collected)
        values = model.policy.predict_values(torch.as_tensor(collected.rollout.next_obs.reshape(-1, 3)))
        kept["next"] = values.detach().numpy().reshape(8, 2)
        return kept["labels"]

    model.train, training.rewards.label = note, keep
    train(training, 16, log)
    buffer, rollout = kept["buffer"], kept["rollout"]
    assert rollout.truncated.any()
    expected = kept["labels"].reward + 0.9 * kept["next"] * rollout.truncated
    np.testing.assert_allclose(buffer["rewards"].reshape(8, 2), expected, rtol=1e-5, atol=1e-6)
    values, advantages = buffer["values"].reshape(8, 2), buffer["advantages"].reshape(8, 2)
    after = np.zeros(2)
    for t in reversed(range(8)):  # GAE, from its definition
        alive = ~rollout.ended[t]
        following = values[t + 1] if t < 7 else kept["next"][t]
        after = expected[t] + 0.9 * following * alive - values[t] + 0.9 * 0.95 * alive * after
        np.testing.assert_allclose(advantages[t], after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)])
def test_ppo_chooses_among_choices_and_bits(space):
    observations = spaces.Box(-1, 1, (3,), np.float32)
    learner = sb3.ppo(observations, space, num_worlds=2, total_steps=2, seed=0, rollout_steps=1, batch_size=2)
    obs, first = np.zeros((2, 3), np.float32), np.ones(2, bool)
    for explore in (True, False):
        actions, _ = learner.act(obs, learner.begin(2), first, explore=explore)
        assert len(actions) == 2
        assert all(action in space for action in actions)


@pytest.mark.parametrize(
    ("space", "fitting"),
    [(spaces.Discrete(3), "Use policy=dqn or (policy=)?ppo"), (spaces.MultiDiscrete([3, 2]), "Use policy=ppo")],
)
def test_a_learner_of_numbers_names_those_of_the_actions_there_are(space, fitting):
    with pytest.raises(ValueError, match=fitting):
        rlpd(spaces.Box(-1, 1, (3,), np.float32), space, num_worlds=1, total_steps=1, seed=0)
    with pytest.raises(ValueError, match=fitting):
        sb3.sac(spaces.Box(-1, 1, (3,), np.float32), space, num_worlds=1, total_steps=1, seed=0)


def test_the_critic_holds_still_for_the_actor_and_nothing_else_changes(setup, log):
    """After an actor update the critic has no gradient of it, which SB3 alone leaves there; weights are the same."""
    learned = []
    for still in (True, False):
        training = setup("sac")
        model = training.learner.model
        if not still:
            model.critic._forward_pre_hooks.clear()
        train(training, 24, log)
        learned.append({name: value.clone() for name, value in model.policy.state_dict().items()})
        actions = torch.zeros(2, *model.action_space.shape, requires_grad=True)
        model.critic.zero_grad()
        torch.cat(model.critic(torch.zeros(2, 3), actions)).sum().backward()
        assert actions.grad is not None
        assert {p.grad is None for p in model.critic.parameters()} == {still}
        model.critic(torch.zeros(2, 3), actions.detach())
        assert all(p.requires_grad for p in model.critic.parameters())
    for name, value in learned[0].items():
        torch.testing.assert_close(learned[1][name], value, rtol=0, atol=0)


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"algorithm": "dqn"}, "dqn: actions must be Discrete"),
    ({"updates_per_step": 0.0}, "updates_per_step must be > 0; got 0"),
    ({"rollout_steps": 0}, "rollout_steps must be at least 1; got 0"),
    ({"algorithm": "ppo", "batch_size": 3}, "batch_size must divide rollout_steps"),
])  # fmt: skip
def test_bad_settings_are_named(setup, kwargs, message):
    with pytest.raises(ValueError, match=message):
        setup(**kwargs)


def test_learners_are_sb3s_own(setup):
    kinds = {"sac": SAC, "td3": TD3, "ppo": PPO}
    assert all(type(setup(name).learner.model) is kind for name, kind in kinds.items())
    assert DQN.train.__module__ == "stable_baselines3.dqn.dqn"
    assert sb3.policy_name(make_probe(obs="pixels").observation_space) == "CnnPolicy"
    assert sb3.policy_name(make_probe(obs="mixed").observation_space) == "MultiInputPolicy"


@pytest.mark.parametrize(("algorithm", "obs"), [("sac", "state"), ("td3", "state"), ("ppo", "state")])
def test_sb3s_own_loop_learns_in_our_worlds(algorithm, obs):
    worlds = WorldVecEnv(partial(make_probe, limit=6, obs=obs), 2)
    small = {"rollout_steps": 4, "batch_size": 8, "network": [8]}
    small |= {} if algorithm == "ppo" else {"learning_starts": 8, "buffer_size": 100}
    model = getattr(sb3, algorithm)(worlds, seed=0, device="cpu", **small)
    model.learn(32)
    assert model.num_timesteps >= 32
    if algorithm != "ppo":
        replay = model.replay_buffer
        assert replay.rewards[:6, 0].tolist() == [1, 2, 3, 4, 5, 6]  # the worlds' own
        assert replay.timeouts[5, 0] == replay.dones[5, 0] == 1
        assert replay.next_observations[5, 0, 2] == pytest.approx(0.6)  # the episode's own last one
    worlds.close()
