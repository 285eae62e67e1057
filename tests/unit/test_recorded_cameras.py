"""Films, folders and datasets as cameras; and what damaged ones do."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from embodied.cameras import (
    CameraError,
    CameraTimeout,
    open_source,
)
from embodied.cameras.recorded import Shot, folder_images, resampled
from embodied.errors import UserError
from tests.cameras import events, image, kinds
from tests.mjpeg_server import damaged, jpeg, number_of, picture

DEADLINE_S = 20.0


# Records ------------------------------------------------------------------------------------------------


def write_film(path: Path, count=20, fps=10, size=(64, 96), codec="libx264"):
    """H.264 has a key frame every five pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "5", "bf": "0"})
        stream.gop_size = 5
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p" if codec == "libx264" else "yuvj420p"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def everything(source):
    frames = []
    with source:
        while True:
            try:
                frames.append(source.next()["main"])
            except EOFError:
                return frames


def test_a_film_is_read_every_frame_the_same_each_time(tmp_path):
    film = write_film(tmp_path / "film.mp4")
    one, two = everything(open_source(str(film))), everything(open_source(film))
    assert [number_of(frame.image) for frame in one] == list(range(20))
    assert [frame.captured_s for frame in one] == pytest.approx([i / 10 for i in range(20)])
    assert [frame.index for frame in one] == list(range(20))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, two, strict=True))
    assert not any(frame.stale for frame in one)
    with open_source(film) as source:
        assert (source.live, source.names, source.fps, source.dropped) == (False, ("main",), 10.0, 0)
    source.close()


@pytest.mark.parametrize(("fps", "numbers"), [(5, list(range(0, 20, 2))), (20, [i // 2 for i in range(40)][:39])])
def test_a_film_is_sampled_at_another_rate(tmp_path, fps, numbers):
    frames = everything(open_source(write_film(tmp_path / "film.mp4"), fps=fps))
    assert [number_of(frame.image) for frame in frames] == numbers
    assert [frame.captured_s for frame in frames] == pytest.approx([i / fps for i in range(len(numbers))])


def test_sampling_holds_over_a_gap():
    shots = [Shot(image(i), t) for i, t in enumerate((0.0, 0.1, 0.5))]
    assert [number_of(shot.image) for shot in resampled(iter(shots), 10.0)] == [0, 1, 1, 1, 1, 2]


def test_a_record_gives_its_images_as_a_camera_too(tmp_path):
    with open_source(write_film(tmp_path / "film.mp4", count=2)) as source:
        camera = source._recorded["main"]
        with pytest.raises(CameraTimeout):
            camera.read_latest()
        assert number_of(camera.read()) == 0
        assert number_of(camera.read_latest()) == 0
        assert number_of(camera.async_read()) == 1
        assert (camera.height, camera.width) == (64, 96)
        with pytest.raises(EOFError):
            camera.read()


def test_a_film_cut_short_is_told(tmp_path):
    film = write_film(tmp_path / "film.mkv", codec="mjpeg")
    data = film.read_bytes()
    film.write_bytes(data[: len(data) * 2 // 3])
    source = open_source(film)
    frames = everything(source)
    assert 5 < len(frames) < 20
    assert source.broken >= 1 or len(frames) < 20
    cut = write_film(tmp_path / "film.mp4").read_bytes()
    (tmp_path / "film.mp4").write_bytes(cut[: len(cut) // 2])  # its index is at the end
    with pytest.raises(CameraError, match="cannot be opened"):
        open_source(tmp_path / "film.mp4")


def test_a_damaged_picture_in_a_film_is_skipped_and_told(tmp_path):
    film = write_film(tmp_path / "film.mkv", codec="mjpeg")
    data = bytearray(film.read_bytes())
    starts = [i for i in range(len(data)) if data[i : i + 3] == b"\xff\xd8\xff"]
    data[starts[4] + 2 : starts[4] + 300] = bytes(298)
    film.write_bytes(data)
    source = open_source(film)
    numbers = [number_of(frame.image) for frame in everything(source)]
    assert numbers == [i for i in range(20) if i != 4]
    assert source.broken == 1
    assert kinds(source) == ["broken"]


def test_pictures_after_a_damaged_one_are_not_believed_before_the_next_key_frame(tmp_path):
    film = write_film(tmp_path / "film.mkv")
    whole = everything(open_source(film))
    with av.open(str(film)) as container:
        packet = [bytes(each) for each in container.demux(video=0)][7]
    film.write_bytes(film.read_bytes().replace(packet, packet[:5] + b"\xff" * (len(packet) - 5)))
    source = open_source(film)
    frames = everything(source)
    assert [frame.index for frame in frames] == [*range(7), *range(10, 20)]
    assert all(np.array_equal(frame.image, whole[frame.index].image) for frame in frames)
    assert source.broken == 3


def test_a_wrong_codec_says_so(tmp_path):
    text = tmp_path / "film.mp4"
    text.write_text("this is no film")
    with pytest.raises(CameraError, match="cannot be opened"):
        open_source(text)
    film = write_film(tmp_path / "film.avi", codec="mjpeg")
    film.write_bytes(film.read_bytes().replace(b"MJPG", b"XQ9Z"))
    with pytest.raises(CameraError, match="codec is not known"):
        open_source(film)
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(CameraError, match="holds no video"):
        open_source(sound)


def test_a_folder_is_read_in_the_order_a_person_counts(tmp_path):
    for i in (10, 2, 1):
        Image.fromarray(image(i)).save(tmp_path / f"shot{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    assert [path.name for path in folder_images(tmp_path)] == ["shot1.png", "shot2.png", "shot10.png"]
    frames = everything(open_source(tmp_path, fps=10))
    assert [number_of(frame.image) for frame in frames] == [1, 2, 10]
    assert [frame.captured_s for frame in frames] == pytest.approx([0, 0.1, 0.2])
    assert np.array_equal(frames[0].image, image(1))


def test_a_folder_s_bad_images_are_left_out_and_told(tmp_path):
    good = jpeg(image(1))
    (tmp_path / "0.jpg").write_bytes(good)
    for i, kind in enumerate(("truncated", "garbage", "empty", "huge"), start=1):
        (tmp_path / f"{i}.jpg").write_bytes(damaged(kind, good))
    (tmp_path / "5.jpg").write_bytes(jpeg(image(5, 64, 128)))
    source = open_source(tmp_path)
    frames = everything(source)
    assert [frame.index for frame in frames] == [0, 5]
    assert frames[1].image.shape == frames[0].image.shape
    assert source.broken == 4
    assert kinds(source) == ["broken"] * 4 + ["resized"]
    assert "1.jpg" in events(source)[0].text


def test_an_empty_folder_and_a_dataset_s_folder_say_what_to_do(tmp_path):
    with pytest.raises(CameraError, match="holds no images"):
        open_source(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    with pytest.raises(UserError, match="Write dataset:"):
        open_source(tmp_path)


def test_records_of_different_rates_are_not_joined_by_number(tmp_path):
    """Picture 30 of a film of 10 a second stood beside picture 30 of one of 30, two seconds of the scene before it."""
    front = write_film(tmp_path / "front.mp4", count=6)
    side = write_film(tmp_path / "side.mp4", count=18, fps=30)
    with pytest.raises(UserError, match="one rate; got front 10, side 30 images a second"):
        open_source({"front": front, "side": side})
    with open_source({"front": front, "side": side}, fps=10) as source:
        moments = [[number_of(frame.image) for frame in source.next().values()] for _ in range(6)]
    assert moments == [[i, 3 * i] for i in range(6)]


def test_a_folder_of_images_tells_its_rate(tmp_path):
    """A dataset recorded of one had 10 rows a second, whatever rate it was read at."""
    (tmp_path / "0.jpg").write_bytes(jpeg(image(1)))
    for given, rate in ((None, 30), (15, 15)):
        with open_source(tmp_path, fps=given) as source:
            assert source.fps == rate


def test_a_recorded_rig_joins_by_number_and_ends_with_the_shortest(tmp_path):
    film = write_film(tmp_path / "film.mp4", count=6)
    (tmp_path / "side").mkdir()
    for i in range(4):
        (tmp_path / "side" / f"{i}.jpg").write_bytes(b"" if i == 1 else jpeg(image(i)))
    with open_source([f"front={film}", {"spec": str(tmp_path / "side"), "flip": "h", "fps": 10}]) as source:
        assert source.names == ("front", "camera1")
        moments = [source.next() for _ in range(3)]
        with pytest.raises(EOFError):
            source.next()
    assert [[frame.index for frame in moment.values()] for moment in moments] == [[0, 0], [2, 2], [3, 3]]
    assert number_of(moments[2]["camera1"].image[:, ::-1]) == 3
