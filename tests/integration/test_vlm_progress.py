"""Progress readers asking a real HTTP endpoint, whose answers are computed from the very pixels it was sent.

Every image is grey; its brightness, 0 to 200, is the true progress in half percents.
"""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

from rewards.chat.asking import ChatEndpoint, VLMError
from rewards.chat.reading import Questions
from rewards.core import Features
from rewards.hops import fuse
from rewards.vlm_progress import GVL, GenerativeGRM, TOPReward, grm_vlm_scorer, gvl_scorer, topreward_scorer
from tests.chat_server import chat_server, completion, images, probabilities, text
from tests.fakes import FakeEncoder

TRUTH = np.array([0.0, 0.1, 0.25, 0.2, 0.5, 0.75, 0.6, 0.9, 1.0, 0.95, 0.9])  # T = 11
GOAL = np.full((4, 6, 3), 200, np.uint8)


def film(truth: np.ndarray = TRUTH) -> torch.Tensor:
    grey = torch.from_numpy(np.round(truth * 200).astype(np.uint8))
    return grey[None, :, None, None, None].expand(1, -1, 4, 6, 3).contiguous()


def features(truth: np.ndarray = TRUTH, cameras=("front",)) -> Features:
    views = {camera: torch.zeros(1, len(truth), 4) for camera in cameras}
    return Features(views=views, frames={camera: film(truth) for camera in cameras})


def brightness(body) -> list[float]:
    return [float(image.mean()) / 200 for image in images(body)]


def hop(before: float, after: float) -> float:
    if before == after:
        return 0.0
    return (after - before) / (1 - before) if after > before else (after - before) / before


def judge_hop(body) -> str:
    """A perfect GRM for one view: start, goal, BEFORE, AFTER."""
    *_, before, after = brightness(body)
    return f"Getting there. <score>{100 * hop(before, after):+.1f}</score>"


def asking(served, **options) -> Questions:
    return Questions(ChatEndpoint(served.url, "tiny", retries=0), **options)


# GRM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["incremental", "forward", "backward", "mean"])
def test_grm_recovers_progress_from_perfect_hops(fusion):
    with chat_server(judge_hop) as served:
        head = GenerativeGRM("close it", ask=asking(served), goal={"front": GOAL}, stride=1, fusion=fusion)
        assert_allclose(head.score(features())[0], TRUTH, atol=5e-3)
    calls = {"incremental": 10, "forward": 10, "backward": 10, "mean": 30}[fusion]
    assert head.ask.calls + head.ask.remembered == calls
    assert head.ask.calls == len(served.bodies) <= calls


def test_grm_s_eight_images_are_in_the_paper_s_order():
    cameras = ("front", "left", "right")
    levels = {"front": 0.0, "left": 0.1, "right": 0.2}
    rows = np.array([0.0, 0.5])
    shown = Features(
        views={c: torch.zeros(1, 2, 4) for c in cameras},
        frames={c: film(rows + levels[c]) for c in cameras},
    )
    goals = {c: np.full((4, 6, 3), 160 + round(200 * levels[c]), np.uint8) for c in cameras}
    with chat_server(lambda _: "<score>+10</score>") as served:
        head = GenerativeGRM("lift it", ask=asking(served), goal=goals, stride=1)
        head.score(shown)
    by_hand = fuse(torch.tensor([[math.nan, 0.1]]), torch.tensor([[0.0, 0.1]]), torch.tensor([[-1.0, 0.1]]))
    assert_allclose(head.score(shown), by_hand, atol=1e-6)
    step, anchored = (brightness(body) for body in served.bodies)  # at the second row, step and start are one question
    assert step == pytest.approx([0.0, 0.8, 0.0, 0.1, 0.2, 0.5, 0.6, 0.7], abs=5e-3)
    assert anchored == pytest.approx([0.0, 0.8, 0.8, 0.9, 1.0, 0.5, 0.6, 0.7], abs=5e-3)  # each camera its own goal
    assert "lift it" in text(served.bodies[0])
    assert "front, left, right" in text(served.bodies[0])


def test_grm_without_a_goal_shows_none_and_never_the_rollout_s_last_frame():
    with chat_server(judge_hop) as served:
        GenerativeGRM("close it", ask=asking(served), stride=1).score(features(TRUTH[:3]))
    sent = [brightness(body) for body in served.bodies]
    assert all(len(each) == 3 for each in sent)  # start, BEFORE, AFTER
    assert sent[0] == pytest.approx([0.0, 0.0, 0.1], abs=5e-3)
    assert all("finished task:" not in text(body) for body in served.bodies)


@pytest.mark.parametrize("fusion", ["guarded", "mean", "backward"])
def test_a_goal_of_a_camera_that_is_not_shown_is_refused(fusion):
    with chat_server(judge_hop) as served:
        head = GenerativeGRM("close it", ask=asking(served), goal={"wrist": GOAL}, stride=1, fusion=fusion)
        with pytest.raises(ValueError, match="goal must be of a camera that is shown, front; got wrist"):
            head.score(features())
        assert not served.bodies


@pytest.mark.parametrize("said", ["I would say 90%.", "<score>lots</score>", "<score>5</score> <score>9</score>", ""])
@pytest.mark.parametrize("fusion", ["guarded", "mean", "incremental", "forward", "backward"])
def test_an_unreadable_answer_never_raises_progress(said, fusion):
    """Neither to success, as hop 0 does in the source's backward mode, nor at all."""

    def sometimes(body):
        return completion(said) if brightness(body)[-1] in (0.75, 0.9) else judge_hop(body)

    with chat_server(sometimes) as served:
        head = GenerativeGRM("close it", ask=asking(served), goal={"front": GOAL}, stride=1, fusion=fusion)
        phi = head.score(features())[0]
        assert head.ask.missing > 0
    for row in (5, 7, 10):
        assert phi[row] == phi[row - 1]
    assert phi.max() > 0.1


def test_a_model_that_cannot_is_an_error_and_not_a_flat_reward():
    with chat_server(lambda _: "As a language model, I like it.") as served:
        head = GenerativeGRM("close it", ask=asking(served), goal={"front": GOAL}, stride=1)
        with pytest.raises(VLMError, match="must give readable answers to at least 50%; got 10 that were not"):
            head.score(features())
        assert len(served.bodies) == 10


def test_nobody_there_is_an_error_at_once():
    with chat_server(lambda _: (500, b"", {})) as served, pytest.raises(VLMError, match="HTTP 500"):
        GenerativeGRM("close it", ask=asking(served), stride=1).score(features())


def test_calls_are_bounded_and_counted(tmp_path):
    with chat_server(judge_hop) as served:
        head = GenerativeGRM("close it", ask=asking(served, max_calls=6, cache=tmp_path), stride=1)
        with pytest.raises(VLMError, match="no more than 6 answers; got one more question"):
            head.score(features())
        assert len(served.bodies) == 6
        more = GenerativeGRM("close it", ask=asking(served, max_calls=50, cache=tmp_path), stride=1)
        phi = more.score(features())
        assert more.ask.calls + 6 == len(served.bodies)
        asked = len(served.bodies)
        assert torch.equal(more.score(features()), phi)  # everything remembered
        assert len(served.bodies) == asked
    assert f"{asked - 6} calls" in more.ask.report()


@pytest.mark.parametrize("kind", ["grm", "topreward", "gvl"])
def test_a_frame_has_one_progress_at_every_door(kind):
    """Scored as the episode grows, or at its end: the same; and between rows asked the last answer holds."""
    with chat_server(answer_any) as served:
        head = make(kind, asking(served), stride=3)
        whole = head.score(features())[0]
        for rows in range(1, 12):
            assert_allclose(head.score(features(TRUTH[:rows]))[0], whole[:rows], atol=1e-6)
        both = Features(views={"front": torch.zeros(2, 11, 4)}, frames={"front": film().expand(2, -1, -1, -1, -1)})
        assert_allclose(head.score(both), whole.expand(2, -1), atol=1e-6)
    assert torch.equal(whole[0:3], whole[0:1].expand(3))
    assert torch.equal(whole[3:6], whole[3:4].expand(3))
    assert whole[9] > whole[0]


def make(kind: str, ask: Questions, **options):
    if kind == "grm":
        return GenerativeGRM("close it", ask=ask, goal={"front": GOAL}, fusion="mean", **options)
    return TOPReward("close it", ask=ask, **options) if kind == "topreward" else GVL("close it", ask=ask, **options)


def answer_any(body):
    if "logprobs" in body:
        return judge_done(body)
    return judge_hop(body) if "<score>" in text(body) else judge_frames(body)


# TOPReward -------------------------------------------------------------------------------------------------------


def judge_done(body):
    """log P("True") = 8·progress − 8 of the last image."""
    value = 8 * brightness(body)[-1] - 8
    return probabilities(True_=value, False_=math.log1p(-math.exp(min(value, -1e-9))))


def test_topreward_is_the_calibrated_log_probability():
    with chat_server(lambda body: judge_done(body) | {}) as served:
        head = TOPReward("close it", ask=asking(served), calibration=(-6.0, -1.0), stride=2, max_frames=3)
        raw = head.logprobs(features())
        phi = head.score(features())[0]
    assert_allclose(raw[0], 8 * TRUTH[::2] - 8, atol=1e-6)
    by_hand = ((8 * TRUTH[::2] - 8 + 6) / 5).clip(0, 1)
    assert_allclose(phi, np.repeat(by_hand, 2)[:11], atol=1e-6)
    assert brightness(served.bodies[5]) == pytest.approx(TRUTH[[0, 4, 10]], abs=5e-3)  # 6 rows asked: 0, 4, 10 of them
    assert "close it" in text(served.bodies[0])


def test_topreward_per_episode_is_min_max():
    with chat_server(judge_done) as served:
        head = TOPReward("close it", ask=asking(served), normalize="episode", stride=1)
        assert_allclose(head.score(features())[0], TRUTH, atol=1e-5)
        assert head.score(features(np.full(4, 0.9))).abs().max() == 0  # nothing changes: no progress


def test_topreward_holds_where_the_model_says_something_else():
    def sometimes(body):
        return probabilities(Well=-0.1) if brightness(body)[-1] == 1.0 else judge_done(body)

    with chat_server(sometimes) as served:
        phi = TOPReward("close it", ask=asking(served), stride=1).score(features())[0]
    assert phi[8] == phi[7]
    assert phi[9] > phi[8]


# GVL -------------------------------------------------------------------------------------------------------------


def judge_frames(body):
    _, *shown = brightness(body)
    return "\n".join(f"Frame {k + 1}: {round(100 * each)}%" for k, each in enumerate(shown))


def test_gvl_shuffles_and_puts_back():
    with chat_server(judge_frames) as served:
        causal = GVL("close it", ask=asking(served), stride=1).score(features())
        asked = len(served.bodies)
        offline = GVL("close it", ask=asking(served), stride=1, causal=False).score(features())
    assert asked == 10
    assert len(served.bodies) == asked + 1
    assert_allclose(causal[0], TRUTH, atol=1e-6)
    assert_allclose(offline[0], TRUTH, atol=1e-6)
    shown = brightness(served.bodies[-1])
    assert shown[0] == 0
    assert sorted(shown[1:]) == pytest.approx(sorted(TRUTH[1:]), abs=5e-3)
    assert shown[1:] != pytest.approx(TRUTH[1:], abs=5e-3)  # not in order of time
    with chat_server(judge_frames) as again:
        GVL("close it", ask=asking(again), stride=1, causal=False).score(features())
        GVL("close it", ask=asking(again), stride=1, causal=False, seed=1).score(features())
    assert brightness(again.bodies[0]) == shown  # seeded
    assert brightness(again.bodies[1]) != shown


def test_gvl_bounds_frames_and_fills():
    with chat_server(judge_frames) as served:
        head = GVL("close it", ask=asking(served), stride=1, causal=False, max_frames=3, between="linear")
        phi = head.score(features())[0]
    assert len(images(served.bodies[0])) == 3
    assert_allclose(phi, np.interp(np.arange(11), [0, 5, 10], TRUTH[[0, 5, 10]]), atol=1e-6)


@pytest.mark.parametrize("bad", ["Frame 1: 10%", "10%, 20%", "Frame 1: 300%", "Frame 1: 5%\nFrame 1: 6%\nFrame 2: 5%"])
def test_gvl_holds_where_the_list_is_wrong(bad):
    def sometimes(body):
        return bad if len(images(body)) == 5 else judge_frames(body)

    with chat_server(sometimes) as served:
        head = GVL("close it", ask=asking(served), stride=1)
        phi = head.score(features())[0]
    assert phi[4] == phi[3]
    assert_allclose(np.delete(phi.numpy(), 4), np.delete(TRUTH, 4), atol=1e-6)
    assert head.ask.missing == 1


# Scorers ---------------------------------------------------------------------------------------------------------


def test_scorers_from_plain_values(tmp_path):
    Image.fromarray(GOAL).save(tmp_path / "goal.png")
    with chat_server(answer_any) as served:
        common = {
            "encoder": FakeEncoder(),
            "goal": "close it",
            "vlm": {"url": served.url, "model": "tiny"},
            "stride": 1,
        }
        shaping = {"kind": "difference", "discount": 1.0}
        goal = {"front": str(tmp_path / "goal.png")}
        for scorer in (
            grm_vlm_scorer(**common, goal_image=goal, fusion="mean", shaping=shaping),
            topreward_scorer(**common, calibration=(-8.0, 0.0), shaping=shaping),
            gvl_scorer(**common, asking={"cache": str(tmp_path / "kept")}, shaping=shaping),
        ):
            assert scorer.frames_read == "all"
            rewards = scorer.rewards(features(), torch.zeros(1, 10, dtype=torch.bool))
            assert_allclose(rewards[0], np.diff(TRUTH), atol=1e-2)
    assert list((tmp_path / "kept").iterdir())
    with pytest.raises(FileNotFoundError, match=r"goal_image must be a picture; got nowhere\.png"):
        grm_vlm_scorer(**common, goal_image={"front": "nowhere.png"})
    with pytest.raises(ValueError, match=r"goal_image must be {camera: file} where views is null"):
        grm_vlm_scorer(**common, goal_image="goal.png")


@pytest.mark.parametrize(
    ("make_head", "match"),
    [
        (lambda ask: GVL(" ", ask=ask), "GVL: instruction must be a text"),
        (lambda ask: GVL("see <image>", ask=ask), "GVL: instruction must be a text without <image>"),
        (lambda ask: GVL("close it", ask=ask, stride=0), "GVL: stride must be ≥ 1; got 0"),
        (lambda ask: GVL("close it", ask=ask, max_frames=1), "GVL: max_frames must be ≥ 2; got 1"),
        (lambda ask: TOPReward("close it", ask=ask, between="next"), "TOPReward: between must be hold or linear"),
        (lambda ask: TOPReward("close it", ask=ask, calibration=(0.0, -1.0)), "calibration must be"),
        (lambda ask: TOPReward("close it", ask=ask, normalize="batch"), "normalize must be fixed or episode"),
        (lambda ask: GenerativeGRM("close it", ask=ask, fusion="median"), "fusion must be one of"),
        (lambda ask: GenerativeGRM("close it", ask=ask, fusion="backward"), "without a reference goal"),
        (lambda ask: GenerativeGRM("close it", ask=ask, goal={"front": GOAL[0]}), r"images must be uint8 \(H, W, 3\)"),
        (lambda ask: GVL("close it", ask=ask, view="top").score(features()), "all 11 of at least one of top; got"),
        (lambda ask: Questions(ask.model, max_calls=0), "max_calls must be ≥ 1"),
        (
            lambda ask: GVL("close it", ask=ask).score(Features(views={"front": torch.zeros(1, 3, 4)})),
            "gvl_chat: frames must be all 3 of at least one view; got none",
        ),
    ],
)
def test_bad_values(make_head, match):
    with pytest.raises(ValueError, match=match):
        make_head(Questions(ChatEndpoint("http://localhost:1/v1", "tiny")))
