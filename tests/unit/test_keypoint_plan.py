"""Keypoint plans: the grammar, candidates, marks on images, and a chat model's answers over the loopback."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch

from rewards.chat.asking import ChatEndpoint, VLMError
from rewards.grounding import Region
from rewards.keypoint.chat import (
    ChatAnswerer,
    annotate,
    farthest_points,
    selected_stops,
    selection_schema,
    tile_centre,
)
from rewards.keypoint.plan import RULES, GrammarAnswerer, Move, PathStop, Rule, read_instruction
from tests import chat_server

OPEN, CLOSE, PUT_IN, PUT_ON, PUSH, LIFT, GRASP, PRESS, TOUCH = RULES
FRAMES = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 50, 100, 3), np.uint8))
GRID = np.stack(np.meshgrid(np.arange(20.0, 40, 4), np.arange(10.0, 30, 4)), -1).reshape(-1, 2)


class Places:
    """A grounder that knows where things are."""

    def __init__(self, **places: tuple[float, float]) -> None:
        self.places = {name.replace("_", " "): np.array(at, float) for name, at in places.items()}

    def find(self, frames, texts) -> list[list[Region]]:
        if unknown := [text for text in texts if text not in self.places]:
            raise ValueError(f"the frame must show {unknown[0]!r}")
        return [[self.region(self.places[text]) for text in texts] for _ in frames]

    def region(self, at: np.ndarray) -> Region:
        return Region(at, 0.9, GRID - GRID.mean(0) + at, np.ones(len(GRID)))


@pytest.mark.parametrize(
    ("text", "rule", "what", "where"),
    [
        ("touch the red cube", TOUCH, "the red cube", ""),
        ("push the red cube onto the yellow mark", PUSH, "the red cube", "the yellow mark"),
        ("press the button", PRESS, "the button", ""),
        ("open the drawer", OPEN, "the drawer", ""),
        ("close the drawer", CLOSE, "the drawer", ""),
        ("lift the red cube", LIFT, "the red cube", ""),
        ("put the red cube in the tray", PUT_IN, "the red cube", "the tray"),
        ("put the red cube on the green cube", PUT_ON, "the red cube", "the green cube"),
        ("Please stack the red block on top of the green one.", PUT_ON, "the red block", "the green one"),
        ("pull the drawer open", OPEN, "the drawer", ""),
        ("slide the drawer shut", CLOSE, "the drawer", ""),
        ("push  the button down", PRESS, "the button", ""),
        ("push button", PRESS, "the button", ""),
        ("pick a cup up", LIFT, "a cup", ""),
        ("grab the handle", GRASP, "the handle", ""),
        ("the drawer is open", OPEN, "the drawer", ""),
        ("the drawer is closed", CLOSE, "the drawer", ""),
        ("the button is pressed", PRESS, "the button", ""),
        ("the red cube is in the tray", PUT_IN, "the red cube", "the tray"),
        ("the red cube is on top of the green cube", PUT_ON, "the red cube", "the green cube"),
        ("the red cube is lifted", LIFT, "the red cube", ""),
        ("the gripper touches the red cube", TOUCH, "the red cube", ""),
    ],
)
def test_instructions_are_read(text, rule, what, where):
    task = read_instruction(text)
    assert task.rule is rule
    assert (task.object, task.place) == (what, where)


@pytest.mark.parametrize("text", ["juggle the cubes", "open", "", "the drawer"])
def test_an_unknown_instruction_lists_what_is_understood(text):
    with pytest.raises(ValueError, match=r"goal must be an instruction.*It understands: .*\{object\}.*Or let a VLM"):
        read_instruction(text)


def test_the_grammar_grows_by_a_row():
    poke = Rule(("[poke|prod] {object}",), (Move(gate="reach"), Move(up=0.2)))
    answerer = GrammarAnswerer("poke the bear", Places(the_bear=(3, 4)), [poke, *RULES])
    (stops,) = answerer.stops(FRAMES)
    assert stops == [
        PathStop(at=(3.0, 4.0), head=(3.0, 4.0), gate="reach"),
        PathStop(at=(3.0, 4.0), head=(3.0, 4.0), up=0.2),
    ]


def test_opening_grasps_the_handle_and_pulls_away_from_the_body():
    places = Places(the_handle_of_the_drawer=(60, 20), the_cabinet=(70, 15))
    (stops,) = GrammarAnswerer("open the drawer", places).stops(FRAMES)
    assert [stop.gate for stop in stops] == ["", "grasp", ""]
    assert all(stop.at == (60, 20) and stop.head == (60, 20) and stop.tail == (70, 15) for stop in stops)
    assert all(stop.thin for stop in stops)
    assert stops[-1].by > 0
    assert GrammarAnswerer("close the drawer", places).stops(FRAMES)[0][-1].by < 0


@pytest.mark.parametrize(
    "goal", ["open the drawer handle", "open the handle of the drawer", "open the drawer's handle"]
)
def test_a_handle_that_is_named_is_the_one_that_is_sought(goal):
    phrases = GrammarAnswerer(goal, Places()).phrases()
    assert phrases["object"] == goal.removeprefix("open ")
    assert phrases["body"] == "the cabinet"


def test_an_object_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="the green cube"):
        GrammarAnswerer("put the red cube on the green cube", Places(the_red_cube=(1, 1))).stops(FRAMES)


def test_farthest_points_start_in_the_middle_and_spread():
    chosen = farthest_points(GRID, 6)
    assert len(chosen) == 6
    np.testing.assert_array_equal(chosen[0], [28, 18])
    corners = {(20, 10), (36, 10), (20, 26), (36, 26)}
    assert corners <= {tuple(each) for each in chosen.tolist()}
    assert (np.diff(chosen[1:, 1]) >= 0).all()
    np.testing.assert_array_equal(farthest_points(GRID[:1], 6), GRID[:1])
    ring = np.array([[np.cos(a), np.sin(a)] for a in np.arange(0, 6.2, 0.4)])
    assert np.linalg.norm(farthest_points(ring, 3)[0]) == pytest.approx(1)  # on the ring, not in its hole


def test_tiles_count_from_the_lower_left():
    assert tile_centre("a1", 50, 100) == (9.5, 44.5)
    assert tile_centre("e5", 50, 100) == (89.5, 4.5)
    assert tile_centre("c3", 50, 100) == (49.5, 24.5)


def test_marks_are_drawn_where_they_are():
    black = np.zeros((48, 96, 3), np.uint8)
    drawn = annotate(black, {"P": [(20.0, 30.0)], "Q": [(80.0, 10.0)]})
    assert drawn.shape == (240, 480, 3)
    assert drawn[152, 102].tolist() == [230, 20, 20]  # (30.5, 20.5) times 5
    assert drawn[52, 402].tolist() == [20, 60, 230]
    assert (drawn[:, 96] == 255).all(-1).mean() > 0.8  # a line of the grid
    assert not np.array_equal(drawn, annotate(black, {}))


def test_the_schema_knows_what_is_in_the_picture():
    schema = selection_schema(2, 1)
    assert schema(grasp_keypoint="P2", target_keypoint="Q1", target_tile="e5").grasp_keypoint == "P2"
    for wrong in ({"grasp_keypoint": "P3"}, {"grasp_keypoint": "Q1"}, {"target_keypoint": "Q2"},
                  {"target_tile": "f1"}, {"pre_contact_tile": "a6"}, {"target_angle": "sideways"}):  # fmt: skip
        with pytest.raises(ValueError, match="1 validation error"):
            schema(**wrong)
    assert selection_schema(0, 0)().grasp_keypoint == ""


def test_a_selection_becomes_a_way():
    marks = {"P": [(1.0, 2.0), (3.0, 4.0)], "Q": [(5.0, 6.0)]}
    schema = selection_schema(2, 1)
    chosen = schema(grasp_keypoint="P2", pre_contact_tile="c3", pre_contact_height="above", target_keypoint="Q1",
                    post_contact_tile="a1")  # fmt: skip
    stops = selected_stops(chosen, marks, 50, 100)
    assert [stop.at for stop in stops] == [(3, 4), (3, 4), (49.5, 24.5), (5, 6), (9.5, 44.5)]
    assert [stop.gate for stop in stops] == ["", "grasp", "", "reach", ""]
    assert stops[2].up > 0 == stops[4].up
    touch = selected_stops(schema(function_keypoint="P1"), marks, 50, 100)
    assert touch == [PathStop(at=(1.0, 2.0))]
    assert selected_stops(schema(target_tile="a1"), marks, 50, 100) == [PathStop(at=(9.5, 44.5))]


# Over HTTP ------------------------------------------------------------------------------------------------------

OBJECTS = {"object_grasped": "the red cube", "object_unattached": "the tray"}
PLACES = Places(the_red_cube=(30, 20), the_tray=(70, 30))


def ask(answers, **options):
    """What an answerer makes of these answers, one per request; with the requests."""
    said = iter(answers)
    with chat_server.chat_server(lambda body: next(said)) as served:
        model = ChatEndpoint(served.url, "tester", retries=0, **{"timeout_s": 5.0, **options.pop("model", {})})
        answerer = ChatAnswerer("put the red cube in the tray", model, PLACES, **options)
        (stops,) = answerer.stops(FRAMES)
        return stops, served.bodies


def test_two_questions_make_a_plan():
    answers = [
        f"The robot must move the cube. ```json\n{json.dumps(OBJECTS)}\n```",
        "I grasp it in the middle. "
        + json.dumps({"grasp_keypoint": "P1", "target_keypoint": "Q1", "pre_contact_tile": "d3"}),
    ]
    stops, bodies = ask(answers)
    assert [stop.gate for stop in stops] == ["", "grasp", "", ""]
    assert stops[1].at == (30, 20)
    assert stops[-1].at == (70, 30)
    plain, marked = (chat_server.images(body)[0] for body in bodies)
    np.testing.assert_array_equal(plain, FRAMES[0].numpy())
    assert marked.shape == (250, 500, 3)
    assert "put the red cube in the tray" in chat_server.text(bodies[0])
    assert "the red cube" in chat_server.text(bodies[1])


def test_a_mark_that_is_not_there_is_told_and_asked_again():
    answers = [json.dumps(OBJECTS), json.dumps({"grasp_keypoint": "P9"}), json.dumps({"grasp_keypoint": "P1"})]
    stops, bodies = ask(answers)
    assert [stop.gate for stop in stops] == ["", "grasp"]
    assert "grasp_keypoint" in chat_server.text(bodies[2])
    assert "P6" in chat_server.text(bodies[2])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["no idea"] * 3, "no JSON object"),
        ([json.dumps(OBJECTS), *['{"target_tile": "z9"}'] * 3], "target_tile"),
        ([json.dumps(OBJECTS), *['{"grasp_keypoint": "P0"}'] * 3], "grasp_keypoint"),
        (["I'm sorry, I can't help with that."], "refusal"),
        ([json.dumps(OBJECTS), "{}"], "a place to go to"),
        ([(500, "broken", {})], "500"),
        ([b"not json at all"], "tester"),
    ],
)
def test_nonsense_is_an_error_and_never_a_plan(answers, message):
    with pytest.raises(VLMError, match=message):
        ask(answers)


def test_an_object_that_is_not_in_the_frame_is_an_error():
    with pytest.raises(ValueError, match="a unicorn"):
        ask([json.dumps({"object_grasped": "a unicorn", "object_unattached": ""})])


def test_a_server_that_never_answers_is_an_error():
    never = threading.Event()
    with chat_server.chat_server(lambda body: never.wait(5)) as served:
        model = ChatEndpoint(served.url, "tester", retries=0, timeout_s=0.2)
        answerer = ChatAnswerer("lift the cube", model, PLACES)
        try:
            with pytest.raises(VLMError, match="tester"):
                answerer.stops(FRAMES)
        finally:
            never.set()


def test_answers_are_kept_by_content(tmp_path):
    answers = [json.dumps(OBJECTS), json.dumps({"grasp_keypoint": "P1"})]
    first, bodies = ask(answers, cache=tmp_path)
    again, none = ask([], cache=tmp_path)
    assert first == again
    assert (len(bodies), len(none)) == (2, 0)
