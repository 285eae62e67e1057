"""Replicas of the reward server on a local Ray cluster, and what is said where Ray is not installed."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from embodied.errors import UserError
from embodied.serving import protocol, ray_app
from embodied.serving.client import RemoteStream
from embodied.serving.connections import Guard, Server
from embodied.serving.http_client import Client
from embodied.serving.limits import RequestLimits

ROOT = Path(__file__).resolve().parents[2]


def test_without_ray_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'pip install "embodied-rewards\[ray\]"'):
        ray_app.start(lambda: None, host="127.0.0.1", port=0, replicas=2, requests=10)


def test_the_server_s_loop_is_asyncio_s_where_ray_has_brought_another(monkeypatch):
    for name in ("uvloop", "uvicorn.loops.uvloop"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    limits = RequestLimits()
    service = SimpleNamespace(limits=limits, guard=Guard(limits))
    server = Server(SimpleNamespace(state=SimpleNamespace(service=service)))
    factory = server.config.get_loop_factory()
    assert factory is not None
    with contextlib.closing(factory()) as loop:
        assert isinstance(loop, asyncio.SelectorEventLoop)


@pytest.mark.timeout(1200)  # a busy machine starts two replicas in minutes
def test_two_replicas_answer_and_sessions_stay_where_they_are(tiny_clip):
    pytest.importorskip("ray", reason="Ray is not here: pip install 'embodied-rewards[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = ["reward=clip", "reward.goal=open", "encoder=open_clip", f"encoder.model={tiny_clip}", f"port={port}"]
    command = [sys.executable, "-m", "embodied.cli", "serve", *words, "replicas=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if " at http://" in line), "")
            assert "2 replicas" in line
            url = f"http://127.0.0.1:{port}"
            message = {"images": {"main": protocol.encode_image(frames)}}
            answers = [Client(url).ask("POST", protocol.SCORE, message)["combined"] for _ in range(8)]
            assert all(each == pytest.approx(answers[0], abs=1e-5) for each in answers)
            streams = [RemoteStream(url) for _ in range(4)]
            for k in range(3):
                readings = [stream.push({"main": frames[k]}) for stream in streams]
                assert {(each.episode, each.row) for each in readings} == {(0, k)}
                assert readings[0].combined == pytest.approx(answers[0][k], abs=1e-5)
            for stream in streams:
                stream.close()
        finally:
            process.send_signal(signal.SIGTERM)
        assert "Stopped." in process.stdout.read()
    assert process.returncode == 0
