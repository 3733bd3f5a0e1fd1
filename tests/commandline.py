"""The command line in a test: in this process, or as a user starts it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from isobit.tools.cli import main

ENTRY_POINT = "from isobit.tools.cli import main; main()"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def isobit(*arguments: object) -> Result:
    """`isobit ARGUMENTS` in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["isobit", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    return Result(code, out.getvalue(), err.getvalue())


def installed(*arguments: object, cwd: Path, before: str = "", **environment: str) -> Result:
    """`isobit ARGUMENTS` in a process of its own, which first runs the Python statements `before`."""
    command = [sys.executable, "-c", f"{before}\n{ENTRY_POINT}", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    return Result(done.returncode, done.stdout, done.stderr)
