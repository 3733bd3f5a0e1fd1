"""The rule that a missing toolchain never passes: `needs` fails the test, with the remedy."""

from __future__ import annotations

import shutil

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
