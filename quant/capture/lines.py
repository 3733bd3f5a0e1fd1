"""The user's own line, of what torch.export says of a node."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch import fx

FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]+)')

NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), str(Path(__file__).parents[1] / "nn"))


def user_line(n: fx.Node) -> str:
    """`file.py:12: code`, the innermost line that is not of torch, Brevitas or isobit's operators; "" if none."""
    frames = FRAME.findall(n.meta.get("stack_trace") or "")
    brevitas = getattr(sys.modules.get("brevitas"), "__file__", None)
    library = (str(Path(brevitas).parent),) if brevitas else ()
    own = [f for f in frames if not f[0].startswith(("<", *NOT_THE_USERS, *library))]
    return f"{own[-1][0]}:{own[-1][1]}: {own[-1][2].strip()}" if own else ""
