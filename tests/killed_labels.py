"""Label a dataset's shards in forked children, one of which is killed at each file that it begins, writes or renames.

    python -m tests.killed_labels SHARD COUNT OUT -- WORDS OF embodied label

Prints a JSON list: of each kill, the files that were there before the shard ran and those after it ran again.
"""

import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from embodied import cli
from embodied.scoring import labelling
from rewards.encoders.loading import import_open_clip

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def forked(words, killed_at=None):
    """Run the verb in a child; whether it was killed."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) == (killed_at is not None) or os.waitstatus_to_exitcode(status) == 0, status
        return os.WIFSIGNALED(status)
    counter = itertools.count(1)

    def hook(event, arguments):
        change = event == "os.rename" or (event == "open" and bool((arguments[2] or 0) & WRITES))
        here = change and str(Path(os.fsdecode(arguments[0])).resolve()).startswith(str(Path.cwd()))
        if here and next(counter) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    if killed_at is not None:
        sys.addaudithook(hook)
        save = labelling.save_file

        def halfway(labels, part):  # what is written outside of Python: the file is there, and cut short
            save(labels, part)
            if next(counter) == killed_at:
                os.truncate(part, part.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        labelling.save_file = halfway
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os._exit(cli.main(["label", *words]))


def seen(folder):
    """Whole files below a folder -> [digest, time of change]."""
    return {
        str(path.relative_to(folder)): [hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns]
        for path in sorted(folder.rglob("*.safetensors"))
        if not path.name.startswith(".")
    }


def main():
    number, count, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    words = [*sys.argv[5:], f"out={out}"]
    import_open_clip()  # once, for all children
    for other in range(1, count + 1):
        if other != number:
            forked([*words, f"shard={other}/{count}"])
    base, told = out.parent.with_name("base"), []
    shutil.copytree(out.parent, base)
    for killed_at in itertools.count(1):
        before = seen(out.parent)
        killed = forked([*words, f"shard={number}/{count}"], killed_at)
        forked([*words, f"shard={number}/{count}"])
        told.append({"before": before, "after": seen(out.parent), "killed": killed})
        if not killed:
            break
        shutil.rmtree(out.parent)
        shutil.copytree(base, out.parent)
        shutil.rmtree("runs", ignore_errors=True)
    forked([*words, "merge=true"])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
