"""What is wrong with a model that is brought in: one clear message, exit code 2, nothing written, and nothing run."""

from __future__ import annotations

import io
import json
import pickle
import re
import shlex
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, export, save

from isobit.quant.capture import program_file
from tests.commandline import isobit

BATCH_AND_TIME = ({0: Dim("B"), 1: Dim("T")},)
ONLY_BATCH = ({0: Dim("B")},)

MODELS = '''\
import torch
from torch import nn
from torch.nn import functional as F
from isobit.quant.zoo.classifier import fsdd_gru

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

def model(forward, **buffers):
    """A model whose layer `inner` has this forward."""
    class Inner(Base):
        pass
    Inner.forward = forward
    outer = nn.Sequential()
    outer.add_module("inner", Inner())
    for name, tensor in buffers.items():
        outer.inner.register_buffer(name, tensor)
    return outer

def good(): return model(lambda self, x: F.silu(self.layer(x)))

def cumulative():
    def forward(self, x):
        y = self.layer(x)
        return torch.cumprod(y, dim=1)
    return model(forward)

def positive(): return model(lambda self, x: x[x > 0].sum())
def branches(): return model(lambda self, x: x if x.sum() > 0 else -x)
def spectrum():
    def forward(self, x):
        return torch.fft.rfft(x, dim=-1).abs()
    return model(forward)
def rotary(): return model(lambda self, x: x * self.turn.real, turn=torch.ones(4, dtype=torch.complex64))
def half_buffer(): return model(lambda self, x: x * self.f.float(), f=torch.ones(4).half())
def nan_buffer(): return model(lambda self, x: x * self.f, f=torch.full((4,), torch.nan))
def half(): return good().half()
def bfloat(): return good().bfloat16()
def complexes(): return good().to(torch.complex64)
def meta():
    with torch.device("meta"): return good()
def counts():
    def forward(self, x):
        self.n += 1
        return self.layer(x) * self.n
    return model(forward, n=torch.ones(4))
def two(): return nn.Bilinear(4, 4, 4)
def pair(): return model(lambda self, x: (x * 2, x * 3))
def constant(): return model(lambda self, x: self.layer.weight)
def positions():
    def forward(self, x):
        return x + self.p[: x.shape[1]]
    return model(forward, p=torch.ones(50, 4))
def reads_time():
    def forward(self, x):
        return self.layer(x) / x.shape[1]
    return model(forward)
def time_first(): return model(lambda self, x: self.layer(x).transpose(0, 1))
def lstm_of_time_first():
    m = nn.LSTM(4, 4)
    return model(lambda self, x: m(x.transpose(0, 1))[0].transpose(0, 1))
def groups(): return nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
'''


class Small(nn.Module):
    def __init__(self, f: Callable[[Small, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.layer, self.drop, self.f = nn.Linear(4, 4), nn.Dropout(0.5), f

    def forward(self, x: Tensor) -> Any:
        return self.f(self, x) if self.f else torch.tanh(self.layer(x))


def exported(path: Path, module: nn.Module, dynamic: Any = BATCH_AND_TIME, shape: tuple[int, ...] = (2, 7, 4)) -> None:
    save(export(module, (torch.zeros(shape),), dynamic_shapes=dynamic), path)


class Bomb:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def changed(source: Path, target: Path, edit: Callable[[dict[str, bytes]], object], compression: int = 0) -> None:
    """The file with its members edited; names are without the archive's own."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].partition("/")[0]
        members = {name.removeprefix(f"{root}/"): archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{root}/{name}", content)


def of_json(name: str, edit: Callable[[Any], object]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        value = json.loads(members[name])
        edit(value)
        members[name] = json.dumps(value).encode()

    return apply


PROGRAM, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
TOUCH = "__import__('pathlib').Path('exploded').touch()"


def set_first_size(program: Any) -> None:
    values = program["graph_module"]["graph"]["tensor_values"]
    name = next(iter(values))
    values[name]["sizes"] = [{"as_expr": {"expr_str": TOUCH, "hint": {"as_int": 2}}}]


def claim(count: int) -> Callable[[dict[str, bytes]], None]:
    return of_json(WEIGHTS, lambda c: c["config"]["layer.weight"]["tensor_meta"].update(sizes=[{"as_int": count}]))


def with_bomb(members: dict[str, bytes]) -> None:
    members["data/constants/opaque_obj_0"] = pickle.dumps(Bomb())
    of_json(CONSTANTS, lambda c: c["config"].update(bomb=entry("opaque_obj_0")))(members)


def entry(path: str) -> dict[str, Any]:
    return {"path_name": path, "is_param": False, "use_pickle": True, "tensor_meta": None}


def pickled_weight(members: dict[str, bytes]) -> None:
    members["data/weights/weight_0"] = pickle.dumps(Bomb())
    of_json(WEIGHTS, lambda c: c["config"]["layer.weight"].update(use_pickle=True))(members)


def rename(program: Any) -> None:
    graph = program["graph_module"]["graph"]
    graph["nodes"][-1]["outputs"][0]["as_tensor"]["name"] = f"x = {TOUCH}"


EDITS: dict[str, Callable[[dict[str, bytes]], object]] = {
    "pickled_weight": pickled_weight,
    "pickled_constant": with_bomb,
    "evaluates": of_json(PROGRAM, set_first_size),
    "calls": of_json(PROGRAM, lambda p: p["graph_module"]["graph"]["nodes"][0].update(target="torch.os.system")),
    "renamed": of_json(PROGRAM, rename),
    "huge": claim(1 << 40),
    "beyond": claim(17),
    "compiled": lambda m: m.update({"data/aotinductor/model/a.so": b"\x7fELF"}),
    "no_program": lambda m: m.pop(PROGRAM),
    "no_weights": lambda m: m.pop("data/weights/weight_0"),
    "newer": of_json(PROGRAM, lambda p: p["schema_version"].update(major=99)),
    "bad_json": lambda m: m.update({PROGRAM: b"{"}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models to be refused, and `good.pt2` and `x.npz`, which are right."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "models_to_refuse.py").write_text(MODELS)
    random = np.random.default_rng(0)
    np.savez(folder / "x.npz", x=random.normal(size=(4, 6, 4)))
    np.savez(folder / "wide.npz", x=random.normal(size=(4, 6, 5)))
    np.savez(folder / "ids.npz", x=random.integers(0, 9, (4, 6)))
    np.savez(folder / "images.npz", x=random.normal(size=(4, 4, 6, 6)))
    small = Small().eval()
    exported(folder / "good.pt2", small)
    exported(folder / "one_step.pt2", small, None, (2, 1, 4))
    exported(folder / "first_step.pt2", Small(lambda m, x: m.layer(x)[:, 0]).eval(), ONLY_BATCH)
    exported(folder / "training.pt2", Small(lambda m, x: m.drop(m.layer(x))).train())
    exported(folder / "channels.pt2", Small(lambda m, x: torch.tanh(x)), ({0: Dim("B"), 1: Dim("T"), 2: Dim("C")},))
    exported(folder / "half.pt2", Small(lambda m, x: m.layer(x.half()).float()).half())
    exported(folder / "unknown.pt2", Small(lambda m, x: torch.cumprod(m.layer(x), 1)).eval())
    for name, edit in EDITS.items():
        changed(folder / "good.pt2", folder / f"{name}.pt2", edit)
    changed(folder / "good.pt2", folder / "deflated.pt2", lambda m: None, zipfile.ZIP_DEFLATED)
    content = (folder / "good.pt2").read_bytes()
    (folder / "cut.pt2").write_bytes(content[: len(content) // 2])
    (folder / "text.pt2").write_text("not a model")
    (folder / "pickle.pt2").write_bytes(pickled(small.state_dict()))
    (folder / "bomb.pt2").write_bytes(pickle.dumps(Bomb()))
    (folder / "weights.pt").write_bytes(pickled(small.state_dict()))
    (folder / "model.pth").write_bytes(pickle.dumps(Bomb()))
    write_weights(folder)
    (folder / "empty").mkdir()
    return folder


def write_weights(folder: Path) -> None:
    good = {"inner.layer.weight": torch.eye(4), "inner.layer.bias": torch.zeros(4)}
    for name, tensors in {
        "right": good,
        "missing": {"inner.layer.weight": torch.eye(4)},
        "extra": good | {"inner.other": torch.zeros(4)},
        "nan": good | {"inner.layer.bias": torch.full((4,), torch.nan)},
        "complex": good | {"inner.layer.bias": torch.zeros(4, dtype=torch.complex64)},
        "shape": good | {"inner.layer.bias": torch.zeros(5)},
    }.items():
        save_file(tensors, folder / f"{name}.safetensors")


@pytest.fixture(autouse=True)
def nothing_is_written(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(made)
    before = {p: p.read_bytes() for p in made.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    yield
    assert {p: p.read_bytes() for p in made.rglob("*") if p.is_file() and "__pycache__" not in p.parts} == before


EXPORT = r".*program = export\(model\.eval\(\), \(example,\), dynamic_shapes=.*Dim\(\"T\"\).*save\(program"
LINE = r"inner \(\S*models_to_refuse\.py:\d+: "

CASES = {
    # A module: what it does.
    "models_to_refuse:cumulative": LINE
    + r"return torch\.cumprod\(y, dim=1\)\): aten\.cumprod\.default is not supported; supported: .*aten\.linear.*nn",
    "models_to_refuse:positive": "is not supported|data-dependent|cannot trace",
    "models_to_refuse:branches": "torch.export cannot trace Sequential.*branch on values",
    "models_to_refuse:spectrum": LINE + ".*aten.fft_rfft.default is not supported",
    "models_to_refuse:counts": "the model changes inner.n as it runs.*as the state of a loop over time",
    "models_to_refuse:pair": "its forward returns 2 values, expected one",
    "models_to_refuse:constant": "its forward returns a constant",
    "models_to_refuse:two": "Its forward must take one tensor",
    "models_to_refuse:positions": LINE + r".*a parameter of shape \(\d+, 4\)",
    "models_to_refuse:reads_time": LINE + ".*depends on the input, expected a parameter",
    "models_to_refuse:time_first": "whose axis 1 is not time; expected .B, T, ...*transpose it back",
    "models_to_refuse:groups --calib images.npz": "0.*conv2d in 2 groups, expected 1",
    # Its parameters and buffers.
    "models_to_refuse:half": r"parameter inner\.layer\.weight is torch\.float16, expected float32.*\.float\(\)",
    "models_to_refuse:bfloat": r"parameter inner\.layer\.weight is torch\.bfloat16, expected float32",
    "models_to_refuse:complexes": r"parameter inner\.layer\.weight is torch\.complex64.*real and imaginary",
    "models_to_refuse:rotary": r"buffer inner\.turn is torch\.complex64.*real and imaginary",
    "models_to_refuse:half_buffer": r"buffer inner\.f is torch\.float16",
    "models_to_refuse:nan_buffer": r"buffer inner\.f: 4 of 4 values are NaN",
    "models_to_refuse:meta": r"parameter inner\.layer\.weight has no values .*load the model's weights",
    # Its weights.
    "models_to_refuse:good --weights missing.safetensors": r"missing\.safetensors does not fit .*bias is missing",
    "models_to_refuse:good --weights extra.safetensors": r"inner\.other is not in the model",
    "models_to_refuse:good --weights nan.safetensors": r"inner\.layer\.bias: 4 of 4 values are NaN",
    "models_to_refuse:good --weights complex.safetensors": "not a readable|inner.layer.bias is torch.complex64",
    "models_to_refuse:good --weights shape.safetensors": r"inner\.layer\.bias has shape \(5,\), expected \(4,\)",
    "models_to_refuse:good --weights weights.pt": r"a pickle can run code.*save_file",
    # Samples that it does not take.
    "models_to_refuse:good --calib wide.npz": "cannot trace Sequential.*as many channels as the samples",
    "models_to_refuse:good --calib ids.npz": "cannot trace Sequential",
    "good.pt2 --calib wide.npz": r"program takes torch\.float32, \(\?, \?, 4\), and the samples are real .*\(4, 6, 5\)",
    "good.pt2 --calib ids.npz": "the samples are identifiers",
    # A .pt2 file.
    "nofile.pt2": "nofile.pt2: there is no such file",
    "good.pt2 --weights right.safetensors": "good.pt2 ships with its weights; remove right.safetensors",
    "one_step.pt2": f"exported for one step, which says nothing of the next{EXPORT}",
    "first_step.pt2": r"first_step\.pt2: exported for 7 steps only.*aten\.select\.int along batch or time is not",
    "training.pt2": r"dropout in training mode is not supported: call model\.eval\(\)",
    "channels.pt2": r"only the batch and time may vary: export it again|the program takes",
    "half.pt2": r"parameter layer\.weight is torch\.float16",
    "unknown.pt2": r"test_import\.py:\d+: .*aten\.cumprod\.default is not supported",
    "pickled_weight.pt2": f"layer.weight is a pickled object, which can run code{EXPORT}",
    "pickled_constant.pt2": f"bomb is a pickled object, which can run code{EXPORT}",
    "evaluates.pt2": "its expr_str .*__import__.* is not one of an exported model",
    "calls.pt2": "its target 'torch.os.system' is not one of an exported model",
    "renamed.pt2": "its name .x = __import__.* is not one of an exported model",
    "huge.pt2": r"weight_0 has 64 bytes, expected at least 4398046511104",
    "beyond.pt2": r"weight_0 has 64 bytes, expected at least 68",
    "compiled.pt2": f"holds compiled code instead of a program{EXPORT}",
    "no_program.pt2": f"holds no model{EXPORT}",
    "no_weights.pt2": f"not a readable .pt2 file .*weight_0{EXPORT}",
    "newer.pt2": f"torch .* cannot read it .*{EXPORT}",
    "bad_json.pt2": f"not a readable .pt2 file .JSONDecodeError.*{EXPORT}",
    "deflated.pt2": "its members are compressed",
    "cut.pt2": f"not a readable .pt2 file{EXPORT}",
    "text.pt2": f"not a readable .pt2 file{EXPORT}",
    "pickle.pt2": "a pickle made by torch.save, which can run code .*pkg.mod:factory",
    "bomb.pt2": "not a readable .pt2 file",
    "weights.pt": "weights.pt: a pickle can run code.*--weights",
    "model.pth": "model.pth: a pickle can run code",
    # Other names.
    "empty": "empty/config.json: there is no such file",
    "zoo:Mamba3": "the zoo has no family 'Mamba3'; near it are Mamba",
    "zoo:": "the zoo has no family ''; it has Mamba",
    "models_to_refuse": r"expected pkg\.mod:factory, a \.pt2 file .*, zoo:FAMILY .*digits",
    "zoo:Mamba": "cannot trace ResidualBlock on an input .B, T, 4.*as many channels as the samples",
}


@pytest.mark.parametrize("command", CASES)
def test_a_model_is_refused(command: str) -> None:
    calib = "" if "--calib" in command else "--calib x.npz"
    result = isobit("quantize", *shlex.split(f"{command} {calib} -o new.onnx"))
    assert result.code == 2, f"{result.out}\n{result.err}"
    assert re.search(CASES[command], result.err, re.DOTALL), result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_what_is_right_is_taken(made: Path, tmp_path: Path) -> None:
    """So that the cases above fail for the reason that they name."""
    for command in ("good.pt2", "models_to_refuse:good --weights right.safetensors"):
        result = isobit("quantize", *shlex.split(f"{command} --calib x.npz"), "-o", tmp_path / "a.onnx")
        assert result.code == 0, result.err
        assert "capture_error" in result.out


def test_torch_itself_would_run_what_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for program_file's own checks: where this fails, they may have become needless."""
    monkeypatch.chdir(tmp_path)
    for name in ("pickled_constant", "evaluates"):
        with pytest.raises(Exception, match=r"."):
            torch.export.load(made / f"{name}.pt2").module()
        assert Path("exploded").exists(), name
        Path("exploded").unlink()


def test_no_size_is_a_program() -> None:
    for text in (TOUCH, "9**9**9", "s0.x", "[1]", "s0 if s1 else s2", "Symbol('x')", "lambda: 1"):
        assert not program_file._is_size(text), text
    for text in ("s77", "Symbol('s27', positive=True, integer=True)", "Add(Symbol('s1', integer=True), Integer(-1))"):
        assert program_file._is_size(text), text
