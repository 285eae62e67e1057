"""Whatever a world renders is one kind of picture for a reward model, or a refusal; and any world can be scored."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from embodied.envs.bridge import make
from embodied.envs.pictures import picture
from embodied.envs.vector import WorldVecEnv
from embodied.envs.wrappers import ScoredEnv
from embodied.errors import UserError
from rewards.clip_goal import clip_scorer
from tests.fakes import FakeEncoder

PLAIN = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
ALPHA = np.dstack([PLAIN, np.full((6, 9), 7, np.uint8)])
GREY = np.repeat(PLAIN[..., :1], 3, -1)


@pytest.mark.parametrize(
    ("rendered", "expected"),
    [
        (PLAIN, PLAIN),
        (PLAIN[::-1], PLAIN[::-1]),  # MuJoCo's have negative strides
        ([np.zeros_like(PLAIN), PLAIN], PLAIN),  # rgb_array_list: the newest is the last
        (ALPHA, PLAIN),
        (PLAIN[..., 0], GREY),
        (PLAIN[..., :1], GREY),
        (PLAIN.astype(np.int64), PLAIN),
        (PLAIN.astype(np.uint16), PLAIN),
        (PLAIN / 255, PLAIN),
        ((PLAIN / 255).astype(np.float32), PLAIN),
        (PLAIN > 127, np.where(PLAIN > 127, np.uint8(255), np.uint8(0))),
        (Image.fromarray(PLAIN), PLAIN),
        (None, None),
        ([], None),
        ("a drawing in letters", None),
        (PLAIN.astype(np.float32), None),  # from 0 to 255: a dark one would be taken for a bright one
        (PLAIN.astype(np.int32) - 1, None),
        (PLAIN.astype(np.uint16) * 257, None),  # 16 bits are not cut off at 255
        (np.full((6, 9, 3), np.nan), None),
        (PLAIN[None], None),
        (PLAIN.transpose(2, 0, 1), None),
        (np.zeros((0, 9, 3), np.uint8), None),
        (PLAIN.astype(complex), None),
    ],
)
def test_a_picture_is_what_was_rendered_or_refused_with_the_worlds_name(rendered, expected):
    if expected is None:
        with pytest.raises(UserError, match=r"^Mine-v0: render\(\) must give"):
            picture(rendered, "Mine-v0")
        return
    found = picture(rendered, "Mine-v0")
    assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(found, expected)


class Screen(gymnasium.Env):
    """Renders what it is given."""

    metadata = {"render_modes": ["rgb_array", "rgb_array_list"]}  # noqa: RUF012
    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(2)

    def __init__(self, rendered=None, render_mode=None):
        self.rendered, self.render_mode = rendered, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        return self.rendered


gymnasium.register("Screen-v0", entry_point=Screen, max_episode_steps=5)


def test_the_bridge_shows_any_form_of_picture_alike():
    seen = []
    for rendered in (PLAIN, [PLAIN], ALPHA, PLAIN / 255):
        env = make("Screen-v0", rendered=rendered)
        env.reset(seed=0)
        seen.append(env.get_wrapper_attr("frame")(image_size=4))
        assert seen[-1].shape == (4, 4, 3)
        np.testing.assert_array_equal(seen[-1], seen[0])
    env = make("Screen-v0")
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"Screen-v0: render\(\) must give a picture; it gave NoneType"):
        env.get_wrapper_attr("frame")()


def test_the_first_script_anyone_writes_scores_what_render_shows():
    encoder = FakeEncoder()
    scorer = clip_scorer(encoder=encoder, goal="up")
    env = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    scored = ScoredEnv(env, scorer)
    scored.reset(seed=0)
    for _ in range(3):
        _, reward, _, _, info = scored.step(1)
        shown = Image.fromarray(env.render()).resize((8, 8), Image.Resampling.BOX)
        direct = float(scorer.score(torch.from_numpy(np.array(shown)[None]))[0])
        assert info["reward/clip"] == pytest.approx(direct, abs=1e-6)
        assert info["env_reward"] == 1.0
    assert np.isfinite(reward)
    scored.close()


def test_the_same_frames_at_the_wrapper_the_vector_and_the_bridge():
    frames = []
    for maker in (lambda: Screen(PLAIN, "rgb_array"), lambda: make("Screen-v0", rendered=PLAIN)):
        venv = WorldVecEnv(maker, 1, frame_size=4)
        venv.reset()
        frames.append(venv.reset_frames[0, 0].copy())
        venv.close()
    np.testing.assert_array_equal(frames[0], frames[1])


def test_a_world_that_renders_nothing_is_refused_before_it_is_played():
    scorer = clip_scorer(encoder=FakeEncoder(), goal="up")
    with pytest.raises(UserError, match=r'CartPole-v1 must have pictures.*render_mode="rgb_array"'):
        ScoredEnv(gymnasium.make("CartPole-v1"), scorer)
    with pytest.raises(UserError, match=r"Screen has no frame.*does not render"):
        WorldVecEnv(Screen, 1, frame_size=4)
