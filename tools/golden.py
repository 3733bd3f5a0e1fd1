"""`make vectors`: digests of what the reference gives on every op's corner cases; a change of arithmetic is seen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from isobit.quant.ops import OPS
from isobit.quant.vectors import golden
from isobit.tools.status import op_program

GOLDEN = "tests/vectors/reference.json"


def digests() -> dict[str, dict[str, str]]:
    """op -> vectors -> SHA-256 of the reference's outputs and states."""
    table: dict[str, dict[str, str]] = {}
    for op in OPS:
        program = op_program(op)
        table[op] = {}
        for v in golden(program):
            content = hashlib.sha256()
            for name, array in sorted((v.outputs | v.states).items()):
                content.update(f"{name} {array.shape}".encode() + np.ascontiguousarray(array, "<i8").tobytes())
            table[op][v.name] = content.hexdigest()
    return table


def main() -> None:
    path = Path(__file__).resolve().parents[1] / GOLDEN
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(digests(), indent=1) + "\n")


if __name__ == "__main__":
    main()
