"""What a robot is seen by and judged with, and how its messages travel."""

import numpy as np
import pytest
import torch

from embodied import scoring
from embodied.cameras.camera import Frame
from embodied.robots.eyes import Eyes
from embodied.robots.judge import Judge, Success, Task
from embodied.robots.wire import MAX_BYTES, Faults, Messages, WireError, packed
from embodied.scoring import Layout, Track
from rewards.core import Scorer
from tests.fakes import FakeEncoder

# Eyes ---------------------------------------------------------------------------------------------------


def frame(value, at_s, index=0):
    return Frame(image=np.full((4, 4, 3), value, np.uint8), captured_s=at_s, index=index)


def test_a_repeated_picture_is_not_new_however_its_stamp():
    eyes = Eyes(compare=True)
    assert eyes.take({"a": frame(1, 1.0)}, 9.0) == {"camera a": 1.0, "camera a picture": 1.0}
    assert eyes.take({"a": frame(1, 2.0)}, 9.0) == {"camera a": 2.0, "camera a picture": 1.0}
    assert eyes.new_s(["a"]) == [1.0]
    assert eyes.missing(["a", "b"], 1.5)[0].startswith("camera a repeats")
    eyes.take({"a": frame(2, 3.0)}, 9.0)
    assert eyes.new_s(["a"]) == [3.0]
    still = Eyes(compare=False)
    still.take({"a": frame(1, 1.0)}, 9.0)
    still.take({"a": frame(1, 2.0)}, 9.0)
    assert still.new_s(["a"]) == [2.0]


@pytest.mark.parametrize("stamp", [5.001, 1e9, np.inf, np.nan])
def test_a_frame_from_the_future_is_refused(stamp):
    eyes = Eyes(compare=False)
    assert eyes.take({"a": frame(1, stamp)}, 5.0) == {}
    assert "its time is" in eyes.missing(["a"], 0.0)[0]
    assert eyes.take({"a": frame(2, 4.0)}, 5.0) == {"camera a": 4.0}
    assert eyes.take({"a": frame(3, stamp)}, 5.0) == {}
    assert eyes.image("a").max() == 2
    assert eyes.missing(["a"], 0.0) == [f"camera a: {eyes.refused['a']}"]


def test_an_unchanged_or_earlier_stamp_is_no_news():
    for compare in (False, True):
        eyes = Eyes(compare=compare)
        eyes.take({"a": frame(1, 4.0)}, 5.0)
        for later, stamp in enumerate((4.0, 3.0)):
            assert eyes.take({"a": frame(2 + later, stamp)}, 6.0)["camera a"] == 4.0
            assert eyes.new_s(["a"]) == [4.0]
            assert eyes.image("a").max() == 1


def test_a_picture_that_its_driver_writes_over_is_still_compared_with_itself():
    eyes, image = Eyes(compare=True), np.zeros((4, 4, 3), np.uint8)
    for k in range(3):
        image[:] = k
        stamps = eyes.take({"a": Frame(image=image, captured_s=float(k), index=k)}, 9.0)
        assert stamps["camera a picture"] == k


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_picture_grows_old_and_depth_is_left_out(image):
    eyes = Eyes(compare=True)
    assert eyes.take({"a": Frame(image=image, captured_s=1.0, index=0)}, 5.0) == {}
    assert "its picture must" in eyes.missing(["a"], 0.0)[0]
    for shape in ((4, 4, 1), (4, 4)):
        depth = Frame(image=np.zeros(shape, np.uint16), captured_s=1.0, index=0)
        eyes = Eyes(compare=True)
        assert eyes.take({"d": depth, "a": frame(1, 1.0)}, 5.0).keys() == {"camera a", "camera a picture"}
        assert eyes.depth == {"d"}


def test_views_of_several_sizes_are_scored_at_the_first_ones():
    eyes = Eyes(compare=True)
    large = Frame(image=np.zeros((8, 6, 3), np.uint8), captured_s=0.0, index=0)
    eyes.take({"a": frame(1, 0.0), "b": large}, 1.0)
    assert eyes.pictures(["a", "b"]).shape == (2, 4, 4, 3)
    with pytest.raises(ValueError, match="must be one of a, b"):
        eyes.image("c")


# Judge --------------------------------------------------------------------------------------------------


class Brightness:
    """A head whose potential is the projection on one feature; NaN on request."""

    name, pointwise, broken = "bright", True, False

    def score(self, features):
        values = features.main[..., 0]
        return values * torch.nan if self.broken else values


class Difference:
    """γφ' − φ with γ = 0.9 and nothing after termination."""

    def __call__(self, potential, next_potential, terminated):
        return 0.9 * next_potential * ~terminated - potential


def first(potentials, features):
    return next(iter(potentials.values()))


def make_scorer(head=None):
    head = head or Brightness()
    return Scorer(FakeEncoder(), {head.name: head}, first, Difference())


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 8, 8, 3)).astype(np.uint8)


def test_the_judge_gives_the_rewards_that_labelling_gives():
    scorer, frames = make_scorer(), pictures(5)
    judge = Judge(Task(scorer=scorer), ("main",), ())
    rewards = [judge.look(each, {}, stopped=k == 4).reward for k, each in enumerate(frames)]
    rows = list(scoring.encode(scorer, frames[:, 0]))
    (labels,) = scoring.label(scorer, [Track(rows, [False, False, False, True])], Layout())
    np.testing.assert_allclose(rewards[1:], labels.rewards, atol=1e-6)
    assert rewards[0] == 0


def test_a_moment_that_cannot_be_scored_keeps_its_potential():
    head = Brightness()
    judge = Judge(Task(scorer=make_scorer(head), success=Success(threshold=-9.0)), ("main",), ())
    before = judge.look(pictures(1)[0], {}, stopped=False)
    stale = judge.look(None, {}, stopped=False)
    assert stale.unscored == "no fresh frame"
    assert stale.potentials == before.potentials
    assert stale.reward == pytest.approx(-0.1 * before.potentials["combined"], abs=1e-6)
    assert stale.success is False  # nothing was seen
    head.broken = True
    nan = judge.look(pictures(1, 1)[0], {}, stopped=False)
    assert "must give finite numbers" in nan.unscored
    assert nan.potentials == before.potentials
    head.broken = False
    assert judge.look(pictures(1, 2)[0], {}, stopped=False).success is True


def test_success_must_hold():
    scorer = make_scorer()
    potentials = [float(scoring.encode(scorer, each)[0, 0]) for each in pictures(12)]
    threshold = float(np.median(potentials))
    judge = Judge(Task(scorer=scorer, success=Success(head="bright", threshold=threshold, hold=2)), ("main",), ())
    told = [judge.look(each, {}, stopped=False).success for each in pictures(12)]
    above = np.array(potentials) >= threshold
    assert told == [False, *(above[1:] & above[:-1]).tolist()]
    with pytest.raises(ValueError, match="must be one of bright"):
        Task(scorer=scorer, success=Success(head="dark", threshold=0.0))


# Wire ---------------------------------------------------------------------------------------------------


def test_messages_come_whole_out_of_any_pieces():
    data = packed({"type": "a", "n": 1}) + packed({"type": "b", "data": b"x" * 1000})
    messages, found = Messages(), []
    for at in range(0, len(data), 7):
        found += messages.feed(data[at : at + 7])
    assert [each["type"] for each in found] == ["a", "b"]
    assert found[1]["data"] == b"x" * 1000


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "at most"),
        ((MAX_BYTES + 1).to_bytes(4, "big"), "at most"),
        (b"\x00\x00\x00\x02\xc1\xc1", "msgpack"),
        (b"\x00\x00\x00\x01\x05", "a map with a type"),
        (b"\x00\x00\x00\x00", "msgpack"),
    ],
)
def test_rubbish_on_the_wire_is_refused(data, why):
    with pytest.raises(WireError, match=why):
        Messages().feed(data)


def test_faults_travel():
    faults = Faults(delay_s=0.1, lost=("front",))
    (message,) = Messages().feed(packed(faults.message()))
    assert Faults.of(message) == faults
    with pytest.raises(WireError):
        Faults.of({"type": "faults", "unheard": 1})
