"""Let a robot practise a task and its undoing by turns, with a success model for its only judge and nobody resetting.

RoboFuME's loop (`embodied.practice`) begins with demonstrations of both tasks and a success model of each. Then the
policy attempts the two tasks by turns. An attempt ends when the success model says yes or when its time is over, and
the policy is updated between attempts. When the world is stuck, a person must reset it; the log counts how often.
Record demonstrations by turns too, each from where the other task ended (demos=<world>-turns): those that all begin at
a reset do not show what to do from there.

Writes a run folder with one line for each attempt (attempts.jsonl: what the model said, and the truth where a simulator
knows it), curves, checkpoints, evaluations before and after, videos and report.html. Ctrl-C or a crash loses nothing
before the last checkpoint; resume=true continues from it.

    embodied practise
    embodied practise env=desk-drawer observe=state steps=20000
    embodied practise robot=simulated steps=2000
    embodied practise forward.model=models/open backward.model=models/closed forward.demos=data/open
    embodied practise run=runs/practise/20260101-120000-desk-drawer-success-s0 resume=true
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from omegaconf import DictConfig, OmegaConf

from embodied import runs
from embodied.building.build import build
from embodied.building.scorers import check_views
from embodied.building.worlds import env_maker, reward_cameras
from embodied.collecting.opening import open_dataset
from embodied.config import compose
from embodied.datasets import Dataset
from embodied.datasets.encoding import encode
from embodied.errors import UserError, nearest
from embodied.files import write_text
from embodied.practice.demos import by_turns, open_pair
from embodied.practice.evaluation import play, told
from embodied.practice.inputs import TASKS, Demo, Senses, Standard, demonstrations, mirrored, shown
from embodied.practice.loop import Practice, PracticeTask
from embodied.practice.state import load_practice, save_practice
from embodied.reports.page import write_report
from embodied.settings import check_device, check_least
from embodied.training import evaluation
from embodied.training.log import RunLog
from embodied.training.stopping import Stopping
from policies.core import Learner
from policies.replay import Mix, Replay
from policies.shown import Shown
from rewards.core import Encoder
from rewards.progress import tqdm
from rewards.success import SuccessClassifier, success_scorer

RECENT = 20  # attempts of a task behind the shown rates
LOG_EVERY = 500  # steps
NO_REPLAY = ("policies.imitation.imitation", "policies.sb3.ppo")


def run(config: DictConfig) -> None:
    """Practise in the config's world, or on the simulated robot."""
    own = {key: value for key, value in compose("practise", []).env.items() if key != "cameras"}
    if config.robot and (other := next((key for key in own if config.env.get(key) != own[key]), None)):
        raise UserError(f"env must be left out with robot=simulated, which is the desk's drawer; got env.{other}.")
    if config.robot not in (None, "simulated"):
        raise UserError(
            f"robot must be null or simulated; got {config.robot!r}. Your own: in Python, by "
            "embodied.commands.practise.practise with a RobotEnv of embodied.robots.env."
        )
    _practise(config, lambda own: partial(_simulated_robot, own) if own.robot else env_maker(own))


def practise(config: DictConfig, make: Callable[[], gymnasium.Env]) -> None:
    """Pre-train, practise, evaluate, report.

        practise(compose("practise", ["forward.fact=null", …]), lambda: RobotEnv(driver, limits, reset=by_hand()))

    Args:
        config: the verb's.
        make: makes the world; called once for a robot (anything with `pause`), twice for a world of which there can
            be two: the other one is for evaluation.
    """
    _practise(config, lambda _: make)


def _practise(config: DictConfig, maker: Callable[[DictConfig], Callable[[], gymnasium.Env]]) -> None:
    """`practise`, of which a run that goes on has its world by its own config, not by that of the command line."""
    with runs.Run(config, "practise") as run, ExitStack() as opened:
        config = run.config
        _check(config)
        torch.set_num_threads(config.threads)
        encoder = build(config.encoder)
        make = maker(config)
        env = make()
        opened.callback(env.close)
        practice, heads = _built(config, env, encoder, run.folder)
        folder = run.begin("success")
        if run.checkpoint is None:
            for name, head in heads.items():
                if isinstance(head, SuccessClassifier):
                    head.save(folder / "fitted" / name, encoder)
        log = RunLog(folder, steps=run.done)
        opened.callback(log.close)
        practice.reset(seed=config.seed)
        if run.checkpoint is None:
            _imitate(practice, log)
            _evaluate(config, folder, practice, make, starts=evaluation.FINAL)  # the same as after practice
            save_practice(folder, practice)
        else:
            if not load_practice(run.checkpoint, practice):
                print("This world cannot save its state: practice goes on from a reset.", file=sys.stderr)
            _drop_lines(folder / "attempts.jsonl", practice.tally.steps)
        with Stopping() as stopping:
            done = _loop(config, folder, practice, make, log, stopping)
        if not done:
            stopping.end(f"The checkpoint at step {practice.tally.steps} is written.")
        summary = _evaluate(config, folder, practice, make, starts=evaluation.FINAL, final=True)
        run.finish(steps=practice.tally.steps, tally=vars(practice.tally))
        print(f"{told(summary, practice.tally)} Report: {write_report(folder)}")


# Building -----------------------------------------------------------------------------------------------


def _check(config: DictConfig) -> None:
    if config.observe not in ("features", "state"):
        raise UserError(f"observe must be features or state; got {config.observe!r}.")
    check_least(
        config, steps=1, attempt_steps=1, stuck_after=1, eval_episodes=1, threads=1, reset_every=0, eval_every=0,
        checkpoint_every=0, videos=0, turns=1,
    )  # fmt: skip
    for name, least in (*((f"{task}.episodes", 0) for task in TASKS), ("success.hold", 1)):
        if (value := OmegaConf.select(config, name)) is None or value < least:
            raise UserError(f"{name} must be at least {least}; got {value}.")
    if config.policy["_target_"] in NO_REPLAY:
        raise UserError(f"policy must learn from a replay; {config.policy['_target_']} does not. Use policy=rlpd.")
    check_device(config.device)


def _built(
    config: DictConfig, env: gymnasium.Env, encoder: Encoder, folder: Path | None
) -> tuple[Practice, dict[str, Any]]:
    """Success models, demonstrations, the learner; a run that goes on has what was fitted for it."""
    cameras = reward_cameras(config)
    pair = open_pair([config[name].demos for name in TASKS], config.turns)
    datasets = dict(zip(TASKS, pair, strict=True))
    for dataset in datasets.values():
        _check_actions(env, dataset)
    _check_facts(config, env)
    signals = None
    if config.observe == "features":
        state = datasets[TASKS[0]].recording(0, cameras=()).signals
        signals = tuple(state)
    senses = Senses(env, encoder, cameras=cameras, signals=signals)
    heads = {name: _head(config, name, encoder, senses.views, folder) for name in TASKS}
    demos: list[Demo] = []
    for index, name in enumerate(TASKS):
        count = config[name].episodes or (config.turns if by_turns(config[name].demos) else 0)
        demos += demonstrations(
            datasets[name], index, heads[name], encoder, views=senses.views, signals=signals, count=count
        )
    if signals is None and env.observation_space.shape != demos[0].inputs.shape[1:]:
        raise UserError(f"observe=state needs a world whose observation is its state; got {env.observation_space}.")
    actions, standard = env.action_space, Standard.of(demos)
    assert isinstance(actions, spaces.Box)
    memory = shown(demos, standard, actions, seed=int(config.seed) + 1)
    inputs = spaces.Box(-np.inf, np.inf, (demos[0].inputs.shape[1] + len(TASKS),), np.float32)
    settings: dict[str, Any] = {"seed": int(config.seed), "num_worlds": 1}
    learner: Learner = build(
        config.policy, observation_space=inputs, action_space=actions, total_steps=int(config.steps),
        device=config.device, **settings,
    )  # fmt: skip
    if learner.sampling is None:
        raise UserError(f"policy must learn from a replay; {config.policy.get('_target_')} does not. Use policy=rlpd.")
    capacity = min(learner.sampling.capacity, int(config.steps) + int(config.attempt_steps))
    replay = Replay(inputs, actions, capacity=capacity, **settings)
    tasks = [PracticeTask(name, heads[name], config[name].fact) for name in TASKS]
    return _practice(config, env, senses, tasks, learner, replay, memory, standard), heads


def _practice(
    config: DictConfig, env: gymnasium.Env, senses: Senses, tasks: Sequence[PracticeTask], learner: Learner,
    replay: Replay, demos: Shown, standard: Standard,
) -> Practice:  # fmt: skip
    return Practice(
        env,
        senses,
        tasks,
        learner,
        replay,
        demos,
        standard,
        attempt_steps=config.attempt_steps,
        stuck_after=config.stuck_after,
        reset_every=config.reset_every,
        facts=_facts(env.unwrapped),
    )


def _facts(world: Any) -> Callable[[], Mapping[str, float]] | None:
    """What a simulator knows, for records."""
    if hasattr(world, "degrees"):
        return world.degrees
    truth = getattr(getattr(world, "driver", None), "truth", None)
    return None if truth is None else lambda: truth()["degrees"]


def _check_facts(config: DictConfig, env: gymnasium.Env) -> None:
    """Refuse a fact that a simulator does not know, before anything is collected for it.

    Raises:
        UserError: so.
    """
    known: tuple[str, ...] = getattr(env.unwrapped, "facts", ())
    for name in TASKS if known else ():
        if (fact := config[name].fact) is not None and fact not in known:
            raise UserError(f"{name}.fact must be one of the world's, or null; got {fact!r}. {nearest(fact, known)}")


def _simulated_robot(config: DictConfig) -> gymnasium.Env:
    """The desk in another process, behind a driver; a person who resets it lays it out anew."""
    from embodied.robots.env import RobotEnv
    from embodied.robots.simulated import ABSOLUTE, LIMITS, SimulatedRobot

    cameras = tuple(reward_cameras(config)) or ("front",)
    driver = SimulatedRobot(task="drawer", cameras=cameras, seed=int(config.seed))

    def reset(env: RobotEnv) -> None:
        driver.arrange(int(env.np_random.integers(2**31)))

    return RobotEnv(driver, LIMITS, obs="state", absolute=ABSOLUTE, reset=reset)


def _check_actions(env: gymnasium.Env, dataset: Dataset) -> None:
    shape = tuple(dataset.features.get("action", {"shape": ()})["shape"])
    if not isinstance(env.action_space, spaces.Box):
        raise UserError(f"env must have continuous actions, for sac; got {env.action_space}.")
    if env.action_space.shape != shape:
        raise UserError(
            f"demos must have the world's actions, {env.action_space.shape}; {dataset.root} has {shape}. "
            "Collect them in this world."
        )


def _head(config: DictConfig, name: str, encoder: Encoder, views: tuple[str, ...], folder: Path | None) -> Any:
    """The success model of a task: kept, given, asked for, or fitted to labelled episodes."""
    task, success = config[name], config.success
    model = folder / "fitted" / name if folder is not None else task.model
    model = str(model) if model is not None and (task.model or Path(model).is_dir()) else None
    vlm = None if success.vlm is None else OmegaConf.to_container(success.vlm, resolve=True)
    episodes: list[Any] = []
    if model is None and task.labelled is not None:
        reads = "all" if vlm is not None else "none"
        episodes = encode(open_dataset(task.labelled), encoder, cameras=list(views), frames_read=reads)
        other = config[TASKS[1 - TASKS.index(name)]].labelled
        if success.mirror and other is not None:
            undone = encode(open_dataset(other), encoder, cameras=list(views), frames_read=reads)
            episodes = [*episodes, *mirrored(undone)]
    elif model is None and vlm is None:
        raise UserError(f"{name} must have labelled episodes, a fitted model or success.vlm; it has none of them.")
    episodes = [replace(each, instruction="") for each in episodes]  # all of this task, whatever it is called there
    thresholds = {key: success[key] for key in ("precision", "base_rate", "false_alarm")}
    scorer = success_scorer(
        encoder=encoder,
        goal=task.goal,
        model=model,
        demos=episodes,
        vlm=vlm,  # pyright: ignore[reportArgumentType]
        thresholds=thresholds,
        hold=success.hold,
    )
    check_views(scorer, views, "env.cameras")
    (head,) = scorer.heads.values()
    if episodes:
        print(
            f"{name}: success model on episodes it was not fitted to: {getattr(head, 'quality', None)}", file=sys.stderr
        )
    return head


# Practising ---------------------------------------------------------------------------------------------


def _imitate(practice: Practice, log: RunLog) -> None:
    """Learn from the demonstrations alone, before the first attempt."""
    learner, count = practice.learner, practice.learner.pace.pretraining
    if count:
        assert learner.sampling is not None
        batches = Mix(practice.replay, practice.demos).batches(
            replace(learner.sampling, demo_share=1.0, demo_share_last=None)
        )
        log.record(learner.update(batches, count))
        practice.tally.updates = count


def _loop(
    config: DictConfig, folder: Path, practice: Practice, make: Callable[[], gymnasium.Env], log: RunLog,
    stopping: Stopping,
) -> bool:  # fmt: skip
    """Attempts and updates until the steps are done, with a line each, a bar, curves and checkpoints; whether all of
    them were done."""
    learner, tally = practice.learner, practice.tally
    assert learner.sampling is not None
    batches = Mix(practice.replay, practice.demos).batches(learner.sampling)
    recent: dict[str, deque[bool]] = {name: deque(maxlen=RECENT) for name in TASKS}
    begun, first = time.monotonic(), tally.steps
    with tqdm(total=config.steps, initial=tally.steps, unit="step", desc="practising", smoothing=0.05) as bar:
        for attempt, practised in practice.attempts(config.steps):
            before = tally.steps - attempt.steps
            practice.remember(practised)
            count = learner.pace.updates(attempt.steps, tally.steps)
            if count:
                log.record(learner.update(batches, count))
            tally.updates += count
            line = {"attempt": tally.attempts, "steps_done": tally.steps} | attempt.line()
            runs.append_line(folder / "attempts.jsonl", line | {"interventions": tally.interventions})
            recent[attempt.task].append(attempt.success and not attempt.person_steps)
            bar.update(attempt.steps)
            rates = {name: f"{sum(each) / len(each):.0%}" for name, each in recent.items() if each}
            bar.set_postfix(rates | {"resets": tally.interventions})

            def due(every: int, before: int = before) -> bool:
                return bool(every) and tally.steps // every > before // every

            if due(LOG_EVERY) or tally.steps >= config.steps:
                said = {f"practice/{name}_said_success": sum(each) / len(each) for name, each in recent.items() if each}
                log.record(said | {"practice/interventions": float(tally.interventions)})
                log.record({"practice/passed_over": float(tally.passed_over)})
                log.record({"time/fps": (tally.steps - first) / max(time.monotonic() - begun, 1e-9)})
                log.write(tally.steps)
            if due(config.eval_every) and tally.steps < config.steps:
                _evaluate(config, folder, practice, make)
            if stopping.asked and tally.steps < config.steps:
                break
            if due(config.checkpoint_every):
                save_practice(folder, practice)
    save_practice(folder, practice)
    return tally.steps >= config.steps


def _drop_lines(file: Path, steps: int) -> None:
    """Attempts that a resumed run makes again."""
    if file.is_file():
        kept = [line for line in file.read_text("utf-8").splitlines() if _done_by(line, steps)]
        write_text(file, "".join(f"{line}\n" for line in kept))


def _done_by(line: str, steps: int) -> bool:
    try:
        return json.loads(line)["steps_done"] <= steps
    except json.JSONDecodeError:  # half a line, of a run that was killed or of a full disk
        return False


def _evaluate(
    config: DictConfig, folder: Path, practice: Practice, make: Callable[[], gymnasium.Env], *,
    starts: int = evaluation.HELD_OUT, final: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """In a world of its own; a robot is the one that practises, and stands reset afterwards."""
    seed = config.seed + starts
    robot = practice.env.has_wrapper_attr("pause")
    env = practice.env if robot else make()
    judged = _practice(
        config, env, practice.senses.on(env), practice.tasks, practice.learner, practice.replay, practice.demos,
        practice.standard,
    )  # fmt: skip
    try:
        seeds = range(seed, seed + config.eval_episodes)
        rates = play(judged, seeds, folder=folder if final else None, videos=config.videos)
        if robot:
            practice.reset()
    finally:
        if not robot:
            env.close()
    summary = {"steps": practice.tally.steps, "seed": seed, **rates, "final": final}
    runs.append_line(folder / "evaluations.jsonl", summary)
    return summary
