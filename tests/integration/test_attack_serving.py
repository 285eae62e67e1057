"""A server under attack by pictures, messages and debts made to stall it, and the others served as ever."""

import contextlib
import http.client
import io
import json
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import msgpack
import numpy as np
import pytest
from PIL import Image

from embodied.serving import gate, images, protocol
from embodied.serving.images import read_images
from embodied.serving.limits import RequestLimits
from tests.serving_client import (
    DEADLINE_S,
    FRAMES,
    MANY,
    PICTURE,
    ask,
    cheap,
    fine,
    frames,
    serving,
    session,
    shared_server,
)
from tests.waiting import until

shared = shared_server(limits=MANY)


# Pictures -----------------------------------------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height, width, *extra):
    """A black PNG; `extra` chunks before its pixels."""
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress((b"\0" + bytes(3 * width)) * height, 9)
    return b"".join([head, *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])


def jpeg(image, *extra, scans=0):
    """A progressive JPEG; `extra` segments at its start, its last scan so many times more."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", progressive=True, quality=95)
    data = out.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return b"".join([data[:2], *extra, data[2:-2], last * scans, data[-2:]])


def segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


EXIF = segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0")
SMOOTH = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 64, 3))
PICTURES = {
    "a thread of a million pixels": ("png", lambda: png(1, 1_000_000), "at most 32 times the short one"),
    "a thread downwards": ("png", lambda: png(1_000_000, 1), "at most 32 times the short one"),
    "16 million pixels in a line": ("png", lambda: png(16_000_000, 1), "at most 32 times the short one"),
    "6000 scans": ("jpeg", lambda: jpeg(np.zeros((1000, 1000, 3), np.uint8), scans=6000), "at most 32 scans"),
    "200,000 EXIF segments": ("jpeg", lambda: jpeg(SMOOTH, EXIF * 200_000), "at most 1024 segments"),
    "a million comments": ("jpeg", lambda: jpeg(SMOOTH, segment(0xFE, b"") * 1_000_000), "at most 1024 segments"),
    "300,000 empty chunks": ("png", lambda: png(8, 8, chunk(b"abCd", b"") * 300_000), "chunks in one PNG"),
    "300,000 empty pieces of pixels": ("png", lambda: png(8, 8, chunk(b"IDAT", b"") * 300_000), "chunks in one PNG"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_would_stall_the_server_is_refused_at_once(shared, name):
    form, make, told = PICTURES[name]
    data = make()
    with cheap():
        status, _, answer = ask(shared, protocol.SCORE, body=data, media=f"image/{form}")
        assert (status, answer["code"], told in answer["error"]) == (413, "too_large", True), answer
        with session(shared) as say:
            assert say({"type": "frames", "images": {"main": {form: data}}})["code"] == "too_large"
            assert say(frames(FRAMES[0]))["row"] == 0


def test_a_thread_of_raw_pixels_is_refused_at_every_door(shared):
    with cheap():
        raw = {"raw": bytes(3_000_000), "shape": [1, 1_000_000, 3]}
        for path in (protocol.SCORE, protocol.ENCODE):
            images = raw if path == protocol.ENCODE else {"main": raw}
            assert ask(shared, path, {"images": images})[0] == 413
        views = {"main": protocol.encode_array(np.zeros((1, 1, 16), np.float32))}
        image = protocol.encode_array(np.zeros((1, 1, 1, 1_000_000, 3), np.uint8))
        assert ask(shared, protocol.POTENTIALS, {"views": views, "frames": {"main": image}})[0] == 413


def decoded(data, form):
    return read_images({form: data}, "images", RequestLimits())[0].decode()[0]


def test_metadata_is_left_out_and_the_pixels_are_the_same():
    """What cameras write beside the picture costs nothing and changes nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    extra = [EXIF, segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)), segment(0xFE, b"x" * 60_000)] * 100
    for image in (SMOOTH, noise):
        np.testing.assert_array_equal(decoded(jpeg(image, *extra), "jpeg"), decoded(jpeg(image), "jpeg"))
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG")
        own = np.asarray(Image.open(io.BytesIO(out.getvalue())))
        np.testing.assert_array_equal(decoded(out.getvalue(), "jpeg"), own)
    more = [chunk(b"tEXt", b"a\0b"), chunk(b"eXIf", bytes(1000)), chunk(b"acTL", struct.pack(">II", 1, 0))] * 100
    assert decoded(png(8, 8, *more), "png").shape == (8, 8, 3)
    for mode in ("P", "RGBA", "L", "1"):  # palettes and transparency belong to the pixels
        out = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(out, "PNG")
        own = np.asarray(Image.open(io.BytesIO(out.getvalue())).convert("RGB"))
        np.testing.assert_array_equal(decoded(out.getvalue(), "png"), own)


def test_pictures_that_wait_for_a_decoder_do_not_keep_the_server_from_ending(monkeypatch):
    entered, leave = [], threading.Event()

    def held(chunk):
        entered.append(chunk)
        assert leave.wait(DEADLINE_S)
        return np.zeros(chunk.shape, np.uint8)

    monkeypatch.setattr(images.Chunk, "decode", held)

    def asking(_):
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):  # whatever it still says
            ask(server, protocol.SCORE, body=png(8, 8), media="image/png")

    with serving(limits=RequestLimits(drain_s=0.2)) as server, ThreadPoolExecutor(8) as pool:
        asked = pool.map(asking, range(8))
        until(lambda: len(entered) == gate.DECODERS and server.service.answering == 8)
        server.server.should_exit = True
        until(lambda: server.service._decoders._shutdown)
        leave.set()
        server.thread.join(DEADLINE_S)
        assert not server.thread.is_alive()
        list(asked)
    assert len(entered) == gate.DECODERS


# Messages -----------------------------------------------------------------------------------------------


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


DEEP = {
    "images": lambda value: {"images": value},
    "a view": lambda value: {"images": {"main": value}},
    "a shape": lambda value: {"images": {"main": {"raw": b"", "shape": value}}},
    "a signal": lambda value: {**PICTURE, "signals": {"force": value}},
    "a goal": lambda value: {**PICTURE, "goal": value},
    "texts": lambda value: {"texts": value},
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("depth", [50, 200, 400, 900, 1000])
def test_deep_messages_are_the_clients_fault(shared, name, depth):
    path = protocol.ENCODE if name == "texts" else protocol.SCORE
    for body, media in (
        (msgpack.packb(DEEP[name](nested(depth))), protocol.MSGPACK),
        (json.dumps(DEEP[name]("?"), default=lambda _: "").replace('"?"', "[" * depth + "]" * depth).encode(),
         protocol.JSON),
    ):  # fmt: skip
        status, _, answer = ask(shared, path, body=body, media=media)
        assert (status, answer["code"] != "internal") == (400, True), answer
        assert len(answer["got"]) <= 80


def test_what_a_session_gives_back_as_it_came_may_be_deep(shared):
    with session(shared) as say:
        for depth in (100, 400, 900):
            assert say({**frames(FRAMES[0]), "id": nested(depth)})["type"] == "reading"
        assert say({"type": "open", "views": nested(900), "id": nested(900)})["type"] == "error"
        assert say(frames(FRAMES[0]))["row"] == 3


@pytest.mark.parametrize("value", [b"x" * 8_000_000, [b"x" * 8_000_000], {b"x" * 8_000_000: 1}, "x" * 8_000_000])
def test_a_large_value_in_the_wrong_place_is_not_written_out(shared, value):
    with cheap():
        status, _, answer = ask(shared, protocol.SCORE, {"images": {"main": value}})
        assert (status, len(answer["got"]) <= 80) == (400, True)


# Debts --------------------------------------------------------------------------------------------------


def asked_often(server, count, headers=None):
    """Statuses of bad requests on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
    statuses = []
    for _ in range(count):
        sent = {"Content-Type": protocol.MSGPACK} | (headers or {})
        connection.request("POST", protocol.SCORE, b"rubbish", sent)
        with connection.getresponse() as answer:
            statuses.append(answer.status)
            answer.read()
    connection.close()
    return statuses


def test_one_connections_refusals_cost_no_other_connection():
    with serving() as server:
        statuses = asked_often(server, 60)
        assert set(statuses) == {400, 429}  # it is held to its own debt
        assert server.service.guard.pause("127.0.0.1") == 0
        assert fine(server)


def test_a_hosts_debt_has_a_ceiling():
    with serving() as server:
        guard = server.service.guard
        for _ in range(2000):
            guard.bad("192.0.2.7")
        assert 0 < guard.pause("192.0.2.7") <= 1.0
        assert guard._bad.of("192.0.2.7", 0.0).wait(time.monotonic()) <= 2.0  # and then it is served as ever
        assert guard.pause("192.0.2.8") == 0


def test_behind_a_proxy_that_is_named_each_client_is_its_own(monkeypatch):
    monkeypatch.setattr(gate, "LONGEST_DEBT_S", 600.0)
    limits = RequestLimits(requests_per_s=1.0, burst=30)
    with serving(limits=limits, proxies=["127.0.0.1"]) as server:
        assert asked_often(server, 3, {"X-Forwarded-For": "192.0.2.7"})[-1] == 429
        assert ask(server, protocol.MODEL, headers={"X-Forwarded-For": "192.0.2.8"})[0] == 200
        assert ask(server, protocol.MODEL, headers={"X-Forwarded-For": "192.0.2.7"})[0] == 429
        server.service.guard.bad("127.0.0.1")
        assert server.service.guard.pause("127.0.0.1") == 0
    with serving(limits=limits) as server:  # nobody's word is taken unasked
        assert asked_often(server, 3, {"X-Forwarded-For": "192.0.2.7"})[-1] == 429
        assert ask(server, protocol.MODEL, headers={"X-Forwarded-For": "192.0.2.7"})[0] == 200


def test_guesses_of_the_token_are_held_against_who_guesses_at_every_path():
    with serving(token="secret") as server:
        for path in (protocol.METRICS, protocol.MODEL):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
            statuses = set()
            for k in range(60):
                connection.request("GET", path, headers={"Authorization": f"Bearer {k}"})
                with connection.getresponse() as answer:
                    statuses.add(answer.status)
                    answer.read()
            connection.close()
            assert statuses <= {401, 429}
        refused = server.service.metrics.refused.labels("unauthorised")._value.get()
        assert refused >= 60


# Doors that are open to all -----------------------------------------------------------------------------


def test_what_needs_no_token_tells_nothing_secret():
    with serving(token="secret") as server:
        for path in ("/health", protocol.HEALTH):
            status, _, answer = ask(server, path, headers={"Authorization": ""})
            assert (status, set(answer)) == (200, {"status", "model_id", "version"})
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        connection.request("GET", "/docs")
        with connection.getresponse() as answer:
            text = answer.read().decode()
            assert (answer.status, answer.headers.get_content_type()) == (200, "text/plain")
        connection.close()
        for word in ("POST /v1/score", "Authorization: Bearer", "curl"):
            assert word in text
        for path in ("/openapi.json", "/redoc", "/"):
            assert ask(server, path)[0] == 404
        assert "/docs" in ask(server, "/")[2]["expected"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_schemes_case_says_nothing(scheme):
    with serving(token="secret") as server:
        assert ask(server, protocol.MODEL, headers={"Authorization": f"{scheme} secret"})[0] == 200
        assert ask(server, protocol.MODEL, headers={"Authorization": f"{scheme} Secret"})[0] == 401
        with session(server, headers={"Authorization": f"{scheme} secret"}) as say:
            assert say(frames(FRAMES[0]))["type"] == "reading"
