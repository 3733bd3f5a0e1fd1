"""The simulated boards: byte streams, exit codes, exact instruction counts and the measured memory."""

import random
import re
import subprocess
from pathlib import Path

import pytest

from isobit.targets import toolchain
from isobit.targets.mcu.boards import BOARDS, RUNTIME, Board, Firmware, build
from isobit.targets.mcu.qemu import FAULT_EXIT, Memory, RunResult, StackUnbounded, measure, run_elf
from isobit.targets.toolchain import ToolFailed, ToolMissing

each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())

COPY_PLUS_ONE = """
#include "isobit/host_io.h"

static unsigned char chunk[4096];
static int failures = 2; /* needs .data to be copied */
static int chunks;       /* needs .bss to be cleared */

int main(void) {
  const int in = isobit_open("in.bin", 0);
  const int out = isobit_open("out.bin", 1);
  if (in >= 0) --failures;
  if (out >= 0) --failures;
  if (isobit_open("absent.bin", 0) != -1) ++failures;
  for (;;) {
    const long size = isobit_read(in, chunk, (long)sizeof chunk);
    for (long i = 0; i < size; ++i) chunk[i] = (unsigned char)(chunk[i] + 1);
    if (isobit_write(out, chunk, size) != 0) ++failures;
    if (size < (long)sizeof chunk) break;
    ++chunks;
  }
  isobit_close(in);
  isobit_close(out);
  return failures == 0 && chunks == EXPECTED_CHUNKS ? 7 : 1;
}
"""

# 1 + 2 * 100 instructions, then 1 + 2 * 3.
COUNTED = """
#include "isobit/count.h"

#define LOOP(times) \\
  __asm volatile(".syntax unified\\n movs r0, #" #times "\\n 1: subs r0, #1\\n bne 1b" ::: "r0", "cc", "memory")

int main(void) {
  isobit_count_begin();
  LOOP(100);
  isobit_count_end();
  LOOP(50);
  isobit_count_end();
  isobit_count_begin();
  LOOP(3);
  isobit_count_end();
  isobit_count_begin();
  LOOP(50);
  return 0;
}
"""

# The deepest function reports its own stack pointer: what the analysis must find, byte for byte.
STACK_CHAIN = """
#include <stdint.h>

#include "isobit/host_io.h"

extern uint32_t isobit_stack_top[];
static uint32_t depth;

#define BODY(size, n)            \\
  volatile unsigned char a[size]; \\
  a[n] = 1;

__attribute__((noinline)) static int leaf(int n) {
  BODY(400, n)
  uint32_t sp;
  __asm volatile("mov %0, sp" : "=r"(sp));
  depth = (uint32_t)(uintptr_t)isobit_stack_top - sp;
  return a[0] + a[n];
}

__attribute__((noinline)) static int middle(int n) {
  BODY(60, n)
  return leaf(n) + leaf(n + 1) + a[0];
}

__attribute__((noinline)) static int shallow(int n) {
  BODY(100, n)
  return a[0];
}

int main(void) {
  const int sum = shallow(1) + middle(2);
  const int out = isobit_open("depth.bin", 1);
  isobit_write(out, &depth, (long)sizeof depth);
  isobit_close(out);
  return sum == 0 ? 1 : 0;
}
"""

LIBRARY_CALLS = """
#include <string.h>

static volatile long long a = 1LL << 40, b = 3;
static volatile unsigned n = 100;
static char x[128], y[128];

int main(void) {
  memset(x, 5, n);
  memcpy(y, x, n);
  a /= b;
  return y[99] == 5 && a == 366503875925LL ? 0 : 1;
}
"""

UNBOUNDED = {
    "recursive": "int main(void) { volatile int k = 1; return k ? 0 : main() + k; }",
    "pointer": "int (*volatile f)(void);\nint main(void) { return f() + 1; }",
    "varies": "int main(void) { volatile unsigned n = 9; volatile char a[n]; a[0] = 1; return a[0]; }",
}

FAULTS = {
    "undefined instruction": 'int main(void) { __asm volatile("udf #0"); return 0; }',
    "unmapped address": "int main(void) { return *(volatile int *)0xF0000000; }",
    "stack overflow": "int main(void) { volatile int a[9] = {1}; return a[0] ? main() + a[0] : 0; }",
}


def firmware(board: Board, folder: Path, text: str, *flags: str) -> Firmware:
    source = folder / "program.c"
    source.write_text(text)
    return build(board, [source], folder / "build", flags)


@each_board
def test_bytes_pass_through_the_board_and_the_exit_code_returns(board: Board, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(1024 * 1024 + 5)
    (tmp_path / "in.bin").write_bytes(data)
    program = firmware(board, tmp_path, COPY_PLUS_ONE, "-DEXPECTED_CHUNKS=256")
    assert run_elf(board, program.elf, tmp_path, timeout=20) == RunResult(7, None, None)
    assert (tmp_path / "out.bin").read_bytes() == bytes((byte + 1) & 255 for byte in data)


def test_the_same_program_runs_on_the_host(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(10_007)
    (tmp_path / "in.bin").write_bytes(data)
    (tmp_path / "program.c").write_text(COPY_PLUS_ONE)
    gcc = toolchain.find("gcc", "apt-get install gcc libc6-dev")
    flags = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fsanitize=address,undefined"]
    sources: list[str | Path] = ["program.c", RUNTIME / "host" / "host_io.c"]
    command = [gcc, *flags, "-DEXPECTED_CHUNKS=2", f"-I{RUNTIME / 'include'}", *sources, "-o", "program"]
    toolchain.run(command, tmp_path, 60, "compile for the host")
    assert subprocess.run([tmp_path / "program"], cwd=tmp_path, check=False).returncode == 7
    assert (tmp_path / "out.bin").read_bytes() == bytes((byte + 1) & 255 for byte in data)


@each_board
@pytest.mark.parametrize("optimise", ["-O0", "-O2"])
def test_instruction_counts_are_exact(board: Board, tmp_path: Path, optimise: str) -> None:
    source = tmp_path / "program.c"
    source.write_text(COUNTED)
    elf = build(board, [source], tmp_path / "build", optimise=optimise).elf
    expected = RunResult(exit_code=0, instructions=201 + 7, regions=2)
    assert [run_elf(board, elf, tmp_path, count=True) for _ in range(2)] == [expected, expected]


def test_counting_needs_the_markers(tmp_path: Path) -> None:
    program = firmware(BOARDS["m4"], tmp_path, "int main(void) { return 0; }")
    with pytest.raises(ValueError, match=r"no isobit_count_begin: .* isobit/count\.h"):
        run_elf(BOARDS["m4"], program.elf, tmp_path, count=True)


@each_board
def test_the_stack_figure_is_what_the_program_uses(board: Board, tmp_path: Path) -> None:
    program = firmware(board, tmp_path, STACK_CHAIN)
    memory = measure(board, program.elf, program.call_graphs)
    assert run_elf(board, program.elf, tmp_path).exit_code == 0
    assert memory.stack == int.from_bytes((tmp_path / "depth.bin").read_bytes(), "little")
    names = [name.rpartition(":")[2].partition(".")[0] for name in memory.stack_path]  # gcc adds .constprop.0
    assert names == ["Reset_Handler", "run_program", "main", "middle", "leaf"]


@each_board
def test_library_functions_are_bounded_from_their_code(board: Board, tmp_path: Path) -> None:
    program = firmware(board, tmp_path, LIBRARY_CALLS)
    memory = measure(board, program.elf, program.call_graphs, root="main")
    assert run_elf(board, program.elf, tmp_path).exit_code == 0
    assert memory.stack_path == ("main", "__aeabi_ldivmod")
    assert 32 <= memory.stack <= 256


def test_memory_is_counted_where_it_lies(tmp_path: Path) -> None:
    def of(text: str) -> Memory:
        program = firmware(BOARDS["m4"], tmp_path, text)
        return measure(BOARDS["m4"], program.elf, program.call_graphs)

    main = "volatile int i = 1; int main(void) { return a[i]; }"
    base = of("int a[4] = {1};" + main)
    data = of("int a[1004] = {1};" + main)
    zero = of("int a[1004];" + main)
    constant = of("const int a[1004] = {1};" + main)
    assert (data.flash - base.flash, data.ram - base.ram) == (4000, 4000)
    assert (zero.flash - base.flash, zero.ram - base.ram) == (-16, 4000)
    assert (constant.flash - base.flash, constant.ram - base.ram) == (4000, -16)


@pytest.mark.parametrize(("reason", "text"), UNBOUNDED.items(), ids=UNBOUNDED.keys())
def test_an_unbounded_stack_is_refused(reason: str, text: str, tmp_path: Path) -> None:
    program = firmware(BOARDS["m4"], tmp_path, text)
    with pytest.raises(StackUnbounded, match=rf"Reset_Handler has no bound: .*{reason}"):
        measure(BOARDS["m4"], program.elf, program.call_graphs)


def test_a_call_that_gcc_weighed_and_did_not_make_needs_no_stack(tmp_path: Path) -> None:
    """Of two numbers that are not negative, gcc lists both divisions and links one."""
    text = """
#include <stdint.h>

static volatile int64_t a = 1000, b = 7;

int main(void) {
  const int64_t x = a & INT64_MAX, y = (b & 1023) + 1;
  return (int)(x / y) - 125;
}
"""
    program = firmware(BOARDS["m4"], tmp_path, text)
    assert {"__aeabi_ldivmod", "__aeabi_uldivmod"} <= set(
        re.findall(r"__aeabi_\w+", "".join(p.read_text() for p in program.call_graphs))
    )
    assert measure(BOARDS["m4"], program.elf, program.call_graphs).stack > 0


@each_board
@pytest.mark.parametrize("text", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_ends_the_program(board: Board, text: str, tmp_path: Path) -> None:
    program = firmware(board, tmp_path, text, "-Wno-error=infinite-recursion")
    assert run_elf(board, program.elf, tmp_path).exit_code == FAULT_EXIT


def test_helium_is_enabled_on_the_m55(tmp_path: Path) -> None:
    text = """
#include <arm_mve.h>

static volatile int8_t three = 3;

int main(void) { return (int)vaddvq_s8(vdupq_n_s8(three)) - 40; }
"""
    program = firmware(BOARDS["m55"], tmp_path, text)
    assert run_elf(BOARDS["m55"], program.elf, tmp_path).exit_code == 8


def test_a_misaligned_access_faults_on_the_m0(tmp_path: Path) -> None:
    text = "int a[2], *volatile p = a;\nint main(void) { return *(int *)((char *)p + 1); }"
    exits = {}
    for name in ("m0", "m3"):
        program = firmware(BOARDS[name], tmp_path, text)
        exits[name] = run_elf(BOARDS[name], program.elf, tmp_path).exit_code
    assert exits == {"m0": FAULT_EXIT, "m3": 0}


def test_a_program_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    program = firmware(BOARDS["m4"], tmp_path, 'int main(void) { for (;;) __asm volatile(""); }')
    with pytest.raises(ToolFailed, match=r"run firmware\.elf on mps2-an386: stopped after 1 s\n  command: "):
        run_elf(BOARDS["m4"], program.elf, tmp_path, timeout=1)


def test_a_compile_error_shows_the_command_and_the_message(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match=r"compile program\.c for m4: exit code 1\n  command: .*gcc(.|\n)*undeclared"):
        firmware(BOARDS["m4"], tmp_path, "int main(void) { return missing; }")


def test_an_emulator_error_is_not_taken_for_the_programs_exit_code(tmp_path: Path) -> None:
    elf = tmp_path / "not.elf"
    with pytest.raises(ToolFailed, match="exit code 1"):
        run_elf(BOARDS["m4"], elf, tmp_path)


def test_a_missing_tool_is_named_with_its_remedy() -> None:
    with pytest.raises(ToolMissing, match=r"^no-such-tool is not installed; install it with: apt-get install x$"):
        toolchain.find("no-such-tool", "apt-get install x")


def test_version_is_the_first_line() -> None:
    assert toolchain.version(BOARDS["m4"].toolchain.find_emulator()).startswith("QEMU emulator version ")
