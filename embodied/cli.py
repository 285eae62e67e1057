"""`embodied VERB key=value …`: one module of `embodied.commands` a verb, one Hydra config a verb.

A person's mistake ends in one line on stderr and exit status 2, before anything is written; `--debug` adds the
traceback. Help must be quick, so nothing heavy is imported until a verb runs.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from embodied import console, gl, paths
from embodied.config import choices, compose, composed
from embodied.errors import UserError, disk_full, nearest, printable
from embodied.extras import missing

COMMANDS = Path(__file__).resolve().parent / "commands"
FLAGS = ("--help", "-h", "--debug", "--version")
SAYS_ALL = ("WorldError", "VLMError", "SafetensorError")  # not imported for their names' sake; their text is enough
EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_PIPE = 2, 130, 141

USAGE = """\
usage: embodied VERB [key=value …]

{verbs}

  embodied VERB --help     what the verb does, its settings and choices (or: embodied help VERB)
  embodied VERB … --debug  with tracebacks
  embodied --version
"""

COMPOSITION = """\
Several rewards as one, each logged by its name:
  reward=[clip,process] goal="the drawer is open"          short for reward.goal=…: every part with a goal gets it
  reward.clip.goal=…                                       that part alone
  reward.combine=NAME                                      {combinations}
  reward.shaping.kind=…                                    of the combined potential"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: what follows `embodied` on the command line; None takes it from there.

    Returns:
        The exit status: 0, 2 after a user's error, 130 after Ctrl-C, 141 where nobody reads the output any more.
    """
    if argv is None:
        console.settle()
    words = list(sys.argv[1:] if argv is None else argv)
    flags, words = {w for w in words if w.startswith("-")}, [w for w in words if not w.startswith("-")]
    where = "embodied"
    try:
        for flag in sorted(flags - set(FLAGS)):
            raise UserError(f"unknown option {flag}. {nearest(flag, FLAGS)} Settings are written key=value.")
        if "--version" in flags:
            from importlib import metadata

            print(f"embodied-rewards {metadata.version('embodied-rewards')}")
            return 0
        if not words:
            print(usage())
            return 0 if flags else EXIT_USER_ERROR
        verb, *overrides = words
        if verb == "help":  # as in `embodied help train`
            verb, *overrides = overrides or [""]
            flags.add("--help")
            if not verb:
                print(usage())
                return 0
        if verb not in verbs():
            raise UserError(f"unknown verb {verb!r}. {nearest(verb, verbs())}")
        where = f"embodied {verb}"
        if flags & {"--help", "-h"}:
            print(verb_help(verb, overrides), flush=True)  # so that a reader that has left is noticed below
            return 0
        config = compose(verb, overrides)
        importlib.import_module(f"embodied.commands.{verb}").run(config)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{where}: stopped.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # its reader, such as head, has had enough; Python flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Exception as error:
        asked = words[0] if words else ""
        message = explain(error, asked)
        if message is None or "--debug" in flags:
            raise
        print(printable(f"{where}: {message.removeprefix(f'{asked}: ')}"), file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def verbs() -> list[str]:
    """The modules of `embodied.commands`."""
    return sorted(path.stem for path in COMMANDS.glob("*.py") if not path.stem.startswith("_"))


def usage() -> str:
    """What `embodied --help` prints."""
    lines = (f"  {verb:12}{docstring(verb).splitlines()[0]}" for verb in verbs())
    return USAGE.format(verbs="\n".join(lines)).rstrip()


def docstring(verb: str) -> str:
    """The verb's help text, read without importing it."""
    return ast.get_docstring(ast.parse((COMMANDS / f"{verb}.py").read_text("utf-8"))) or verb


def verb_help(verb: str, overrides: Sequence[str] = ()) -> str:
    """What `embodied VERB --help` prints: its text, the choices of each group, the settings of those chosen."""
    from omegaconf import OmegaConf

    from embodied.catalogue import commented, comments

    config, chosen = composed(verb, overrides)
    parts = [docstring(verb)]
    if chosen:
        parts.append("Groups, their default and their choices:")
        parts[-1] += "".join(f"\n  {group}={name}\n{_wrap(choices(group))}" for group, name in chosen.items())
    if "reward" in chosen:
        parts.append(COMPOSITION.format(combinations=" ".join(choices("reward/combine"))))
    settings = "\n  ".join(commented(OmegaConf.to_yaml(config).splitlines(), comments(verb, chosen)))
    parts.append(f"Settings and their defaults (key=value; a.b=value inside a group):\n  {settings}")
    return "\n\n".join(parts)


def run_module(main: Callable[[list[str]], None], name: str) -> int:
    """Run a module's own command (`python -m …`): a person's mistake ends in one line and status 2, as in a verb.

    Args:
        main: takes the words after the module's name.
        name: of the command, for errors.
    """
    try:
        main(sys.argv[1:])
    except Exception as error:
        if (message := explain(error)) is None:
            raise
        print(printable(f"{name}: {message.removeprefix(f'{name}: ')}"), file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def explain(error: BaseException, verb: str = "") -> str | None:
    """One line for a verb's error that a person can mend; None for a fault of ours, which deserves its traceback."""
    chain: BaseException | None = error
    while chain is not None:
        if disk_full(chain):
            file = f" while writing {name}" if (name := getattr(chain, "filename", None)) else ""
            return f"the disk is full{file}. Free some space{paths.elsewhere(verb)}."
        if needed := missing(chain):
            return needed
        if gl.failed(chain):
            return gl.advice(chain)
        chain = chain.__cause__ or chain.__context__
    if type(error).__name__ in SAYS_ALL:
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return ": ".join(str(each) for each in (error.filename, error.strerror) if each)
    theirs = type(error).__module__.split(".")[0] in ("hydra", "omegaconf")
    if theirs or isinstance(error, UserError | ValueError | TypeError | OSError | FloatingPointError):
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _wrap(names: list[str]) -> str:
    import textwrap

    return textwrap.fill(
        " ".join(names), 100, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False
    )


if __name__ == "__main__":
    raise SystemExit(main())
