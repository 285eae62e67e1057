"""The run folder: named, found, and never left with half a checkpoint."""

import json
import resource
import signal
from functools import partial

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC, TD3

from embodied import checkpoints, files, runs
from embodied.envs.vector import WorldVecEnv
from embodied.errors import UserError
from embodied.labeller import Labeller
from policies import sb3
from rewards.combine import LagrangianConstraints, WeightedSum
from rewards.core import Scorer
from rewards.shaping import PotentialShaping
from tests.probe_rewards import ProbeEncoder, ProbeHead
from tests.probes import make_probe


@pytest.fixture
def setup(request, tmp_path):
    """A learner with its worlds and labeller, closed at the end."""
    made = []

    def make(algorithm="sac", obs="state", limit=6, combine=WeightedSum, **kwargs):
        scorer = Scorer(ProbeEncoder(), {"probe": ProbeHead()}, combine(), PotentialShaping(kind="difference"))
        venv = WorldVecEnv(partial(make_probe, limit=limit, obs=obs), 2, frame_size=16)
        small = {"rollout_steps": 4, "network": [8], "batch_size": 8}
        if algorithm != "ppo":
            small |= {"learning_starts": 10, "buffer_size": 80}
        model = getattr(sb3, algorithm)(venv, seed=0, device="cpu", **small | kwargs)
        labeller = Labeller(scorer, batch_size=8)
        made.append((venv, labeller))
        return model, labeller

    yield make
    for venv, labeller in made:
        labeller.close()
        venv.close()


def learn(model, labeller, steps, reset=True):
    model.set_logger(runs.Logger(None, []))
    return model.learn(steps, callback=labeller, log_interval=None, reset_num_timesteps=reset)


def parameters(model):
    flat = {}
    for name, state in model.get_parameters().items():
        for key, value in torch.utils._pytree.tree_flatten_with_path(state)[0]:
            flat[f"{name}{key}"] = value.numpy() if isinstance(value, torch.Tensor) else value
    return flat


@pytest.mark.parametrize("kwargs", [
    {}, {"algorithm": "td3"}, {"algorithm": "ppo"}, {"n_steps": 3},
    {"combine": partial(LagrangianConstraints, {"probe": 1.0}, start=0.5)},
])  # fmt: skip
@pytest.mark.parametrize("first", [32, 64])  # 64: in the middle of an episode; the ring has 40 slots and wraps at 80
def test_a_checkpoint_goes_on_to_the_same_curve(setup, tmp_path, kwargs, first):
    straight, labeller = setup(**kwargs)
    learn(straight, labeller, first)
    learn(straight, labeller, 128 - first, reset=False)

    half, half_labeller = setup(**kwargs)
    learn(half, half_labeller, first)
    checkpoint = checkpoints.save_checkpoint(tmp_path, half, half_labeller)
    np.random.rand(7), torch.rand(7), half.action_space.sample()

    resumed, resumed_labeller = setup(**kwargs)
    resumed.set_logger(runs.Logger(None, []))
    assert checkpoints.load_checkpoint(checkpoint, resumed, resumed_labeller)
    assert resumed.num_timesteps == first
    learn(resumed, resumed_labeller, 128 - first, reset=False)

    expected, found = parameters(straight), parameters(resumed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    assert [e["r"] for e in straight.ep_info_buffer] == [e["r"] for e in resumed.ep_info_buffer]
    assert labeller.get_state()[1] == resumed_labeller.get_state()[1]
    if "combine" in kwargs:
        learned = labeller.scorer.combine.multipliers["probe"]
        assert learned != 0.5
        checkpoints.load_constraints(
            checkpoints.save_checkpoint(tmp_path, resumed, resumed_labeller), half_labeller.scorer
        )
        assert half_labeller.scorer.combine.multipliers == {"probe": learned}
    if getattr(straight, "replay_buffer", None) is not None:
        for name, array in checkpoints._replay_fields(straight.replay_buffer).items():
            np.testing.assert_array_equal(array, checkpoints._replay_fields(resumed.replay_buffer)[name], err_msg=name)
        np.testing.assert_array_equal(labeller.memory.rows, resumed_labeller.memory.rows)
        labeller.relabel(labeller.scorer)
        resumed_labeller.relabel(resumed_labeller.scorer)
        np.testing.assert_array_equal(straight.replay_buffer.rewards, resumed.replay_buffer.rewards)


def test_without_its_random_state_the_curve_would_differ(setup, tmp_path):
    """Negative control: the comparison above can fail."""
    half, labeller = setup()
    learn(half, labeller, 32)
    checkpoint = checkpoints.save_checkpoint(tmp_path, half, labeller)
    learn(half, labeller, 96, reset=False)
    resumed, resumed_labeller = setup()
    resumed.set_logger(runs.Logger(None, []))
    checkpoints.load_checkpoint(checkpoint, resumed, resumed_labeller)
    np.random.rand(1)
    learn(resumed, resumed_labeller, 96, reset=False)
    one, two = parameters(half), parameters(resumed)
    assert any(not np.array_equal(one[name], two[name]) for name in one)


def test_worlds_that_cannot_tell_their_state_begin_new_episodes(setup, tmp_path, monkeypatch):
    def get_state(self):
        raise UserError("hidden")

    monkeypatch.setattr("tests.probes.ProbeWorld.get_state", get_state)
    half, labeller = setup()
    learn(half, labeller, 40)
    checkpoint = checkpoints.save_checkpoint(tmp_path, half, labeller)
    resumed, resumed_labeller = setup()
    resumed.set_logger(runs.Logger(None, []))
    assert not checkpoints.load_checkpoint(checkpoint, resumed, resumed_labeller)
    learn(resumed, resumed_labeller, 40, reset=False)
    assert resumed.num_timesteps == 80


def test_the_newest_checkpoints_are_kept(setup, tmp_path):
    model, labeller = setup()
    learn(model, labeller, 8)
    for steps in (8, 16, 24):
        model.num_timesteps = steps
        checkpoints.save_checkpoint(tmp_path, model, labeller)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["0000000016", "0000000024"]
    assert files.latest_checkpoint(tmp_path).name == names[-1]


def test_a_full_disk_keeps_the_former_checkpoint(setup, tmp_path):
    model, labeller = setup()
    learn(model, labeller, 40)
    former = checkpoints.save_checkpoint(tmp_path, model, labeller)
    before = {file.name: file.read_bytes() for file in former.iterdir()}
    learn(model, labeller, 8, reset=False)
    limit, ignore = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for size in (1000, max(map(len, before.values())) - 1):  # nothing fits; the larger of the files does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            with pytest.raises(UserError, match=r"0000000040 is whole; go on from it with resume=true"):
                checkpoints.save_checkpoint(tmp_path, model, labeller)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, ignore)
    assert files.latest_checkpoint(tmp_path) == former
    assert {file.name: file.read_bytes() for file in former.iterdir()} == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [former.name]


def test_parameters_load_without_unpickling(setup, tmp_path, monkeypatch):
    model, labeller = setup()
    learn(model, labeller, 40)
    checkpoint = checkpoints.save_checkpoint(tmp_path, model, labeller)
    other, _ = setup()

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr("cloudpickle.loads", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    checkpoints.load_parameters(checkpoint, other)
    for name, value in parameters(model).items():
        np.testing.assert_array_equal(value, parameters(other)[name])
    assert other.log_ent_coef.item() == model.log_ent_coef.item() != 0


def test_folders_are_new_and_found(tmp_path):
    one, two = (runs.new_folder(tmp_path, "desk-drawer", "clip", 3) for _ in range(2))
    assert one != two
    assert "-desk-drawer-clip-s3" in one.name
    with pytest.raises(UserError, match="holds none"):
        runs.find("latest", tmp_path)
    with pytest.raises(UserError, match="run folder"):
        runs.find(str(one), tmp_path)
    runs.write_run(two, status="running", seed=3)
    runs.write_run(two, status="finished")
    assert json.loads((two / "run.json").read_text()) == {"status": "finished", "seed": 3}
    assert runs.find("latest", tmp_path) == two
    assert runs.find(str(two), tmp_path) == two


def test_facts_are_json_and_name_what_matters():
    facts = json.loads(json.dumps(runs.facts()))
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["hardware"]["cores"] >= 1


def test_the_log_of_steps_after_the_checkpoint_is_dropped(tmp_path):
    log = runs.logger(tmp_path)
    for steps in (10, 20, 30):
        log.record("time/total_timesteps", steps, exclude="tensorboard")
        log.record("rollout/ep_rew_mean", steps / 10)
        log.dump(steps)
        runs.append_line(tmp_path / "evaluations.jsonl", {"steps": steps})
    log.close()
    log = runs.logger(tmp_path, steps=20)
    log.record("time/total_timesteps", 30, exclude="tensorboard")
    log.record("rollout/ep_rew_mean", 9.0)
    log.record("train/new", 1.0)
    log.dump(30)
    log.close()
    header, *rows = (line.split(",") for line in (tmp_path / "progress.csv").read_text().splitlines())
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(r["time/total_timesteps"], r["rollout/ep_rew_mean"], r["train/new"]) for r in rows] == [
        ("10", "1.0", ""), ("20", "2.0", ""), ("30", "9.0", "1.0")
    ]  # fmt: skip
    assert [json.loads(line)["steps"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()] == [10, 20]


def test_many_worlds_get_one_update_per_transition(setup):
    model, _ = setup("sac")
    assert (model.train_freq.frequency, model.gradient_steps) == (4, 8)
    model, _ = setup("sac", updates_per_step=0.25)
    assert model.gradient_steps == 2
    kinds = {"sac": SAC, "td3": TD3, "ppo": PPO}
    assert all(isinstance(setup(name)[0], kind) for name, kind in kinds.items())


def test_the_critic_holds_still_for_the_actor_and_nothing_else_changes(setup):
    """After an actor update the critic has no gradient of it, which SB3 alone leaves there; weights are the same."""
    learned = []
    for still in (True, False):
        model, labeller = setup("sac")
        if not still:
            model.critic._forward_pre_hooks.clear()
        learn(model, labeller, 24)
        learned.append({name: value.clone() for name, value in model.policy.state_dict().items()})
        seen = model.policy.obs_to_tensor(model._last_obs)[0]
        actions = torch.zeros(2, *model.action_space.shape, requires_grad=True)
        model.critic.zero_grad()
        torch.cat(model.critic(seen, actions)).sum().backward()
        assert actions.grad is not None
        assert {p.grad is None for p in model.critic.parameters()} == {still}
        model.critic(seen, actions.detach())
        assert all(p.requires_grad for p in model.critic.parameters())
    for name, value in learned[0].items():
        torch.testing.assert_close(learned[1][name], value, rtol=0, atol=0)


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"algorithm": "dqn"}, "dqn: actions must be Discrete"),
    ({"updates_per_step": 0.0}, "updates_per_step must be > 0; got 0"),
    ({"rollout_steps": 0}, "rollout_steps must be at least 1; got 0"),
    ({"obs": "mixed", "n_steps": 3}, "n_steps must be 1 with mixed observations"),
    ({"algorithm": "ppo", "batch_size": 3}, "batch_size must divide rollout_steps"),
])  # fmt: skip
def test_bad_settings_are_named(setup, kwargs, message):
    with pytest.raises(ValueError, match=message):
        setup(**kwargs)


def test_learners_are_sb3s_own():
    assert DQN.train.__module__ == "stable_baselines3.dqn.dqn"
    assert sb3.policy_name(make_probe(obs="pixels").observation_space) == "CnnPolicy"
    assert sb3.policy_name(make_probe(obs="mixed").observation_space) == "MultiInputPolicy"
