"""Published chat models that judge robots, asked as their repositories ask them: RoboReward, TOPReward, GRM, SOLE-R1.

The texts are the ones the models were trained or published with, word for word; what they come from stands beside each.
Names, weights and settings are in `rewards.pretrained`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rewards.chat.film import Film, FilmHead, Moment, first_view
from rewards.chat.messages import IMAGE, Message, Video, broken, filled, unmarked
from rewards.chat.numbers import parse_answer_percent, parse_grade
from rewards.chat.reading import Questions
from rewards.pictures import fitting
from rewards.vlm_progress import TOPReward

# RoboReward: robometer/robometer c7f38e2, robometer/evals/baselines/roboreward.py, as the weights' model cards have it.
ROBOREWARD_PROMPT = """\
Given the task, assign a discrete progress score reward (1,2,3,4,5) for the robot in the video in the format: \
ANSWER: <score>
Rubric for end-of-episode progress (judge only the final state without time limits):
1 - No Success: Final state shows no goal-relevant change for the command.
2 - Minimal Progress: Final state shows a small but insufficient change toward the goal.
3 - Partial Completion: The final state shows good progress toward the goal but violates more than one requirement or \
a major requirement.
4 - Near Completion: Final state is correct in region and intent but misses a single minor requirement.
5 - Perfect Completion: Final state satisfies all requirements.

Task: {task}"""

# TOPReward: qrafty-ai/TOPReward cd7d741 (the authors' code), topreward/clients/qwen.py, without description.
TOPREWARD_PROMPT = (
    "The above video shows a robot manipulation trajectory that completes the following task: {instruction} Decide "
    "whether the above statement is True or not. The answer is:"
)
TOPREWARD_ANSWERS = (" True", " False")  # with the space that follows the colon

# GRM: FlagOpen/Robo-Dopamine 7d4415f, examples/inference.py. The marks are reference start and end, then front, left
# wrist and right wrist BEFORE, and the same AFTER.
GRM_PUBLISHED = """
You are a rigorous, impartial vision evaluator for robot task progress. Your job is to judge whether the AFTER image \
set moves closer to the task objective than the BEFORE image set, using the provided reference examples only as anchors.

<Task>
`{task}`

REFERENCE EXAMPLES (for visual anchoring only; not necessarily this run's actual START/END):
- REFERENCE START — Robot Front Image (task just starting): <image>
- REFERENCE END — Robot Front Image (task fully completed): <image>
</Task>

BEFORE Robot Front Image: <image>
BEFORE Robot Left Wrist Image: <image>
BEFORE Robot Right Wrist Image: <image>

AFTER Robot Front Image: <image>
AFTER Robot Left Wrist Image: <image>
AFTER Robot Right Wrist Image: <image>

Goal
Compare the BEFORE and AFTER three-view sets and judge whether AFTER moves closer to accomplishing the task than \
BEFORE, using the REFERENCE START/END images as conceptual anchors.

Progress Estimation (no formulas)
1) Calibrate using the references:
   - REFERENCE START = “just beginning”; REFERENCE END = “fully completed.”
   - Visually estimate how far BEFORE and AFTER are along this START→END continuum.
2) Direction:
   - AFTER better than BEFORE → positive score.
   - AFTER worse than BEFORE → negative score.
   - Essentially the same → 0.
3) Normalize to an integer percentage in [-100%, +100%]:
   - For improvements, scale the improvement relative to what remained from BEFORE to END.
   - For regressions, scale the deterioration relative to how far BEFORE had progressed from START.
   - Clip to [-100%, +100%] and round to the nearest integer percent.

Evaluation Criteria (apply across all three views)
1) Task Alignment: Evidence directly tied to `{task}`.
2) Completeness & Accuracy: Correct pose, contact, placement, orientation, grasp quality, absence of collisions, \
stability, etc.
3) View-Specific Evidence & Consistency:
   - Use the **Front** view for global layout, object pose, approach path, end-state geometry, and scene-level \
constraints.
   - Use the **Left/Right Wrist** views to inspect **fine-grained gripper state** (finger closure, contact \
location/area, slippage, wedge/misalignment, object deformation, cable/wire/cloth entanglement, unintended contact, \
occluded collisions).
   - When views disagree, prioritize the view that provides **decisive cues** for the criterion at hand. In \
particular, wrist views often **override** for grasp/contact validity and safety.
   - If any single view shows a failure that invalidates success (e.g., mis-grasp, collision, unsafe/unstable pose), \
let that override when judging progress.
4) Ignore Irrelevant Factors: Lighting, color shifts, background clutter, or UI/watermarks that don't affect task \
success.
5) Ambiguity: If evidence is genuinely inconclusive or conflicting without decisive cues, treat progress as \
unchanged → 0%.

Output Format (STRICT)
Return ONLY one line containing the score wrapped in <score> tags, as an integer percentage with a percent sign:
<score>+NN%</score>  or  <score>-NN%</score>  or  <score>0%</score>
"""
# Where no goal is known: robometer/robometer c7f38e2, robometer/evals/baselines/robodopamine.py.
BLANK_GOAL = np.full((224, 224, 3), 128, np.uint8)

# SOLE-R1: philipmit/sole-r1-model 71a61c5, reward_server/src/reward_server/constants.py.
SOLE_MARKS = ("<think>", "</think>")
SOLE_SYSTEM = (
    "You are an expert roboticist with the goal of predicting task progress percentages given frames from a video of a "
    "robot attempting to complete a task. You first think, in the form of an internal monologue, before providing your "
    "final answer. Your reasoning process MUST BE enclosed within <think> </think> tags and should include detailed "
    "reasoning. Your final answer MUST BE enclosed within <answer> </answer> tags and should be a integer (positive or "
    "negative) representing current task progress percentage. Example output format: <think>[detailed reasoning "
    "process]</think><answer>[current task progress]%</answer>"
)
_SOLE_ASKED = (
    "The views from the very first timestep are shown to the left. The views from the previous timestep are shown in "
    "the middle. The views from the current timestep are shown to the right. The task description is: {task}. The task "
    "progress for the very first timestep is 0%. The task progress for the previous timestep is {progress}%. Predict "
    "the task progress for the current timestep."
)
_SOLE_BEGINS = "Here is an image containing multiple camera views of a robot attempting to complete a task. "
SOLE_EXTERNAL = _SOLE_BEGINS + _SOLE_ASKED
SOLE_BOTH = (
    f"{_SOLE_BEGINS}The views on the top are from an external camera. The views on the bottom are from the robot's "
    f"wrist camera. {_SOLE_ASKED}"
)
SOLE_SIDE, SOLE_GAP = 384, 5  # pixels: of one view in the montage, and between views
SOLE_FACTOR, SOLE_PIXELS = 28, (3136, 12845056)


class RoboReward(FilmHead):
    """A grade from 1 to 5 of the film so far, by a model that was fine-tuned to give it.

        φ = (grade − 1) / 4, of at most `max_frames` frames of the prefix

    Args:
        instruction, views, stride: see `FilmHead`; the first view is shown.
        ask: the model, counted and bounded.
        max_frames: of the film; the checkpoint's own video processor takes 8.
        fps: the times that frames are told to be of; the adapter's 1.

    Raises:
        ValueError: no instruction, or a setting out of range; (score) frames missing.
    Source: arXiv 2601.00675; text and form of Robometer's adapter. Departs: the model grades whole episodes, and is
        asked about prefixes here, as that adapter does; frames are neither sent through JPEG nor resized twice; an
        answer without a grade is missing (there, 1).
    """

    name = "roboreward"

    def __init__(
        self,
        instruction: str,
        *,
        ask: Questions,
        views: Sequence[str] | None = None,
        stride: int = 5,
        max_frames: int = 8,
        fps: float = 1.0,
    ) -> None:
        super().__init__(instruction, views=views, stride=stride)
        if max_frames < 2 or not fps > 0:
            raise ValueError(f"RoboReward: max_frames must be ≥ 2 and fps > 0; got {max_frames} and {fps}.")
        self.ask, self.max_frames, self.fps = ask, max_frames, fps

    def judge(self, film: Film) -> float:
        """See `FilmHead`."""
        text = filled(ROBOREWARD_PROMPT, task=self._instruction)
        shown = Video(paired(first_view(film, self.max_frames)), self.fps)
        return self.ask.numbers([Message("user", text, videos=[shown])], parse_grade, "grade")[0]


class PublishedTOPReward(TOPReward):
    """TOPReward in its authors' words: a film, their sentence with the instruction in it, and no template after it.

        ℓ_t = log P(" True" | film to t, sentence),   φ_t = clip((ℓ_t − low) / (high − low), 0, 1)

    Args:
        instruction, ask, view, calibration, normalize, max_frames, stride, between: see `TOPReward`.
        fps: the times that frames are told to be of; the authors' 2.
        head: other arguments of `TOPReward`.

    Raises:
        ValueError: as `TOPReward`, or fps ≤ 0.
    Source: arXiv 2602.19313; held to huggingface/lerobot 7427f31, src/lerobot/rewards/topreward, whose text is the
        authors'. Departs: calibration as in `TOPReward`; of more than `max_frames` frames an even choice (there, the
        last ones). An endpoint reads "True" in any spelling among its 20 likeliest first tokens, and must give "True"
        and "False" half of the probability.
    """

    name = "topreward"

    def __init__(self, instruction: str, *, ask: Questions, fps: float = 2.0, **head: object) -> None:
        super().__init__(instruction, ask=ask, **head)  # pyright: ignore[reportArgumentType]
        if not fps > 0:
            raise ValueError(f"PublishedTOPReward: fps must be > 0; got {fps}.")
        self.fps = fps

    def _ask(self, frames: Sequence[np.ndarray]) -> float:
        text = filled(TOPREWARD_PROMPT, instruction=self._instruction)
        asked = Message("user", text, videos=[Video(paired(frames), self.fps)], open=True)
        true, false = TOPREWARD_ANSWERS
        return self.ask.logprob([asked], true, [false], least_mass=0.0)[0]


class SoleR1(FilmHead):
    """Progress by a model that reasons over a montage: first, previous and current moment, and its own last answer.

    The moments stand side by side, an outside camera above a wrist camera where there are two. Each row asked about is
    told the last known progress, so an answer depends on all before it.

    Args:
        instruction, views, stride: see `FilmHead`; views are the outside camera, then the wrist's, if there is one.
        ask: the model, counted and bounded; `trace` of it keeps what the model says.

    Raises:
        ValueError: no instruction, or stride < 1; (score) frames missing.
    Source: philipmit/sole-r1-model (montage, texts, 384 px a view, progress clipped to ±100 %). Departs: after an
        answer that cannot be read, the last known progress is told (there, nothing); progress below 0 counts as 0.
    """

    name = "sole_r1"

    def __init__(
        self, instruction: str, *, ask: Questions, views: Sequence[str] | None = None, stride: int = 5
    ) -> None:
        super().__init__(instruction, views=views, stride=stride)
        self.ask = ask

    def kept(self, moments: tuple[Moment, ...]) -> tuple[Moment, ...]:
        """See `FilmHead`: the first and the newest two."""
        return moments if len(moments) <= 3 else (moments[0], *moments[-2:])

    def judge(self, film: Film) -> float:
        """See `FilmHead`; 0 at the reset, which is not asked about."""
        if len(film.moments) == 1:
            return 0.0
        columns = [film.moments[0], film.moments[-2], film.moments[-1]]
        template = SOLE_BOTH if len(columns[0]) > 1 else SOLE_EXTERNAL
        task = broken(unmarked(self._instruction), SOLE_MARKS)
        text = IMAGE + filled(template, task=task, progress=str(round(100 * film.value)))
        messages = [Message("system", SOLE_SYSTEM, marks=SOLE_MARKS), Message("user", text, [montage(columns)])]
        (value,) = self.ask.numbers(messages, parse_answer_percent, "answer")
        return value if math.isnan(value) else max(0.0, value)


def montage(columns: Sequence[Moment]) -> np.ndarray:
    """SOLE-R1's picture, (H, W, 3) uint8: a column a moment, the first view above the second, black between them.

    Args:
        columns: moments, in order.
    """
    rows = []
    for view in range(min(2, len(columns[0]))):
        tiles = [_tile(column[view]) for column in columns]
        gap = np.zeros((SOLE_SIDE, SOLE_GAP, 3), np.uint8)
        rows.append(np.hstack([part for tile in tiles for part in (gap, tile)][1:]))
    gap = np.zeros((SOLE_GAP, rows[0].shape[1], 3), np.uint8)
    whole = Image.fromarray(rows[0] if len(rows) == 1 else np.vstack([rows[0], gap, rows[1]]))
    height, width = fitting(whole.height, whole.width, SOLE_FACTOR, *SOLE_PIXELS)
    return np.asarray(whole.resize((width, height)))


def _tile(image: np.ndarray) -> np.ndarray:
    """One view with its sides' ratio kept, in the middle of a black square."""
    scale = SOLE_SIDE / max(image.shape[:2])
    height, width = int(image.shape[0] * scale), int(image.shape[1] * scale)
    square = np.zeros((SOLE_SIDE, SOLE_SIDE, 3), np.uint8)
    top, left = (SOLE_SIDE - height) // 2, (SOLE_SIDE - width) // 2
    resized = _enlarged(image, height, width) if scale > 1 else _shrunk(image, height, width)
    square[top : top + height, left : left + width] = resized
    return square


def _shrunk(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """OpenCV's `INTER_AREA`: the mean over the area that a pixel covers."""
    down, across = _areas(image.shape[0], height), _areas(image.shape[1], width)
    mean = np.einsum("jkc,lk->jlc", np.tensordot(down, image.astype(np.float64), 1), across, optimize=True)
    return np.rint(mean).clip(0, 255).astype(np.uint8)


def _areas(of: int, to: int) -> np.ndarray:
    """(to, of) shares of the area that each of `to` pixels covers of `of`."""
    edges = np.arange(to + 1)[:, None] * of / to
    pixels = np.arange(of)[None]
    covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return covered.clip(0) * to / of


def _enlarged(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """OpenCV's `INTER_AREA` of a small picture: linear between neighbours, in its whole numbers of 11 bits."""
    (above, below, rows), (left, right, columns) = _taps(image.shape[0], height), _taps(image.shape[1], width)
    pixels = image.astype(np.int64)
    across = pixels[:, left] * columns[0][:, None] + pixels[:, right] * columns[1][:, None]
    upper, lower = (
        (across[at] >> 4) * share[:, None, None] >> 16 for at, share in ((above, rows[0]), (below, rows[1]))
    )
    return ((upper + lower + 2) >> 2).clip(0, 255).astype(np.uint8)


def _taps(of: int, to: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(to,) indices of two neighbours each, and (2, to) their shares of 2048."""
    number = np.arange(to)
    first = np.minimum(number * of // to, of - 1)
    share = ((number + 1) - (first + 1) * (to / of)).clip(0) % 1
    share = np.where(first == of - 1, 0.0, share).astype(np.float32)
    return first, np.minimum(first + 1, of - 1), np.rint(np.stack([1 - share, share]) * 2048).astype(np.int64)


def paired(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Two frames at least, as a film must have: a lone one twice."""
    return list(frames) * 2 if len(frames) == 1 else list(frames)
