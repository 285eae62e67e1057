"""The vector environment: same numbers in process and in workers, frames before the reset, nothing left behind."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from embodied.envs.vector import WorldError, WorldVecEnv
from embodied.errors import UserError
from tests.probes import ProbeWorld, make_probe


def rollout(venv, steps, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(steps):
        obs, rewards, terminated, truncated, infos = venv.step(
            rng.uniform(-1, 1, (venv.num_envs, 1)).astype(np.float32)
        )
        out.append((obs, rewards, terminated, truncated, infos, venv.frames.copy(), venv.reset_frames.copy()))
    return out


def shared_blocks():
    return {path.name for path in Path("/dev/shm").glob("*")}  # none where there is no such folder


def same(one, two):
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_equal(x, y)


def test_workers_give_the_same_numbers_as_in_process():
    before = shared_blocks()
    results = []
    for workers in (0, 2):
        venv = WorldVecEnv(partial(make_probe, limit=4), 3, workers=workers, seed=7, frame_size=16)
        first = venv.reset()
        results.append([(first, *rollout(venv, 10))][0])
        venv.close()
    np.testing.assert_equal(results[0][0], results[1][0])
    same(results[0][1:], results[1][1:])
    assert not multiprocessing.active_children()
    assert shared_blocks() <= before


def test_frame_is_the_steps_own_and_not_the_next_episodes():
    venv = WorldVecEnv(partial(make_probe, limit=3), 2, frame_size=16)
    venv.reset()
    assert [ProbeWorld.read(f) for f in venv.reset_frames[:, 0]] == [(0, 0, 0), (0, 1, 0)]
    seen = []
    for _, _, _, truncated, infos, frames, reset_frames in rollout(venv, 4):
        seen.append((ProbeWorld.read(frames[0, 0]), bool(truncated[0]), ProbeWorld.read(reset_frames[0, 0])))
        assert ("env_episode" in infos[0]) == bool(truncated[0])
    assert seen == [
        ((0, 0, 1), False, (0, 0, 0)),
        ((0, 0, 2), False, (0, 0, 0)),
        ((0, 0, 3), True, (1, 0, 0)),
        ((1, 0, 1), False, (1, 0, 0)),
    ]
    venv.close()


def test_truncation_and_termination_are_told_apart():
    for make, cut in ((partial(make_probe, limit=2), True), (partial(make_probe, limit=9, end=2), False)):
        venv = WorldVecEnv(make, 1, frame_size=16)
        venv.reset()
        *_, (obs, _, terminated, truncated, infos, _, _) = rollout(venv, 2)
        assert (bool(terminated[0]), bool(truncated[0])) == (not cut, cut)
        assert infos[0]["env_episode"] == (3.0, 2)
        assert (venv.last_obs()[0, 2], obs[0, 2]) == (pytest.approx(0.2), 0)  # the ended episode's, and the next one's
        venv.close()


@pytest.mark.parametrize("frame_size", [16, None])
def test_the_tasks_own_reward_comes_with_frames_and_without(frame_size):
    venv = WorldVecEnv(partial(make_probe, limit=2), 1, frame_size=frame_size)
    venv.reset()
    rewards = [venv.step(np.zeros((1, 1), np.float32))[1][0] for _ in range(3)]
    assert rewards == [1.0, 2.0, 1.0]
    venv.close()


def test_nothing_is_rendered_on_the_true_reward():
    venv = WorldVecEnv(partial(make_probe, limit=2), 1)
    venv.reset()
    venv.step(np.zeros((1, 1), np.float32))
    assert venv.get_attr("rendered") == [0]
    venv.close()


def test_pixel_observation_of_the_right_size_is_not_rendered_again():
    venv = WorldVecEnv(partial(make_probe, limit=5, obs="pixels"), 1, frame_size=16)
    venv.reset()
    obs, *_ = venv.step(np.zeros((1, 1), np.float32))
    assert venv.get_attr("rendered") == [2]
    np.testing.assert_array_equal(obs, venv.frames[:, 0])
    venv.close()


def test_world_i_starts_from_seed_plus_i():
    venv = WorldVecEnv(make_probe, 3, seed=5, frame_size=16)
    alone = WorldVecEnv(make_probe, 1, seed=7, frame_size=16)
    np.testing.assert_array_equal(venv.reset()[2], alone.reset()[0])
    venv.close()
    alone.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_states_go_on_exactly(workers):
    venv = WorldVecEnv(partial(make_probe, limit=4), 2, workers=workers, seed=3, frame_size=16)
    venv.reset()
    rollout(venv, 6)
    states = venv.get_states()
    expected = rollout(venv, 7, seed=1)
    other = WorldVecEnv(partial(make_probe, limit=4), 2, workers=workers, seed=99, frame_size=16)
    other.reset()
    other.set_states(states)
    # reset_frames are read at resets only, so the running episode's is not restored
    resumed = rollout(other, 7, seed=1)
    same([step[:6] for step in expected], [step[:6] for step in resumed])
    venv.close()
    other.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_world_is_named_and_the_others_stop(workers):
    before = shared_blocks()
    venv = WorldVecEnv(partial(make_probe, fail_at=2, fail_seed=11), 4, workers=workers, seed=10, frame_size=16)
    venv.reset()
    venv.step(np.zeros((4, 1), np.float32))
    with pytest.raises(WorldError, match=r"world 1 failed in step: ArithmeticError: probe"):
        venv.step(np.zeros((4, 1), np.float32))
    assert not multiprocessing.active_children()
    assert shared_blocks() <= before
    with pytest.raises(WorldError, match="closed"):
        venv.reset()


def test_a_killed_worker_is_named():
    venv = WorldVecEnv(make_probe, 4, workers=2, frame_size=16)
    venv.reset()
    os.kill(venv._groups[1].process.pid, signal.SIGKILL)
    with pytest.raises(WorldError, match=r"worlds 2 to 3: their process ended with exit code -9"):
        rollout(venv, 2)
    assert not multiprocessing.active_children()


def test_a_world_that_cannot_be_made_is_named():
    with pytest.raises(WorldError, match=r"world 0 failed in being made: ValueError: obs"):
        WorldVecEnv(partial(make_probe, obs="smell"), 2, frame_size=16)


INTERRUPTED = """
import os, signal, threading
import numpy as np
from tests.probes import make_probe
from embodied.envs.vector import WorldVecEnv

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    venv = WorldVecEnv(make_probe, 2, workers=2, frame_size=16)
    venv.reset()
    print(venv._memory.name, flush=True)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    while True:
        venv.step(np.zeros((2, 1), np.float32))
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="memory is reserved at once elsewhere")
def test_no_room_for_shared_memory_is_told_and_not_found_out_by_dying(monkeypatch):
    before = shared_blocks()

    def full(number, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"must take .* MB .*: No space left .*workers=0"):
        WorldVecEnv(make_probe, 2, workers=2, frame_size=16)
    assert shared_blocks() <= before


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True, text=True, timeout=240, env=os.environ | {"PYTHONPATH": str(root)}, cwd=root, check=False,
    )  # fmt: skip
    assert "KeyboardInterrupt" in done.stderr
    assert "resource_tracker" not in done.stderr
    assert done.stdout.strip()
    assert done.stdout.strip() not in shared_blocks()
