"""MCAP: readings as JSON and images as Foxglove's `CompressedImage`, for Foxglove and ROS tools.

Messages are kept for half a second, then written as one chunk with its index. The summary at a file's end is made from
the file itself, so that finishing a recording and mending one whose process was killed are the same thing.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embodied.errors import UserError
from embodied.sinks.files import Appended, write_all
from embodied.watching.watched import Watched, line

CHUNK_S = 0.5
JPEG_QUALITY = 85
MAGIC = b"\x89MCAP0\r\n"
SCHEMA, CHANNEL, CHUNK, MESSAGE_INDEX, DATA_END = 3, 4, 6, 7, 15  # opcodes
TIME = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
IMAGE_SCHEMA = {
    "type": "object",
    "properties": {
        "timestamp": TIME,
        "frame_id": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
        "format": {"type": "string"},
    },
}
NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
READING_SCHEMA = {
    "type": "object",
    "properties": {
        **{name: {"type": "number"} for name in ("time", "at_s", "combined", "reward", "smoothed", "age_s")},
        **{name: {"type": "number"} for name in ("latency_s", "model_hz", "episode", "row", "dropped")},
        **{name: {"type": "boolean"} for name in ("success", "stale")},
        **{name: {"type": "string"} for name in ("goal", "event")},
        **dict.fromkeys(("potentials", "normalised", "frame_index", "captured_s", "latencies_s"), NUMBERS),
    },
}


def library() -> Any:
    """The modules `mcap.records` and `mcap.data_stream`, as one name.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import mcap.data_stream
        import mcap.records
    except ImportError as error:
        raise UserError('MCAP is not installed. pip install "embodied-rewards[mcap]".') from error
    return mcap


class McapFile:
    """Writes `….mcap`.

    Args:
        path: made anew.

    Raises:
        UserError: the package `mcap` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._mcap = library()
        self._file, self._closed = Appended(path), False
        self._channels: dict[str, int] = {}
        self._messages: list[tuple[int, int, bytes]] = []  # channel, nanoseconds, data
        self._counts: dict[int, int] = defaultdict(int)
        self._shown: dict[str, int] = {}  # view -> index of its frame that was written last
        self._clock_s: float | None = None  # wall clock less `at_s`, from the first moment on: it never jumps
        header = self._mcap.data_stream.RecordBuilder()
        self._mcap.records.Header(profile="", library="embodied").write(header)
        for number, (name, schema) in enumerate(
            (("embodied.Reading", READING_SCHEMA), ("foxglove.CompressedImage", IMAGE_SCHEMA)), start=1
        ):
            data = json.dumps(schema).encode()
            self._mcap.records.Schema(id=number, name=name, encoding="jsonschema", data=data).write(header)
        self._file.write(MAGIC + header.end())

    def write(self, watched: Watched) -> None:
        if self._clock_s is None:
            self._clock_s = watched.time - watched.at_s
        now_ns = round((watched.at_s + self._clock_s) * 1e9)
        if self._messages and now_ns - self._messages[0][1] >= CHUNK_S * 1e9:
            self._write_chunk()
        self._add("reading", 1, now_ns, line(watched))
        for view, frame in watched.frames.items():
            if self._shown.get(view) != frame.index:
                self._shown[view] = frame.index
                captured_ns = round((frame.captured_s + self._clock_s) * 1e9)  # earlier than the line, by its latency
                self._add(f"observation.images.{view}", 2, now_ns, _image(frame.image, view, captured_ns))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._write_chunk()
        finally:
            self._file.close()
            finish(self._file.path)

    def _add(self, topic: str, schema: int, now_ns: int, message: Mapping[str, Any]) -> None:
        if topic not in self._channels:
            channel = len(self._channels) + 1
            builder = self._mcap.data_stream.RecordBuilder()
            record = self._mcap.records.Channel
            record(id=channel, topic=topic, message_encoding="json", metadata={}, schema_id=schema).write(builder)
            self._file.write(builder.end())
            self._channels[topic] = channel
        self._messages.append((self._channels[topic], now_ns, json.dumps(message).encode()))

    def _write_chunk(self) -> None:
        """The messages so far, and where each lies, as one piece."""
        if not self._messages:
            return
        records, messages = self._mcap.records, self._messages
        self._messages = []
        inner = self._mcap.data_stream.RecordBuilder()
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for channel, time_ns, data in messages:
            places[channel].append((time_ns, inner.count))
            records.Message(
                channel_id=channel, log_time=time_ns, publish_time=time_ns, data=data, sequence=self._counts[channel]
            ).write(inner)
            self._counts[channel] += 1
        data = inner.end()
        outer = self._mcap.data_stream.RecordBuilder()
        times = [time_ns for _, time_ns, _ in messages]
        records.Chunk(
            compression="", data=data, message_start_time=min(times), message_end_time=max(times),
            uncompressed_crc=zlib.crc32(data), uncompressed_size=len(data),
        ).write(outer)  # fmt: skip
        for channel, entries in places.items():
            records.MessageIndex(channel_id=channel, records=entries).write(outer)
        self._file.write(outer.end())


def finish(path: Path) -> bool:
    """Give a file its summary, made from what it holds; a record that was cut off goes. Whether it had none.

    Raises:
        OSError: there is no room for the summary even without the last chunk.
    """
    if not _unfinished(path):
        return False
    mcap = library()
    with path.open("r+b", buffering=0) as file:  # nothing is held back that could fail again later
        while True:
            found = list(_records(file))
            end = found[-1][1] + found[-1][2] if found else len(MAGIC)
            file.truncate(end)
            summary = _summary(mcap, file, found, end)
            file.seek(end)
            try:
                write_all(file, summary)
                return True
            except OSError:
                file.truncate(end)
                chunks = [at for opcode, at, _ in found if opcode == CHUNK]
                if not chunks:
                    raise
                file.truncate(chunks[-1])  # gives its room to the summary


def _unfinished(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        if size < len(MAGIC):
            return False
        file.seek(size - len(MAGIC))
        return file.read() != MAGIC or size == len(MAGIC)


def _records(file: io.RawIOBase) -> Iterator[tuple[int, int, int]]:
    """(opcode, offset, length with its head) of each whole record of the data section."""
    size = file.seek(0, io.SEEK_END)
    at = len(MAGIC)
    while at + 9 <= size:
        file.seek(at)
        opcode, length = struct.unpack("<BQ", file.read(9))
        if opcode == DATA_END or at + 9 + length > size:
            return
        yield opcode, at, 9 + length
        at += 9 + length


def _summary(mcap: Any, file: io.RawIOBase, found: list[tuple[int, int, int]], end: int) -> bytes:
    """What follows the data: its end, then schemas, channels, statistics, an index of the chunks, the footer."""
    records = mcap.records
    data_end, repeated, indexes = (mcap.data_stream.RecordBuilder() for _ in range(3))
    records.DataEnd(data_section_crc=0).write(data_end)
    first = data_end.end()
    counts: dict[int, int] = defaultdict(int)
    kinds: dict[int, int] = defaultdict(int)
    starts: list[int] = []
    ends: list[int] = []
    repeats = b""
    for k, (opcode, at, length) in enumerate(found):
        kinds[opcode] += 1
        file.seek(at)
        if opcode in (SCHEMA, CHANNEL):
            repeats += file.read(length)
        if opcode != CHUNK:
            continue
        start_ns, end_ns, size = struct.unpack("<QQQ", file.read(9 + 24)[9:])
        starts.append(start_ns)
        ends.append(end_ns)
        places, index_length = {}, 0
        for j in range(k + 1, len(found)):
            other, offset, its_length = found[j]
            if other != MESSAGE_INDEX:
                break
            file.seek(offset + 9)
            channel, entries = struct.unpack("<HI", file.read(6))
            places[channel] = offset
            counts[channel] += entries // 16
            index_length += its_length
        records.ChunkIndex(
            chunk_length=length, chunk_start_offset=at, compression="", compressed_size=size, uncompressed_size=size,
            message_start_time=start_ns, message_end_time=end_ns, message_index_length=index_length,
            message_index_offsets=places,
        ).write(indexes)  # fmt: skip
    records.Statistics(
        attachment_count=0, metadata_count=0, channel_count=kinds[CHANNEL], schema_count=kinds[SCHEMA],
        chunk_count=kinds[CHUNK], message_count=sum(counts.values()), channel_message_counts=counts,
        message_start_time=min(starts, default=0), message_end_time=max(ends, default=0),
    ).write(repeated)  # fmt: skip
    body = repeats + repeated.end() + indexes.end()
    footer = struct.pack("<BQQQ", 2, 20, end + len(first), 0)
    return first + body + footer + struct.pack("<I", zlib.crc32(body + footer)) + MAGIC


def _image(image: np.ndarray, view: str, captured_ns: int) -> dict[str, Any]:
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=JPEG_QUALITY)
    return {
        "timestamp": {"sec": captured_ns // 10**9, "nsec": captured_ns % 10**9},
        "frame_id": view,
        "data": base64.b64encode(packed.getvalue()).decode(),
        "format": "jpeg",
    }
