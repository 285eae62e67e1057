"""What a learned reward costs, where the time goes, and how near the pipeline comes to its bound on two cores.

Training is desk-drawer with SAC as `embodied train` sets it up, without evaluations; speed does not depend on an
encoder's weights. The bound is the CPU time of all the work, measured in one process with one thread a part, spread
over two cores without a gap. Where two cores are threads of one, or share much, they cannot do that much together.

    python -m benchmarks.cost                                  # quiet machine
    python -m benchmarks.cost parts=scoring,goals record=false # some of it, a try
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir

from benchmarks import vlmrm_scheme
from benchmarks.common import read_options, record
from benchmarks.measure import Rounds, Silent, in_child, medians, paired, use_two_cores
from embodied import scoring
from embodied.building.worlds import env_maker
from embodied.envs.vector import WorldVecEnv
from embodied.envs.worker import Worlds
from embodied.paths import asset, configs
from embodied.pretraining.renders import render
from embodied.training.acting import make_learner
from embodied.training.collector import Collector, EncodingQueue
from embodied.training.labeller import Labeller
from embodied.training.loop import Job, Training, train
from embodied.training.perception import Perception
from embodied.training.worth import OwnReward
from policies.replay import Replay
from rewards.clip_goal import clip_scorer
from rewards.core import Scorer
from rewards.encoders import OpenCLIPEncoder

WARM = 4  # rounds
OPTIONS = {
    "parts": "reward,pipeline,vit,scoring,goals,precision,memory", "repeats": 5, "rounds": 30, "workers": 2,
    "encode_threads": 2, "threads": 2, "batch": 8, "vit_collect": 100, "environment": {}, "record": True,
}  # fmt: skip
GOALS = [
    "the drawer is open", "the drawer is closed", "the button is pressed", "the gripper touches the red cube",
    "the red cube is in the tray", "the red cube is lifted", "the gripper is closed", "the arm is raised",
    "the red cube is on the green cube", "the gripper is at the drawer handle",
]  # fmt: skip
BASELINE = "a robot arm at a desk"
SINGLE = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}  # software OpenGL draws in the calling thread


def embedded(batch: int = 64) -> OpenCLIPEncoder:
    """The embedded encoder; with random weights in a checkout that has none yet."""
    folder = asset("encoder")
    shipped = (folder / "open_clip_model.safetensors").is_file()
    return OpenCLIPEncoder(
        f"local-dir:{folder}", pretrained=None if shipped else "random", device="cpu", batch_size=batch
    )


# Training -------------------------------------------------------------------------------------------------


def training(reward: str, options: dict[str, Any]) -> dict[str, Any]:
    """Steps/s of desk-drawer on the sentence or on the task's own reward, both with `options`' settings."""
    with initialize_config_dir(str(configs()), version_base="1.3"):
        config = compose("train", overrides=["env=desk-drawer", "device=cpu", "policy=sac"])
    torch.set_num_threads(options["threads"])
    scorer = clip_scorer(encoder=embedded(), goal=GOALS[0], baseline=BASELINE) if reward == "clip" else None
    size = None if scorer is None else scorer.encoder.image_size[0]
    venv = WorldVecEnv(env_maker(config), config.num_worlds, workers=options["workers"], frame_size=size)
    perceive = None if scorer is None else partial(Perception, scorer.encoder, form="state")
    collector = Collector(venv, perceive, batch_size=options["batch"], encode_threads=options["encode_threads"])
    per_round = config.policy.rollout_steps * config.num_worlds
    total = (WARM + options["rounds"]) * per_round
    config.steps, config.policy.learning_starts = total, 0
    learner = make_learner(config, collector)
    rewards = OwnReward(venv.num_envs) if scorer is None else Labeller(scorer, collector.layout, venv.num_envs)
    made = Training.of(collector, rewards, learner, demos=None, total=total, seed=0)
    meter = Stages(made, WARM) if options.get("stages") else None
    clock = Rounds(made)
    train(made, total, Silent(), jobs=[clock.job, *([meter.job] if meter else [])])
    result: dict[str, Any] = {"steps_per_s": clock.rate(WARM)}
    if meter is not None:
        result["cpu_ms"] = meter.cpu_ms()
    collector.close()
    return result


def vit(options: dict[str, Any]) -> dict[str, Any]:
    """Steps/s of our side of `vlmrm_scheme`'s Humanoid, metered if asked."""
    meters: list[Stages] = []

    def metered(training: Training) -> None:
        meters.append(Stages(training, 0))

    settings = vlmrm_scheme.OPTIONS | {key: options[key] for key in ("workers", "encode_threads", "threads")}
    settings["precision"] = "auto"
    meter, rounds = (metered, 1) if options.get("stages") else (None, 2)
    result = vlmrm_scheme.ours("humanoid", rounds, options["vit_collect"], settings, meter)
    return result | ({"cpu_ms": meters[0].cpu_ms()} if meters else {})


class Stages:
    """CPU time of each part of the work, after `warm` rounds; for worlds in this process and one thread a part.

    Args:
        training: not begun yet.
        warm: rounds that do not count; then `job` must run after each.
    """

    def __init__(self, training: Training, warm: int) -> None:
        self._training, self._warm, self._round, self._steps = training, warm, 0, 0
        self._start = time.process_time()
        self._seconds: dict[str, float] = {}
        count = training.learner.pace.rollout_steps * training.collector.worlds.num_envs
        self.job = Job(count, self._mark)
        learner: Any = training.learner
        for owner, name, stage in (
            (Worlds, "_step", "simulate"),
            (Worlds, "_draw", "render"),
            (Perception, "see", "encode"),
            (EncodingQueue, "put", "queue frames"),
            (Labeller, "label", "score and shape"),
            (learner, "act", "act"),
            (learner, "update", "update the policy"),
        ):
            setattr(owner, name, self._metered(stage, getattr(owner, name)))

    def _metered(self, stage: str, call: Callable) -> Callable:
        def metered(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + time.thread_time() - start

        return metered

    def _mark(self) -> None:
        self._round += 1
        if self._round == self._warm:
            self._seconds.clear()
            self._start, self._steps = time.process_time(), self._training.steps

    def cpu_ms(self) -> dict[str, float]:
        """Milliseconds of CPU per transition: each stage, the rest, and all; call right after training."""
        total = time.process_time() - self._start
        stages = dict(self._seconds)
        stages["simulate"] -= stages["render"]  # frames are drawn within a step
        stages |= {"rest": total - sum(stages.values()), "all": total}
        steps = self._training.steps - self._steps
        return {stage: 1e3 * seconds / steps for stage, seconds in stages.items()}


# Scoring and memory ---------------------------------------------------------------------------------------


def scoring_speed(options: dict[str, Any]) -> dict[str, Any]:
    """Seconds for the same frames: the bare encoder, one goal, ten goals; called in turn."""
    torch.set_num_threads(1)
    encoder = embedded()
    frames = torch.randint(0, 256, (4 * encoder.batch_size, *encoder.image_size, 3), dtype=torch.uint8)
    scorers = {
        "one": clip_scorer(encoder=encoder, goal=GOALS[0], baseline=BASELINE),
        "ten": clip_scorer(encoder=encoder, goals=GOALS, baseline=BASELINE),
    }
    calls: dict[str, Callable[[], Any]] = {"bare": partial(encoder.encode_images, frames)}
    calls |= {name: partial(score, scorer, frames) for name, scorer in scorers.items()}
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(8 * options["repeats"]):
        for name in list(calls) if i % 2 else reversed(calls):
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return {"seconds": seconds, "precision": encoder.precision, "batch": encoder.batch_size}


@torch.inference_mode()
def score(scorer: Scorer, frames: torch.Tensor) -> np.ndarray:
    """The rewards of one episode's frames, as every door computes them."""
    rows = scoring.encode(scorer, frames.numpy())
    episode = scoring.Track(list(rows), [False] * (len(rows) - 1))
    return scoring.label(scorer, [episode], scoring.Layout())[0].rewards


def precisions(options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of ViT-B-32 for the same frames in float32 and in int8, called in turn, and how alike they see."""
    torch.set_num_threads(1)
    drawn = render(["embodied/desk-drawer-v0"], options["batch"], seed=(0,), image_size=224, workers=1)
    frames = torch.from_numpy(drawn.frames)
    encoders = {
        name: OpenCLIPEncoder(vlmrm_scheme.MODEL, pretrained="random", precision=name, device="cpu")
        for name in ("fp32", "int8")
    }
    seen = {name: encoder.encode_images(frames) for name, encoder in encoders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(4 * options["repeats"]):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.encode_images(frames)
            seconds[name].append(time.perf_counter() - start)
    return {"seconds": seconds, "cosine": float((seen["fp32"] * seen["int8"]).sum(-1).min()), "batch": len(frames)}


def memory(width: int) -> dict[str, float]:
    """Growth of this process's memory by a million steps of one world's features, in episodes of 100 steps."""
    before = resident()
    one, rng, steps = spaces.Box(-1, 1, (1,)), np.random.default_rng(0), 100
    kept = Replay(one, one, capacity=1_000_000, num_worlds=1, seed=0)
    obs, rows = np.ones((steps + 1, 1), np.float32), rng.standard_normal((steps + 1, width)).astype(np.float32)
    for _ in range(1_000_000 // steps):
        kept.add_episode(obs, obs[:steps], obs[:steps, 0], terminated=False, rows=rows)
    assert kept.reward.all(), "the ring must be full"
    return {"gb": (resident() - before) / 1e9}


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Claims ---------------------------------------------------------------------------------------------------


def run(kind: str, environment: dict[str, str] | None = None, **job: Any) -> dict[str, Any]:
    """One measurement in a process of its own."""
    result = in_child("benchmarks.cost", {"kind": kind, **job}, environment)
    print(kind, job.get("reward", ""), {key: v for key, v in result.items() if key != "seconds"}, flush=True)
    return result


def bar(value: float, bound: str) -> dict[str, Any]:
    """`value`, `bar` and `met`; the bar is ">= x" or "<= x"."""
    sign, number = bound.split()
    return {"value": value, "bar": bound, "met": value >= float(number) if sign == ">=" else value <= float(number)}


def bounded(claim: str, rates: list[float], loads: list[dict[str, float]], options: dict[str, Any]) -> dict[str, Any]:
    """Measured steps/s against those of all the CPU work spread over two cores, of runs made in turn."""
    cpu_ms = {stage: float(np.median([load[stage] for load in loads])) for stage in loads[0]}
    ratios = [rate * load["all"] / 2e3 for rate, load in zip(rates, loads, strict=True)]
    rate, bound = float(np.median(rates)), 2e3 / cpu_ms["all"]
    # A learner updates in one sequence, between rollouts: what is left if nothing else may run beside it.
    serial = 1e3 / (cpu_ms["update the policy"] + (cpu_ms["all"] - cpu_ms["update the policy"]) / 2)
    return {
        "claim": f"{claim}: steps/s against all CPU work over two cores ({rate:.1f} of {bound:.1f})",
        "unit": "ratio",
        **bar(float(np.median(ratios)), ">= 0.9"),
        "n": len(rates),
        "ratios": ratios,
        "cpu_ms_per_step": cpu_ms,
        "share_of_cpu": {stage: ms / cpu_ms["all"] for stage, ms in cpu_ms.items()},
        "ratio_to_bound_with_updates_on_one_core": rate / serial,
        "steps_per_s": rates,
        "options": options,
    }


def measure(options: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the parts asked for."""
    parts, repeats, added = options["parts"].split(","), options["repeats"], options["environment"]
    metered = options | {"stages": True, "workers": 0, "encode_threads": 1, "threads": 1}
    table: list[dict[str, Any]] = []
    if "reward" in parts or "pipeline" in parts:
        clip, true, loads = [], [], []
        for _ in range(repeats):
            clip.append(run("training", added, reward="clip", options=options))
            if "pipeline" in parts:
                loads.append(run("training", SINGLE, reward="clip", options=metered)["cpu_ms"])
            if "reward" in parts:
                true.append(run("training", added, reward="true", options=options))
        if true:
            ratio = paired(clip, true, "steps_per_s")
            speeds = f"{medians(clip, 'steps_per_s'):.0f} against {medians(true, 'steps_per_s'):.0f} steps/s"
            claim = f"desk-drawer on a sentence against the same training on the task's own reward ({speeds})"
            table.append(
                {"claim": claim, "unit": "ratio", **ratio, **bar(ratio["value"], ">= 0.7"), "options": options}
            )
        if "pipeline" in parts:
            rates = [each["steps_per_s"] for each in clip]
            table.append(bounded("desk-drawer, embedded encoder", rates, loads, options))
    if "vit" in parts:
        rates, loads = [], []
        for _ in range(2):
            rates.append(run("vit", added, options=options)["steps_per_s"])
            loads.append(run("vit", SINGLE, options=metered)["cpu_ms"])
        table.append(bounded("Humanoid, ViT-B-32, VLM-RM's cadence", rates, loads, options))
    if "scoring" in parts or "goals" in parts:
        timed = run("scoring", options=options)
        bare, one, ten = (np.array(timed["seconds"][name]) for name in ("bare", "one", "ten"))
        detail = {"n": len(bare), "precision": timed["precision"], "batch": timed["batch"]}
        if "scoring" in parts:
            value = float(np.median(bare) / np.median(one))
            claim = "Frames to rewards against the bare encoder, embedded encoder, same batch and precision"
            table.append({"claim": claim, "unit": "ratio", **bar(value, ">= 0.95"), **detail})
        if "goals" in parts:
            value = float(np.median(ten) / np.median(one))
            claim = "Ten goals at once against one, embedded encoder"
            table.append({"claim": claim, "unit": "ratio", **bar(value, "<= 1.1"), **detail})
    if "precision" in parts:
        timed = run("precision", options=options)
        ratios = np.array(timed["seconds"]["int8"]) / np.array(timed["seconds"]["fp32"])
        ms = [1e3 * float(np.median(each)) / timed["batch"] for each in timed["seconds"].values()]
        claim = f"ViT-B-32 in int8 against float32, one thread ({ms[1]:.1f} against {ms[0]:.1f} ms a frame)"
        detail = {"n": len(ratios), "batch": timed["batch"], "least_cosine": timed["cosine"]}
        table.append({"claim": claim, "unit": "ratio", **bar(float(np.median(ratios)), "<= 0.5"), **detail})
    if "memory" in parts:
        for name, width in (("the embedded encoder", 256), ("ViT-B-32", 512)):
            grown = run("memory", width=width)["gb"]
            claim = f"A million steps of features for one camera, {name} (D = {width})"
            table.append({"claim": claim, "unit": "GB", **bar(grown, "<= 1.1"), "n": 1})
    return table


def child(job: dict[str, Any]) -> None:
    """One measurement; prints its numbers."""
    kinds = {"training": training, "vit": vit, "scoring": scoring_speed, "precision": precisions, "memory": memory}
    print(json.dumps(kinds[job.pop("kind")](**job)))


def main() -> None:
    """Measure, record, tell."""
    use_two_cores()
    options = read_options(OPTIONS)
    table = measure(options)
    if options["record"]:
        parts = str(options["parts"])
        record("cost" if parts == OPTIONS["parts"] else f"cost_{parts.replace(',', '_')}", table)
    for row in table:
        print(f"{row['claim']}: {row['value']:.3f} {row['unit']} (bar {row['bar']})")
        for stage, ms in row.get("cpu_ms_per_step", {}).items():
            print(f"    {stage:20} {ms:7.2f} ms of CPU a step, {row['share_of_cpu'][stage]:6.1%}")


if __name__ == "__main__":
    main()
