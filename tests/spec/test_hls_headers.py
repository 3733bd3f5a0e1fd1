"""The stand-ins for Vitis HLS's `ap_int.h` and `hls_stream.h` (runtime_stubs/hls).

One C++ program evaluates every operation on many pairs of types. Its output must be what Python's integers give by the
semantics written here and, in a slow test, what the AP types that Xilinx published give: they are in the wheel of
hls4ml (`pip download --no-deps hls4ml`) under templates/vivado/ap_types, and ISOBIT_AP_TYPES names that folder.
"""

import itertools
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

HEADERS = Path(__file__).resolve().parents[2] / "runtime_stubs" / "hls"
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")
WIDTHS = ((1, 1), (1, 8), (2, 3), (8, 8), (16, 7), (31, 32), (32, 8), (33, 32), (40, 40), (63, 16), (64, 63), (64, 64))
SHIFTS = (0, 1, 7, 31, 32, 63, 64, 65, -1, -9)
SEED = 20240611

pytestmark = pytest.mark.needs("g++")


class Type(NamedTuple):
    """`ap_int<width>`, or `ap_uint<width>` where not signed."""

    width: int
    signed: bool

    @property
    def cpp(self) -> str:
        return f"ap_{'' if self.signed else 'u'}int<{self.width}>"

    def wrap(self, x: int) -> int:
        """The value whose low `width` bits are those of x."""
        x &= (1 << self.width) - 1
        return x - (1 << self.width) if self.signed and x >> (self.width - 1) else x

    def values(self, rng: random.Random) -> list[int]:
        """0, +-1, the ends, powers of two +-2 around the usual words, and random values of every magnitude."""
        near = [
            (1 << k) + d for k in (3, 7, 15, 31, self.width - 2, self.width - 1) if k > 0 for d in (-2, -1, 0, 1, 2)
        ]
        near = [*rng.sample(near, 6), 0, 1, -1, 1 << (self.width - 1), (1 << (self.width - 1)) - 1]
        near += [rng.getrandbits(rng.randint(1, self.width)) for _ in range(3)]
        return sorted({self.wrap(x) for x in near})


INT = Type(32, True)
BUILT_IN = {"bool": Type(1, False), "unsigned char": Type(8, False), "int": INT, "long long": Type(64, True)}
PAIRS = [
    (Type(wa, sa), Type(wb, sb))
    for (a, b), sa, sb in itertools.product(WIDTHS, (True, False), (True, False))
    for wa, wb in {(a, b), (b, a)}
]

# evaluate<A, B>(a, b) prints one line: every result with the type that it has.
PROGRAM = r"""
#include <ap_int.h>
#include <cstdio>

static void put(char kind, int width, ap_int<128> x) {
  const unsigned long long high = ap_uint<64>(x >> 64), low = ap_uint<64>(x);
  std::printf(" %c%d:%llx.%016llx", kind, width, high, low);
}
template <int W> void show(const ap_int<W>& x) { put('i', W, x); }
template <int W> void show(const ap_uint<W>& x) { put('u', W, x); }
static void show(bool x) { std::printf(" %d", int(x)); }

template <class A, class B> void ordered(const A& a, const B& b) {
  show(a == b), show(a != b), show(a < b), show(a <= b), show(a > b), show(a >= b);
  if (b != B(0)) show(a / b), show(a % b);
}
template <class A, class B> void same_sign(const A&, const B&) {}
template <int V, int W> void same_sign(const ap_int<V>& a, const ap_int<W>& b) { ordered(a, b); }
template <int V, int W> void same_sign(const ap_uint<V>& a, const ap_uint<W>& b) { ordered(a, b); }

template <class A, class B> void evaluate(long long bits_a, long long bits_b) {
  const A a = bits_a;
  const B b = bits_b;
  show(a + b), show(a - b), show(a * b), show(a & b), show(a | b), show(a ^ b), show(B(a));
  A x = a;
  x += b, show(x), x = a;
  x -= b, show(x), x = a;
  x *= b, show(x), x = a;
  x |= b, show(x), x = a;
  x ^= b, show(x), x = a;
  x &= b, show(x);
  A wrapped = a * b;
  show(wrapped), wrapped = bits_b, show(wrapped), show(bits_b & 1 ? a : wrapped);
  same_sign(a, b);
  std::printf("\n");
}

template <class A, class C> void with_built_in(const A& a, C c) {
  show(a + c), show(c - a), show(a - c), show(c * a), show(a & c), show(c | a), show(a ^ c);
  A x = a;
  x += c, show(x), x = c, show(x);
}

template <class A> void evaluate_one(long long bits) {
  const A a = bits;
  show(-a), show(~a), show(!a), show(+a);
  const int shifts[] = {SHIFTS};
  for (int s : shifts) {
    A x = a, y = a;
    x <<= s, y >>= s;
    show(a << s), show(a >> s), show(x), show(y), show(a << ap_int<9>(s)), show(a >> ap_int<9>(s));
    if (s >= 0) show(a << ap_uint<8>(s)), show(a >> ap_uint<8>(s)), show(a >> unsigned(s));
  }
  show(ap_int<64>(int(a))), show(ap_int<64>((long long)a)), show(ap_int<64>((unsigned char)a));
  show(ap_int<64>(a.to_int())), show(ap_int<64>(a.to_int64())), show(ap_uint<64>(a.to_uint64()));
  with_built_in(a, bool(bits & 1)), with_built_in(a, (unsigned char)bits);
  with_built_in(a, int(bits)), with_built_in(a, bits);
  std::printf("\n");
}

/* Two operands of 64 bits or less, and operations on their 65 to 128 bits. */
template <class A, class B> void evaluate_wide(long long bits_a, long long bits_b) {
  const A a = bits_a;
  const B b = bits_b;
  ap_int<128> p = ap_int<128>(a) << 61;
  p ^= b;
  show(p), show(p >> 67), show(-ap_int<127>(p)), show(~p), show(ap_int<72>(p)), show(ap_uint<128>(p) >> 3);
  show(ap_int<127>(p) - ap_int<100>(b)), show(ap_int<80>(p) * ap_int<48>(b)), show(p > ap_int<90>(b));
  show(p == ap_int<70>(p)), show(!p), show(ap_int<100>(p) & ap_uint<66>(b)), show(ap_uint<65>(p) + b);
  p *= p, show(p);
  std::printf("\n");
}

int main() {
  unsigned function;
  long long a, b;
  void (*const two[])(long long, long long) = {TWO};
  void (*const one[])(long long) = {ONE};
  const unsigned twos = sizeof two / sizeof *two;
  while (std::scanf("%u %lld %lld", &function, &a, &b) == 3)
    function < twos ? two[function](a, b) : one[function - twos](a);
}
"""


def shown(t: Type, x: int) -> str:
    assert x == t.wrap(x), f"{t.cpp} cannot hold {x}: the result type is wrong"
    bits = x & ((1 << 128) - 1)
    return f"{'i' if t.signed else 'u'}{t.width}:{bits >> 64:x}.{bits & ((1 << 64) - 1):016x}"


def common(a: Type, b: Type) -> Type:
    """The narrowest type that holds every value of a and b."""
    signed = a.signed or b.signed
    return Type(max(t.width + (signed and not t.signed) for t in (a, b)), signed)


def results(a: Type, x: int, b: Type, y: int) -> dict[str, str]:
    """Every binary operator: its result's type and value."""
    wide = common(a, b)
    total = Type(wide.width + 1, wide.signed)
    answers = {
        "+": shown(total, x + y),
        "-": shown(Type(total.width, True), x - y),
        "*": shown(Type(a.width + b.width, wide.signed), x * y),
        "&": shown(wide, x & y),
        "|": shown(wide, x | y),
        "^": shown(wide, x ^ y),
    }
    if a.signed == b.signed:
        compared = {"==": x == y, "!=": x != y, "<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y}
        answers |= {op: str(int(holds)) for op, holds in compared.items()}
        if y:
            quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
            answers["/"] = shown(Type(a.width + b.signed, a.signed), quotient)
            answers["%"] = shown(Type(min(a.width, b.width), a.signed), x - quotient * y)
    return answers


def shifted(t: Type, x: int, by: int) -> str:
    return shown(t, t.wrap(x << by if by >= 0 else x >> -by))


def evaluate(a: Type, x: int, b: Type, y: int) -> Iterator[str]:
    op = results(a, x, b, y)
    yield from (op[name] for name in "+-*&|^")
    yield shown(b, b.wrap(x))
    yield from (shown(a, a.wrap(z)) for z in (x + y, x - y, x * y, x | y, x ^ y, x & y, x * y, y))
    yield shown(a, x if y & 1 else a.wrap(y))
    yield from (op[name] for name in ("==", "!=", "<", "<=", ">", ">=", "/", "%") if name in op)


def evaluate_one(a: Type, x: int) -> Iterator[str]:
    yield results(Type(1, False), 0, a, x)["-"]
    yield from (shown(a, a.wrap(~x)), str(int(x == 0)), shown(a, x))
    for s in SHIFTS:
        yield from (shifted(a, x, s), shifted(a, x, -s)) * 3
        if s >= 0:
            yield from (shifted(a, x, s), shifted(a, x, -s), shifted(a, x, -s))
    low = Type(64, True)
    kept = (INT.wrap(x), low.wrap(x), x & 255, INT.wrap(x), low.wrap(x))
    yield from (shown(low, z) for z in kept)
    yield shown(Type(64, False), x & ((1 << 64) - 1))
    for c in BUILT_IN.values():
        y = c.wrap(x)
        right, left = results(a, x, c, y), results(c, y, a, x)
        yield from (right["+"], left["-"], right["-"], left["*"], right["&"], left["|"], right["^"])
        yield from (shown(a, a.wrap(x + y)), shown(a, a.wrap(y)))


def evaluate_wide(a: Type, x: int, b: Type, y: int) -> Iterator[str]:
    whole = Type(128, True)
    p = whole.wrap(whole.wrap(x << 61) ^ y)
    yield from (shown(whole, p), shifted(whole, p, -67))
    yield shown(Type(128, True), -Type(127, True).wrap(p))
    yield from (shown(whole, ~p), shown(Type(72, True), Type(72, True).wrap(p)))
    yield shifted(Type(128, False), Type(128, False).wrap(p), -3)
    for wa, wb, name in ((127, 100, "-"), (80, 48, "*"), (128, 90, ">"), (128, 70, "==")):
        left, right = Type(wa, True), Type(wb, True)
        yield results(left, left.wrap(p), right, right.wrap(p if name == "==" else y))[name]
    yield str(int(p == 0))
    yield results(Type(100, True), Type(100, True).wrap(p), Type(66, False), Type(66, False).wrap(y))["&"]
    yield results(Type(65, False), Type(65, False).wrap(p), b, y)["+"]
    yield shown(whole, whole.wrap(p * p))


class Case(NamedTuple):
    where: str
    stdin: str
    expected: str


def functions() -> tuple[list[str], list[str]]:
    """The instances in the order of their numbers: those of two arguments, then those of one."""
    two = [f"{name}<{a.cpp}, {b.cpp}>" for name in ("evaluate", "evaluate_wide") for a, b in PAIRS]
    return two, [f"evaluate_one<{a.cpp}>" for a in dict.fromkeys(a for a, _ in PAIRS)]


def cases() -> list[Case]:
    rng = random.Random(SEED)
    listed = []
    two, one = functions()
    for number, (a, b) in enumerate(PAIRS):
        values = list(itertools.product(a.values(rng), b.values(rng)))
        for x, y in rng.sample(values, min(len(values), 60)):
            arguments = f"{Type(64, True).wrap(x)} {Type(64, True).wrap(y)}"
            for first, answers in ((0, evaluate(a, x, b, y)), (len(PAIRS), evaluate_wide(a, x, b, y))):
                n = number + first
                listed.append(Case(f"{two[n]}({x}, {y})", f"{n} {arguments}", " ".join(answers)))
    for n, a in enumerate(dict.fromkeys(a for a, _ in PAIRS)):
        for x in a.values(rng):
            stdin = f"{len(two) + n} {Type(64, True).wrap(x)} 0"
            listed.append(Case(f"{one[n]}({x})", stdin, " ".join(evaluate_one(a, x))))
    return listed


def compile_program(folder: Path, source: str, include: Path, *options: str) -> Path:
    """The executable; the test fails with the compiler's messages where it refuses."""
    (folder / "program.cpp").write_text(source)
    command = ["g++", "-std=c++14", *options, "-I", str(include), "program.cpp", "-o", "program"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"
    return folder / "program"


def check(folder: Path, include: Path, *options: str) -> None:
    """Builds the program with the headers in `include`, and compares each of its lines with the semantics."""
    two, one = functions()
    places = {"SHIFTS": SHIFTS, "TWO": two, "ONE": one}
    source = re.sub(r"\{(SHIFTS|TWO|ONE)\}", lambda m: "{" + ", ".join(map(str, places[m[1]])) + "}", PROGRAM)
    program = compile_program(folder, source, include, *options)
    listed = cases()
    done = subprocess.run([program], input="\n".join(c.stdin for c in listed), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(listed)
    for case, line in zip(listed, lines, strict=True):
        got, expected = line.split(), case.expected.split()
        wrong = [
            f"result {i}: expected {e}, got {g}" for i, (e, g) in enumerate(zip(expected, got, strict=True)) if e != g
        ]
        assert not wrong, f"{case.where}: {'; '.join(wrong)}"


def test_ap_int_computes_the_documented_semantics(tmp_path: Path) -> None:
    check(tmp_path, HEADERS, *STRICT)


@pytest.mark.slow
def test_published_ap_types_compute_the_same(tmp_path: Path) -> None:
    """The same program, compiled against Xilinx's own headers."""
    folder = os.environ.get("ISOBIT_AP_TYPES")
    if not folder:
        pytest.skip("ISOBIT_AP_TYPES does not name the folder of the AP types in the hls4ml wheel")
    assert (Path(folder) / "ap_int.h").is_file(), f"ISOBIT_AP_TYPES={folder} has no ap_int.h"
    check(tmp_path, Path(folder).resolve(), "-w")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("bool r = ap_int<8>(1) < ap_uint<8>(1);", "cast to one signedness before a comparison"),
        ("bool r = ap_uint<8>(1) == 1;", "cast to one signedness before a comparison"),
        ("auto r = ap_int<8>(1) / ap_uint<8>(1);", "cast to one signedness before a division"),
        ("auto r = ap_int<64>(1) * ap_int<65>(1);", "a width is 1 to 128 bits"),
        ("ap_int<0> r;", "a width is 1 to 128 bits"),
        ("long long r = ap_int<65>(1);", "cast to ap_int<64>"),
        ("auto r = 1 << ap_uint<3>(1);", "use of deleted function"),
        ("auto r = ap_int<8>(1) << 1LL;", "at most 32 bits"),
        ("auto r = ap_int<8>(1.5);", "no matching function"),
        ("auto r = true ? ap_int<8>(1) : ap_int<9>(1);", "different types"),
    ],
)
def test_what_would_surprise_does_not_compile(statement: str, reason: str) -> None:
    source = f"#include <ap_int.h>\nint main() {{ {statement} (void)r; }}\n"
    command = ["g++", "-std=c++14", "-fsyntax-only", "-I", str(HEADERS), "-x", "c++", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    assert done.returncode != 0
    assert reason in done.stderr


STREAMS = r"""
#include <ap_int.h>
#include <cstring>
#include <hls_stream.h>

int main(int, char** arguments) {
  const char* what = arguments[1];
  {
    hls::stream<ap_int<5>> s("numbers"), unnamed;
    for (int i = 0; i < 40; i++) s.write(i);
    if (s.size() != 40 || s.empty() || !unnamed.empty()) return 10;
    for (int i = 0; i < 38; i++)
      if (s.read() != ap_int<5>(i)) return 11;
    if (hls::leftover_streams() != 0) return 12;
    ap_int<5> x;
    if (std::strcmp(what, "leftover") != 0) s.read(x), s.read(x);
    if (std::strcmp(what, "empty") == 0) s.read();
  }
  return hls::leftover_streams();
}
"""


def test_stream_is_a_queue_that_reports_misuse(tmp_path: Path) -> None:
    program = compile_program(tmp_path, STREAMS, HEADERS, *STRICT)
    ends = {
        what: subprocess.run([program, what], capture_output=True, text=True) for what in ("all", "leftover", "empty")
    }
    assert (ends["all"].returncode, ends["all"].stderr) == (0, "")
    assert ends["leftover"].returncode == 1
    assert "'numbers' contains leftover data" in ends["leftover"].stderr
    assert "(2 elements)" in ends["leftover"].stderr
    assert ends["empty"].returncode < 0, "expected abort()"
    assert "ERROR: Hls::stream 'numbers' is read while empty" in ends["empty"].stderr
