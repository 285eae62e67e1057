"""A real server: who may ask, and what bad requests are answered."""

import json

import numpy as np
import pytest
import torch
from websockets.exceptions import InvalidStatus

from embodied.serving import protocol
from embodied.serving.limits import RequestLimits
from rewards.core import Features, Scorer
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder
from tests.serving_client import (
    FRAMES,
    PICTURE,
    ask,
    fine,
    frames,
    serving,
    session,
    shared_server,
)
from tests.unit.test_serving import BAD_IMAGES, BAD_MESSAGES

shared = shared_server()


# Who may ask --------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_served():
    with serving(token="secret") as server:
        assert fine(server)
        assert ask(server, protocol.HEALTH, headers={"Authorization": ""})[0] == 200
        for given in ("", "Bearer", "Bearer wrong", "Bearer secret2", "secret", "Basic secret", "Bearer s\u00e9cret"):
            headers = {"Authorization": given}
            for path in (protocol.MODEL, protocol.METRICS):
                status, got, answer = ask(server, path, headers=headers)
                assert (status, answer["code"], got["www-authenticate"]) == (401, "unauthorised", "Bearer")
                assert "secret" not in answer["got"]
            assert ask(server, protocol.SCORE, {}, headers=headers)[0] == 401
            with pytest.raises(InvalidStatus) as refused, session(server, headers=headers):
                pass
            assert refused.value.response.status_code == 401
            assert json.loads(refused.value.response.body)["code"] == "unauthorised"
        wrong = {"": "none", "Bearer": "an empty token", "Bearer wrong": "another token", "Basic x": "another scheme"}
        for given, got in wrong.items():
            assert ask(server, protocol.MODEL, headers={"Authorization": given})[2]["got"] == got
        with session(server) as say:
            assert say(frames(FRAMES[0]))["type"] == "reading"


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Host": "[bad"}])
def test_web_pages_of_others_may_not_ask(shared, headers):
    assert ask(shared, protocol.MODEL, headers=headers)[0] in (400, 403)
    assert ask(shared, "/v1/nothing", headers=headers)[0] in (400, 403, 404)
    if "Origin" in headers:
        with pytest.raises(InvalidStatus) as refused, session(shared, headers=headers):
            pass
        assert refused.value.response.status_code == 403


# Bad requests -------------------------------------------------------------------------------------------

ROWS = {"views": {"main": protocol.encode_array(np.zeros((1, 2, 16), np.float32))}}
BAD = {
    **{f"score, {name}": (protocol.SCORE, {"images": {"main": value}}) for name, (value, _) in BAD_IMAGES.items()},
    **{f"encode, {name}": (protocol.ENCODE, body) for name, body in BAD_MESSAGES.items()},
    "no images": (protocol.SCORE, {}),
    "no views": (protocol.SCORE, {"images": {}}),
    "unequal views": (protocol.SCORE, {"images": {"a": protocol.encode_images(FRAMES), **PICTURE["images"]}}),
    "a goal of 10,000 characters": (protocol.SCORE, {**PICTURE, "goal": "x" * 10_000}),
    "a goal that is a number": (protocol.SCORE, {**PICTURE, "goal": 3}),
    "signals too long": (protocol.SCORE, {**PICTURE, "signals": {"force": [1, 2]}}),
    "no texts": (protocol.ENCODE, {"texts": []}),
    "a long text": (protocol.ENCODE, {"texts": ["x" * 10_000]}),
    "neither": (protocol.ENCODE, {}),
    "no features": (protocol.POTENTIALS, {}),
    "narrow features": (protocol.POTENTIALS, {"views": {"main": protocol.encode_array(np.zeros((1, 2, 3), "f4"))}}),
    "flat features": (protocol.POTENTIALS, {"views": {"main": protocol.encode_array(np.zeros((2, 16), "f4"))}}),
    "no rows": (protocol.POTENTIALS, {"views": {"main": protocol.encode_array(np.zeros((1, 0, 16), "f4"))}}),
    "short signals": (protocol.POTENTIALS, {**ROWS, "signals": {"force": [[1.0]]}}),
    "odd frames": (protocol.POTENTIALS, {**ROWS, "frames": {"main": protocol.encode_array(FRAMES[None, :3])}}),
    "NaN features": (
        protocol.POTENTIALS,
        {"views": {"main": protocol.encode_array(np.full((1, 2, 16), np.nan, "f4"))}},
    ),
}


def test_every_bad_request_is_answered_with_what_is_wrong():
    with serving(limits=RequestLimits(requests_per_s=1e6, burst=1_000_000)) as server:
        for name, (path, message) in BAD.items():
            body = {"body": message} if isinstance(message, bytes) else {"message": message}
            status, _, answer = ask(server, path, **body)
            assert 400 <= status < 500, (name, status, answer)
            assert answer["error"], name
            assert {"expected", "got", "code", "model_id", "version"} <= set(answer), name
            assert answer["code"] != "internal", name
        assert ask(server, protocol.SCORE, BAD["NaN features"][1])[0] == 400
        assert ask(server, protocol.POTENTIALS, BAD["NaN features"][1])[2]["code"] == "unscorable"
        assert ask(server, protocol.SCORE, body=b"a,b", media="text/csv")[0] == 415
        assert ask(server, protocol.SCORE, body=b"{", media=protocol.JSON)[0] == 400
        assert ask(server, "/v1/nothing")[0] == 404
        assert ask(server, protocol.SCORE, method="GET")[0] == 405
        assert ask(server, protocol.MODEL, {}, method="POST")[0] == 405
        assert ask(server, protocol.SCORE, body=b"", media=protocol.JSON)[0] == 400
        assert fine(server)


def test_bad_messages_leave_the_session_as_it_was(shared):
    with session(shared, opening=False) as say:
        assert say(frames(FRAMES[0]))["expected"] == "open"
        assert say({"type": "open", "views": []})["code"] == "bad_message"
        assert say({"type": "open", "views": ["a", "a"]})["code"] == "bad_message"
        assert say({"type": "open", "goal": "x" * 10_000})["code"] == "bad_text"
        assert say({"type": "open"})["type"] == "opened"
        assert say({"type": "open"})["code"] == "bad_message"
    for values in (list(BAD_IMAGES.values())[:9], list(BAD_IMAGES.values())[9:]):
        with session(shared) as say:
            assert say(frames(FRAMES[0]))["row"] == 0
            for value, code in values:
                assert say({"type": "frames", "images": {"main": value}, "id": 7})["code"] == code
            assert say(frames(FRAMES[0]))["row"] == 1
    with session(shared) as say:
        for body in BAD_MESSAGES.values():
            assert say(body)["type"] == "error"
        assert say("text")["code"] == "bad_message"
        assert say({"type": "nonsense"})["code"] == "bad_message"
        assert say(frames(FRAMES[0]))["row"] == 0


class Picky:
    """NaN for a black frame."""

    name, pointwise = "picky", True

    def score(self, features: Features):
        return torch.where(features.main.isnan().any(-1), torch.nan, 1.0)


class BlackEncoder(FakeEncoder):
    def encode_images(self, images):
        black = (images == 0).flatten(1).all(1, keepdim=True)
        return torch.where(black, torch.nan, super().encode_images(images))


def test_a_nan_is_said_and_is_nobody_elses():
    model = Scorer(BlackEncoder(), {"picky": Picky()}, lambda each, features: each["picky"], PotentialShaping())
    black = np.zeros_like(FRAMES[0])
    with serving(model) as server, session(server) as one, session(server) as two:
        assert one(frames(FRAMES[0]))["row"] == 0
        answer = one(frames(black))
        assert (answer["type"], answer["code"]) == ("error", "unscorable")
        assert two(frames(FRAMES[0]))["row"] == 0
        readings = one(frames(FRAMES[0], black, FRAMES[1]))["readings"]
        assert [each.get("row", each.get("code")) for each in readings] == [1, "unscorable", 2]
        message = {"images": {"main": protocol.encode_image(black)}}
        assert ask(server, protocol.SCORE, message)[0] == 422
