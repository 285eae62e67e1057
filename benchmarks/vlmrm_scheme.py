"""Training against VLM-RM's scheme: the same learner, worlds, architecture and updates; only the pipeline differs.

Theirs (arXiv 2310.12921 and its published code, in our words): every world in a process of SB3's own; frames at the
environment's size with its default looks, sent to the learner's process and queued as uint8; after `collect` steps
stacked, scaled and resized whole in float32, encoded in float32 in fixed batches; rewards written over the replay's;
then the updates. Ours: `WorldVecEnv` and `Labeller`, frames at the encoder's size with the fast settings, encoded
while the worlds step, in the precision of `auto` and in int8. ViT-B-32 with random weights, whose speed is that of
trained ones.

Both collect and update as the paper does: CartPole 200 steps of each world, then 200 updates of DQN; Humanoid 100
steps of each of 8 worlds (one GPU's share there), then 100 updates of SAC at batch 512. CartPole has 4 worlds here
(the paper does not say). Runs are made in turn, each in a process of its own. Our first round warms up; theirs is
counted, as it lasts half a minute and more. Options are JSON; `environment` adds variables to our side.

    python -m benchmarks.vlmrm_scheme                  # quiet machine
    python -m benchmarks.vlmrm_scheme repeats=1 theirs_rounds=1 collect=4 record=false   # a try
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from torch.nn import functional

from benchmarks.common import read_options, record
from benchmarks.measure import Rounds, Silent, in_child, medians, paired, use_two_cores
from embodied.envs.bridge import make
from embodied.envs.classic import FixedCartPole
from embodied.envs.vector import WorldVecEnv
from embodied.training.collector import Collector
from embodied.training.labeller import Labeller
from embodied.training.loop import Training, train
from embodied.training.perception import Perception
from policies import sb3
from policies.core import Learner
from rewards.clip_goal import clip_scorer
from rewards.encoders import OpenCLIPEncoder
from rewards.encoders.loading import import_open_clip, load_open_clip

MODEL = "ViT-B-32"
BATCH = 32  # frames per encoder call on their side
WORLDS = {"cartpole": 4, "humanoid": 8}
COLLECT = {"cartpole": 200, "humanoid": 100}  # steps of each world, and updates, of a round
BARS = {"cartpole": 4.0, "humanoid": 8.0}
MEMORY_BAR = 0.5
TEXTS = {
    "cartpole": ("pole vertically upright on top of the cart", "pole and cart"),
    "humanoid": ("a humanoid robot kneeling", "a humanoid robot"),
}
VIEW = {"distance": 3.5, "lookat": [0.0, 0.0, 1.0], "elevation": -10.0, "azimuth": 180.0}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OPTIONS: dict[str, Any] = {
    "repeats": 3, "theirs_rounds": 1, "ours_rounds": 2, "collect": 0, "workers": 2, "encode_threads": 2, "threads": 2,
    "batch": 8, "compile": False, "precision": "auto,int8", "envs": "cartpole,humanoid", "environment": {},
    "record": True,
}  # fmt: skip


# The learner, the same for both ---------------------------------------------------------------------------


def learner(env: str, venv: VecEnv, collect: int) -> BaseAlgorithm:
    """The paper's DQN or SAC, past its random start."""
    common: dict[str, Any] = {
        "train_freq": collect, "gradient_steps": collect, "learning_starts": 0, "buffer_size": 100_000, "seed": 0,
        "device": "cpu",
    }  # fmt: skip
    if env == "cartpole":
        return DQN("MlpPolicy", venv, learning_rate=2.3e-3, policy_kwargs={"net_arch": [256, 256]}, **common)
    return SAC("MlpPolicy", venv, learning_rate=6e-4, gamma=0.95, batch_size=512, **common)


def our_learner(env: str, collector: Collector, collect: int, total: int) -> Learner:
    """The same, in our loop: as many updates after a rollout as SB3 makes."""
    make_it: Any = sb3.sac
    settings: dict[str, Any] = {"learning_rate": 6e-4, "gamma": 0.95, "batch_size": 512}
    if env == "cartpole":
        make_it = sb3.dqn
        settings = {"learning_rate": 2.3e-3, "gamma": 0.99, "batch_size": 32, "tau": 1.0}
    spaces = (collector.observation_space, collector.worlds.action_space)
    pace = {"rollout_steps": collect, "updates_per_step": 1 / WORLDS[env], "learning_starts": 0}
    return make_it(
        *spaces,
        num_worlds=WORLDS[env],
        total_steps=total,
        seed=0,
        device="cpu",
        buffer_size=100_000,
        **pace,
        **settings,
    )


class Clock(BaseCallback):
    """When each of SB3's rounds began, and what had been collected."""

    def __init__(self) -> None:
        super().__init__()
        self.began: list[tuple[float, int]] = []

    def _on_rollout_start(self) -> None:
        self.began.append((time.perf_counter(), self.num_timesteps))

    def _on_step(self) -> bool:
        return True


# Theirs ---------------------------------------------------------------------------------------------------


class _RenderInInfo(gymnasium.Wrapper):
    """The picture after each step, at the environment's own size, in `info`."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, {**info, "frame": self.env.render()}


def their_world(env: str) -> gymnasium.Env:
    """400 x 600 pygame, or 480 x 480 MuJoCo with shadows and all; no end but the time limit."""
    if env == "cartpole":
        world: gymnasium.Env = FixedCartPole(render_mode="rgb_array")
    else:
        view = VIEW | {"lookat": np.array(VIEW["lookat"])}
        world = gymnasium.make(
            "Humanoid-v5", render_mode="rgb_array", width=480, height=480, default_camera_config=view,
            terminate_when_unhealthy=False, max_episode_steps=-1, disable_env_checker=True,
        )  # fmt: skip
    return gymnasium.wrappers.TimeLimit(_RenderInInfo(world), COLLECT[env])


class TheirLabels(BaseCallback):
    """Queue whole frames; at the end of a rollout resize, encode and project them, and write the replay's rewards."""

    def __init__(self, env: str, batch: int) -> None:
        super().__init__()
        self._model = load_open_clip(MODEL, "random").eval()
        tokens = import_open_clip().get_tokenizer(MODEL)(list(TEXTS[env]))
        with torch.no_grad():
            self._goal, base = functional.normalize(self._model.encode_text(tokens), dim=-1)
        line, alpha = self._goal - base, 0.5
        projection = torch.outer(line, line) / line.dot(line)
        self._projection = alpha * projection + (1 - alpha) * torch.eye(len(line))
        self._batch, self._frames = batch, []

    def _on_step(self) -> bool:
        self._frames.append(np.stack([info.pop("frame") for info in self.locals["infos"]]))
        return True

    @torch.no_grad()
    def _on_rollout_end(self) -> None:
        steps = len(self._frames)
        frames = torch.from_numpy(np.stack(self._frames)).flatten(0, 1)
        rewards = torch.cat([self._rewards(batch) for batch in frames.split(self._batch)])
        buffer = self.model.replay_buffer  # pyright: ignore[reportAttributeAccessIssue]
        slots = np.arange(buffer.pos - steps, buffer.pos) % buffer.buffer_size
        buffer.rewards[slots] = rewards.view(steps, -1).numpy()
        self._frames.clear()

    def _rewards(self, frames: torch.Tensor) -> torch.Tensor:
        images = frames.permute(0, 3, 1, 2).float() / 255
        images = functional.interpolate(images, (224, 224), mode="bicubic")
        images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        features = functional.normalize(self._model.encode_image(images), dim=-1)
        return 1 - ((features - self._goal) @ self._projection).square().sum(-1) / 2


def theirs(env: str, rounds: int, collect: int, options: dict[str, Any]) -> dict[str, Any]:
    """One run of the reference scheme."""
    venv = SubprocVecEnv([partial(their_world, env)] * WORLDS[env])
    model = learner(env, venv, collect)
    clock = Clock()
    model.learn(rounds * collect * WORLDS[env], callback=CallbackList([clock, TheirLabels(env, BATCH)]))
    began, steps = clock.began[0]
    rate = (model.num_timesteps - steps) / (time.perf_counter() - began)
    venv.close()
    return {"steps_per_s": rate}


# Ours -----------------------------------------------------------------------------------------------------


def ours(
    env: str,
    rounds: int,
    collect: int,
    options: dict[str, Any],
    meter: Callable[[Training], Any] | None = None,
) -> dict[str, Any]:
    """One run of this package's pipeline; the first round warms up (precision, OpenGL, compilation)."""
    torch.set_num_threads(options["threads"])
    encoder = OpenCLIPEncoder(
        MODEL,
        pretrained="random",
        precision=options["precision"],
        device="cpu",
        batch_size=options["batch"],
        compile=options["compile"],
    )
    goal, baseline = TEXTS[env]
    scorer = clip_scorer(encoder=encoder, goal=goal, baseline=baseline)
    name, extra = ("CartPole-v1", {}) if env == "cartpole" else ("Humanoid-v5", {"camera": VIEW})
    world = partial(make, id=name, max_episode_steps=COLLECT[env], **extra)
    size = encoder.image_size[0]
    venv = WorldVecEnv(world, WORLDS[env], workers=options["workers"], frame_size=size)
    perceive = partial(Perception, encoder, form="state")
    collector = Collector(venv, perceive, batch_size=options["batch"], encode_threads=options["encode_threads"])
    total = (1 + rounds) * collect * WORLDS[env]
    policy = our_learner(env, collector, collect, total)
    rewards = Labeller(scorer, collector.layout, WORLDS[env])
    training = Training.of(collector, rewards, policy, demos=None, total=total, seed=0)
    if meter is not None:
        meter(training)
    clock = Rounds(training)
    train(training, total, Silent(), jobs=[clock.job])
    result = {"steps_per_s": clock.rate(1)}
    collector.close()
    return result | {"precision": encoder.precision}


# Comparison -----------------------------------------------------------------------------------------------


def rows(env: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], options: dict[str, Any]) -> list[dict]:
    """Speed and memory of one environment in one precision."""
    collect = options["collect"] or COLLECT[env]
    detail = {
        "ours": ours,
        "theirs": theirs,
        "cadence": f"{WORLDS[env]} worlds x {collect} steps, then {collect} updates, both sides",
        "options": options,
    }
    speed, memory = paired(ours, theirs, "steps_per_s"), paired(ours, theirs, "pss_gb")
    name = f"{'CartPole' if env == 'cartpole' else 'Humanoid'}, ViT-B-32, ours in {ours[0]['precision']}, 2 cores"
    speeds = f"{medians(ours, 'steps_per_s'):.1f} against {medians(theirs, 'steps_per_s'):.1f} steps/s"
    sizes = f"{medians(ours, 'pss_gb'):.2f} against {medians(theirs, 'pss_gb'):.2f} GB"
    return [
        {
            "claim": f"{name}: speed against VLM-RM's scheme ({speeds})",
            "unit": "x",
            "bar": f">= {BARS[env]:g}",
            "met": speed["value"] >= BARS[env],
            **speed,
            **detail,
        },
        {
            "claim": f"{name}: peak memory against VLM-RM's scheme ({sizes})",
            "unit": "x",
            "bar": f"<= {MEMORY_BAR:g}",
            "met": memory["value"] <= MEMORY_BAR,
            **memory,
            "rss": paired(ours, theirs, "rss_gb"),
        },
    ]


def child(job: dict[str, Any]) -> None:
    """One run; prints its numbers."""
    print(json.dumps({"ours": ours, "theirs": theirs}[job.pop("side")](**job)))


def main() -> None:
    """Run in turn, compare, record."""
    use_two_cores()
    options = read_options(OPTIONS)
    table: list[dict[str, Any]] = []
    for env in options["envs"].split(","):
        precisions = options["precision"].split(",")
        results: dict[str, list[dict[str, Any]]] = {side: [] for side in ("theirs", *precisions)}
        for _ in range(options["repeats"]):
            for side, done in results.items():
                kind = side if side == "theirs" else "ours"
                job = {"side": kind, "env": env, "rounds": options[f"{kind}_rounds"]}
                job |= {"collect": options["collect"] or COLLECT[env], "options": options | {"precision": side}}
                done.append(in_child("benchmarks.vlmrm_scheme", job, options["environment"] if kind == "ours" else {}))
                print(env, side, done[-1], flush=True)
        for precision in precisions:
            table += rows(env, results[precision], results["theirs"], options)
        if options["record"]:
            record("vlmrm_scheme", table)
    for row in table:
        print(f"{row['claim']}: {row['value']:.2f} (bar {row['bar']})")


if __name__ == "__main__":
    main()
