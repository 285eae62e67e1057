"""How fine-tuned policies and critics are judged and told apart: on the same starts, by paired tests."""

import json
import re

import numpy as np
import pytest

from embodied.config import compose
from embodied.envs.spaces import JUDGED
from embodied.finetuning import inputs, judging, labels
from embodied.finetuning.outcomes import after_each
from embodied.finetuning.ranking import RANKED, ranked
from embodied.finetuning.stages import FinetuningRun
from embodied.training.evaluation import FINAL


def test_what_each_action_led_to_is_read_from_answers_about_frames():
    answers = np.array([0, 0, 1, 1, 0, 1])
    assert after_each(answers, "solved").tolist() == [0, 1, 1, 0, 1, 1]
    assert after_each(answers, "not").tolist() == [0, 1, 1, 0, 0, 0]  # the last word counts more
    assert after_each(answers, "abstained").tolist() == [0, 1, 1, 0, 1, 0]
    assert after_each(np.ones(3), "not").tolist() == [0, 0, 0]


def test_a_critic_is_judged_within_moments():
    scores = np.array([[0.1, 0.9, 0.2], [5, 6, 7], [9, 8, 7]])
    found = ranked(scores, np.array([[False, True, False], [True, True, True], [False, True, False]]))
    assert (found["moments"], found["mixed"]) == (3, 2)
    assert found["auroc"] == 0.75  # 1 at the first, 0.5 at the last; the one between tells nothing
    assert (found["own"], found["best"]) == (0, 0.5)
    assert found["random"] == pytest.approx(1 / 3)
    assert ranked(scores, np.ones((3, 3), bool))["auroc"] is None


def rows(successes, steps=None):
    return [
        {"seed": k, "success": done, "ever": done, "steps": (steps or [10] * len(successes))[k] if done else None,
         "env_reward": 0.0}
        for k, done in enumerate(successes)
    ]  # fmt: skip


def test_policies_are_compared_start_by_start():
    before, after = rows([False] * 8 + [True] * 3), rows([True] * 8 + [False] + [True] * 2, [7] * 11)
    found = judging.compare(before, after)
    assert (found["better"], found["worse"], found["both"], found["steps_saved"]) == (8, 1, 2, 3.0)
    assert found["p"] == pytest.approx(2 * 10 / 2**9)
    assert judging.verdict(found).startswith("Better: 8 starts gained, 1 lost of 11")
    assert judging.told_steps(found) == "On the 2 starts that both solve it takes 3.0 steps fewer (95 %: -3.0 to -3.0)."
    assert "takes 3.0 steps more (95 %: +3.0 to +3.0)" in judging.told_steps(judging.compare(after, before))
    assert judging.verdict(judging.compare(after, before)).startswith("Worse")
    assert judging.verdict(judging.compare(after, after)).startswith("No difference")
    assert judging.compare(rows([None]), rows([True])) is None


@pytest.mark.parametrize(("name", "kept"), [("world", "imitate"), ("rollouts", "imitate"), ("chunked_rl", "imitate")])
def test_what_the_paired_test_calls_worse_is_not_kept(tmp_path, name, kept):
    planned = inputs.PolicyPlan((), (), (), (), 20.0, {})
    made = FinetuningRun(compose("finetune", ["data=none", "execute=1"]), tmp_path, None, planned)
    found = made.conclude({"imitate": rows([True] * 8), name: rows([False] * 8)})
    assert found["policy"] == kept
    assert json.loads((tmp_path / "run.json").read_text())["policy"] == kept


def test_starts_that_choose_teach_and_judge_are_different_ones():
    judge = {"final": FINAL, "evaluate": compose("evaluate", []).seed}
    others = {"execute": judging.CHOOSING, "keep": judging.DECIDING, "own": judging.PLANNED, "rank": RANKED}
    firsts = sorted([*judge.values(), *others.values()])
    assert min(np.diff(firsts)) >= 500_000
    assert all(first in JUDGED for first in judge.values())
    assert not any(first in JUDGED for first in others.values())


def test_of_equal_numbers_of_steps_the_one_that_looks_less_is_executed(tmp_path):
    assert judging.candidates(8) == [8, 4, 2, 1]
    assert judging.candidates(6) == [6, 3, 1]


def test_labels_are_told():
    found = labels.EpisodeLabels(("solved", "not", "abstained", "solved"), ("person", "person", "success", "success"))
    assert re.fullmatch("success: 2 solved, 1 not, 1 unsure; a person labelled 2 of them", found.told())
