"""What a recipe costs trained models, by plain post-training quantization: accuracy in integers less that in float.

digits: the demo's model on its test samples, by seed with other samples for the scales.  fsdd: a minGRU on the spoken
digits that it was not trained on, by seed trained anew (tools/train_zoo.py) and with other samples for the scales; it
needs the folder of real data that ISOBIT_DATA names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isobit.quant.capture.graph import Floats
from isobit.quant.program import Array
from isobit.quant.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

SEEDS = (0, 1, 2)
CALIBRATION = 160
"""Training samples that the scales come from."""

STUDENT = 4.303
"""Of a 95 % interval of the mean of three."""

FAMILY = "mingru"
WEIGHTS = Path(__file__).resolve().parents[1] / "build" / "status"
"""Where trained weights stay, so that they are trained once."""


@dataclass(frozen=True)
class Case:
    """A trained model and its data, whose integers are worth `scale` each: (n, T, channels), labels (n,)."""

    model: nn.Module
    scale: float
    calibration: Array
    test: Array
    labels: Array


def digits(seed: int) -> Case:
    from isobit.quant.zoo import digits as zoo

    data = zoo.data()
    rows = np.random.RandomState(seed).permutation(len(data.train))[:CALIBRATION]
    x, test = (a.astype(np.int64) for a in (data.train.x[rows], data.test.x))
    return Case(zoo.load(), zoo.INPUT_SCALE, x, test, data.test.y)


def fsdd(seed: int) -> Case:
    from safetensors.torch import load_file, save_file

    from isobit.quant.zoo.classifier import SequenceClassifier
    from isobit.tools.train_zoo import TASKS, read, train

    task = TASKS["fsdd"]
    learning, validation, test = splits = read(task)
    weights = WEIGHTS / f"fsdd_{FAMILY}_{seed}.safetensors"
    if weights.exists():
        model = SequenceClassifier(learning.x.shape[2], task.classes, FAMILY)
        model.load_state_dict(load_file(weights))
    else:
        model = train(FAMILY, task, learning, validation, task.epochs, seed)
        WEIGHTS.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), weights)
    x, unseen, spoken = (np.rint(s.x.numpy().astype(np.float64) / task.scale).astype(np.int64) for s in splits)
    rows = np.random.RandomState(seed).permutation(len(x))[:CALIBRATION]
    others, labels = np.concatenate([unseen, spoken]), np.concatenate([validation.y.numpy(), test.y.numpy()])
    return Case(model.eval(), task.scale, x[rows], others, labels)


TASKS: Mapping[str, Callable[[int], Case]] = {"digits": cache(digits), "fsdd": cache(fsdd)}


def is_here(task: str) -> bool:
    """Whether its data is."""
    return task != "fsdd" or bool(os.environ.get("ISOBIT_DATA"))


def points(task: str, recipe: Recipe, seed: int) -> float:
    """Of the test samples: accuracy in integers less that of the float model."""
    from isobit.quant.calibrate.observe import float_outputs
    from isobit.quant.interpret import interpret
    from isobit.quant.quantize import input_spec, quantize
    from isobit.tools.commands import correct

    case = TASKS[task](seed)
    spec = input_spec(case.calibration, case.scale, task)
    made = quantize(case.model, case.calibration, recipe, name=task, input=spec, t_max=case.test.shape[1])
    integers = interpret(made.program, {made.program.inputs[0].name: case.test})[0]["y"]
    real: Floats = float_outputs(made.graph, case.test.astype(np.float64) * case.scale)
    right = [correct(y, case.labels) for y in (integers, real)]
    return round(100 * (right[0] - right[1]) / len(case.labels), 2)


def mean(found: list[float]) -> str:
    """As text: the mean over seeds and its 95 % interval."""
    spread = np.std(found, ddof=1) * STUDENT / len(found) ** 0.5
    return f"{np.mean(found):+.2f} ± {spread:.2f}"
