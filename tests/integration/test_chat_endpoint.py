"""A chat endpoint over real HTTP on the loopback: what is sent, what comes back, and all that can go wrong."""

import socket
import threading
import time

import numpy as np
import pytest

from rewards.chat import endpoint as chat_endpoint
from rewards.chat.asking import ChatEndpoint, Message, Video, VLMError, ask_json, chat_model, token_logprob
from tests.asked_chat import ASKED, FRAMES, RNG, Choice, endpoint
from tests.chat_server import chat_server, completion, films, images, probabilities, text


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(chat_endpoint, "BACKOFF_S", 0.001)


def test_images_arrive_whole_and_in_their_places():
    with chat_server(lambda _: "Both are noise.") as served:
        flipped = [frame[:, ::-1] for frame in FRAMES]  # as MuJoCo gives them: negative strides
        asked = [ASKED[0], Message("user", ASKED[1].text, flipped)]
        assert endpoint(served).ask(asked) == "Both are noise."
    (body,) = served.bodies
    assert served.paths == ["/v1/chat/completions"]
    assert body["model"] == "tiny"
    assert body["temperature"] == 0
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    kinds = [part["type"] for part in body["messages"][1]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    for sent, frame in zip(images(body), flipped, strict=True):
        assert np.array_equal(sent, frame)
    assert "Authorization" not in served.headers[0]


def test_jpeg_is_smaller_and_close():
    smooth = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (1, 64, 3))
    with chat_server(lambda _: "A ramp.") as served:
        endpoint(served, image_format="jpeg", extra={"seed": 7, "max_tokens": None}).ask(
            [Message("user", "", [smooth])]
        )
    (body,) = served.bodies
    assert body["seed"] == 7
    assert "max_tokens" not in body
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert np.abs(images(body)[0].astype(int) - smooth).max() < 8


def test_a_film_arrives_with_its_times_and_labels_in_their_places():
    y, x = np.mgrid[:37, :53]
    frames = [np.stack([x * 2 + 9 * t, y * 3, np.full_like(x, 40 * t)], -1).astype(np.uint8) for t in range(5)]
    asked = [Message("user", "BEFORE: <image>\nAFTER: <video>\nDone?", [FRAMES[0]], [Video(frames, 2.0)])]
    with chat_server(lambda _: "Yes.") as served:
        endpoint(served).ask(asked)
    (body,) = served.bodies
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "text", "video_url", "text"]
    assert text(body) == "BEFORE: \n\nAFTER: \n\nDone?"
    ((shown, times),) = films(body)
    assert times == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert shown[0].shape == (38, 54, 3)  # even, as H.264 wants: the last row and column twice
    assert np.abs(np.stack(shown)[:, :37, :53].astype(int) - np.stack(frames)).mean() < 4


def test_an_open_turn_is_asked_to_be_continued_and_no_other():
    with chat_server(lambda _: "True") as served:
        endpoint(served).ask([Message("user", "It is", open=True)])
        endpoint(served).ask(ASKED)
    first, second = served.bodies
    assert (first["continue_final_message"], first["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in second


def test_drawn_answers_have_the_question_s_seed():
    with chat_server(lambda _: "Yes.") as served:
        for options in ({"temperature": 0.5}, {"temperature": 0.5}, {"temperature": 0.5, "extra": {"seed": None}}, {}):
            endpoint(served, **options).ask(ASKED)
        endpoint(served, temperature=0.5).ask([Message("user", "Else?")])
    seeds = [body.get("seed") for body in served.bodies]
    assert seeds[0] == seeds[1] != seeds[4]
    assert isinstance(seeds[0], int)
    assert seeds[2:4] == [None, None]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_failures_are_tried_again(status):
    said = iter([(status, b"busy", {}), (status, b"busy", {}), "At last."])
    with chat_server(lambda _: next(said)) as served:
        assert endpoint(served).ask(ASKED) == "At last."
    assert len(served.bodies) == 3


def test_tries_are_bounded():
    with (
        chat_server(lambda _: (503, b"loading", {})) as served,
        pytest.raises(VLMError, match=r"got HTTP 503 'loading', 3 times\. Try later"),
    ):
        endpoint(served, retries=2).ask(ASKED)
    assert len(served.bodies) == 3


def test_a_server_that_asks_for_patience_gets_it(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    said = iter([(429, b"", {"Retry-After": "7"}), (429, b"", {"Retry-After": "3600"}), "Now."])
    with chat_server(lambda _: next(said)) as served:
        endpoint(served).ask(ASKED)
    assert [wait for wait in waits if wait >= 1] == [7, 30]  # but not for an hour


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_other_refusals_of_the_server_are_not_tried_again(status):
    with chat_server(lambda _: (status, b'{"error": "no such model"}', {})) as served:
        with pytest.raises(VLMError, match=rf"got HTTP {status} .*no such model.*Check url, model and key"):
            endpoint(served).ask(ASKED)
        assert len(served.bodies) == 1


@pytest.mark.parametrize("drip", [False, True])
def test_a_timeout_is_an_error_in_time(drip):
    """Also of a server that sends a byte now and then for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        model = ChatEndpoint(f"http://127.0.0.1:{server.getsockname()[1]}", "tiny", timeout_s=0.3, retries=0)
        stop = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                if drip:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.02):
                    if drip:
                        try:
                            connection.sendall(b" ")
                        except OSError:
                            return

        thread = threading.Thread(target=serve)
        thread.start()
        start = time.monotonic()
        with pytest.raises(VLMError, match=r"got no answer within 0\.3 s") as caught:
            model.ask(ASKED)
        assert time.monotonic() - start < 5
        assert not caught.value.answered
        stop.set()
        thread.join()


def test_a_timeout_is_tried_again():
    asked = []

    def slow(body):
        asked.append(body)
        time.sleep(1.0 if len(asked) == 1 else 0.0)
        return "Here."

    with chat_server(slow) as served:
        assert endpoint(served, timeout_s=0.4).ask(ASKED) == "Here."


def test_nobody_there_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(VLMError, match=r"ChatEndpoint: tiny at http://127.0.0.1:\d+/v1.* got .*refused"):
        ChatEndpoint(f"http://127.0.0.1:{port}/v1", "tiny").ask(ASKED)


def test_a_broken_answer_is_tried_again():
    said = iter([(200, b"{", {"Content-Length": "50", "Connection": "close"}), "Whole."])
    with chat_server(lambda _: next(said)) as served:
        assert endpoint(served, timeout_s=1.0).ask(ASKED) == "Whole."


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (b"<html>hello</html>", "must give a chat completion; got '<html>"),
        ({"choices": []}, "must give a chat completion"),
        ({"choices": [{"message": None}]}, "must give a chat completion"),
        (completion(""), "an empty one"),
        (completion(None), "an empty one"),
        (completion('{"index": 1', finish_reason="length"), "one cut off: .*Raise max_tokens"),
    ],
)
def test_no_answer_is_an_error(said, match):
    with chat_server(lambda _: said) as served, pytest.raises(VLMError, match=match) as caught:
        endpoint(served).ask(ASKED)
    assert not caught.value.refused
    assert len(served.bodies) == 1


@pytest.mark.parametrize(
    "said",
    [
        completion(None, message={"content": None, "refusal": "I can't help with that."}),
        completion("x", finish_reason="content_filter"),
        completion("I'm sorry, but I can't identify what is in this image."),
        completion("I cannot assist with this request."),
    ],
)
def test_refusals_are_told_apart_and_not_asked_again(said):
    with chat_server(lambda _: said) as served, pytest.raises(VLMError, match="a refusal") as caught:
        ask_json(endpoint(served), ASKED, Choice)
    assert caught.value.refused
    assert len(served.bodies) == 1


def test_sizes_are_bounded_both_ways():
    with chat_server(lambda _: "y" * 200_000) as served:
        with pytest.raises(VLMError, match=r"at most 0.01 MB; got a request of .* MB\. Send fewer or smaller images"):
            endpoint(served, max_body_mb=0.01).ask(
                [Message("user", "?", [RNG.integers(0, 256, (99, 99, 3), np.uint8)])]
            )
        assert not served.bodies
        with pytest.raises(VLMError, match=r"at most 0\.1 MB; got more"):
            endpoint(served, max_body_mb=0.1).ask(ASKED)


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_VLM_KEY", "sk-secret")
    answer = '{"index": 1, "why": "red"}'
    with chat_server(lambda _: answer) as served:
        model = endpoint(served, api_key_env="TEST_VLM_KEY")
        ask_json(model, ASKED, Choice, cache=tmp_path)
    assert served.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in repr(vars(model)) + "".join(path.read_text() for path in tmp_path.iterdir())
    with (
        chat_server(lambda _: (401, b"Incorrect key: sk-secret", {})) as served,
        pytest.raises(VLMError, match=r"Incorrect key: \[key\]") as caught,
    ):
        endpoint(served, api_key_env="TEST_VLM_KEY").ask(ASKED)
    assert "sk-secret" not in str(caught.value)
    monkeypatch.delenv("TEST_VLM_KEY")
    with pytest.raises(VLMError, match="environment variable TEST_VLM_KEY is empty"):
        model.ask(ASKED)


def test_redirects_do_not_carry_the_key_away(monkeypatch):
    monkeypatch.setenv("TEST_VLM_KEY", "sk-secret")
    with chat_server(lambda _: "Mine now.") as elsewhere:
        away = {"Location": elsewhere.url + "/chat/completions"}
        with chat_server(lambda _: (302, b"", away)) as served, pytest.raises(VLMError, match="HTTP 302"):
            endpoint(served, api_key_env="TEST_VLM_KEY").ask(ASKED)
    assert not elsewhere.bodies


# Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"url": "localhost:8000"}, "url must be http"),
        ({"url": "file:///etc/passwd"}, "url must be http"),
        ({"url": "http://me:secret@host/v1"}, "url must be http"),
        ({"timeout_s": 0.0}, "timeout_s must be > 0"),
        ({"retries": -1}, "retries and temperature must be ≥ 0"),
        ({"image_format": "gif"}, "image_format must be png or jpeg"),
    ],
)
def test_bad_values(change, match):
    with pytest.raises(ValueError, match=match) as caught:
        ChatEndpoint(**({"url": "http://localhost/v1", "model": "tiny"} | change))
    assert "secret" not in str(caught.value)


def test_chat_model_from_plain_values():
    model = chat_model({"url": "http://localhost:1/v1", "model": "tiny", "api_key_env": None})
    assert isinstance(model, ChatEndpoint)
    assert chat_model(model) is model
    with pytest.raises(ValueError, match=r"vlm\.model must name a model"):
        chat_model({"url": "http://localhost:1/v1", "model": None})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Message("robot", "hi"), "role must be one of"),
        (lambda: Message("user", "<image>", FRAMES), "must mark 2 images by <image>, or none; got 1"),
        (lambda: Message("user", "?", [FRAMES[0].astype(np.float32)]), r"uint8 \(H, W, 3\); got float32"),
        (lambda: Message("user", "?", [FRAMES[0][0]]), r"uint8 \(H, W, 3\); got uint8 \(9, 3\)"),
    ],
)
def test_bad_messages(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# Hostile and odd answers ------------------------------------------------------------------------------------


def test_an_answer_in_parts_is_one():
    parts = [{"type": "text", "text": "<score>+"}, {"type": "image_url"}, {"type": "text", "text": "25</score>"}]
    with chat_server(lambda _: completion(parts)) as served:
        assert endpoint(served).ask(ASKED) == "<score>+25</score>"


@pytest.mark.parametrize("depth", [300, 100_000])
def test_answers_that_are_nested_beyond_sense_are_refused(depth):
    with chat_server(lambda _: b"[" * depth) as served, pytest.raises(VLMError, match="must give a chat completion"):
        endpoint(served, retries=0).ask(ASKED)
    nested = '{"index":' * depth + "1" + "}" * depth
    with chat_server(lambda _: nested) as served, pytest.raises(VLMError, match="JSON of Choice within 2 attempts"):
        ask_json(endpoint(served), ASKED, Choice, attempts=2)


def test_an_object_in_thoughts_is_no_answer():
    said = '<think>{"index": 1, "why": "at first"}</think> so: {"index": 2, "why": "it is"}'
    with chat_server(lambda _: said) as served:
        assert ask_json(endpoint(served), ASKED, Choice).index == 2
    unfinished = '<think>{"index": 1, "why": "at first"}'
    with chat_server(lambda _: unfinished) as served, pytest.raises(VLMError, match="there is no JSON object in it"):
        ask_json(endpoint(served), ASKED, Choice, attempts=1)


def test_a_reasoning_model_has_no_first_word():
    said = {"<think>": -0.0004, "True": -8.0, "False": -9.0}
    with chat_server(lambda _: probabilities(**said)) as served:
        with pytest.raises(VLMError, match=r"99\.95% is missing") as caught:
            token_logprob(endpoint(served), ASKED, ["True", "False"])
        assert caught.value.answered  # one answer less, not a model that is away
