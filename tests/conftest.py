"""Fixtures, and the rule that a missing toolchain never passes: `needs` fails the test, with the remedy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PACKAGES = {
    "gcc": "gcc", "g++": "g++", "arm-none-eabi-gcc": "gcc-arm-none-eabi", "qemu-system-arm": "qemu-system-arm",
    "clang-format": "clang-format",
}  # fmt: skip


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for tool in marker.args:
            if shutil.which(tool) is None:
                pytest.fail(f"{tool} is not installed; install it with: apt-get install {PACKAGES.get(tool, tool)}")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data named by ISOBIT_DATA; without it a test shows as not run."""
    folder = os.environ.get("ISOBIT_DATA")
    if not folder:
        pytest.skip("not run: ISOBIT_DATA names no folder of real data")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"ISOBIT_DATA={folder}: no such folder")
    return path
