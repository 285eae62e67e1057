"""Films, labels, open turns and bounds on pixels, as a model on this machine reads them."""

import numpy as np
import pytest
import torch

from rewards.chat import Message, Video
from rewards.chat.local import LocalChat
from tests.tiny_vlm import save_tiny_qwen3_vlm

FRAMES = np.random.default_rng(3).integers(0, 256, (7, 48, 64, 3), np.uint8)
CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def tiny_qwen3(tmp_path_factory):
    return save_tiny_qwen3_vlm(tmp_path_factory.mktemp("qwen3"))


def read(chat, message):
    return chat._processor.decode(chat._inputs([message], "")["input_ids"][0])


def test_films_are_told_their_times(tiny_qwen3):
    chat = LocalChat(tiny_qwen3, **CPU)
    text = read(chat, Message("user", "Look: <video> then <image>?", [FRAMES[0]], [Video(list(FRAMES[:4]), 2.0)]))
    assert text.startswith("<|im_start|>user\nLook: <0.2 seconds><|vision_start|><|video_pad|>")
    assert text.count("<|vision_start|>") == text.count("<|vision_end|>") == 3  # two moments and an image
    assert "<1.2 seconds><|vision_start|><|video_pad|>" in text
    assert "<|vision_end|> then <|vision_start|><|image_pad|>" in text


def test_an_open_turn_goes_on_where_it_stops(tiny_qwen3):
    chat = LocalChat(tiny_qwen3, **CPU)
    assert read(chat, Message("user", "It is", open=True)) == "<|im_start|>user\nIt is"
    assert read(chat, Message("user", "It<|im_end|> is", open=True)) == "<|im_start|>user\nIt< |im_end|> is"


def test_marks_of_the_prompt_are_kept_and_no_others(tiny_qwen3):
    chat = LocalChat(tiny_qwen3, **CPU)
    assert "<think> < /think>" in read(chat, Message("user", "<think> </think>", marks=["<think>"]))


def test_bounds_on_pixels_are_the_processor_s(tiny_qwen3):
    large = np.zeros((640, 640, 3), np.uint8)
    grids = [
        LocalChat(tiny_qwen3, **CPU, pixels=pixels)._inputs([Message("user", "?", [large])], "")["image_grid_thw"][0]
        for pixels in (None, (1024, 128 * 128))
    ]
    assert [grid.tolist() for grid in grids] == [[1, 4, 4], [1, 8, 8]]


def test_drawn_answers_are_the_question_s_own(tiny_qwen3):
    chat = LocalChat(tiny_qwen3, **CPU, max_tokens=6, sampling={"temperature": 5.0, "top_k": 200})
    state = torch.random.get_rng_state()
    asked = [[Message("user", text)] for text in ("One?", "Two?", "One?")]
    made = [str(catch(chat, each)) for each in asked]
    assert made[0] == made[2] != made[1]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert "temperature" in chat.asked_by


def catch(chat, messages):
    try:
        return chat.ask(messages)
    except RuntimeError as error:  # cut off, which an answer of noise mostly is
        return error


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sampling": {"heat": 1.0}}, "sampling must be of temperature, top_p, top_k; got heat"),
        ({"sampling": {"top_p": 1.5}}, "sampling.top_p must be > 0 and ≤ 1; got 1.5"),
        ({"pixels": [5]}, r"pixels must be \[least, most\]"),
        ({"pixels": [9, 5]}, r"pixels must be \[least, most\]"),
    ],
)
def test_bad_ways_of_asking(change, match, tiny_qwen3):
    with pytest.raises(ValueError, match=match):
        LocalChat(tiny_qwen3, **CPU, **change)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Video([]), "frames must be one or more of one size .*got none"),
        (lambda: Video([FRAMES[0], FRAMES[0][:9]]), "frames must be one or more of one size"),
        (lambda: Video([FRAMES[0]], fps=0.0), "fps must be > 0; got 0.0"),
        (lambda: Video([FRAMES[0].astype(float)]), r"frames must be uint8 \(H, W, 3\)"),
        (lambda: Message("user", "<video>"), "must mark 0 films by <video>, or none; got 1"),
        (
            lambda: Message("user", "<image>", [FRAMES[0]], [Video([FRAMES[0]])]),
            "must mark 1 films by <video>, or none; got 0",
        ),
    ],
)
def test_bad_films(make, match):
    with pytest.raises(ValueError, match=match):
        make()
