"""Every config composes, names only what may be built, and builds with its own defaults."""

from __future__ import annotations

import functools
import inspect
from dataclasses import fields
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from embodied import cli, paths
from embodied.building.build import TARGETS, build, locate
from embodied.building.worlds import env_maker
from embodied.config import choices, compose, composed
from embodied.envs import WORLDS
from embodied.envs.vector import WorldVecEnv
from embodied.errors import UserError
from policies.core import Learner
from rewards.keypoint.rule import KeypointShaping
from rewards.shaping import PotentialShaping

CONFIGS = paths.configs()
FILES = sorted(CONFIGS.rglob("*.yaml"))
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "experiment")
MISSING = {"goal": "a text", "negative": "another", "negatives": ["another"], "threshold": 0.2}
CHOICES = [(group, name) for group in GROUPS for name in choices(group)]


class RandomEncoder:
    """Texts and images to random unit vectors."""

    name, dim, image_size = "random", 16, (32, 32)

    def encode_images(self, frames):
        raise AssertionError("building a reward encodes no frame")

    def encode_texts(self, texts):
        vectors = torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(len(t))) for t in texts])
        return vectors / vectors.norm(dim=-1, keepdim=True)


def targets(node) -> set[str]:
    if isinstance(node, dict):
        own = {node["_target_"]} if node.get("_target_") else set()
        return own.union(*(targets(value) for value in node.values()))
    return set().union(*(targets(value) for value in node)) if isinstance(node, list) else set()


def chosen(verb: str, *choices_made: str):
    return composed(verb, list(choices_made))[0]


@functools.cache
def groups(verb: str) -> set[str]:
    """Those a verb's config chooses from."""
    return set(composed(verb, [])[1])


def test_targets_are_exactly_what_the_configs_name():
    named = set().union(*(targets(yaml.safe_load(path.read_text("utf-8"))) for path in FILES))
    assert named == set(TARGETS)
    assert len(TARGETS) == len(named)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_exists(target):
    assert callable(locate(target))


@pytest.mark.parametrize("verb", cli.verbs())
def test_every_verb_has_a_config_and_an_example(verb):
    assert isinstance(OmegaConf.to_container(chosen(verb)), dict)
    first, *rest = cli.docstring(verb).splitlines()
    assert first.endswith(".")
    assert any(line.startswith(f"    embodied {verb}") for line in rest)
    assert f"embodied {verb}" in cli.verb_help(verb)


@pytest.mark.parametrize("verb", [verb for verb in sorted(cli.verbs()) if (CONFIGS / f"{verb}.yaml").is_file()])
def test_no_verb_takes_a_seed_below_zero(verb):
    with pytest.raises(UserError, match=r"seed must be at least 0; got -1|unknown setting 'seed'"):
        compose(verb, ["seed=-1"])


def test_a_config_belongs_to_its_caller_and_so_does_a_hydra_of_theirs(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        compose("train", []).device = "changed"
        assert compose("train", []).device == "auto"
        assert hydra.compose("mine").a == 1


def test_every_root_config_is_a_verb():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(cli.verbs())


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_wherever_it_may_be_chosen(group, name):
    users = [verb for verb in cli.verbs() if group in groups(verb)]
    assert users
    for verb in users:
        config = chosen(verb, f"{group}={name}")
        assert group in config
        assert not {"hydra", "_target_"} & set(config)


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_trains(name):
    config = compose("train", [f"experiment={name}"])
    assert OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


REWARDS = [n for n in choices("reward") if n != "true"]
TEXT_GOALS = [n for n in REWARDS if chosen("train", f"reward={n}").reward._target_.startswith("rewards.clip_goal.")]


@pytest.mark.parametrize("name", REWARDS)
def test_every_rewards_keys_are_its_factorys_arguments(name):
    config = OmegaConf.to_container(chosen("train", f"reward={name}").reward)
    assert isinstance(config, dict)
    signature = inspect.signature(locate(config.pop("_target_")))
    signature.bind(encoder=None, **config)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
    if not takes_any:
        assert set(config) == set(signature.parameters) - {"encoder", "fits"}  # which only code gives


@pytest.mark.parametrize("name", REWARDS)
def test_every_rewards_shaping_has_its_shapings_keys(name):
    shaping = chosen("train", f"reward={name}").reward.shaping
    if name == "keypoint":  # its `dense` is the reward's own
        assert set(shaping) == {field.name for field in fields(KeypointShaping)} - {"dense"}
    else:
        assert set(shaping) == {field.name for field in fields(PotentialShaping)}


@pytest.mark.parametrize("name", choices("reward/combine"))
def test_every_combinations_keys_are_its_arguments(name):
    given = ["reward.combine.thresholds={clip: 1}"] if name == "constraints" else []
    reward = compose("train", ["reward=[clip,process]", f"reward.combine={name}", *given]).reward
    assert set(reward.shaping) == {field.name for field in fields(PotentialShaping)}
    combine = OmegaConf.to_container(reward.combine)
    assert isinstance(combine, dict)
    assert list(inspect.signature(locate(combine.pop("_target_"))).parameters) == list(combine)


@pytest.mark.parametrize("name", TEXT_GOALS)
def test_every_text_goal_builds_and_leaves_its_config_alone(name):
    config = chosen("train", f"reward={name}").reward
    for key, value in MISSING.items():
        if OmegaConf.is_missing(config, key) or (key == "goal" and config.goal is None):
            config[key] = value
    before = OmegaConf.to_yaml(config)
    scorer = build(config, encoder=RandomEncoder())
    assert scorer.heads
    assert OmegaConf.to_yaml(config) == before


@pytest.mark.parametrize("name", choices("encoder"))
def test_every_encoder_takes_its_configs_keys(name):
    """Weights, or a server, are not at hand; a wrong key is told apart from them by its TypeError."""
    config = OmegaConf.to_container(chosen("train", f"encoder={name}").encoder)
    assert isinstance(config, dict)
    with pytest.raises((ValueError, OSError, UserError)):
        build(config | {"precision": "no such precision"})
    with pytest.raises(Exception, match="surprise"):
        build(config | {"surprise": 1})


@pytest.mark.parametrize("name", choices("policy"))
def test_every_policy_builds_and_acts(name):
    world = ["env=gym", "env.id=CartPole-v1"] if name == "dqn" else ["env=cartpole"]
    config = compose("train", [f"policy={name}", *world])
    before = OmegaConf.to_yaml(config)
    venv = WorldVecEnv(env_maker(config), 2)
    spaces = {"observation_space": venv.observation_space, "action_space": venv.action_space}
    learner = build(config.policy, **spaces, num_worlds=2, total_steps=100, seed=0, device="cpu")
    assert isinstance(learner, Learner)
    actions, _ = learner.act(venv.reset(), learner.begin(2), np.ones(2, bool), explore=False)
    assert len(actions) == 2
    venv.close()
    assert OmegaConf.to_yaml(config) == before


def test_every_world_has_a_config_and_the_other_way_round():
    ours = {path.stem for path in (CONFIGS / "env").glob("*.yaml")} - {"gym"}
    assert ours == set(WORLDS)
    for name in ours:
        assert chosen("train", f"env={name}").env.id == f"embodied/{name}-v0"


@pytest.mark.parametrize("scene", ["cartpole", "reacher-red", "desk-drawer", "humanoid-stand", "drive-town"])
def test_a_world_is_made_from_its_config(scene):
    env = env_maker(chosen("train", f"env={scene}"))()
    env.reset(seed=0)
    frame = env.get_wrapper_attr("frame")()
    assert frame.shape == (96, 96, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 5  # not an empty picture
    env.close()


def test_a_keyword_that_is_a_setting_of_its_own_is_told():
    with pytest.raises(UserError, match=r"env.kwargs must hold .*; got traffic. Say env.traffic=0.2."):
        env_maker(compose("train", ["env=drive-town", "env.kwargs={traffic: 0.2}"]))()
    env = env_maker(compose("train", ["env=cartpole", "env.kwargs={max_episode_steps: 3}"]))()  # a setting that is null
    assert env.get_wrapper_attr("_max_episode_steps") == 3
    env.close()


def test_configs_say_what_they_are():
    """Settings a person may want to change carry a comment somewhere in their file."""
    silent = [str(p.relative_to(CONFIGS)) for p in FILES if "#" not in p.read_text("utf-8")]
    assert silent == [], f"{Path('configs')}: {silent}"
