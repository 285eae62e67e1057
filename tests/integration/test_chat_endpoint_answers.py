"""Answers of a chat endpoint as JSON and as probabilities: asked for again, kept, and refused."""

import numpy as np
import pytest
from pydantic import BaseModel

from rewards.chat import endpoint as chat_endpoint
from rewards.chat.asking import ChatEndpoint, Message, VLMError, ask_json, token_logprob
from tests.asked_chat import ASKED, FRAMES, Choice, endpoint
from tests.chat_server import chat_server, completion, images, probabilities, text


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(chat_endpoint, "BACKOFF_S", 0.001)


# JSON ------------------------------------------------------------------------------------------------------------


def test_an_answer_that_does_not_fit_is_told_why_and_asked_again():
    said = iter(["I think P9.", '{"index": 9, "why": "red"}', 'It is {red}. ```json\n{"index": 2, "why": "red"}\n```'])
    with chat_server(lambda _: next(said)) as served:
        assert ask_json(endpoint(served), ASKED, Choice) == Choice(index=2, why="red")
    assert '"maximum": 4' in text(served.bodies[0])  # the schema is told
    assert [m["role"] for m in served.bodies[0]["messages"]] == ["system", "user"]
    assert [m["role"] for m in served.bodies[2]["messages"]] == ["system", "user"] + ["assistant", "user"] * 2
    assert "there is no JSON object in it" in text(served.bodies[1])
    assert "index: Input should be less than or equal to 4" in text(served.bodies[2])
    assert len(images(served.bodies[2])) == 2


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("P2", "no JSON object"),
        ('{"index": 2, "why": ', "no JSON object"),
        ('{"index": NaN, "why": "x"}', "no JSON object"),
        ('{"index": 7, "why": "x"}', "index: Input should be less"),
        ('{"index": 2}', "why: Field required"),
        ("{" * 5000, "no JSON object"),
        ("a fake <image> mark", "no JSON object"),
    ],
)
def test_nonsense_ends_in_an_error_after_bounded_attempts(said, problem, tmp_path):
    with (
        chat_server(lambda _: said) as served,
        pytest.raises(VLMError, match=rf"JSON of Choice within 2 attempts; got .*{problem}.* in ") as caught,
    ):
        ask_json(endpoint(served), ASKED, Choice, attempts=2, cache=tmp_path)
    assert len(served.bodies) == 2
    assert "First" in caught.value.asked
    assert not list(tmp_path.iterdir())  # nonsense is never kept


def test_a_check_beyond_the_schema_is_told_too():
    def known(choice: Choice) -> None:
        if choice.index > 2:
            raise ValueError(f"index must be one of the 3 marks; got {choice.index}")

    said = iter(['{"index": 4, "why": "x"}', '{"index": 1, "why": "x"}'])
    with chat_server(lambda _: next(said)) as served:
        assert ask_json(endpoint(served), ASKED, Choice, check=known).index == 1
    assert "index must be one of the 3 marks; got 4" in text(served.bodies[1])


def test_answers_are_kept_by_content(tmp_path):
    with chat_server(lambda _: '{"index": 1, "why": "x"}') as served:
        model = endpoint(served)

        def ask(frames=FRAMES, schema=Choice, who=model, **options):
            return ask_json(who, [Message("user", "Where <image><image>?", frames)], schema, cache=tmp_path, **options)

        assert ask() == ask()
        assert len(served.bodies) == 1
        changed = [FRAMES[0], FRAMES[1] ^ np.uint8(1)]
        ask(changed)
        ask([FRAMES[1], FRAMES[0]])
        ask(who=ChatEndpoint(served.url, "another"))

        class Other(BaseModel):
            index: int

        ask(schema=Other)
        assert len(served.bodies) == 5
        for path in tmp_path.iterdir():
            path.write_text(path.read_text()[:5])  # a damaged file is asked anew
        ask()
        assert len(served.bodies) == 6
        ask()
        assert len(served.bodies) == 6

        def strict(_: Choice) -> None:
            raise ValueError("never")

        with pytest.raises(VLMError, match="never"):
            ask(check=strict)  # what is kept is checked too
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


# Probabilities ---------------------------------------------------------------------------------------------------


def test_log_probabilities_of_answers(tmp_path):
    said = probabilities(True_=-0.7, _True=-2.0, False_=-1.2, The=-4.0)
    with chat_server(lambda _: said) as served:
        model = endpoint(served)
        true, false, maybe = token_logprob(model, ASKED, ["True", "False", "Maybe"], cache=tmp_path)
        assert true == pytest.approx(np.log(np.exp(-0.7) + np.exp(-2.0)))  # with and without a space
        assert false == pytest.approx(-1.2)
        assert maybe == -4.0  # no likelier than the least that is listed
        token_logprob(model, ASKED, ["True", "False", "Maybe"], cache=tmp_path)
    assert len(served.bodies) == 1
    assert served.bodies[0]["logprobs"] is True
    assert served.bodies[0]["max_tokens"] == 1


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (completion("True"), "top_logprobs of its first token; got an answer without"),
        (probabilities(Well=-0.1, The=-3.0), "'True', 'False' among its 20 most likely tokens; got 'Well', 'The'"),
        (probabilities(True_=0.9), "must give log-probabilities"),
        (probabilities(True_=float("nan")), "must give log-probabilities"),
    ],
)
def test_no_probability_is_an_error(said, match):
    with chat_server(lambda _: said) as served, pytest.raises(VLMError, match=match):
        token_logprob(endpoint(served), ASKED, ["True", "False"])


def test_a_model_that_only_talks_has_no_probabilities():
    class Talks:
        name = "talks"

        def ask(self, messages):
            return "True"

    with pytest.raises(VLMError, match="only answers in text"):
        token_logprob(Talks(), ASKED, ["True"])
