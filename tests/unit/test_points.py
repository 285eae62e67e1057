"""Points: one pass gives vectors and places, as the encoder and the grounder give them; memory; names from goals."""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from embodied.envs import WORLDS, world_id
from embodied.envs.desk import Desk
from embodied.envs.desk_scene import OPENING
from rewards.encoders import OpenCLIPEncoder, embedded_encoder
from rewards.grounding import FAINT, Grounder
from rewards.keypoint.path import CalibratedCamera
from rewards.points import PointMemory, PointReader, peaks, things
from tests.conftest import save_open_clip
from tests.fakes import FakeEncoder
from tests.unit.test_grounding import TINY_RESNET, projector

NAMES = ["the red cube", "the tray", "the gripper"]
NOISE = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 48, 80, 3), np.uint8))


@pytest.fixture(scope="module")
def encoder():
    return embedded_encoder(precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def desk():
    """Frames of states at random from both cameras, (12, 96, 96, 3)."""
    world = Desk(task="place")
    rng, frames = np.random.default_rng(3), []
    for seed in range(6):
        world.reset(seed=seed)
        world.sample_state(rng)
        frames += [world.frame("front"), world.frame("side")]
    world.close()
    return torch.from_numpy(np.stack(frames))


@pytest.fixture(scope="module")
def opened():
    """Frames of a gripper from the side, open at another height in each, and the (u, v) px of the fingers' middle."""
    world = Desk(task="place")
    world.reset(seed=0)
    frames, places = [], []
    for height in (0.1, 0.15, 0.2, 0.25):
        world.put_arm(np.array([0.0, 0.0, height]), OPENING)
        mujoco.mj_forward(world.model, world.data)
        frames.append(world.frame("side"))
        fingers = [world.data.xpos[world.model.body(f"finger_{side}").id] for side in ("left", "right")]
        places.append(CalibratedCamera.read("side", world.calibration("side")).project(np.mean(fingers, 0)[None])[0])
    world.close()
    return torch.from_numpy(np.stack(frames)), np.stack(places)


def pixels(points, height, width):
    return (points[..., :2].numpy() + 1) / 2 * [width, height] - 0.5


def located(encoder, frames, names):
    """(B, M, 2) px: where the grounder finds them."""
    return np.array([[region.centre for region in regions] for regions in Grounder(encoder).locate(frames, names)])


def same_as_apart(encoder, frames, names):
    """One pass gives what encoding gives, and the peaks of what the grounder gives."""
    grounder = Grounder(encoder)
    vectors, points = PointReader(encoder, names).read(frames)
    assert vectors.dtype == points.dtype == torch.float32
    assert (1 - (vectors * encoder.encode_images(frames)).sum(-1)).abs().max() <= 1e-5
    heat = torch.cat([grounder.heat(batch, names) for batch in frames.split(2)])
    height, width = frames.shape[1:3]
    grid = torch.from_numpy(grounder._cells(height, width, tuple(heat.shape[2:])).astype(np.float32))
    expected = peaks(heat, grid)
    np.testing.assert_allclose(pixels(points, height, width), expected[..., :2], atol=0.02)
    torch.testing.assert_close(points[..., 2], expected[..., 2], atol=2e-3, rtol=0)  # half precision on disk
    return points


def test_one_pass_gives_vectors_and_maps(encoder, desk):
    points = same_as_apart(encoder, desk, NAMES)
    assert points[..., 2].median() > 0.9
    assert points[..., :2].flatten(0, 1).std(0).min() > 0.1  # things are in many places


def test_what_is_in_one_piece_is_where_the_grounder_finds_it(encoder, desk):
    points = PointReader(encoder, NAMES[:2]).read(desk)[1]
    gaps = np.linalg.norm(pixels(points, 96, 96) - located(encoder, desk, NAMES[:2]), axis=-1)
    assert np.median(gaps) < 0.01
    assert np.quantile(gaps, 0.9) < 1


def test_an_open_gripper_is_between_its_fingers(encoder, opened):
    frames, places = opened
    found = pixels(PointReader(encoder, ["the gripper"]).read(frames)[1], 96, 96)[:, 0]
    centres = located(encoder, frames, ["the gripper"])[:, 0]
    assert np.abs(centres - places)[:, 0].max() > 3  # now between them, now one finger or the other
    assert np.abs(found - places)[:, 0].max() < 1.5


def test_half_precision_finds_the_same_places(encoder, desk):
    half = embedded_encoder(precision="bf16", device="cpu")
    vectors, points = PointReader(half, NAMES).read(desk)
    assert (1 - (vectors * half.encode_images(desk)).sum(-1)).abs().max() <= 1e-5
    gaps = (points - PointReader(encoder, NAMES).read(desk)[1])[..., :2].norm(dim=-1) * 48  # px
    assert gaps.median() < 0.3
    assert gaps.quantile(0.9) < 1


def test_any_projector_folds(tmp_path):
    encoder = OpenCLIPEncoder(save_open_clip(tmp_path, TINY_RESNET), precision="fp32", device="cpu", batch_size=2)
    made = projector(encoder)
    made.out.bias.data.normal_()
    made.save(tmp_path, encoder)
    same_as_apart(encoder, NOISE, ["a cup", "a plate"])


def test_an_encoder_without_a_projector_is_read_too(tiny_clip):
    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32", device="cpu", batch_size=2)  # short side to 32, middle crop
    points = same_as_apart(encoder, NOISE, ["a cup", "a plate"])
    assert points[..., 0].abs().max() < 48 / 80  # the crop
    vectors, none = PointReader(encoder, ["a cup"]).read(NOISE[:0])
    assert vectors.shape == (0, 32)
    assert none.shape == (0, 1, 3)


def test_a_frame_has_its_numbers_in_whatever_company(encoder, desk):
    """A recorded episode at once, many worlds' frames in a step, a robot's one frame: the same pixels, the same."""
    reader = PointReader(encoder, NAMES)
    vectors, points = reader.read(desk)
    for count in (1, 5):
        parts = [reader.read(batch) for batch in desk.split(count)]
        torch.testing.assert_close(torch.cat([each for each, _ in parts]), vectors, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.cat([each for _, each in parts]), points, atol=1e-4, rtol=0)


def test_a_place_does_not_depend_on_a_frames_size(encoder, desk):
    reader = PointReader(encoder, NAMES)
    large = desk.repeat_interleave(2, 1).repeat_interleave(2, 2)
    gaps = (reader.read(large)[1] - reader.read(desk)[1])[..., :2].norm(dim=-1)
    assert gaps.median() * 48 < 1  # px of 96


def test_a_place_is_the_mean_of_what_is_joined_to_the_peak():
    heat = torch.full((2, 2, 6, 6), 0.01)
    heat[0, 0, 1, 1], heat[0, 0, 1, 2], heat[0, 0, 2, 3], heat[0, 0, 5, 5] = 0.8, 0.8, 0.4, 0.7  # the last is apart
    heat[1, 1, :, 0] = heat[1, 1, 5, :] = 0.5  # long and bent
    heat[1, 1, 0, 0] = 0.6
    heat[0, 1] = 0.0
    grid = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="xy"), -1)
    found = peaks(heat, grid)
    weights = 0.8 + 0.8 + 0.4
    expected = [(0.8 * 1 + 0.8 * 2 + 0.4 * 3) / weights, (0.8 * 1 + 0.8 * 1 + 0.4 * 2) / weights, 0.8]
    torch.testing.assert_close(found[0, 0], torch.tensor(expected))
    bent = 0.6 + 0.5 * 10
    expected = [0.5 * (1 + 2 + 3 + 4 + 5) / bent, (0.5 * (1 + 2 + 3 + 4 + 5) + 0.5 * 5 * 5) / bent, 0.6]
    torch.testing.assert_close(found[1, 1], torch.tensor(expected))
    assert found.isfinite().all()
    assert found[0, 1, 2] == 0


def test_what_cannot_be_read_is_refused(encoder):
    with pytest.raises(ValueError, match=r"things must be a list of at least one name; got \[\]"):
        PointReader(encoder, [])
    with pytest.raises(ValueError, match=r"things must be a list of at least one name; got 'the tray'"):
        PointReader(encoder, "the tray")
    with pytest.raises(ValueError, match=r"encoder must be an open_clip or transformers encoder"):
        PointReader(FakeEncoder(), NAMES)


# Memory ----------------------------------------------------------------------------------------------------------

FIRST, LATER = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)


def row(*points):
    """(2, M, 3): the same points in both worlds."""
    return torch.tensor(points).expand(2, -1, -1).clone()


def test_a_thing_too_faint_keeps_its_last_place():
    memory, faint = PointMemory(), FAINT / 2
    told = memory.update(row((0.3, -0.2, 0.9), (0.9, 0.9, faint)), FIRST)
    torch.testing.assert_close(told, row((0.3, -0.2, 0.9), (0.0, 0.0, faint)))  # in the middle at first
    hidden = row((0.7, 0.7, faint), (-0.5, 0.1, FAINT))  # as faint as that counts as found
    torch.testing.assert_close(memory.update(hidden, LATER), row((0.3, -0.2, faint), (-0.5, 0.1, FAINT)))
    torch.testing.assert_close(memory.update(hidden, LATER), row((0.3, -0.2, faint), (-0.5, 0.1, FAINT)))
    told = memory.update(hidden, torch.tensor([True, False]))  # a new episode in the first world alone
    torch.testing.assert_close(told[0, 0], torch.tensor([0.0, 0.0, faint]))
    torch.testing.assert_close(told[1, 0], torch.tensor([0.3, -0.2, faint]))


def test_views_have_each_their_own_places():
    memory = PointMemory()
    memory.update(torch.stack([row((0.1, 0.2, 0.9)), row((0.5, 0.6, 0.9))], 1), FIRST)
    told = memory.update(torch.zeros(2, 2, 1, 3), LATER)
    torch.testing.assert_close(told, torch.stack([row((0.1, 0.2, 0.0)), row((0.5, 0.6, 0.0))], 1))


def test_memory_goes_on_from_its_state():
    memory, other, hidden = PointMemory(), PointMemory(), row((0.7, 0.7, 0.0))
    assert memory.get_state() == {}
    memory.update(row((0.3, -0.2, 0.9)), FIRST)
    state = memory.get_state()
    memory.update(row((0.6, 0.6, 0.9)), LATER)  # does not reach the state that was taken
    other.set_state(state)
    torch.testing.assert_close(other.update(hidden, LATER), row((0.3, -0.2, 0.0)))
    other.set_state({})
    torch.testing.assert_close(other.update(hidden, LATER), row((0.0, 0.0, 0.0)))


def test_memory_is_of_one_set_of_worlds():
    memory = PointMemory()
    memory.update(row((0.3, -0.2, 0.9)), FIRST)
    with pytest.raises(ValueError, match=r"points must be \(2, 1, 3\) and first \(2,\).*got \(1, 1, 3\) and \(1,\)"):
        memory.update(torch.zeros(1, 1, 3), FIRST[:1])


# Names -----------------------------------------------------------------------------------------------------------

CUBE, HANDLE, HAND = "the red cube", "the handle of the drawer", "the gripper"
OF_TASKS = {
    "desk-reach": [CUBE, HAND],
    "desk-push": [CUBE, "the yellow mark", HAND],
    "desk-press": ["the button", HAND],
    "desk-drawer": ["the drawer", HANDLE, HAND],
    "desk-close": ["the drawer", HANDLE, HAND],
    "desk-lift": [CUBE, HAND],
    "desk-place": [CUBE, "the tray", HAND],
    "desk-stack": [CUBE, "the green cube", HAND],
    "cartpole": ["the pole", HAND],
    **{f"reacher-{colour}": [f"the {colour} ball", HAND] for colour in ("red", "green", "blue", "yellow")},
    **{f"humanoid-{posture}": [HAND] for posture in ("stand", "kneel", "lie")},
    "humanoid-sit": ["the floor", HAND],
    "humanoid-arms": ["the arms", HAND],
    "humanoid-leg": ["the leg", HAND],
    "drive-town": ["the route", "the town", "the accident", HAND],
}


@pytest.mark.parametrize("name", WORLDS)
def test_every_task_names_its_things(name, encoder):
    world = gymnasium.make(world_id(name)).unwrapped
    assert things(world.instruction, encoder) == OF_TASKS[name]
    world.close()


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ("the red cube is in the tray", [CUBE, "the tray"]),
        ("Please put the blue block into the bin, then close the drawer.",
         ["the blue block", "the bin", "the drawer", HANDLE]),
        ("the cube that is red was pushed onto the yellow mark", [CUBE, "the yellow mark"]),
        ("red cube sitting on a yellow target", [CUBE, "the yellow target"]),
        ("put the cube in red tray", ["the cube", "the red tray"]),
        ("the drawer of the desk isn't closed any more", ["the drawer of the desk", HANDLE]),
        ("a pulled out drawer", ["the drawer", HANDLE]),
        ("pull the handle of the drawer", [HANDLE]),
        ("the arm holds the button in its lowest position", ["the button"]),
        ("give the button a push", ["the button"]),
        ("the switch has been pushed in by the robot's hand", ["the switch"]),
        ("see to it that the gripper touches the red cube", [CUBE]),
        ("the tip of the arm touches the red ball", ["the red ball"]),
        ("the two fingers are around the red cube in mid-air", [CUBE]),
        ("the red cube hangs in the end effector", [CUBE]),
        ("pole vertically upright on top of the cart", ["the pole", "the cart"]),
        ("the pole is balanced", ["the pole"]),
        ("the red cube is suspended above the table", [CUBE, "the table"]),
        ("wipe the table", ["the table"]),
        ("the robot nudges the banana towards the bowl", ["the banana", "the bowl"]),  # a verb and nouns of nowhere
        ("unscrew the lid of the jar and pour water into the washing machine",
         ["the lid of the jar", "the water", "the washing machine"]),
        ("open the top drawer and close the left door",
         ["the top drawer", "the handle of the top drawer", "the left door", "the handle of the left door"]),
        ("open the microwave door", ["the microwave door", "the handle of the microwave door"]),
    ],
)  # fmt: skip
def test_paraphrases_name_their_things(goal, expected, encoder):
    assert things(goal, encoder) == [*expected, HAND]


def test_the_robots_part_has_the_name_that_one_gives_it(encoder):
    assert things("the hand is at the button", encoder, robot="the suction cup") == ["the button", "the suction cup"]


def test_a_name_longer_than_the_encoder_reads_is_refused(encoder):
    with pytest.raises(ValueError, match=r"at most 32 tokens"):
        things("touch the " + "tiny " * 40 + "cube", encoder)
