"""The town from the command line: VLM-RL's reward climbed, its parts logged, the driver recorded, an encoder taught."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from embodied import cli, scoring
from embodied.datasets import Dataset
from embodied.envs.bridge import make
from embodied.scorers import make_scorer
from embodied.scoring import Layout, Track
from rewards.combine import Synthesis
from rewards.encoders import OpenCLIPEncoder

GOAL, NEGATIVE = "the road is clear with no car accidents", "two cars have collided with each other on the road"
SYNTHESIS = ["reward=synthesis", f"reward.goal={GOAL}", f"reward.negative={NEGATIVE}"]
TERMS = {"center": 3.0, "angle": 90.0, "std": 0.4}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def encoder(tiny_clip):
    return ["encoder=open_clip", f"encoder.model={tiny_clip}", "encoder.device=cpu"]


def test_the_synthesis_takes_the_papers_terms_from_the_town(encoder):
    scorer = make_scorer(cli.compose("train", ["env=drive-town", *SYNTHESIS, *encoder]))
    assert scorer.combine == Synthesis(speed="speed", speed_max=25.0, limits=TERMS, penalty="penalty")
    given = ["reward.synthesis.speed=speed", "reward.synthesis.speed_max=10"]
    scorer = make_scorer(cli.compose("train", ["env=drive-town", *SYNTHESIS, *encoder, *given]))
    assert scorer.combine == Synthesis(speed="speed", speed_max=10.0, limits={})  # what a person gives stands
    scorer = make_scorer(cli.compose("train", ["env=cartpole", *SYNTHESIS, *encoder]))
    assert scorer.combine == Synthesis(limits={})


def test_the_reward_is_vlm_rl_s_at_every_step(encoder, tiny_clip):
    """From zihaosheng/VLM-RL clip_rewarded_sac.py, in float64 NumPy, on a drive that ends in a crash."""
    scorer = make_scorer(cli.compose("train", ["env=drive-town", *SYNTHESIS, *encoder]))
    env = make("drive-town", traffic=1.0)
    env.reset(seed=4)
    own = OpenCLIPEncoder(tiny_clip, device="cpu")
    goal, negative = own.encode_texts([GOAL, NEGATIVE]).double().numpy()
    track, layout, wanted, paid = Track(), Layout(("bird",), tuple(sorted(env.unwrapped.signals()))), [], []

    def look():
        frame = env.unwrapped.frame("bird", 32)
        (row,) = layout.rows(own.encode_images(torch.from_numpy(frame[None])).numpy(), [env.unwrapped.signals()])
        return frame, row

    track.rows.append(look()[1])
    for _ in range(80):
        _, env_reward, terminated, _, _ = env.step(np.array([0.02, 1.0]))
        frame, row = look()
        track.add(row, terminated, None)
        state = own.encode_images(torch.from_numpy(frame[None]))[0].double().numpy()
        told = env.unwrapped.signals()
        clear = 1 - np.clip(state @ negative - state @ goal, 0, 0.03) / 0.03
        reward = 1 - abs(told["speed"] - clear * 25) / 25
        for name, limit in TERMS.items():
            reward *= max(1 - abs(told[name]) / limit, 0)
        wanted.append(env_reward if env_reward < 0 else reward)
        paid.append(env_reward)
    env.close()
    (labels,) = scoring.label(scorer, [track], layout)
    assert min(wanted) == -10 < max(wanted)
    np.testing.assert_allclose(labels.rewards, wanted, atol=2e-3)


@pytest.mark.parametrize("reward", ["synthesis", "own", "sparse"])
def test_it_is_trained_and_judged(reward, encoder, capsys):
    chosen = {"synthesis": SYNTHESIS, "own": ["reward=true"], "sparse": ["reward=true", "sparse=true"]}[reward]
    words = ["train", "env=drive-town", "policy=rlpd", *chosen, *encoder, "env.max_episode_steps=20", "run=run"]
    small = [
        "num_worlds=2",
        "policy.learning_starts=40",
        "policy.batch_size=16",
        "policy.critic=[16]",
        "policy.actor=[16]",
    ]
    assert cli.main([*words, *small, "steps=120", "log_every=40", "eval_every=0", "final_episodes=2", "videos=1"]) == 0
    assert "never taught" not in capsys.readouterr().err
    with Path("run/progress.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    parts = {f"reward/part_{name}_mean" for name in ("speed", "center", "angle", "std", "penalty")}
    assert (parts <= set(rows[-1])) == (reward == "synthesis")
    if reward == "synthesis":
        assert 0 < float(rows[-1]["reward/part_speed_mean"]) <= 1
        assert float(rows[-1]["reward/part_penalty_mean"]) <= 0
    (told,) = (json.loads(line) for line in Path("run/evaluations.jsonl").read_text().splitlines())
    assert {"collisions", "lane_departures", "stalls", "route", "routes"} <= set(told)
    assert 0 <= told["route"] < 1
    assert told["success_rate"] == 0


def test_a_resumed_run_keeps_the_means_of_the_parts(encoder, capsys):
    small = ["env.max_episode_steps=20", "num_worlds=2", "eval_every=0", "final_episodes=1", "videos=0", "log_every=40"]
    words = ["train", "env=drive-town", *SYNTHESIS, *encoder, *small, "policy.learning_starts=1000"]
    assert cli.main([*words, "run=straight", "steps=160"]) == 0
    assert cli.main([*words, "run=broken", "steps=80"]) == 0
    assert cli.main(["train", "run=broken", "resume=true", "steps=160"]) == 0

    def means(folder):
        with Path(folder, "progress.csv").open() as stream:
            return [{k: v for k, v in row.items() if k.startswith("reward/part")} for row in csv.DictReader(stream)]

    assert means("broken")[-1] == means("straight")[-1]


def test_the_driver_is_recorded(capsys):
    words = ["collect", "env=drive-town", "policy=mixed", "episodes=4", "image_size=32", "env.traffic=0.25", "out=data"]
    assert cli.main(words) == 0
    dataset = Dataset(Path("data"))
    assert [dataset.kind(i) for i in range(4)] == ["expert", "noisy", "near_miss", "failure"]
    solved = [bool(dataset.recording(i, cameras=()).success.any()) for i in range(4)]
    assert (solved[0], solved[2:]) == (True, [False, False])
    got = dataset.recording(0)
    assert set(got.frames) == {"bird", "front"}
    assert len(got) == 401
    assert len(got.steps) == 4  # quarters of the route
    assert got.instruction == "drive along the route through the town without an accident"
    assert cli.main(["collect", "env=drive-town", "policy=counterfactual"]) == 2
    assert "needs a scripted expert" in capsys.readouterr().err


def test_an_encoder_is_taught_the_town(tiny_clip, capsys):
    small = ["scenes.drive.frames=64", "test_frames=100", "recipe.epochs=1", "recipe.batch_size=32", "workers=1"]
    assert cli.main(["pretrain", f"model={tiny_clip}", "use=[drive]", "run=run", "judge_on=val", *small]) == 0
    assert "drive" in capsys.readouterr().out
    facts = json.loads(Path("run/encoder/judgement.json").read_text())["scenes"]["drive"]["own_look"]["facts"]
    assert len(facts) >= 3
    config = cli.compose("preview", ["env=drive-town", *SYNTHESIS, "encoder=open_clip", "encoder.device=cpu"])
    taught = OmegaConf.merge(config, {"encoder": {"model": "local-dir:run/encoder"}})
    assert make_scorer(taught).encoder.dim > 0
