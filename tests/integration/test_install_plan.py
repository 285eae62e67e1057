"""What an installation fetches: how many distributions, and when pip leaves a torch alone that is there already.

pip asks an index of empty wheels, made here, with this package's own requirements: no network, nothing is installed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CORE = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
AT_MOST = 56  # of them 38 are torch's, open_clip's and the hub client's own
EXTRAS_BRING = {"mujoco", "stable-baselines3", "tensorboard", "fastapi", "uvicorn", "rerun-sdk", "pandas", "matplotlib"}
CUDA = "nvidia-cublas"
ELSEWHERE = {  # as these packages declare it, versions apart
    "open_clip_torch": ["torch>=2.0", "torchvision", "timm>=1.0.17"],
    "timm": ["torch", "torchvision"],
}
TORCH = {"2.13.0": "0.28.0", "2.14.1": "0.29.1"}  # and the torchvision that wants exactly it


def closure(requirements: list[str]) -> set[str]:
    """Distributions that come with some, as those installed here declare it."""
    todo, seen = [Requirement(each) for each in requirements], set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        for extra in wanted.extras or {""}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in metadata.requires(name) or ():
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    todo.append(further)
    return {name for name, _ in seen}


def test_the_core_is_light():
    found = {name for name in closure(CORE) if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert not found & EXTRAS_BRING
    assert len(found) <= AT_MOST, sorted(found)


# torch stays --------------------------------------------------------------------------------------------


def about(name: str, version: str, requires: list[str]) -> dict[str, str]:
    """The files of a distribution's dist-info folder."""
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    wheel = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return {"METADATA": "\n".join(lines) + "\n", "WHEEL": wheel, "RECORD": "", "INSTALLER": "pip\n"}


def folder_of(name: str, version: str) -> str:
    return f"{name.replace('-', '_')}-{version}.dist-info"


def put(index: Path, name: str, version: str, requires: list[str] | None = None) -> None:
    """An empty wheel."""
    file = index / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for part, text in about(name, version, requires or []).items():
            archive.writestr(f"{folder_of(name, version)}/{part}", text)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    for requirement in map(Requirement, CORE):
        if requirement.name != "torch":
            least = [each.version for each in requirement.specifier if each.operator == ">="]
            put(folder, requirement.name, least[0], ELSEWHERE.get(requirement.name))
    put(folder, "timm", "1.0.20", ELSEWHERE["timm"])
    put(folder, CUDA, "13.1.1")
    for torch, torchvision in TORCH.items():
        put(folder, "torch", torch, [CUDA])
        put(folder, "torchvision", torchvision, [f"torch=={torch}"])
    put(folder, "embodied-rewards", "0.1.0", CORE)
    return folder


def planned(index: Path, place: Path, here: dict[str, str], *options: str) -> dict[str, str]:
    """What pip would fetch into an environment that has some distributions."""
    venv.create(place, with_pip=False)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    site = place / "lib" / f"python{version}" / "site-packages"
    assert site.is_dir(), sysconfig.get_paths()
    for name, number in here.items():
        wants = {"torch": [], "torchvision": [f"torch=={here['torch'].partition('+')[0]}"]}[name]
        (site / folder_of(name, number)).mkdir()
        for part, text in about(name, number, wants).items():
            (site / folder_of(name, number) / part).write_text(text)
    report = place / "plan.json"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(place / "bin" / "python"),
        "install",
        "--dry-run",
        "--quiet",
    ]
    command += ["--report", str(report), "--no-index", "--find-links", str(index), "embodied-rewards", *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INPUT": "1"}
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(report.read_text("utf-8"))["install"]
    return {canonicalize_name(each["metadata"]["name"]): each["metadata"]["version"] for each in plan}


def test_a_torch_with_its_torchvision_stays(index, tmp_path):
    plan = planned(index, tmp_path / "env", {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"})
    assert "open-clip-torch" in plan
    assert not {"torch", "torchvision", CUDA} & set(plan)


def test_a_torch_alone_stays_where_it_is_held(index, tmp_path):
    """`pip freeze | grep '^torch==' > held.txt`, as docs/howto/install.md says."""
    held = tmp_path / "held.txt"
    held.write_text("torch==2.13.0+cpu\n")
    plan = planned(index, tmp_path / "env", {"torch": "2.13.0+cpu"}, "--constraint", str(held))
    assert plan["torchvision"] == "0.28.0"
    assert not {"torch", CUDA} & set(plan)


def test_a_torch_alone_is_replaced_where_it_is_not_held(index, tmp_path):
    """Why install.md says so: open_clip wants a torchvision of no version, and the newest wants its own torch."""
    plan = planned(index, tmp_path / "env", {"torch": "2.13.0+cpu"})
    assert plan["torch"] == "2.14.1"
    assert CUDA in plan


def test_the_page_tells_how_to_hold_it():
    page = (ROOT / "docs" / "howto" / "install.md").read_text("utf-8")
    assert re.search(r"pip freeze \| grep '\^torch==' > held\.txt", page)
    assert "--constraint held.txt" in page
