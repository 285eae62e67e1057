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
from embodied.building.scorers import make_scorer
from embodied.config import compose
from embodied.datasets import Dataset
from embodied.envs.bridge import make
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
    scorer = make_scorer(compose("train", ["env=drive-town", *SYNTHESIS, *encoder]))
    assert scorer.combine == Synthesis(speed="speed", speed_max=25.0, limits=TERMS, penalty="penalty")
    given = ["reward.synthesis.speed=speed", "reward.synthesis.speed_max=10.0"]
    scorer = make_scorer(compose("train", ["env=drive-town", *SYNTHESIS, *encoder, *given]))
    assert scorer.combine == Synthesis(speed="speed", speed_max=10.0, limits={})  # what a person gives stands
    scorer = make_scorer(compose("train", ["env=cartpole", *SYNTHESIS, *encoder]))
    assert scorer.combine == Synthesis(limits={})


def test_the_reward_is_vlm_rl_s_at_every_step(encoder, tiny_clip):
    """From zihaosheng/VLM-RL clip_rewarded_sac.py, in float64 NumPy, on a drive that ends in a crash."""
    scorer = make_scorer(compose("train", ["env=drive-town", *SYNTHESIS, *encoder]))
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
    for _ in range(50):
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
    state = ["env.obs=state", "reward=true"]
    chosen = {"synthesis": SYNTHESIS, "own": state, "sparse": [*state, "sparse=true"]}[reward]
    words = ["train", "env=drive-town", "policy=rlpd", *chosen, *encoder, "env.max_episode_steps=15", "run=run"]
    small = [
        "num_worlds=2",
        "policy.learning_starts=30",
        "policy.batch_size=16",
        "policy.critic=[16]",
        "policy.actor=[16]",
    ]
    assert cli.main([*words, *small, "steps=60", "log_every=30", "eval_every=0", "final_episodes=2", "videos=0"]) == 0
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
    small = ["env.max_episode_steps=15", "num_worlds=2", "eval_every=0", "final_episodes=1", "videos=0", "log_every=20"]
    words = ["train", "env=drive-town", "env.traffic=0", *SYNTHESIS, *encoder, *small, "policy.learning_starts=1000"]
    assert cli.main([*words, "run=straight", "steps=80"]) == 0
    assert cli.main([*words, "run=broken", "steps=40"]) == 0
    assert cli.main(["train", "run=broken", "resume=true", "steps=80"]) == 0

    def means(folder):
        with Path(folder, "progress.csv").open() as stream:
            return [{k: v for k, v in row.items() if k.startswith("reward/part")} for row in csv.DictReader(stream)]

    assert means("straight")[-1]
    assert means("broken")[-1] == means("straight")[-1]


@pytest.mark.parametrize("kind", ["expert", "near_miss"])
def test_the_driver_is_recorded(kind):
    shares = dict.fromkeys(("expert", "noisy", "near_miss", "failure", "random"), 0) | {kind: 1}
    told = ", ".join(f"{name}: {share}" for name, share in shares.items())
    words = ["collect", "env=drive-town", "env.traffic=0", "env.max_episode_steps=280", "policy=mixed", "out=data"]
    assert cli.main([*words, f"shares={{{told}}}", "episodes=1", "image_size=32", "cameras=[bird]"]) == 0
    dataset = Dataset(Path("data"))
    got = dataset.recording(0)
    assert (dataset.kind(0), bool(got.success.any())) == (kind, kind == "expert")
    assert got.instruction == "drive along the route through the town without an accident"
    assert len(got.steps) == (4 if kind == "expert" else 0)  # quarters of the route
    if kind == "near_miss":
        assert got.signals["speed"][-1] == 0  # it stands before the end


def test_there_is_no_counterfactual_of_a_drive(capsys):
    assert cli.main(["collect", "env=drive-town", "policy=counterfactual"]) == 2
    assert "needs one of the desk's worlds" in capsys.readouterr().err


def test_an_encoder_is_taught_the_town(tiny_clip, capsys):
    small = ["scenes.drive.frames=48", "test_frames=240", "recipe.epochs=1", "recipe.batch_size=32", "workers=1"]
    assert cli.main(["pretrain", f"model={tiny_clip}", "use=[drive]", "run=run", "judge_on=val", *small]) == 0
    assert "drive" in capsys.readouterr().out
    facts = json.loads(Path("run/encoder/judgement.json").read_text())["scenes"]["drive"]["own_look"]["facts"]
    assert len(facts) >= 3
    config = compose("preview", ["env=drive-town", *SYNTHESIS, "encoder=open_clip", "encoder.device=cpu"])
    taught = OmegaConf.merge(config, {"encoder": {"model": "local-dir:run/encoder"}})
    assert make_scorer(taught).encoder.dim > 0
