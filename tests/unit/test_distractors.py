"""What moves behind a scene: the same each time, never before what counts, and resumed where it was."""

from functools import partial

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from embodied.building.worlds import env_maker
from embodied.datasets.video import write_video
from embodied.envs.bridge import make
from embodied.envs.distractors import Distracted, Distractors
from embodied.envs.rendering import FrameRenderer
from embodied.envs.vector import WorldVecEnv
from embodied.errors import UserError

NAMES = ("cartpole", "desk-drawer", "reacher-red", "humanoid-stand")


def world(name="cartpole", distractors=None, obs="pixels", size=32):
    read = Distractors.read(distractors)
    env = make(name, obs=obs, image_size=size)
    return env if read is None else Distracted(env, read)


def episode(env, seed=0, steps=3):
    frames = [env.reset(seed=seed)[0]]
    return [*frames, *(env.step(np.full(env.action_space.shape, 0.5, np.float32))[0] for _ in range(steps))]


@pytest.mark.parametrize("name", NAMES)
def test_the_foreground_is_untouched_and_the_background_is_not(name):
    plain, moving = world(name, size=96), world(name, "moving", size=96)
    one, other, behind = episode(plain)[-1], episode(moving)[-1], moving.unwrapped.backdrop()
    assert other.dtype == np.uint8
    assert other.flags.c_contiguous
    np.testing.assert_array_equal(other, moving.frame())
    assert 0.02 < behind.mean() < 0.98
    np.testing.assert_array_equal(one[~behind], other[~behind])
    assert (one[behind] != other[behind]).any(-1).mean() > 0.9
    plain.close()
    moving.close()


def test_episodes_are_the_same_each_time_and_differ_from_each_other():
    one, other = world(distractors="moving", size=96), world(distractors="moving", size=96)
    first, again, second = episode(one), episode(other), episode(one, seed=None)
    np.testing.assert_array_equal(first, again)
    behind = one.unwrapped.backdrop()
    assert (first[0] != second[0])[behind].any(-1).mean() > 0.9
    assert (first[0] != first[1])[behind].any(-1).mean() > 0.5  # it moves
    still = episode(world(distractors="still", size=96), steps=2)
    assert (still[0] == still[2])[behind].mean() > 0.9  # but for what the pole uncovers


def test_starts_actions_and_rewards_are_the_worlds_own():
    plain, moving = (
        world(obs="state"),
        world(distractors={"background": "moving", "light": 0.5, "camera": 0.3}, obs="state"),
    )
    for env in (plain, moving):
        env.reset(seed=4)
    for _ in range(4):
        one, other = (env.step(np.array([0.3], np.float32)) for env in (plain, moving))
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:] == other[1:]


def test_light_and_camera_shift_by_as_much_as_said():
    plain, dark, turned = world(), world(distractors={"light": 0.5}), world(distractors={"camera": 0.3})
    (a, *_), (b, *_), (c, *_) = (episode(env, steps=0) for env in (plain, dark, turned))
    assert b.mean() == pytest.approx(a.mean() / 2, rel=0.05)
    assert (a != c).any(-1).mean() > 0.2
    at, moved = (env.unwrapped.model.cam_pos[0] for env in (plain, turned))
    assert moved[2] == at[2]  # round the vertical
    ahead, turned_ahead = (env.unwrapped.data.cam_xmat[0].reshape(3, 3)[:, 2] for env in (plain, turned))
    assert np.arccos(ahead[:2] @ turned_ahead[:2] / (ahead[:2] @ ahead[:2])) == pytest.approx(0.3, abs=1e-6)
    back = world(distractors={"camera": 0.0})
    np.testing.assert_array_equal(episode(back, steps=0)[0], a)


def test_light_and_camera_shift_each_look_that_an_episode_draws():
    def frames(distractors):
        env = make("cartpole", obs="pixels", image_size=96, looks=[5, 8])
        env = env if distractors is None else Distracted(env, Distractors.read(distractors))
        seen = [env.reset(seed=seed)[0].astype(int) for seed in (3, 4, 5, 6, 3)]
        env.unwrapped.set_state(env.unwrapped.get_state())
        seen.append(env.unwrapped.frame().astype(int))
        env.close()
        return seen

    plain, dark, turned = frames(None), frames({"light": 0.5}), frames({"camera": 0.3})
    assert (plain[0] != plain[1]).any()
    for one, dim, led in zip(plain, dark, turned, strict=True):
        assert dim.mean() == pytest.approx(one.mean() / 2, rel=0.1)  # what was too bright to show is darkened by less
        assert (one != led).any(-1).mean() > 0.2
    np.testing.assert_array_equal(dark[0], dark[4])  # it does not add up
    np.testing.assert_array_equal(turned[4], turned[5])


def test_small_frames_are_averaged_from_larger_ones():
    """A thin pole would fall between the samples; before a background too, whose edges mix with the scene's."""
    for distractors in (None, "moving"):
        env = world(distractors=distractors)
        env.reset(seed=1)
        frame = env.get_wrapper_attr("frame")
        finer = frame(image_size=96).reshape(32, 3, 32, 3, 3).mean((1, 3))
        if distractors is None:  # a background is made for its size
            np.testing.assert_allclose(frame(), finer, atol=0.5)
        else:
            scene = ~env.unwrapped.backdrop(None, 96).reshape(32, 3, 32, 3).any((1, 3))
            np.testing.assert_allclose(frame()[scene], finer[scene], atol=0.5)
        assert frame(image_size=40).shape == (40, 40, 3)
        env.close()


@pytest.mark.parametrize("obs", ["pixels", "mixed"])
def test_what_is_seen_is_rendered_once(obs, monkeypatch):
    env, frame, count = world("cartpole", "moving", obs=obs, size=96), FrameRenderer.frame, [0]

    def counted(*args):
        count[0] += 1
        return frame(*args)

    monkeypatch.setattr(FrameRenderer, "frame", counted)
    seen = env.reset(seed=0)[0]
    assert count == [1]
    np.testing.assert_array_equal(seen["pixels"] if obs == "mixed" else seen, env.frame())
    env.close()


def test_a_folder_of_films_and_pictures_is_shown(tmp_path):
    (tmp_path / "words.txt").write_text("no picture")
    film = np.zeros((6, 64, 64, 3), np.uint8)
    film[..., 0] = 40 * np.arange(6)[:, None, None]
    write_video(tmp_path / "film.mp4", film, 10)
    env = world(distractors=str(tmp_path))
    behind = [frame[env.unwrapped.backdrop()].mean(0) for frame in episode(env, steps=10)]
    reds = np.array([red for red, _, _ in behind])
    assert np.abs(np.diff(reds)).max() == pytest.approx(40, abs=8)  # there and back, a frame a step
    (tmp_path / "film.mp4").unlink()
    Image.new("RGB", (80, 40), (10, 200, 30)).save(tmp_path / "picture.png")
    shown = episode(world(distractors=str(tmp_path)), steps=1)[1]
    np.testing.assert_array_equal(np.median(shown.reshape(-1, 3), 0), [10, 200, 30])


def test_worlds_resume_in_the_middle_of_a_film():
    venv = WorldVecEnv(partial(world, distractors="moving"), 2, seed=3)
    try:
        venv.reset()
        action = np.full((2, 1), 0.2, np.float32)
        for _ in range(3):
            venv.step(action)
        states = venv.get_states()
        expected = [venv.step(action)[0].copy() for _ in range(2)]
        venv.reset()
        venv.set_states(states)
        for frame in expected:
            np.testing.assert_array_equal(venv.step(action)[0], frame)
    finally:
        venv.close()


def test_mixed_observations_and_pictures_for_people_show_it_too():
    env = world(distractors="moving", obs="mixed")
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs["pixels"], env.frame())
    assert set(obs) == {"pixels", "agent_pos"}
    assert (env.render() != env.unwrapped.render()).any(-1).mean() > 0.3


def test_the_config_reaches_the_world():
    config = OmegaConf.create({"env": {"id": "cartpole", "obs": "pixels", "image_size": 32, "distractors": "moving"}})
    env = env_maker(config)()
    np.testing.assert_array_equal(env.reset(seed=0)[0], episode(world(distractors="moving"), steps=0)[0])
    assert Distractors.read("none") is Distractors.read(None) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "must be a background or a mapping of background, light, camera, readings; got 3"),
        ({"lights": 0.5}, "no 'lights' here. Choose from background, camera, light, readings; did you mean light?"),
        ({"light": -1}, "light must be at least 0; got -1"),
        ({"camera": "left"}, "camera must be a number; got 'left'"),
        ("movin", "background must be moving, still, or a folder of films and pictures; got 'movin'"),
    ],
)
def test_what_is_no_distractor_is_refused(value, words):
    with pytest.raises(UserError, match=f"env.distractors: {words}|env.distractors {words}"):
        Distractors.read(value)


def test_only_our_worlds_know_what_stands_behind():
    with pytest.raises(UserError, match="only our own worlds"):
        Distracted(make("CartPole-v1"), Distractors(background="moving"))


def test_idle_readings_swing_beside_the_worlds_own():
    plain, swinging = world(obs="state"), world(obs="state", distractors={"readings": 6})
    assert swinging.observation_space.shape == (11,)
    one, other = episode(plain, steps=60), episode(swinging, steps=60)
    np.testing.assert_array_equal(np.stack(one), np.stack(other)[:, :5])
    idle = np.stack(other)[:, 5:]
    assert idle.dtype == np.float32
    assert (idle.std(0) > 0.5).all()
    assert np.abs(idle).max() <= np.sqrt(2) + 1e-6
    assert np.abs(np.diff(idle, axis=0)).max() < 1.2  # they do not jump
    again, next_one = episode(world(obs="state", distractors={"readings": 6}), steps=2), episode(swinging, None, 2)
    np.testing.assert_array_equal(np.stack(again), np.stack(other)[:3])
    assert np.abs(np.stack(next_one)[:, 5:] - idle[:3]).max() > 0.5


@pytest.mark.parametrize(("obs", "readings", "error"), [
    ("pixels", 4, "readings must be 0 unless env.obs=state; got 4 beside env.obs=pixels"),
    ("state", -1, "readings must be a number of them, at least 0; got -1"),
    ("state", 2.5, "readings must be a number of them, at least 0; got 2.5"),
])  # fmt: skip
def test_idle_readings_that_cannot_be_are_refused(obs, readings, error):
    with pytest.raises(UserError, match=error):
        world(obs=obs, distractors={"readings": readings})
