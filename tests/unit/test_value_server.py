"""The client of Robometer's evaluation server, which RynnValue ships too, over real HTTP on the loopback."""

import io
import json
import threading
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from rewards.chat import VLMError
from rewards.chat.value_server import ValueServer
from tests.unit.test_pretrained import FRAMES, features, scorer, scores


@contextmanager
def value_server(answer):
    """A server that keeps what it was sent: sample and frames of each request."""
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            form = message_from_bytes(head + self.rfile.read(int(self.headers["Content-Length"])))
            fields = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
            sample = json.loads(fields["sample_0"].get_payload(decode=True))
            file = fields[sample["trajectory"]["frames"]["__numpy_file__"]]
            assert file.get_filename().endswith(".npy")
            frames = np.load(io.BytesIO(file.get_payload(decode=True)), allow_pickle=False)
            sent.append((self.path, sample, frames, fields["use_frame_steps"].get_payload()))
            status, data = answer(frames)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def seconds(frames):
    said = {"outputs_progress": {"progress_pred": [[-float(frame[0, 0, 0]) for frame in frames]]}}
    said |= {"outputs_success": {"success_probs": [[0.25] * len(frames)]}}
    return 200, json.dumps(said).encode()


def test_rynnvalue_is_asked_at_its_own_server():
    with value_server(seconds) as (url, sent):
        made = scorer("rynnvalue", {"url": url}, stride=3, max_frames=2)
        said = scores(made, features())
        assert said == [-float(FRAMES[row // 3 * 3, 0, 0, 0]) for row in range(7)]
        assert scores(made, features()) == said
        assert len(sent) == 3  # windows that were judged are not sent again
        path, sample, frames, steps = sent[-1]
        success = scorer("robometer-4b", {"url": url}, stride=3, output="success")
        assert scores(success, features()) == [0.25] * 7
    assert (path, steps, sample["sample_type"]) == ("/evaluate_batch_npy", "false", "progress")
    assert np.array_equal(frames, FRAMES[[0, 6]])
    trajectory = sample["trajectory"]
    assert (trajectory["task"], trajectory["frames_shape"]) == ("lift the cup", [2, 48, 64, 3])


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ((500, b"out of memory"), "got HTTP 500 'out of memory'"),
        ((200, b"hello"), "JSON of names and values; got 'hello'"),
        ((200, b"[1]"), "JSON of names and values"),
        ((200, b"{}"), "progress_pred of 2 frames"),
        ((200, b'{"outputs_progress": {"progress_pred": [[1.0]]}}'), "progress_pred of 2 frames"),
        ((200, b'{"outputs_progress": {"progress_pred": [[NaN, 1]]}}'), "progress_pred of 2 frames"),
        ((200, b'{"outputs_progress": {"progress_pred": [["a", null]]}}'), "progress_pred of 2 frames"),
        ((200, b"[" * 2**21), "JSON of names and values"),
    ],
)
def test_a_server_s_nonsense_is_an_error(answer, match):
    with value_server(lambda _: answer) as (url, _), pytest.raises(VLMError, match=match):
        ValueServer(url).judge(list(FRAMES[:2]), "lift it")


def test_a_server_that_is_not_there_is_an_error():
    with pytest.raises(VLMError, match="must give an answer; got Connection refused"):
        ValueServer("http://127.0.0.1:9").judge(list(FRAMES[:2]), "lift it")
    with pytest.raises(ValueError, match="url must be http"):
        ValueServer("file:///etc/passwd")
