"""Run-time checks of array shapes and types, and fixtures that many tests share."""

import atexit
import contextlib
import json
import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook(["embodied", "rewards", "policies"], "beartype.beartype")  # before any of them is imported

import embodied  # noqa: E402, F401  (chooses an OpenGL before a test imports MuJoCo)

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="state-")  # what a person allowed saved runs stays out of this
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as nohup and shells' jobs start it; children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_CLIP = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def save_open_clip(folder: Path, config: dict) -> str:
    """Write an open_clip model of random weights; returns its name, `local-dir:FOLDER`."""
    import torch
    from safetensors.torch import save_file

    from rewards.encoders.loading import load_open_clip

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    name = f"local-dir:{folder}"
    model = load_open_clip(name, "random")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in model.modules():  # fresh batch norms do nothing; these can be got wrong
            if isinstance(module, torch.nn.BatchNorm2d):
                for values in (module.weight.data, module.running_var):
                    values.uniform_(0.5, 1.5)
                for values in (module.bias.data, module.running_mean):
                    values.uniform_(-0.5, 0.5)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return name


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> str:
    """The name of a tiny open_clip model of random weights in a local folder; reads 32 px images, D = 32."""
    return save_open_clip(tmp_path_factory.mktemp("tiny_clip"), TINY_CLIP)


@pytest.fixture
def size_limit():
    """A file size that this process cannot pass: writing fails as on a full disk."""

    @contextlib.contextmanager
    def limit(size):
        former = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
            signal.signal(signal.SIGXFSZ, handler)

    return limit


@pytest.fixture(autouse=True)
def no_hurry():
    """A test that leaves its process real-time would starve all that run beside it, and later ones' servers."""
    policy = getattr(os, "sched_getscheduler", lambda _: None)
    before = policy(0)
    yield
    assert policy(0) == before, "the thread's scheduling must be as it was"


@pytest.fixture
def quick(monkeypatch):
    """A camera's losses are noticed and mended sooner."""
    from embodied.cameras import live, streams

    monkeypatch.setattr(streams, "SILENT_S", 0.6)
    monkeypatch.setattr(live, "BACKOFF_MAX_S", 0.2)
