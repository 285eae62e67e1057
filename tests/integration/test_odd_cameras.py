"""Cameras that send what they like: parts without a type, one picture a request, depth in place of colours."""

import base64
import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from embodied.cameras import CameraError, open_source
from embodied.cameras.camera import BrokenImage, decoded
from tests.cameras import fresh, kinds
from tests.mjpeg_server import MjpegServer, jpeg, number_of, picture
from tests.waiting import until

HEADS = ("", "Content-Length: {length}\r\n", "Content-Type: image/jpg\r\n", "X-Timestamp: 12.5\r\n")


@pytest.mark.parametrize("head", HEADS)
def test_parts_without_a_type_are_pictures(head, quick):
    with MjpegServer(fps=40) as server:
        server.head = head
        with open_source(server.url) as source:
            seen = []
            for _ in range(10):
                frame = fresh(source)
                seen.append(number_of(frame.image))
                assert server.sent_at[seen[-1]] <= frame.captured_s + 1 / 40
            assert seen == sorted(set(seen))
            server.drop()
            until(lambda: source.next(0.1) and "back" in kinds(source))
            assert number_of(fresh(source).image) > seen[-1]


def test_an_address_of_one_picture_is_asked_again_and_again():
    with MjpegServer(fps=40) as server:
        url = server.url.replace("/stream.mjpg", "/one.jpg")
        server.refuse = "Basic " + base64.b64encode(b"me:p@ss").decode()
        with open_source(url.replace("//", "//me:p%40ss@")) as source:
            seen = [number_of(fresh(source).image) for _ in range(4)]
            assert seen == sorted(set(seen))
            assert fresh(source).image.shape == (120, 160, 3)
        with pytest.raises(CameraError, match="401"):
            open_source(url)


@pytest.mark.parametrize("name", ["stream.mjpg", "one.jpg"])
def test_a_proxy_is_not_asked_for_this_machine_s_own_cameras(name, monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with MjpegServer(fps=40) as server, open_source(server.url.replace("stream.mjpg", name)) as source:
        assert fresh(source).image.shape == (120, 160, 3)


def depth(path, millimetres):
    """A picture of one distance, in 16 bits or floats."""
    kind = np.float32 if path.suffix == ".tif" else np.uint16
    Image.fromarray(np.full((32, 48), millimetres, kind)).save(path)
    return path


@pytest.mark.parametrize("name", ["depth.png", "depth.tif", "wide.tiff"])
def test_depth_pictures_are_refused_not_saturated(tmp_path, name):
    file = depth(tmp_path / name, 2000)
    with pytest.raises(BrokenImage, match="must be 8-bit greys or colours"):
        decoded(file.read_bytes(), "camera")


def test_depth_among_a_folder_s_pictures_is_left_out_and_told(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.jpg").write_bytes(jpeg(picture(k, 64, 96)))
    depth(tmp_path / "1.png", 900)
    with open_source(tmp_path) as source:
        seen = [number_of(source.next()["main"].image) for _ in range(3)]
        assert seen == [0, 1, 2]
        assert source.broken == 1
        assert "16 bits" in source.news()[0].text


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mkv", "ffv1", "gray16le"), ("b.mkv", "ffv1", "gray12le")])
def test_a_film_of_depth_is_refused(tmp_path, name, codec, pix_fmt):
    with av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, pix_fmt
        for k in range(4):
            frame = av.VideoFrame(48, 32, pix_fmt)
            frame.planes[0].update(np.full(frame.planes[0].buffer_size // 2, 500 * k, np.uint16).tobytes())
            frame.pts, frame.time_base = k, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(CameraError, match=f"they are {pix_fmt}, as in depth pictures"):
        open_source(tmp_path / name).next()


def test_grey_pictures_of_eight_bits_are_pictures():
    for mode, value in (("L", 90), ("1", 1), ("P", 0), ("LA", (90, 255))):
        image = Image.new(mode, (8, 8), value)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert decoded(buffer.getvalue(), "camera").shape == (8, 8, 3)
