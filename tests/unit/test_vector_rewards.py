"""Many worlds' rewards in one step are those of each world's episodes by themselves, and stay on the device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from embodied.envs.gpu import (
    maniskill_frames,
    maniskill_reward,
    mjlab_frames,
    mjlab_reward,
    torchrl_reward,
)
from rewards.clip_goal import ClipGoal
from rewards.combine import LagrangianConstraints, Synthesis, WeightedSum
from rewards.comparisons import Comparisons
from rewards.compose import composed_scorer
from rewards.core import Episode, Features, Scorer
from rewards.demonstration import Demonstration
from rewards.goal_image import GoalDiscriminators
from rewards.preference import PreferenceReward
from rewards.process import ProcessReward
from rewards.rapl import RAPL
from rewards.shaping import PotentialShaping
from rewards.success import fit_success
from rewards.vector import VectorScorer, merged, on_device
from rewards.vpl import LatentUser, VPLReward
from rewards.xirl import XIRL
from tests.fakes import FakeEncoder

WORLDS, STEPS, SIZE = 5, 14, 8


def film(steps: int, seed: int) -> torch.Tensor:
    """A picture that turns into another one."""
    first, last = torch.rand(2, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(steps, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(seed))
    way = torch.linspace(0, 1, steps)[:, None, None, None]
    return (255 * (0.9 * (first + way * (last - first)) + 0.1 * noise)).to(torch.uint8)


def episodes(encoder: FakeEncoder, count: int = 6) -> list[Episode]:
    made = []
    for k in range(count):
        shown = film(12, k)[torch.arange(12).clamp(max=11 if k < count // 2 else 4)]
        features = Features(views={"main": encoder.encode_images(shown)[None]})
        made.append(Episode(features=features, instruction="a", success=k < count // 2))
    return made


def scorer(name: str) -> Scorer:
    encoder = FakeEncoder()
    demos = episodes(encoder)
    good = [demo for demo in demos if demo.success]
    rows = {"main": torch.cat([demo.features.main[0] for demo in good])}
    shaping = PotentialShaping(kind="difference", discount=0.9)
    if name == "preference":
        first, second = (torch.stack([demo.features.main[0, k : k + 4] for demo in good]) for k in (0, 8))
        users = torch.zeros(len(good), dtype=torch.long)
        pairs = Comparisons({"main": first}, {"main": second}, torch.ones(len(good)), users)
        head = PreferenceReward(pairs, rows, members=2, epochs=3)
    else:
        head = {
            "clip": lambda: ClipGoal("a", encoder=encoder),
            "demonstration": lambda: Demonstration.fit(good, sequenced=True),
            "process": lambda: ProcessReward.fit(good, encoder=encoder),
            "xirl": lambda: XIRL.fit(good),
            "rapl": lambda: RAPL.fit(good),
            "success": lambda: fit_success(demos, encoder=encoder, hold=2, output="sparse"),
            "probability": lambda: fit_success(demos, encoder=encoder, output="probability"),
            "goal_image": lambda: GoalDiscriminators(
                {"main": rows["main"][-3:]}, {"main": rows["main"][:20]}, members=2, steps=5
            ),
        }[name]()
    return Scorer(encoder, {name: head}, WeightedSum(), shaping)


def composed() -> Scorer:
    both = scorer("demonstration"), scorer("clip")
    parts = {
        "way": Scorer(both[0].encoder, both[0].heads, WeightedSum(), both[0].shaping),
        "text": Scorer(both[0].encoder, both[1].heads, WeightedSum(), both[0].shaping),
    }
    return composed_scorer(encoder=both[0].encoder, parts=parts, shaping={"kind": "difference", "discount": 0.9})


HEADS = ("clip", "demonstration", "process", "xirl", "success", "probability", "goal_image", "preference")


class Worlds:
    """Worlds whose episodes end at times of their own; each shows its own film."""

    def __init__(self, *, autoreset: bool = True) -> None:
        rng = torch.Generator().manual_seed(5)
        self.autoreset = autoreset
        self.films: list[list[torch.Tensor]] = []  # of each world, its episodes' frames: T + 1 of T actions
        self.ends: list[list[bool]] = []  # whether each was a termination
        for world in range(WORLDS):
            lengths, ended = [], []
            while sum(lengths) < STEPS:
                lengths.append(int(torch.randint(1, 6, (), generator=rng)))
                ended.append(bool(torch.rand((), generator=rng) < 0.5))
            self.films.append([film(n + 1, 100 * world + k) for k, n in enumerate(lengths)])
            self.ends.append(ended)
        self.at = [[0, 0] for _ in range(WORLDS)]  # episode and frame of each

    def frames(self) -> torch.Tensor:
        return torch.stack([self.films[w][episode][row] for w, (episode, row) in enumerate(self.at)])

    def step(self):
        """Frames now, done, terminated, and frames before any reset."""
        done, terminated = torch.zeros(WORLDS, dtype=torch.bool), torch.zeros(WORLDS, dtype=torch.bool)
        for w, place in enumerate(self.at):
            place[1] += 1
            if place[1] == len(self.films[w][place[0]]) - 1:
                done[w], terminated[w] = True, self.ends[w][place[0]]
        final = self.frames()
        if self.autoreset:
            self.reset(done)
        return self.frames(), done, terminated, final

    def reset(self, done: torch.Tensor) -> None:
        for w in done.nonzero()[:, 0].tolist():
            self.at[w] = [min(self.at[w][0] + 1, len(self.films[w]) - 1), 0]

    def expected(self, scorer: Scorer) -> torch.Tensor:
        """(E, STEPS): each episode scored by itself."""
        rows = []
        for films, ends in zip(self.films, self.ends, strict=True):
            paid = []
            for shown, ended in zip(films, ends, strict=True):
                terminated = torch.zeros(1, len(shown) - 1, dtype=torch.bool)
                terminated[0, -1] = ended
                paid.append(scorer.rewards(Features(views={"main": scorer.encode(shown)[None]}), terminated)[0])
            rows.append(torch.cat(paid)[:STEPS])
        return torch.stack(rows)


@pytest.fixture(scope="module", params=[*HEADS, "composed"])
def made(request):
    return composed() if request.param == "composed" else scorer(request.param)


def test_worlds_that_reset_themselves_are_paid_what_their_episodes_earn(made):
    worlds, vector = Worlds(), VectorScorer(made, WORLDS)
    expected = worlds.expected(made)
    assert expected.std() > 1e-4
    vector.reset(worlds.frames())
    found = []
    for _ in range(STEPS):
        frames, done, terminated, final = worlds.step()
        found.append(vector.step(frames, done, terminated=terminated, final=final if done.any() else None))
    vector.check()
    assert_close(torch.stack(found, 1), expected, rtol=1e-4, atol=1e-5)


def test_worlds_that_are_reset_by_others(made):
    worlds, vector = Worlds(autoreset=False), VectorScorer(made, WORLDS, autoreset=False)
    expected = worlds.expected(made)
    vector.reset(worlds.frames())
    found = []
    for _ in range(STEPS):
        frames, done, terminated, _ = worlds.step()
        found.append(vector.step(frames, done, terminated=terminated))
        if done.any():
            worlds.reset(done)
            vector.reset(worlds.frames(), vector.unknown)
    assert_close(torch.stack(found, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("latent", [3, WORLDS])
def test_each_world_keeps_the_user_that_its_episode_drew(latent):
    encoder, worlds = FakeEncoder(), Worlds()
    rows = {"main": torch.cat([demo.features.main[0] for demo in episodes(encoder)])}
    networks = LatentUser(rows, latent=latent, hidden=16, seed=0)
    networks.prior_log_variance.data.fill_(4.0)  # users who differ
    made = Scorer(encoder, {"vpl": VPLReward(networks, rows, resample=True)}, WeightedSum(), PotentialShaping())
    vector, found = VectorScorer(made, WORLDS), []
    vector.reset(worlds.frames())
    expected = worlds.expected(made)
    for _ in range(STEPS):
        frames, done, terminated, final = worlds.step()
        found.append(vector.step(frames, done, terminated=terminated, final=final if done.any() else None))
    assert_close(torch.stack(found, 1), expected, rtol=1e-4, atol=1e-5)


def test_a_drawn_user_is_on_the_device_of_the_head():
    rows = {"main": torch.randn(6, 8, generator=torch.Generator().manual_seed(0))}
    head = VPLReward(LatentUser(rows, latent=2, hidden=4, seed=0), rows, resample=True)
    moved = on_device(head, torch.device("meta"))
    assert moved._latent({"main": rows["main"][0]}).device.type == "meta"


def test_without_the_last_frame_a_potential_is_taken_to_stay():
    made, worlds = scorer("clip"), Worlds()
    vector = VectorScorer(made, WORLDS)
    vector.reset(worlds.frames())
    ended = 0
    for _ in range(STEPS):
        before = vector.potential.clone()
        frames, done, terminated, _ = worlds.step()
        rewards = vector.step(frames, done, terminated=terminated)
        stays = made.shaping(before, before, terminated)
        assert_close(rewards[done], stays[done])
        ended += int(done.sum())
    assert ended > 3


def test_the_last_frame_is_scored_with_its_own_readings():
    """A collision that ends an episode is punished, though the sensor reads nothing after the reset."""
    made = scorer("clip")
    made = Scorer(made.encoder, made.heads, Synthesis(limits={}, penalty="collision"), PotentialShaping())
    vector, shown = VectorScorer(made, WORLDS), torch.stack([film(3, w) for w in range(WORLDS)], 1)
    calm, done = torch.zeros(WORLDS), torch.arange(WORLDS) == 1
    vector.reset(shown[0], signals={"collision": calm})
    hit = {"collision": torch.where(done, -10.0, 0.0)}
    given = {"terminated": done, "final": shown[2], "signals": {"collision": calm}}
    with pytest.raises(ValueError, match=r"final_signals must be given where both .*; got final, signals"):
        vector.step(shown[1], done, **given)
    with pytest.raises(ValueError, match=r"final_signals must be given where both .*; got signals, final_signals"):
        vector.step(shown[1], done, signals={"collision": calm}, final_signals=hit)
    paid = vector.step(shown[1], done, **given, final_signals=hit)
    assert (paid == -10).tolist() == done.tolist()
    assert vector.potential.min() > -1  # the next episode has not collided


def test_every_third_step_is_scored():
    made, frames = scorer("clip"), [film(9, w) for w in range(WORLDS)]
    encoder: FakeEncoder = made.encoder
    vector, never = VectorScorer(made, WORLDS, every=3), torch.zeros(WORLDS, dtype=torch.bool)
    vector.reset(torch.stack([each[0] for each in frames]))
    encoder.encoded, paid = 0, []
    for t in range(1, 9):
        paid.append(vector.step(torch.stack([each[t] for each in frames]), never))
    assert encoder.encoded == 2 * WORLDS
    potential = torch.stack([made.score(each) for each in frames])[:, [0, 0, 0, 3, 3, 3, 6, 6, 6]]
    expected = made.shaping(potential[:, :-1], potential[:, 1:], torch.zeros(WORLDS, 8, dtype=torch.bool))
    assert_close(torch.stack(paid, 1), expected)
    done = never.clone()
    done[2] = True
    vector.step(torch.stack([each[0] for each in frames]), done)  # the 9th step: scored
    vector.step(torch.stack([each[1] for each in frames]), done)  # reset in between
    assert torch.isnan(vector.potential).tolist() == done.tolist()
    assert vector.step(torch.stack([each[2] for each in frames]), never)[2] == 0
    assert vector.step(torch.stack([each[3] for each in frames]), never)[2] == 0  # its first scored frame
    assert not torch.isnan(vector.potential).any()


# The device ---------------------------------------------------------------------------------------------------


class Watched(TorchDispatchMode):
    """Names what would wait for a device or leave it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        target = (kwargs or {}).get("device")
        moved = name == "_to_copy" and target is not None and args[0].device != torch.device(target)
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique2") or moved:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("final", [False, True])
def test_a_step_is_one_encode_and_waits_for_nothing(made, final):
    calls, encoder = [], made.encoder
    vector = VectorScorer(made, WORLDS)
    shown = torch.stack([film(4, w) for w in range(WORLDS)], 1)
    done = torch.arange(WORLDS) % 2 == 0
    vector.reset(shown[0])
    vector.step(shown[1], done)
    encode = encoder.encode_images

    def counted(frames):
        calls.append(len(frames))
        return encode(frames)

    encoder.encode_images = counted
    try:
        with Watched() as watched:
            vector.step(shown[2], done, terminated=done, final=shown[3] if final else None)
    finally:
        del encoder.encode_images
    assert calls == [WORLDS * (2 if final else 1)]
    assert watched.waits == []
    with Watched() as watched:  # the instrument sees one where there is one
        vector.check()
    assert watched.waits


def test_on_another_device_no_head_touches_the_cpu(made):
    """A stand-in for a GPU: tensors without values, which cannot be read, copied to the CPU or mixed."""
    encoder = made.encoder
    frames = torch.zeros(WORLDS, SIZE, SIZE, 3, dtype=torch.uint8, device="meta")
    done = torch.zeros(WORLDS, dtype=torch.bool, device="meta")
    projection = encoder.projection.to("meta")

    def encode(shown):
        assert shown.device.type == "meta"
        return torch.nn.functional.normalize(shown.flatten(1).float() @ projection, dim=-1)

    encoder.encode_images = encode
    try:
        vector = VectorScorer(made, WORLDS)
        vector.reset(frames)
        for final in (None, frames):
            rewards = vector.step(frames, done, terminated=done, final=final)
            assert rewards.device.type == "meta"
            assert rewards.shape == (WORLDS,)
        with pytest.raises((NotImplementedError, RuntimeError)):  # the instrument refuses what it should
            _ = encode(frames).cpu()
        with pytest.raises(RuntimeError):
            _ = encode(frames) + torch.ones(WORLDS, encoder.dim)
    finally:
        del encoder.encode_images


def test_a_potential_that_is_no_number_is_found_when_asked():
    class Bad:
        name, pointwise = "bad", True

        def score(self, features):
            return features.main[..., 0] / 0 * 0

    vector = VectorScorer(Scorer(FakeEncoder(), {"bad": Bad()}, WeightedSum(), PotentialShaping()), 2)
    vector.check()
    vector.step(torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(FloatingPointError, match="gave NaN or infinity"):
        vector.check()


def test_what_cannot_be_scored_row_by_row_is_refused():
    class Whole:
        name = "whole"

        def score(self, features):
            return features.main[..., 0]

    class Looks(Whole):
        name, frames_read, pointwise = "looks", "all", True

    for head in (Whole(), Looks()):
        with pytest.raises(ValueError, match=f"row by row, on features alone; {head.name} read"):
            VectorScorer(Scorer(FakeEncoder(), {head.name: head}, WeightedSum(), PotentialShaping()), 2)
    with pytest.raises(ValueError, match="worlds and every must be at least 1"):
        VectorScorer(scorer("clip"), 0)
    vector = VectorScorer(scorer("clip"), 2)
    with pytest.raises(ValueError, match=r"frames must be uint8 \(2, H, W, 3\); got uint8 \(3, 8, 8, 3\) of main"):
        vector.reset(torch.zeros(3, SIZE, SIZE, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="there must be a scored frame first"):
        _ = vector.potential


def test_a_memory_of_one_length_for_all_worlds_is_refused():
    """RAPL remembers every row since the reset: worlds of several ages do not fit into one tensor."""
    vector = VectorScorer(scorer("rapl"), 2)
    frames, never = torch.stack([film(4, w) for w in range(2)], 1), torch.zeros(2, dtype=torch.bool)
    vector.reset(frames[0])
    with pytest.raises(ValueError, match="head rapl must remember"):
        vector.step(frames[1], never)
    assert merged(never, None, None, "none") is None


@pytest.mark.parametrize("inside", [False, True])
def test_multipliers_that_learn_are_followed(inside):
    """Of the whole scorer, and of a part of it."""
    learner = LagrangianConstraints({"clip": 3.0}, rate=0.5, start=0.5)
    plain = scorer("clip")
    made = Scorer(plain.encoder, plain.heads, learner, PotentialShaping())
    if inside:
        made = composed_scorer(encoder=plain.encoder, parts={"part": made})
    vector, frames = VectorScorer(made, WORLDS), torch.stack([film(2, w)[1] for w in range(WORLDS)])
    vector.reset(frames)
    before = vector.potential.clone()
    learner.update({"clip": 2.0})
    vector.reset(frames)
    assert_close(vector.potential, 2 * before)


# Libraries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_reset", [True, False])
def test_maniskill(auto_reset):
    """`ManiSkillVectorEnv`'s documented shapes: sensor_data/<camera>/rgb, final_observation where a world was reset."""
    made, worlds = scorer("demonstration"), Worlds(autoreset=auto_reset)
    expected = worlds.expected(made)
    vector = VectorScorer(made, WORLDS, autoreset=auto_reset)

    def obs(frames):
        return {"state": torch.zeros(WORLDS, 3), "sensor_data": {"base_camera": {"rgb": frames}}}

    vector.reset(maniskill_frames(obs(worlds.frames()), ["base_camera"]))
    found = []
    for _ in range(STEPS):
        frames, done, terminated, final = worlds.step()
        infos = {"final_observation": obs(final), "_final_observation": done} if auto_reset and done.any() else {}
        said = obs(frames), terminated, done & ~terminated, infos
        found.append(maniskill_reward(vector, *said, cameras=["base_camera"]))
        if not auto_reset and done.any():
            worlds.reset(done)
            vector.reset(maniskill_frames(obs(worlds.frames()), ["base_camera"]), vector.unknown)
    assert_close(torch.stack(found, 1), expected, rtol=1e-4, atol=1e-5)


def test_mjlab():
    """`ManagerBasedRlEnv`'s documented shapes: env.scene[<camera>].data.rgb."""
    made, worlds = scorer("demonstration"), Worlds(autoreset=False)
    expected, scene = worlds.expected(made), {}
    env = SimpleNamespace(scene=scene)
    vector = VectorScorer(made, WORLDS, autoreset=False)

    def show():
        scene["wrist"] = SimpleNamespace(data=SimpleNamespace(rgb=worlds.frames(), depth=None))

    show()
    vector.reset(mjlab_frames(env, ["wrist"]))
    found = []
    for _ in range(STEPS):
        _, done, terminated, _ = worlds.step()
        show()
        found.append(mjlab_reward(vector, env, terminated, done & ~terminated, cameras=["wrist"]))
        worlds.reset(done)
        show()
        vector.reset(mjlab_frames(env, ["wrist"]), vector.unknown)
    assert_close(torch.stack(found, 1), expected, rtol=1e-4, atol=1e-5)


def test_torchrl():
    """TorchRL's documented step: next holds pixels before a reset, done and terminated of shape (E, 1)."""
    made, worlds = scorer("demonstration"), Worlds(autoreset=False)
    expected = worlds.expected(made)
    vector = VectorScorer(made, WORLDS, autoreset=False)
    root = {"pixels": worlds.frames()}
    vector.reset({"pixels": root["pixels"]})
    found = []
    for _ in range(STEPS):
        frames, done, terminated, _ = worlds.step()
        after = {"pixels": frames, "done": done[:, None], "terminated": terminated[:, None]}
        step = torchrl_reward(vector, {**root, "next": {**after, "reward": torch.zeros(WORLDS, 1)}})
        assert step["next"]["reward"].shape == (WORLDS, 1)
        found.append(step["next"]["reward"][:, 0])
        worlds.reset(done)
        root = {"pixels": worlds.frames()}
        if done.any():
            vector.reset({"pixels": root["pixels"]}, vector.unknown)
    assert_close(torch.stack(found, 1), expected, rtol=1e-4, atol=1e-5)
