"""A program that runs a package on any input, and the Session that talks to it through binary files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from isobit.quant.errors import InputError
from isobit.quant.interpret import checked_inputs
from isobit.quant.program import Array, Arrays, Program
from isobit.targets import toolchain
from isobit.targets.hls.testbench import per_sequence, per_step
from isobit.targets.hls.text import ap
from isobit.targets.hls.unit import Unit
from isobit.targets.taps import RECORD, traced_outputs
from isobit.targets.target import Run

SECONDS = 600

SOURCE = """// run MODE INPUT OUTPUT [TRACE]. MODE: step or sequence.
// INPUT, int64: batch, steps, 1 if states are given; per batch element the states, then per step the inputs.
// OUTPUT, int64: per batch element, per step the outputs, then the final states.
#include "{name}.h"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef ISOBIT_TRACE
static std::FILE* trace;
void isobit_tap(int node, int index, long long value) {{
  const struct {{
    std::int32_t node, index;
    std::int64_t value;
  }} record = {{node, index, value}};
  std::fwrite(&record, sizeof record, 1, trace);
}}
#endif

static std::FILE *in, *out;

static std::int64_t get() {{
  std::int64_t x = 0;
  if (std::fread(&x, sizeof x, 1, in) != 1) std::exit(3);
  return x;
}}
template <int W>
void load(ap_int<W>& x) {{
  x = get();
}}
template <class T, std::size_t N>
void load(T (&x)[N]) {{
  for (T& element : x) load(element);
}}
template <int W>
void save(const ap_int<W>& x) {{
  const std::int64_t value = x.to_int64();
  std::fwrite(&value, sizeof value, 1, out);
}}
template <class T, std::size_t N>
void save(const T (&x)[N]) {{
  for (const T& element : x) save(element);
}}

static void load_state({name}_state& state) {{
  (void)state;
{load_state}
}}
static void save_state(const {name}_state& state) {{
  (void)state;
{save_state}
}}

static void by_step(std::int64_t steps, bool given) {{
  static {name}_state state;
  {name}_reset(state);
  if (given) load_state(state);
  for (std::int64_t t = 0; t < steps; t++) {{
{buffers}
{load_inputs}
    {name}_step({step_arguments});
{save_outputs}
  }}
  save_state(state);
}}

static void by_sequence(std::int64_t steps, bool given) {{
{streams}
  if (given) load_state({name}_top_state());
  for (std::int64_t t = 0; t < steps; t++) {{
{write_inputs}
  }}
  for (std::int64_t t = 0; t < steps; t++) {name}_top({top_arguments});
  for (std::int64_t t = 0; t < steps; t++) {{
{read_outputs}
  }}
  save_state({name}_top_state());
}}

int main(int count, char** arguments) {{
  if (count < 4) return 2;
  in = std::fopen(arguments[2], "rb"), out = std::fopen(arguments[3], "wb");
  if (!in || !out) return 2;
#ifdef ISOBIT_TRACE
  trace = count > 4 ? std::fopen(arguments[4], "wb") : nullptr;
  if (!trace) return 2;
#endif
  const std::int64_t batch = get(), steps = get(), given = get();
  for (std::int64_t b = 0; b < batch; b++)
    std::strcmp(arguments[1], "step") == 0 ? by_step(steps, given != 0) : by_sequence(steps, given != 0);
#ifdef ISOBIT_TRACE
  if (std::fclose(trace) != 0) return 4;
#endif
  return std::fclose(out) == 0 ? 0 : 4;
}}
"""


def runner(unit: Unit, name: str) -> str:
    """The source of the program, for the package `name`."""
    p, value = unit.nest.program, unit.value
    inputs, outputs = [i.name for i in p.inputs], list(dict.fromkeys(p.outputs))

    def each(values: list[str], form: str) -> str:
        """One line per value; in `form`, {v} is its name, {n} its size and {d} its declaration."""
        lines = []
        for v in values:
            at = {"v": value[v], "n": unit.nest.type(v).size, "t": ap(unit.bits(v))}
            lines.append(form.format(**at, d=unit.declaration(v, f"{value[v]}_port")))
        return "\n".join(lines)

    ports = [f"{value[v]}_port" for v in (*inputs, *outputs)]
    return SOURCE.format(
        name=name,
        load_state=each(list(p.state), "  load(state.{v});"),
        save_state=each(list(p.state), "  save(state.{v});"),
        buffers=each([*inputs, *outputs], "    static {d};"),
        load_inputs=each(inputs, "    load({v}_port);"),
        step_arguments=", ".join(["state", *ports]),
        save_outputs=each(outputs, "    save({v}_port);"),
        streams=each([*inputs, *outputs], '  hls::stream<{t} > {v}_port("{v}");'),
        write_inputs=each(inputs, "    for (int i = 0; i < {n}; i++) {v}_port.write(get());"),
        top_arguments=", ".join([*ports, "t == 0 && !given"]),
        read_outputs=each(outputs, "    for (int i = 0; i < {n}; i++) save({v}_port.read());"),
    )


class HlsSession:
    """A compiled package.  Files go through `folder`."""

    def __init__(
        self, program: Program, unit: Unit, binary: Path, folder: Path, traced: bool, info: Mapping[str, object]
    ) -> None:
        self.program, self.unit, self.binary, self.folder = program, unit, binary, folder
        self.traced, self.info = traced, info

    def run(self, inputs: Arrays, states: Arrays | None, by_step: bool) -> Run:
        inputs = checked_inputs(self.program, inputs)
        batch, steps = next(iter(inputs.values())).shape[:2]
        names = list(self.program.state)
        given = per_sequence(states or {}, names if states is not None else [], batch)
        stream = np.concatenate(
            [given, per_step(inputs, [i.name for i in self.program.inputs]).reshape(batch, -1)], axis=1
        )
        header = np.array([batch, steps, states is not None], np.int64)
        np.concatenate([header, stream.ravel()]).astype("<i8").tofile(self.folder / "input.bin")
        files = [self.folder / f"{k}.bin" for k in ("input", "output", "trace")]
        mode = "step" if by_step else "sequence"
        toolchain.run([self.binary, mode, *files], self.folder, SECONDS, f"run {self.binary.name} by {mode}")
        answer = np.fromfile(self.folder / "output.bin", "<i8").astype(np.int64).reshape(batch, -1)
        return Run(*self._split(answer, batch, steps), self.info)

    def _split(self, answer: Array, batch: int, steps: int) -> tuple[Arrays, Arrays]:
        sizes = {o: self.unit.nest.type(o).size for o in dict.fromkeys(self.program.outputs)}
        states = {s.name: s.type.size for s in self.program.states}
        count = steps * sum(sizes.values())
        if answer.shape[1] != count + sum(states.values()):
            raise InputError(f"{self.binary}: expected {count + sum(states.values())} values, got {answer.shape[1]}")
        rows, rest = answer[:, :count].reshape(batch, steps, -1), answer[:, count:]
        outputs = {
            k: part.reshape(batch, steps, *self.unit.shape(k)) for k, part in zip(sizes, _cut(rows, sizes), strict=True)
        }
        held = {k: part.reshape(batch, *self.unit.shape(k)) for k, part in zip(states, _cut(rest, states), strict=True)}
        return outputs, held

    def trace(self, inputs: Arrays, states: Arrays | None) -> Arrays:
        if not self.traced:
            raise InputError("this session has no taps: start it with traced=True")
        self.run(inputs, states, by_step=False)
        batch, steps = next(iter(inputs.values())).shape[:2]
        records = np.fromfile(self.folder / "trace.bin", RECORD)
        return traced_outputs(records, self.unit.nest, batch, steps)


def _cut(array: Array, sizes: Mapping[str, int]) -> list[Array]:
    """The last axis, cut into consecutive parts of these sizes."""
    ends = list(np.cumsum(list(sizes.values())))
    return np.split(array, ends[:-1], axis=-1) if ends else []
