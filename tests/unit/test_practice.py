"""Practice by turns in a world that nobody resets, on a slider whose picture tells where it is."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from embodied.datasets import Dataset, Writer
from embodied.envs.interventions import Intervened
from embodied.errors import UserError
from embodied.practice.evaluation import rates, told
from embodied.practice.inputs import Demo, Senses, Standard, demonstrations, mirrored, shown
from embodied.practice.loop import Attempt, Practice, PracticeTask, Tally
from embodied.practice.state import load_practice, save_practice
from embodied.reports.page import write_report
from policies.core import Sampling
from policies.replay import Mix, Replay
from policies.rlpd import rlpd
from rewards.calibration import Decision
from rewards.core import Episode, Features
from rewards.success import SuccessVLM

SIDES = ("right", "left")  # done at 1 and at 0
NAMES = ("forward", "backward")


class BrightnessEncoder:
    """Features: the mean brightness of the picture, 0 to 1, and its opposite."""

    name, dim, image_size = "brightness", 2, (4, 4)

    def encode_images(self, frames):
        bright = frames.float().mean((1, 2, 3)) / 255
        return torch.stack([bright, 1 - bright], 1)

    def encode_texts(self, texts):
        return torch.zeros(len(texts), 2)


class Slider(gymnasium.Env):
    """A position in [0, 1], moved by at most 0.2 a step; the picture is as bright as it is far right."""

    cameras, camera = ("top",), "top"
    stop_at: int | None = None  # step of its life at which it stops by itself

    def __init__(self):
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.position, self.resets, self.pauses, self.steps = 0.0, 0, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.resets = float(self.np_random.uniform(0, 0.1)), self.resets + 1
        return self._obs(), {}

    def step(self, action):
        self.position = float(np.clip(self.position + 0.2 * np.clip(action, -1, 1)[0], 0, 1))
        self.steps += 1
        stopped = "operator" if self.steps == self.stop_at else None
        return self._obs(), 0.0, stopped is not None, False, {"stopped": stopped}

    def _obs(self):
        return np.array([self.position], np.float32)

    def frame(self, image_size=4, camera=None):
        return np.full((image_size, image_size, 3), round(255 * self.position), np.uint8)

    def signals(self):
        return {"opening": 0.5}

    def degrees(self):
        return {"right": float(self.position >= 0.9), "left": float(self.position <= 0.1)}

    def pause(self):
        self.pauses += 1

    def get_state(self):
        return {"position": np.array([self.position])}

    def set_state(self, state):
        self.position = float(state["position"][0])


class SideHead:
    """Yes where a feature is at least 0.9, no below; `wrong` says yes always."""

    def __init__(self, feature, *, hold=1, wrong=False):
        self.decision, self._feature, self._wrong = Decision(hold=hold), feature, wrong

    def verdicts(self, features):
        return ((features.main[..., self._feature] >= 0.9) | self._wrong).to(torch.int8)


def demo(task, length=6):
    """Straight to the other side."""
    at = np.minimum(0.2 * np.arange(length, dtype=np.float32), 1)
    at = at if task == 0 else 1 - at
    inputs = np.stack([np.full(length, 0.5), at, 1 - at], 1).astype(np.float32)
    return Demo(task, inputs, np.full((length - 1, 1), 1.0 if task == 0 else -1.0, np.float32), True)


INPUTS, ACTIONS = spaces.Box(-np.inf, np.inf, (5,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32)


def made(*, hold=1, wrong=(), attempt_steps=12, stuck_after=3, reset_every=0, env=None):
    """Practice on a new slider."""
    env = env or Slider()
    standard, demos = Standard.of([demo(0), demo(1)]), [demo(0), demo(1)]
    settings = {"num_worlds": 1, "seed": 0}
    small = {"actor": (16,), "critic": (16,), "batch_size": 16, "learning_starts": 4, "warmup": 4, "pretraining": 100}
    learner = rlpd(INPUTS, ACTIONS, total_steps=500, device="cpu", learning_rate=3e-3, **settings, **small)
    tasks = [PracticeTask(name, SideHead(k, hold=hold, wrong=name in wrong), SIDES[k]) for k, name in enumerate(NAMES)]
    practice = Practice(
        env,
        Senses(env, BrightnessEncoder(), signals=("opening",)),
        tasks,
        learner,
        Replay(INPUTS, ACTIONS, capacity=500, **settings),
        shown(demos, standard, ACTIONS, seed=1),
        standard,
        attempt_steps=attempt_steps,
        stuck_after=stuck_after,
        reset_every=reset_every,
        facts=lambda: env.unwrapped.degrees(),
    )
    practice.reset(seed=0)
    return practice


class Rule:
    """A policy that goes by the task alone."""

    def __init__(self, rule):
        self.rule = rule

    def begin(self, count):
        return {}

    def act(self, obs, memory, first, *, explore):
        return np.array([[self.rule(int(each[-1]))] for each in obs], np.float32), memory


def acting(practice, rule):
    """The policy replaced by a rule on the task."""
    practice.learner = Rule(rule)


def straight(task):
    return 1.0 if task == 0 else -1.0


def test_tasks_alternate_without_a_reset_and_success_ends_an_attempt():
    practice = made(hold=2)
    acting(practice, straight)
    attempts = [attempt for attempt, _ in practice.attempts(30)]
    assert [each.task for each in attempts[:4]] == ["forward", "backward", "forward", "backward"]
    assert all(each.success and each.env_success and not each.env_before for each in attempts[:4])
    assert [each.steps for each in attempts[:3]] == [6, 6, 6]  # five to get there, and one more yes
    assert practice.env.resets == 1
    assert practice.tally.interventions == 0
    assert practice.tally.said_success == sum(each.success for each in attempts)
    assert practice.tally.env_said_wrongly == 0
    assert practice.env.pauses == len(attempts)
    assert practice.tally.steps == 30


def test_success_that_nobody_knows_is_no_rate_whatever_the_model_says(tmp_path):
    said = [Attempt("forward", success=True), Attempt("forward", success=False)]
    unknown = rates(said)
    assert [unknown[name] for name in ("success_rate", "ci_low", "said_wrongly", "known")] == [None, None, None, 0]
    assert (unknown["said_success"], unknown["episodes"]) == (1, 2)
    half = rates([*said, Attempt("forward", success=True, env_success=False)])
    assert (half["success_rate"], half["known"], half["said_wrongly"]) == (0.0, 1, 1)
    summary = unknown | {"forward": unknown, "backward": rates([]), "again": rates([])}
    assert "forward from a reset unknown (the model said yes to 1 of 2)" in told(summary, Tally())
    (tmp_path / "evaluations.jsonl").write_text(json.dumps({"steps": 3} | summary))
    page = write_report(tmp_path).read_text("utf-8")
    assert "success is unknown" in page
    assert "yes to 1 of 2 attempts" in page


def test_rewards_are_the_models_and_the_end_is_terminal():
    practice = made(wrong=("forward",))
    acting(practice, lambda task: 0.0)
    attempt, practised = practice.attempt(0)
    assert practised.reward.tolist() == [[1.0]]
    assert practised.rollout.terminated.tolist() == [[True]]
    assert not practised.rollout.truncated.any()
    assert attempt.success is True
    assert attempt.env_success is False
    assert (attempt.yes, attempt.env_false_yes, attempt.env_true, attempt.env_missed) == (1, 1, 0, 0)


def test_an_attempt_out_of_time_is_not_terminal():
    practice = made()
    acting(practice, lambda task: 0.0)
    attempt, (rollout, reward, _) = practice.attempt(0)
    assert (attempt.steps, attempt.success) == (12, False)
    assert not reward.any()
    assert not rollout.terminated.any()
    assert np.flatnonzero(rollout.truncated).tolist() == [11]
    assert np.flatnonzero(rollout.first).tolist() == [0]
    np.testing.assert_array_equal(rollout.next_obs[0], rollout.obs[1])


def test_a_stuck_world_is_reset_by_a_person_who_is_counted():
    practice = made(stuck_after=2)
    acting(practice, lambda task: 0.0 if task == 0 else 1.0)  # forward does nothing
    practice.env.position = 0.5
    practice.obs = practice.env._obs()
    attempts = [attempt for attempt, _ in practice.attempts(36)]
    assert [each.task for each in attempts] == ["forward", "backward", "forward"]
    assert practice.tally.stuck_resets == 1
    assert practice.env.resets == 2


def test_a_task_that_is_done_already_is_passed_over():
    practice = made(attempt_steps=4)
    acting(practice, lambda task: 0.0)  # forward fails, so there is nothing to undo
    attempts = [attempt for attempt, _ in practice.attempts(12)]
    assert [each.task for each in attempts] == ["forward"] * 3
    assert practice.tally.passed_over == 2


def test_planned_resets_and_safety_stops_are_counted():
    practice = made(reset_every=2)
    acting(practice, straight)
    assert len(list(practice.attempts(25))) == 5
    assert practice.tally.planned_resets == 2
    practice = made()
    acting(practice, straight)
    practice.env.stop_at = 3
    attempts = [attempt for attempt, _ in practice.attempts(8)]
    assert attempts[0].stopped == "operator"
    assert attempts[0].steps == 3
    assert practice.tally.stop_resets == 1


def test_a_moment_without_a_fresh_picture_says_nothing():
    practice = made()
    acting(practice, straight)
    step = practice.env.step
    practice.env.step = lambda action: (*step(action)[:4], {"stale": True})
    attempt, _ = practice.attempt(0)
    assert attempt.yes == 0
    assert attempt.env_missed == attempt.env_true > 0


def test_the_policy_never_sees_the_truth():
    practice = made()
    practice.env.degrees = lambda: {side: float("nan") for side in SIDES}
    acting(practice, straight)
    attempt, practised = practice.attempt(0)
    assert attempt.success is True
    assert attempt.env_success is False
    assert np.isfinite(practised.rollout.obs).all()


def imitate(practice):
    practice.learner.update(Mix(practice.replay, practice.demos).batches(Sampling(batch_size=16, demo_share=1.0)), 100)


def test_what_a_person_does_is_shown_and_is_no_success_of_the_policys(tmp_path):
    practice = made()
    env, learner = practice.env, practice.learner
    practice.env = Intervened(env, lambda: np.ones(1) if env.steps in (1, 2) else None)
    acting(practice, lambda task: 0.5)
    before = len(practice.demos)
    attempt, practised = practice.attempt(0)
    assert attempt.person_steps == 2
    assert np.flatnonzero(practised.rollout.action[:, 0, 0] == 1.0).tolist() == [1, 2]
    assert attempt.success
    assert rates([attempt])["success_rate"] == 0.0
    practice.learner = learner
    practice.remember(practised)
    assert len(practice.demos) == before + 2
    drawn = practice.demos.sample(Sampling(batch_size=500))
    assert drawn.imitate.all()
    save_practice(tmp_path, practice)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    resumed = made()
    load_practice(checkpoint, resumed)
    one, two = practice.demos.arrays()[0], resumed.demos.arrays()[0]
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)


def test_it_begins_as_what_was_demonstrated():
    practice = made()
    imitate(practice)
    acts = []
    for k in (0, 1):
        obs = practice.standard(demo(k).inputs[2], k)[None]
        acts.append(practice.learner.act(obs, practice.learner.begin(1), np.ones(1, bool), explore=False)[0][0, 0])
    assert acts[0] > 0.5 > -0.5 > acts[1]


def test_it_goes_on_exactly_from_a_checkpoint(tmp_path):
    def go(practice, steps):
        lines = []
        batches = Mix(practice.replay, practice.demos).batches(practice.learner.sampling)
        for attempt, practised in practice.attempts(steps):
            practice.replay.add(practised.rollout, practised.reward)
            practice.learner.observe(practised.rollout, practised.reward)
            practice.learner.update(batches, attempt.steps)
            lines.append(attempt.line() | {"action": practised.rollout.action.tolist()})
            if practice.tally.attempts == 2:
                save_practice(tmp_path, practice)
        return lines

    practice = made(attempt_steps=5)
    imitate(practice)
    whole = go(practice, 20)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    practice = made(attempt_steps=5)
    assert load_practice(checkpoint, practice)
    assert practice.tally.attempts == 2
    assert whole[2:] == go(practice, 20)


class Hidden(Slider):
    """Keeps its state to itself."""

    def get_state(self):
        raise UserError("get_state: it cannot be resumed.")


@pytest.mark.parametrize("stop_at", [None, 8])
def test_a_world_that_hides_its_state_goes_on_from_a_reset_which_is_counted_once(stop_at, tmp_path):
    def begun():
        practice = made(attempt_steps=4, stuck_after=2, env=Hidden())
        practice.env.stop_at = stop_at
        acting(practice, lambda task: 0.5)
        for _ in practice.attempts(8):
            pass
        return practice

    practice = begun()
    practice.learner = made().learner
    assert (practice.tally.failed, practice.tally.since_reset) == (2, 2)
    checkpoint = save_practice(tmp_path, practice)
    resumed = made(attempt_steps=4, stuck_after=2, env=Hidden())
    assert not load_practice(checkpoint, resumed)
    tally = resumed.tally
    assert (tally.turn, tally.failed, tally.since_reset) == (0, 0, 0)  # the world is as after a reset
    acting(resumed, lambda task: 0.5)
    next(resumed.attempts(12))
    whole = begun()
    next(whole.attempts(12))
    assert (tally.stop_resets, tally.stuck_resets) == (whole.tally.stop_resets, whole.tally.stuck_resets)
    assert tally.interventions == 1
    assert resumed.env.resets == 1  # the one before the checkpoint was read


class Counting(gymnasium.Wrapper):
    """Keeps a number beside the world."""

    count = 0

    def step(self, action):
        self.count += 1
        return self.env.step(action)

    def wrapper_state(self):
        return self.count

    def set_wrapper_state(self, state):
        self.count = state


def test_wrappers_and_a_stop_are_kept_too(tmp_path):
    def practising():
        return made(env=Counting(Slider()))

    practice = practising()
    practice.env.unwrapped.stop_at = 3
    learner = practice.learner
    acting(practice, straight)
    next(practice.attempts(8))
    practice.learner = learner
    resumed = practising()
    assert load_practice(save_practice(tmp_path, practice), resumed)
    assert resumed.env.count == 3
    acting(resumed, straight)
    next(resumed.attempts(8))
    assert resumed.tally.stop_resets == 1


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    practice = made()
    first = save_practice(tmp_path, practice)
    practice.tally.steps = 7

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("embodied.practice.state.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        save_practice(tmp_path, practice)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [first.name]


def test_a_tally_is_json():
    tally = Tally(stuck_resets=2, planned_resets=1)
    assert tally.interventions == 3
    assert Tally(**vars(tally)) == tally


# Demonstrations -----------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    """Two episodes to the right: one that arrives early and rests, one that never arrives though it is said to."""
    features = {
        "observation.state": {"dtype": "float32", "shape": [1], "names": ["opening"]},
        "observation.environment_state": {"dtype": "float32", "shape": [1], "names": None},
        "action": {"dtype": "float32", "shape": [1], "names": None},
        "next.success": {"dtype": "bool", "shape": [1], "names": None},
    }
    with Writer(tmp_path / "data", fps=20, features=features, cameras={"top": (16, 16)}, env={"id": "s"}) as writer:
        for speed in (0.25, 0.05):
            at = np.minimum(speed * np.arange(8), 1)
            frames = np.repeat(np.round(255 * at).astype(np.uint8), 16 * 16 * 3).reshape(8, 16, 16, 3)
            columns = {
                "observation.state": np.full((8, 1), 0.5, np.float32),
                "observation.environment_state": at[:, None].astype(np.float32),
                "action": np.ones((8, 1), np.float32),
                "next.success": np.arange(8) == 7,
            }
            writer.add(columns, {"top": frames}, instruction="right")
    return Dataset(tmp_path / "data")


def test_demonstrations_end_where_the_model_says_or_else_the_person(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = BrightnessEncoder()
    early, late = demonstrations(dataset, 0, SideHead(0), encoder, views=["top"], signals=["opening"])
    assert early.inputs.shape == (5, 3)  # rows 0 to 4, arrived in the last
    assert early.actions.shape == (4, 1)
    assert early.done
    assert late.actions.shape == (7, 1)
    assert late.done
    np.testing.assert_allclose(early.inputs[:, 1], [0, 0.25, 0.5, 0.75, 1], atol=0.03)
    (state,) = demonstrations(dataset, 0, SideHead(0), encoder, views=["top"], signals=None, count=1)
    np.testing.assert_allclose(state.inputs[:, 0], [0, 0.25, 0.5, 0.75, 1])
    with pytest.raises(UserError, match="must tell gripper_x"):
        demonstrations(dataset, 0, SideHead(0), encoder, views=["top"], signals=["gripper_x"])


def test_a_chat_model_that_is_asked_sees_the_frames_of_demonstrations(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Asked:
        name = "asked"

        def ask(self, messages):
            return "no words"

        def logprobs(self, messages, answers):
            return [-0.01, -5.0] if messages[0].images[0].mean() > 230 else [-5.0, -0.01]

    head = SuccessVLM(Asked(), "right")
    early, late = demonstrations(dataset, 0, head, BrightnessEncoder(), views=["top"], signals=["opening"])
    assert [len(each.actions) for each in (early, late)] == [4, 7]


def test_demonstrations_are_rewarded_at_the_end_and_tell_the_task():
    failed = Demo(0, demo(0).inputs, demo(0).actions, False)
    replay = shown([demo(0), demo(1), failed], Standard.of([demo(0), demo(1)]), ACTIONS, seed=0)
    arrays = replay.arrays()[0]
    assert len(replay) == 15
    assert np.flatnonzero(replay.reward).tolist() == [4, 9]
    assert np.flatnonzero(arrays["terminated"]).tolist() == [4, 9]
    np.testing.assert_array_equal(arrays["obs"][:10, 0, -2:], [[1, 0]] * 5 + [[0, 1]] * 5)
    assert arrays["imitate"][:, 0].tolist() == [True] * 10 + [False] * 5


def test_a_success_shown_backwards_is_one_of_the_other_task():
    rows = torch.arange(3.0).view(1, 3, 1)
    given = [Episode(features=Features(views={"top": rows}), success=flag) for flag in (True, False, None)]
    (back,) = mirrored(given)
    assert back.success
    assert back.features.main.flatten().tolist() == [2, 1, 0]


def test_what_hardly_varies_is_not_blown_up():
    standard = Standard.of([demo(0)])
    out = standard(np.array([0.6, 100.0, 0.5], np.float32), 1)
    assert np.abs(out[:3]).max() == 5
    assert out[-2:].tolist() == [0, 1]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="attempt_steps and stuck_after"):
        made(stuck_after=0)
