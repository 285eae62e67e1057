"""A camera whose pictures say when they were taken: MJPEG over HTTP on loopback, with faults on time.

The upper rows of each picture hold `time.monotonic()` in milliseconds as black and white blocks, which survive JPEG, so
whoever receives one knows its true age, the network and the decoder included. The rest is a moving pattern. Every
`fault_every` seconds one of the faults happens, in turn, and a line of the log says when it began and ended.

    python -m benchmarks.clock_camera 8090 30 width=320 height=240 fault_every=60 log=faults.jsonl
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

BITS, BLOCK = 40, 8  # 40 blocks of 8 px a side, in rows as the width allows: 34 years of milliseconds
FAULTS = ("stall", "gone", "size", "broken", "empty")
FAULT_S = 3.0  # how long one lasts


def stamp(image: np.ndarray, milliseconds: int) -> None:
    """Draw a time into the upper rows of an (H, W, 3) uint8 image."""
    per_row = image.shape[1] // BLOCK
    for k in range(BITS):
        y, x = BLOCK * (k // per_row), BLOCK * (k % per_row)
        image[y : y + BLOCK, x : x + BLOCK] = 255 * (milliseconds >> k & 1)


def read_stamp(image: np.ndarray) -> int:
    """The time that `stamp` drew, milliseconds."""
    per_row = image.shape[1] // BLOCK
    total = 0
    for k in range(BITS):
        y, x = BLOCK * (k // per_row), BLOCK * (k % per_row)
        total |= int(image[y + 2 : y + 6, x + 2 : x + 6].mean() > 127) << k
    return total


class ClockCamera:
    """Draws pictures on a clock and gives every client the newest.

    Args:
        fps: pictures a second.
        size: (H, W), pixels.
        fault_every: seconds between faults; 0: none.
        log: a JSON line per fault: kind, start and end by `time.monotonic()`.
    """

    def __init__(self, fps: float, size: tuple[int, int], *, fault_every: float = 0.0, log: Path | None = None) -> None:
        self._fps, self._size, self._every, self._log = fps, size, fault_every, log
        self._noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8) // 4 + 90
        self.newest, self.count, self.changed = b"", 0, threading.Condition()
        self.fault: str | None = None

    def run(self) -> None:
        """Draw for ever."""
        start = time.monotonic()
        while True:
            due = start + self.count / self._fps
            time.sleep(max(0.0, due - time.monotonic()))
            fault = self._fault(time.monotonic() - start)
            if fault != self.fault:
                self._note(fault)
            jpeg = self._picture() if fault not in ("stall", "gone") else self.newest
            if fault == "broken":
                jpeg = jpeg[: len(jpeg) // 2]
            if fault == "empty":
                jpeg = b""
            with self.changed:
                self.count += 1
                if fault != "stall":
                    self.newest = jpeg
                    self.changed.notify_all()

    def _fault(self, elapsed: float) -> str | None:
        if not self._every or elapsed < self._every or elapsed % self._every >= FAULT_S:
            return None
        return FAULTS[(int(elapsed // self._every) - 1) % len(FAULTS)]

    def _note(self, fault: str | None) -> None:
        """The end of the one before, the beginning of this one."""
        now = time.monotonic()
        if self._log is not None:
            with self._log.open("a") as file:
                if self.fault is not None:
                    file.write(json.dumps({"fault": self.fault, "ended": now}) + "\n")
                if fault is not None:
                    file.write(json.dumps({"fault": fault, "began": now}) + "\n")
        self.fault = fault

    def _picture(self) -> bytes:
        height, width = self._size
        image = np.roll(self._noise, 4 * self.count, axis=1)
        stamp(image, int(time.monotonic() * 1000))
        shown = Image.fromarray(image)
        if self.fault == "size":
            shown = shown.resize((width // 2, height // 2), Image.Resampling.NEAREST)
        out = io.BytesIO()
        shown.save(out, "JPEG", quality=90)
        return out.getvalue()


def serve(camera: ClockCamera, port: int) -> ThreadingHTTPServer:
    """An HTTP server of the camera's pictures, not started yet."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if camera.fault == "gone":
                return self.send_error(503)
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            seen = -1
            while camera.fault != "gone":
                with camera.changed:
                    camera.changed.wait_for(lambda seen=seen: camera.count != seen, timeout=1)
                    if camera.count == seen or camera.fault == "stall":
                        continue
                    seen, jpeg = camera.count, camera.newest
                try:
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
                except OSError:  # the reader went away
                    return None
            return None

        def log_message(self, format: str, *args: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    port, fps, *rest = sys.argv[1:]
    given = dict(word.split("=", 1) for word in rest)
    camera = ClockCamera(
        float(fps),
        (int(given.get("height", 240)), int(given.get("width", 320))),
        fault_every=float(given.get("fault_every", 0)),
        log=Path(given["log"]) if "log" in given else None,
    )
    server = serve(camera, int(port))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    camera.run()


if __name__ == "__main__":
    main()
