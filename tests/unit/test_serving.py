"""The wire format, its limits, batching that is fair, and rows scored together as they are apart."""

import asyncio
import struct
import threading
import time
import zlib

import msgpack
import numpy as np
import pytest
import torch

from embodied.scoring import Layout
from embodied.scoring.streaming import EpisodeStream
from embodied.serving import protocol
from embodied.serving.batching import Batcher
from embodied.serving.images import read_images
from embodied.serving.limits import Rate, Rates, RequestLimits
from embodied.serving.protocol import RefusedError
from embodied.serving.streams import SessionStream, push_all
from rewards.clip_goal import clip_scorer
from rewards.core import Features, Scorer
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder

LIMITS = RequestLimits()
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 255, (6, 8, 8, 3)).astype(np.uint8)


def through(message, limits=LIMITS):
    return protocol.unpack(protocol.pack(message), limits)


def decoded(value, limits=LIMITS):
    return np.concatenate([chunk.decode() for chunk in read_images(value, "images", limits)])


@pytest.mark.parametrize("form", ["raw", "png"])
def test_images_come_through_unchanged(form):
    message = through({"images": protocol.encode_images(FRAMES, form), "one": protocol.encode_image(FRAMES[0], form)})
    np.testing.assert_array_equal(decoded(message["images"]), FRAMES)
    np.testing.assert_array_equal(decoded(message["one"]), FRAMES[:1])


def test_jpeg_comes_through_nearly_and_raw_without_a_copy():
    smooth = np.tile(np.linspace(0, 255, 32, dtype=np.uint8)[:, None, None], (1, 32, 3))
    assert np.abs(decoded(protocol.encode_image(smooth, "jpeg"))[0].astype(int) - smooth).max() <= 6
    raw = read_images(protocol.encode_image(FRAMES), "images", LIMITS)[0]
    assert np.shares_memory(raw.decode(), np.frombuffer(raw.data, np.uint8))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_png_modes_become_rgb(mode, tmp_path):
    from PIL import Image

    Image.new(mode, (5, 4)).save(tmp_path / "a.png")
    assert decoded({"png": (tmp_path / "a.png").read_bytes()}).shape == (1, 4, 5, 3)


def test_depth_is_no_image(tmp_path):
    """16 bits would be cut off at 255, and every distance come out white."""
    from PIL import Image

    Image.new("I;16", (5, 4), 2000).save(tmp_path / "a.png")
    with pytest.raises(RefusedError, match="must be 8-bit greys or colours") as caught:
        read_images({"png": (tmp_path / "a.png").read_bytes()}, "images", LIMITS)
    assert caught.value.code == "bad_image"


def test_arrays_come_through_and_lists_of_numbers_too():
    for values in (RNG.normal(size=(2, 3)).astype(np.float32), FRAMES, np.array([True, False])):
        back = protocol.decode_array(through({"a": protocol.encode_array(values)})["a"], dtype=values.dtype.name)
        np.testing.assert_array_equal(back, values)
    np.testing.assert_array_equal(protocol.decode_array([[1, 2], [3, 4]], ndim=2), [[1, 2], [3, 4]])


def test_json_carries_the_same_as_msgpack():
    body = protocol.to_json({"images": protocol.encode_image(FRAMES[0], "png")})
    np.testing.assert_array_equal(decoded(protocol.from_json(body, LIMITS)["images"]), FRAMES[:1])


def png_header(width, height):
    """The start of a PNG that says how large it is, and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def bomb(side=20_000):
    """A PNG of a few hundred kB that would be 1.2 GB."""
    body = zlib.compress(bytes(1000) * 1000, 9)
    data = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    return png_header(side, side) + data


BAD_IMAGES = {
    "not an image": (7, "bad_image"),
    "nothing": ([], "bad_image"),
    "two forms": ({"raw": b"", "png": b"", "shape": [1, 1, 3]}, "bad_image"),
    "no bytes": ({"raw": 3, "shape": [1, 1, 3]}, "bad_message"),
    "zero size": ({"raw": b"", "shape": [0, 8, 3]}, "bad_image"),
    "four channels": ({"raw": bytes(4), "shape": [1, 1, 4]}, "bad_image"),
    "short": ({"raw": bytes(5), "shape": [2, 1, 3]}, "bad_image"),
    "negative": ({"raw": bytes(6), "shape": [-2, -1, 3]}, "bad_image"),
    "no shape": ({"raw": bytes(6)}, "bad_image"),
    "huge raw": ({"raw": b"", "shape": [1 << 20, 1 << 20, 3]}, "too_large"),
    "bomb": ({"png": bomb()}, "too_large"),
    "garbage jpeg": ({"jpeg": b"\xff\xd8garbage"}, "bad_image"),
    "png as jpeg": ({"jpeg": png_header(4, 4)}, "bad_image"),
    "empty png": ({"png": b""}, "bad_image"),
    "header alone": ({"png": png_header(4, 4)}, "bad_image"),
    "cut jpeg": ({"jpeg": protocol.encode_image(FRAMES[0], "jpeg")["jpeg"][:-200]}, "bad_image"),
    "too many": ([protocol.encode_image(FRAMES[0])] * 1025, "bad_image"),
    "too many in a stack": ({"raw": bytes(3 * 1025), "shape": [1025, 1, 1, 3]}, "too_large"),
    "many large ones": ([{"png": bomb(4000)}] * 5, "too_large"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_refused_quickly(name):
    value, code = BAD_IMAGES[name]
    started = time.process_time()
    with pytest.raises(RefusedError) as refused:
        decoded(value)
    assert refused.value.code == code
    assert 400 <= refused.value.status < 500
    assert refused.value.error
    assert refused.value.expected
    assert time.process_time() - started < 1


BAD_MESSAGES = {
    "empty": b"",
    "unused byte": b"\xc1",
    "length without items": b"\xdd\xff\xff\xff\xff",
    "a million items": b"\xdd\x00\x10\x00\x00" + b"\xc0" * (1 << 20),
    "many lists": msgpack.packb({"a": [[0] * 500] * 500}),
    "many maps": msgpack.packb([{str(k): k for k in range(400)}] * 400),
    "deep": b"\x91" * 5000 + b"\xc0",
    "a list": msgpack.packb([1]),
    "numbers as keys": msgpack.packb({1: 2}),
    "extension": msgpack.packb({"a": msgpack.ExtType(5, b"x")}),
    "two messages": msgpack.packb({}) * 2,
    "not utf-8": b"\x81\xa1\xff\x01",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_messages_are_refused(name):
    with pytest.raises(RefusedError) as refused:
        protocol.unpack(BAD_MESSAGES[name], LIMITS)
    assert refused.value.code in ("bad_message", "too_large")


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"[" * 100_000, b"[" * 9000, b"\xff", b'{"a": [' + b"1," * 30_000])
def test_bad_json_is_refused(body):
    with pytest.raises(RefusedError):
        protocol.from_json(body, LIMITS)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "x",
        {"data": b"1234", "shape": [2]},
        {"data": b"1234", "shape": [1], "dtype": "object"},
        {"data": b"1234", "shape": [1 << 39, 1 << 39]},
        {"data": b"1234", "shape": [1.0]},
        [[1], [1, 2]],
        ["a"],
    ],
)
def test_bad_arrays_are_refused(value):
    with pytest.raises(RefusedError):
        protocol.decode_array(value, "a")


def test_texts_have_a_length():
    assert protocol.text("x" * 1000, "goal", LIMITS)
    for value in ("x" * 10_000, "", " ", 3, None):
        with pytest.raises(RefusedError) as refused:
            protocol.text(value, "goal", LIMITS)
        assert len(refused.value.got) <= 80
    with pytest.raises(RefusedError, match="at most 1000 characters"):
        protocol.text("x" * 10_000, "goal", LIMITS)


def test_limits_are_positive():
    with pytest.raises(ValueError, match="sessions"):
        RequestLimits(sessions=0)


def test_a_rate_refills_and_remembers_debt():
    rate = Rate(10.0, 5, now=0.0)
    assert [rate.take(0.0) for _ in range(5)] == [0.0] * 5
    assert rate.take(0.0) == pytest.approx(0.1)
    assert rate.wait(0.05) == pytest.approx(0.05)
    assert rate.wait(100.0) == 0.0
    assert rate.wait(50.0) == 0.0  # a clock that goes back gives nothing and takes nothing
    rates = Rates(10.0, 1, most=2)
    for client in "abc":
        rates.of(client, 0.0).take(0.0, 5.0)
    assert rates.of("a", 0.0).wait(0.0) == 0  # forgotten
    assert rates.of("c", 0.0).wait(0.0) > 0


# Batching -----------------------------------------------------------------------------------------------


class SlowEncoder(FakeEncoder):
    """Waits for leave to encode each batch, and notes it; refuses frames that are all 13."""

    def __init__(self):
        super().__init__()
        self.batches, self.leave = [], threading.Event()

    def encode_images(self, frames):
        assert self.leave.wait(30)
        if (frames == 13).all(dim=(1, 2, 3)).any():
            raise RuntimeError("thirteen")
        self.batches.append(frames[:, 0, 0, 0].tolist())
        return super().encode_images(frames)


def marked(client, count=1, size=8):
    return [np.full((size, size, 3), client, np.uint8) for _ in range(count)]


async def started(batcher):
    """Until the encoding thread has taken what was there."""
    while batcher.queued:
        await asyncio.sleep(0.001)


def run_batches(scenario, **options):
    encoder = SlowEncoder()
    scorer = clip_scorer(encoder=encoder, goal="a")
    batcher = Batcher(scorer, options.pop("limits", LIMITS), **{"max_wait_ms": 0.0, **options})
    try:
        asyncio.run(asyncio.wait_for(scenario(batcher, encoder), 30))
    finally:
        encoder.leave.set()
        batcher.close()
    return encoder


def test_a_greedy_client_does_not_delay_the_others():
    async def scenario(batcher, encoder):
        first = asyncio.ensure_future(batcher.submit("first", marked(1)))
        await asyncio.sleep(0)
        await started(batcher)
        greedy = asyncio.ensure_future(batcher.submit("greedy", marked(99, 40)))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(batcher.submit(k, marked(k))) for k in range(2, 6)]
        await asyncio.sleep(0)
        encoder.leave.set()
        await asyncio.gather(*others)
        assert (await greedy).shape == (40, 16)
        await first

    encoder = run_batches(scenario, max_batch=8)
    assert encoder.batches[1] == [99, 2, 3, 4, 5, 99, 99, 99]
    assert len(encoder.batches) == 2 + 5


def test_features_are_those_of_the_frames_whatever_their_sizes():
    async def scenario(batcher, encoder):
        encoder.leave.set()
        answers = await asyncio.gather(*(batcher.submit(k, list(FRAMES[k : k + 2])) for k in range(5)))
        for k, answer in enumerate(answers):
            alone = encoder.encode_images(torch.from_numpy(FRAMES[k : k + 2])).numpy()
            np.testing.assert_allclose(answer, alone, atol=1e-6)

    run_batches(scenario)


def test_sizes_are_batched_apart_and_none_starves():
    async def scenario(batcher, encoder):
        encoder.projection = torch.randn(3, 16)
        encoder.encode_images = lambda frames: (encoder.batches.append(list(frames.shape)), frames[:, 0, 0].float())[1]
        jobs = [batcher.submit(k, marked(k, 3, size=8 if k % 2 else 4)) for k in range(6)]
        jobs.append(batcher.submit("both", [*marked(7, 2, 8), *marked(8, 2, 4)]))
        answers = await asyncio.gather(*jobs)
        assert [len(answer) for answer in answers] == [3] * 6 + [4]
        assert answers[-1][:, 0].tolist() == [7, 7, 8, 8]

    encoder = run_batches(scenario)
    assert {shape[1] for shape in encoder.batches} == {4, 8}


def test_a_batch_that_fails_harms_only_the_one_at_fault():
    async def scenario(batcher, encoder):
        encoder.leave.set()
        jobs = [batcher.submit(k, marked(k)) for k in (1, 13, 2)]
        good, bad, fine = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(bad, RuntimeError)
        assert len(good) == len(fine) == 1
        assert len(await batcher.submit("later", marked(5))) == 1

    run_batches(scenario)


def test_a_full_queue_refuses_and_a_client_that_left_is_skipped():
    async def scenario(batcher, encoder):
        first = asyncio.ensure_future(batcher.submit("a", marked(1)))
        await asyncio.sleep(0)
        await started(batcher)
        gone = asyncio.ensure_future(batcher.submit("b", marked(2, 10)))
        await asyncio.sleep(0)
        with pytest.raises(RefusedError) as refused:
            await batcher.submit("c", marked(3))
        assert refused.value.status == 503
        assert refused.value.retry_after_s
        gone.cancel()
        await asyncio.sleep(0)
        encoder.leave.set()
        await first
        while batcher.queued:
            await asyncio.sleep(0.001)
        assert len(await batcher.submit("c", marked(3, 10))) == 10

    encoder = run_batches(scenario, limits=RequestLimits(queue_frames=10))
    assert [2] not in [batch[:1] for batch in encoder.batches]


def test_pixels_bound_the_queue_and_the_batch():
    async def scenario(batcher, encoder):
        with pytest.raises(RefusedError):
            await batcher.submit("a", marked(1, 11))
        encoder.leave.set()
        await batcher.submit("a", marked(1, 10))

    encoder = run_batches(scenario, limits=RequestLimits(queue_pixels=640, batch_pixels=200))
    assert [len(batch) for batch in encoder.batches] == [3, 3, 3, 1]


def test_frames_wait_for_others_but_not_long():
    async def scenario(batcher, encoder):
        encoder.leave.set()
        started_s = time.monotonic()
        jobs = [asyncio.ensure_future(batcher.submit(0, marked(0)))]
        await asyncio.sleep(0.02)
        jobs.append(asyncio.ensure_future(batcher.submit(1, marked(1))))
        await asyncio.gather(*jobs)
        assert time.monotonic() - started_s < 10  # two of four have sent: nobody waits for the rest
        started_s = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit(2, marked(2)), 0.1)

    encoder = run_batches(scenario, max_wait_ms=20_000.0, clients=lambda: 4)
    assert encoder.batches[0] == [0, 1]


def test_a_closed_batcher_finishes_what_is_queued_and_takes_nothing_more():
    async def scenario(batcher, encoder):
        job = asyncio.ensure_future(batcher.submit(0, marked(0, 100)))
        await asyncio.sleep(0)
        encoder.leave.set()
        await asyncio.get_running_loop().run_in_executor(None, batcher.close)
        assert len(await job) == 100
        with pytest.raises(RefusedError):
            await batcher.submit(0, marked(0))

    run_batches(scenario, max_batch=8)


# Rows together ------------------------------------------------------------------------------------------


class Picky:
    """Gives NaN where the first feature is above 5."""

    name, pointwise = "picky", True

    def score(self, features: Features):
        first = features.main[..., 0]
        return torch.where(first > 5, torch.nan, first)


def test_rows_scored_together_are_as_rows_scored_apart():
    encoder = FakeEncoder()
    shaping = {"kind": "difference", "discount": 0.9}
    scorer = clip_scorer(encoder=encoder, goal="a", baseline="b", shaping=shaping)
    other = clip_scorer(encoder=encoder, goal="c", baseline="b", shaping=shaping)
    layout = Layout(("front", "side"), ("force",))
    together = [SessionStream(s, layout) for s in (scorer, scorer, other, scorer)]
    apart = [EpisodeStream(s, layout) for s in (scorer, scorer, other, scorer)]
    for counts in ((1, 2, 1, 0), (0, 1, 3, 2), (1, 1, 1, 1)):
        chosen = [k for k in range(4) if counts[k]]
        rows = {k: RNG.normal(size=(counts[k], 2, 16)).astype(np.float32) for k in chosen}
        for k in chosen:
            together[k].moments = [{"force": 0.5}] * counts[k]
        found = push_all([(together[k], list(rows[k].reshape(-1, 16))) for k in chosen])
        for k, readings in zip(chosen, found, strict=True):
            alone = [apart[k].push(np.append(row.ravel(), 0.5).astype(np.float32)) for row in rows[k]]
            for one, two in zip(readings, alone, strict=True):
                assert one[:2] == two[:2]
                assert one.combined == pytest.approx(two.combined, abs=1e-6)
                assert one.potentials == pytest.approx(two.potentials, abs=1e-6)
                assert one.reward == (None if two.reward is None else pytest.approx(two.reward, abs=1e-6))


def test_nan_of_one_stream_is_its_own():
    scorer = Scorer(FakeEncoder(), {"picky": Picky()}, lambda each, features: each["picky"], PotentialShaping())
    streams = [SessionStream(scorer), SessionStream(scorer)]
    for stream in streams:
        stream.moments = [{}, {}]
    bad, good = push_all([(streams[0], marked_rows(1, 9)), (streams[1], marked_rows(2, 3))])
    assert bad[0].combined == 1
    assert isinstance(bad[1], FloatingPointError)
    assert [each.combined for each in good] == [2, 3]
    for stream in streams:
        stream.moments = [{}]
    again, _ = push_all([(streams[0], marked_rows(4)), (streams[1], marked_rows(4))])
    assert again[0].row == 1  # the one that failed left no row


def marked_rows(*firsts):
    return [np.full(16, first, np.float32) for first in firsts]
