"""External programs: finding them, asking their version, running them with errors a user can act on."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from isobit.quant.errors import IsobitError

OUTPUT_LINES_SHOWN = 30


class ToolMissing(IsobitError):
    """A program that a target needs is not installed. The message is one line and ends with the remedy."""

    def __init__(self, tool: str, hint: str) -> None:
        """`tool` is the program's name, `hint` the command that installs it."""
        super().__init__(f"{tool} is not installed; install it with: {hint}")
        self.tool = tool
        self.hint = hint


class ToolFailed(IsobitError):
    """A program was found and run, and did not do its work."""

    def __init__(self, what: str, command: Sequence[str], outcome: str, output: str) -> None:
        """`what` names the task ("compile startup.c"), `outcome` how it ended ("exit code 1").

        The message carries the command as a shell would take it and the last 30 lines of `output`.
        """
        tail = output.strip().splitlines()[-OUTPUT_LINES_SHOWN:] or ["(no output)"]
        super().__init__("\n  ".join([f"{what}: {outcome}", f"command: {shlex.join(command)}", *tail]))
        self.what = what
        self.command = tuple(command)
        self.outcome = outcome


def find(tool: str, hint: str) -> Path:
    """The absolute path of `tool` on PATH. Raises ToolMissing with `hint` where there is none."""
    path = shutil.which(tool)
    if path is None:
        raise ToolMissing(tool, hint)
    return Path(path).absolute()


def version(path: Path, flag: str = "--version") -> str:
    """The first line that the program prints about its version."""
    done = run([path, flag], cwd=None, timeout=30, what=f"ask the version of {path.name}")
    return next(iter((done.stdout + done.stderr).strip().splitlines()), "")


def run(
    command: Sequence[str | Path], cwd: Path | None, timeout: float, what: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs `command` in `cwd` with no input, its output captured as text.

    Raises ToolFailed after `timeout` seconds, when the program cannot be started, and, with `check`, on an exit
    code other than 0. Without `check` the exit code is the caller's to judge.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired as stopped:
        partial = [part for part in (stopped.stdout, stopped.stderr) if part]
        text = "".join(part.decode(errors="replace") if isinstance(part, bytes) else part for part in partial)
        raise ToolFailed(what, words, f"stopped after {timeout:g} s", text) from None
    except OSError as error:
        raise ToolFailed(what, words, "could not be started", str(error)) from None
    if check and done.returncode != 0:
        raise ToolFailed(what, words, f"exit code {done.returncode}", done.stdout + done.stderr)
    return done
