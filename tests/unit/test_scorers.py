"""From a config to a scorer: what the world and its data fill in."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from embodied.building import build
from embodied.building.goals import any_open, told_goals, with_goal
from embodied.building.scorers import COMPOSED, Shared, keep_fitted, kept, make_scorer, reward_name
from embodied.building.worlds import env_maker
from embodied.collecting import opening
from embodied.config import compose
from embodied.datasets import encoding
from embodied.envs.bridge import make
from embodied.errors import UserError
from embodied.literal import resolved
from embodied.training.stage import Stage
from rewards.calibration import Decision
from rewards.compose import composed_scorer
from rewards.core import Episode, Features
from rewards.encoders import OpenCLIPEncoder
from rewards.success import SuccessClassifier
from rewards.xirl import XIRL
from tests.fakes import FakeEncoder
from tests.probe_factories import Given

GIVEN = "tests.probe_factories.given_scorer"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(build, "TARGETS", (*build.TARGETS, GIVEN))


def config(tiny_clip, reward, **env):
    encoder = {"_target_": "rewards.encoders.OpenCLIPEncoder", "model": tiny_clip, "device": "cpu"}
    world = {"id": "embodied/desk-drawer-v0", "obs": "state", "camera": None, "kwargs": {}} | env
    return OmegaConf.create({"encoder": encoder, "env": world, "reward": reward})


def given(config, **kwargs):
    scorer = make_scorer(config, **kwargs)
    head = scorer.heads["given"]
    assert isinstance(head, Given)
    return head.given


def test_the_tasks_own_reward_needs_no_scorer(tiny_clip):
    assert make_scorer(config(tiny_clip, {"_target_": None})) is None


def test_an_open_goal_and_calibration_are_the_worlds(tiny_clip):
    found = given(config(tiny_clip, {"_target_": GIVEN, "goal": None}))
    assert (found["goal"], list(found["calibration"])) == ("open the drawer", ["front"])
    world = make("desk-drawer").unwrapped
    world.reset(seed=1)
    assert found["calibration"]["front"] == world.calibration("front", 32)  # of frames as the encoder reads them
    world.close()


def test_what_the_user_gives_stays(tiny_clip):
    mine = {"front": {"size": [1, 1]}}
    found = given(config(tiny_clip, {"_target_": GIVEN, "goal": "mine", "calibration": mine}))
    assert (found["goal"], found["calibration"], found["demos"]) == ("mine", mine, ())


def test_cameras_on_the_robot_have_no_calibration(tiny_clip):
    found = given(config(tiny_clip, {"_target_": GIVEN}, cameras=["side", "wrist"]))
    assert list(found["calibration"]) == ["side"]


def test_without_a_world_open_things_stay_open(tiny_clip):
    settings = config(tiny_clip, {"_target_": GIVEN, "goal": None})
    del settings["env"]
    assert given(settings) == {"goal": None, "model": None, "demos": (), "calibration": None}


class Seven:
    """A dataset of seven episodes that tells what is asked of it."""

    root, cameras = "seven", ("front", "side")

    def __len__(self):
        return 7


@pytest.fixture
def opened(monkeypatch):
    asked = []

    def encode(dataset, encoder, *, cameras=None, indices=None, frames_read="none", goal=""):
        features = Features(views={name: torch.zeros(1, 2, encoder.dim) for name in cameras or dataset.cameras})
        chosen = indices or range(len(dataset))
        return [Episode(features=features, instruction=f"{asked[-1]} {i}") for i in chosen]

    monkeypatch.setattr(
        opening, "open_dataset", lambda source, episodes=None, cameras=(), **told: asked.append(source) or Seven()
    )
    monkeypatch.setattr(encoding, "encode", encode)
    return asked


@pytest.mark.parametrize(("env", "cameras"), [({}, ("front",)), ({"cameras": ["front", "side"]}, ("front", "side"))])
def test_a_number_of_demonstrations_is_of_the_worlds_expert(tiny_clip, opened, env, cameras):
    found = given(config(tiny_clip, {"_target_": GIVEN, "demos": 3}, **env))
    assert [each.instruction for each in found["demos"]] == [f"desk-drawer-expert {i}" for i in range(3)]
    assert tuple(found["demos"][0].features.views) == cameras


def test_a_dataset_of_demonstrations_is_taken_whole(tiny_clip, opened):
    found = given(config(tiny_clip, {"_target_": GIVEN, "demos": "path/to/lerobot"}))
    assert [each.instruction for each in found["demos"]] == [f"path/to/lerobot {i}" for i in range(7)]


def test_rewards_of_several_goals_read_their_demonstrations_once(tiny_clip, opened):
    shared = Shared()
    for goal in ("open it", "lift it"):
        found = given(config(tiny_clip, {"_target_": GIVEN, "goal": None, "demos": "some"}), goal=goal, shared=shared)
        assert (found["goal"], len(found["demos"])) == (goal, 7)
    assert opened == ["some"]


def test_a_reward_without_a_goal_says_that_its_demonstrations_have_several_texts(
    tiny_clip, opened, monkeypatch, capsys
):
    monkeypatch.setattr("embodied.building.scorers.GOALLESS", (GIVEN,))
    shared = Shared()
    for count in (1, 7, 7):
        given(config(tiny_clip, {"_target_": GIVEN, "demos": count}), shared=shared)
    told = capsys.readouterr().err
    assert told.count("given: its demonstrations have 7 task texts, 'desk-drawer-expert 0', ") == 1
    assert "have 1 task" not in told


def test_a_fitted_model_needs_no_demonstrations(tiny_clip, opened):
    found = given(config(tiny_clip, {"_target_": GIVEN, "demos": 3, "model": "folder"}))
    assert (found["demos"], found["model"], opened) == ((), "folder", [])


def test_a_part_that_cannot_be_made_is_told_before_demonstrations_are_had_for_another(tiny_clip, opened):
    parts = {"fitted": {"_target_": GIVEN, "demos": 3}, "broken": {"_target_": GIVEN, "no_such_setting": 1}}
    with pytest.raises(UserError, match="no_such_setting"):
        make_scorer(config(tiny_clip, {"_target_": COMPOSED, "parts": parts}))
    assert not opened


@pytest.mark.parametrize(("demos", "env", "message"), [
    (0, {}, "reward.demos must be a number of expert episodes, at least 1"),
    (2.5, {}, "or a dataset; got 2.5"),
    (True, {}, "or a dataset; got True"),
    (8, {}, "reward.demos must be at most 7"),
    (2, {"id": "CartPole-v1"}, "must be a dataset where no world of ours has an expert"),
    (2, {"id": "embodied/desk-lift-v0", "kwargs": {"target": "green"}}, "reward.demos must be a dataset where "
     "env.kwargs change the task; got 2, which would show 'lift the red cube', not 'lift the green cube'"),
    (2, {"cameras": "front"}, r"env.cameras must be a list of cameras.*Try env.cameras=\[front,side\]"),
])  # fmt: skip
def test_impossible_demonstrations_are_named(tiny_clip, opened, demos, env, message):
    with pytest.raises(UserError, match=message):
        make_scorer(config(tiny_clip, {"_target_": GIVEN, "demos": demos}, **env))
    assert demos == 8 or not opened  # nothing is collected for it


def test_demonstrations_may_show_a_world_whose_task_its_kwargs_leave(tiny_clip, opened):
    settings = config(tiny_clip, {"_target_": GIVEN, "demos": 3}, kwargs={"max_episode_steps": 20})
    assert len(given(settings)["demos"]) == 3


def test_a_composition_makes_every_part_with_one_encoder(tiny_clip):
    words = ["reward=[clip,softmax]", "reward.goal=the drawer is open", "reward.softmax.negative=[it is shut]"]
    composed = compose("train", [*words, "encoder=open_clip", f"encoder.model={tiny_clip}"])
    scorer = make_scorer(composed)
    assert list(scorer.heads) == ["clip", "softmax"]
    assert all(part.scorer.encoder is scorer.encoder for part in scorer.heads.values())
    assert reward_name(composed.reward) == "clip+softmax"
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    apart = [
        make_scorer(compose("train", [f"reward={name}", *rest, "encoder=open_clip", f"encoder.model={tiny_clip}"]))
        for name, rest in (
            ("clip", ["reward.goal=the drawer is open"]),
            ("softmax", ["reward.goal=the drawer is open", "reward.negative=[it is shut]"]),
        )
    ]
    mean = sum(each.score(torch.from_numpy(frames)) for each in apart) / 2
    torch.testing.assert_close(scorer.score(torch.from_numpy(frames)), mean)


def test_worlds_see_what_the_reward_reads(tiny_clip):
    settings = config(tiny_clip, {"_target_": GIVEN}, cameras=["side", "front"])
    scorer = make_scorer(settings)
    venv = Stage(settings, scorer).worlds(1, seed=0)
    venv.reset()
    assert (venv.views, venv.frames.shape) == (("side", "front"), (1, 2, 32, 32, 3))
    world = env_maker(settings)()
    world.reset(seed=0)
    assert world.get_wrapper_attr("camera") == "side"
    for v, view in enumerate(venv.views):
        np.testing.assert_array_equal(venv.reset_frames[0, v], world.get_wrapper_attr("frame")(view, 32))
    assert sorted(venv.reset_infos[0]["signals"]) == ["gripper_opening", "gripper_x", "gripper_y", "gripper_z"]
    world.close()
    venv.close()


def test_what_was_fitted_for_a_run_is_kept_with_it(tmp_path):
    encoder, target = FakeEncoder(), "rewards.demonstration.demonstration_scorer"
    rng = torch.Generator().manual_seed(0)
    ends = torch.nn.functional.normalize(torch.randn(2, encoder.dim, generator=rng), dim=-1)
    way = torch.linspace(0, 1, 30)[:, None]
    demos = [
        Episode(features=Features(views={"front": (ends[0] + way * (ends[1] - ends[0]) + noise)[None]}), success=True)
        for noise in 0.01 * torch.randn(3, 30, encoder.dim, generator=rng)
    ]
    plain = OmegaConf.create({"_target_": target, "model": None, "demos": 3})
    composed = OmegaConf.create({"_target_": COMPOSED, "parts": {"shown": plain}})
    one = build.build({"_target_": target}, encoder=encoder, demos=demos)
    whole = composed_scorer(encoder=encoder, parts={"shown": one})
    for scorer, reward in ((one, plain), (whole, composed)):
        folder = tmp_path / str(len(reward))
        keep_fitted(scorer, reward, folder)
        kept(reward, folder)
    for config in (plain, composed.parts.shown):
        again = build.build({"_target_": config["_target_"], "model": config.model}, encoder=encoder)
        ours, theirs = (each.heads["demonstration"].score(demos[0].features) for each in (again, one))
        assert torch.equal(ours, theirs)


# The cameras of a fitted head -----------------------------------------------------------------------------


def fitted(kind, cameras, tiny_clip, folder):
    """A head fitted on these cameras, in a folder."""
    encoder = OpenCLIPEncoder(tiny_clip, device="cpu")
    if kind == "success":
        weights = {camera: torch.zeros(1, encoder.dim) for camera in cameras}
        floors = {camera: torch.zeros(1) for camera in cameras}
        SuccessClassifier(weights, torch.zeros(1), floors, Decision()).save(folder, encoder)
    else:
        views = {camera: torch.randn(1, 8, encoder.dim) for camera in cameras}
        XIRL.fit([Episode(features=Features(views=views), success=True)], updates=1).save(folder, encoder)
    return {"_target_": f"rewards.{kind}.{kind}_scorer", "model": str(folder)}


def test_a_head_that_cannot_judge_without_a_camera_is_refused(tiny_clip, tmp_path):
    reward = fitted("success", ["front", "side"], tiny_clip, tmp_path / "head")
    message = r"was fitted on front, side, and is shown front; without side .* Add env\.cameras=\[front,side\], or fit"
    with pytest.raises(UserError, match=message):
        make_scorer(config(tiny_clip, reward))
    parts = {"_target_": COMPOSED, "parts": {"done": reward}}
    with pytest.raises(UserError, match=message):
        make_scorer(config(tiny_clip, parts))
    assert make_scorer(config(tiny_clip, reward, cameras=["front", "side"])) is not None
    with pytest.raises(UserError, match=r"cameras: .* shown side; without front .* Add cameras=\[front,side\]"):
        make_scorer(config(tiny_clip, reward), views=["side"])


def test_a_head_that_judges_less_well_without_a_camera_says_so(tiny_clip, tmp_path, capsys):
    reward = fitted("xirl", ["front", "side"], tiny_clip, tmp_path / "head")
    make_scorer(config(tiny_clip, reward))
    told = capsys.readouterr().err
    assert "xirl was fitted on front, side, and is shown front: it judges without side, and less well" in told
    assert "env.cameras=[front,side]" in told
    make_scorer(config(tiny_clip, reward, cameras=["side", "front"]))
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"without front, side it cannot judge"):
        make_scorer(config(tiny_clip, reward), views=["wrist"])


@pytest.mark.parametrize("kind", ["success", "xirl"])
def test_a_lone_camera_may_have_another_name(kind, tiny_clip, tmp_path, capsys):
    reward = fitted(kind, ["cam_high"], tiny_clip, tmp_path / "head")
    assert make_scorer(config(tiny_clip, reward)) is not None
    assert capsys.readouterr().err == ""


# Goals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["clip", "topreward_chat", "gvl_chat", "grm_vlm", "contrast", "softmax", "calibrated", "success"]
)
def test_every_open_goal_is_filled_in_one_place(name, tiny_clip):
    """By the data's task text, else by the world's instruction; without either a person is told what to add."""
    more = {"contrast": ["reward.negative=shut"], "softmax": ["reward.negative=shut"]}.get(name, [])
    more += ["reward.threshold=0.2"] if name == "calibrated" else []
    more += ["reward.vlm={url:'http://127.0.0.1:9/v1',model:m}", "reward.demos=null"] if name == "success" else []
    words = [f"reward={name}", *more, "encoder=open_clip", f"encoder.model={tiny_clip}"]
    plain = compose("label", [*words, "data=x"]).reward
    assert any_open(resolved(plain))
    assert told_goals(with_goal(resolved(plain), "${a} {b}")) == ["${a} {b}"]
    assert make_scorer(compose("train", ["env=cartpole", *words])) is not None
    given = compose("label", [*words, "data=x", "goal=mine"])
    assert told_goals(with_goal(resolved(given.reward), "another")) == ["mine"]
    with pytest.raises((UserError, ValueError), match="goal"):
        make_scorer(compose("label", [*words, "data=x"]))


@pytest.mark.parametrize("name", ["xirl", "rapl", "demonstration"])
def test_a_goal_that_nothing_follows_is_refused(name):
    with pytest.raises(UserError, match=rf"goal must be left out: reward={name} follows none"):
        compose("label", [f"reward={name}", "data=x", "goal=open it"])
    both = compose("label", [f"reward=[clip,{name}]", "data=x", "goal=open it"]).reward
    assert told_goals(resolved(both)) == ["open it"]
    older = {"_target_": f"rewards.{name}.{name}_scorer", "goal": None}  # as configs of older runs have it
    assert not any_open(older)
    assert "goal" not in with_goal(older, "open it")
    with pytest.raises(UserError, match=rf"goal must be left out: reward={name} follows none; got 'a'"):
        with_goal(older | {"goal": "a"}, None)


def test_the_other_outcome_has_one_name():
    for name in ("contrast", "softmax", "synthesis"):
        assert compose("train", [f"reward={name}", "reward.negative=shut"]).reward.negative == "shut"
