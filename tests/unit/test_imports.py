"""The ground floor imports neither the upper floor nor its neighbour, and no import goes in a circle."""

import ast
import graphlib
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"rewards": {"embodied", "policies"}, "policies": {"embodied", "rewards"}}


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_parser_sees_imports_inside_functions(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text("import a.b\nfrom c.d import e\ndef f():\n    import g as h\n")
    assert imported(file) == {"a", "c", "g"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_ground_floor_stays_on_the_ground(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    crossing = {str(file.relative_to(ROOT)): imported(file) & FORBIDDEN[package] for file in files}
    assert not {file: names for file, names in crossing.items() if names}


def modules_imported(file: Path, known: set[str]) -> set[str]:
    """Those of the known modules that a file imports anywhere, functions and type checking included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= below or {node.module}
    return found & known


def test_no_import_goes_in_a_circle():
    """A dataset's opening imported what collects one, which imported it; the desk and the town their own states."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for package in ("embodied", "rewards", "policies")
        for file in (ROOT / package).rglob("*.py")
    }
    graph = {name: modules_imported(file, set(files)) - {name} for name, file in files.items()}
    assert sum(map(len, graph.values())) > 1000
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_only_encoders_know_the_model_libraries():
    knowing = {
        file.name for file in (ROOT / "rewards").rglob("*.py") if imported(file) & {"open_clip", "transformers", "timm"}
    }
    assert knowing == {"loading.py"}


@pytest.mark.parametrize("package", ["rewards", "policies"])
def test_each_ground_floor_room_works_alone(package):
    """Importing every module of it loads neither the other nor, before it is asked for, a model library."""
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / package).rglob("*.py")]
    modules = [name.removesuffix(".__init__") for name in modules]
    strangers = sorted(FORBIDDEN[package] | {"open_clip", "transformers"})
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"loaded = set({strangers!r}) & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_a_reward_is_imported_quickly():
    """Beside torch, a goal's reward and its encoder load nothing that takes time before it is asked for anything."""
    heavy = ["gymnasium", "hydra", "open_clip", "pyarrow", "scipy", "timm", "torchvision", "transformers"]
    code = f"import sys, rewards.clip_goal, rewards.encoders; print([n for n in {heavy!r} if n in sys.modules])"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 8  # of CPU, several times what it takes on a quiet machine: load cannot fail it


# Packages whose import has another name than their distribution, and those that come with a system.
DISTRIBUTIONS = {
    "PIL": "pillow", "hydra": "hydra-core", "open_clip": "open_clip_torch", "rerun": "rerun-sdk",
    "rerun_cli": "rerun-sdk", "yaml": "pyyaml", "zmq": "pyzmq",
}  # fmt: skip
OF_THE_SYSTEM = {"rclpy", "sensor_msgs"}  # ROS 2


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    declared = {re.split(r"[\[<>=!~ ]", each)[0].lower().replace("_", "-") for each in wanted}
    ours = ("embodied", "rewards", "policies")
    names = set().union(*(imported(file) for package in ours for file in (ROOT / package).rglob("*.py")))
    names -= {*ours, *sys.stdlib_module_names} | OF_THE_SYSTEM
    assert "torch" in names
    needed = {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in names}
    assert needed - declared == set()
