"""Train a zoo classifier on spoken digits or on phone and watch activity and write its weights.

python -m isobit.tools.train_zoo fsdd mamba --out fsdd_mamba.safetensors, with the data sets in the folder that the
variable ISOBIT_DATA names: fsdd_logmel.npz, har_spsw.npz, each with x int16 (n, 64, channels), y, and split
(0 train, 1 validation, 2 test).  Seeded and single-threaded, so that the same torch on the same processor gives the
same file.  The epoch is chosen on the validation split; the test split is read once, for the figure printed at the end.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from isobit.quant.zoo.classifier import LAYERS, SequenceClassifier
from isobit.tools.train_digits import RangePenalty

SEED = 0
BATCH = 64
LEARNING_RATE = 8e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05


@dataclass(frozen=True, eq=False)
class Split:
    """x: float32 (n, T, channels) as the model reads it. y: int64 (n,)."""

    x: Tensor
    y: Tensor


def moved(x: Tensor, distance: Tensor) -> Tensor:
    """Each sample of x, (n, T, channels), `distance` steps later, filled with zeros; earlier where it is negative."""
    source = torch.arange(x.shape[1]) - distance.unsqueeze(-1)
    inside = (source >= 0) & (source < x.shape[1])
    rows = torch.arange(len(x)).unsqueeze(-1)
    return x[rows, source.clamp(0, x.shape[1] - 1)] * inside.unsqueeze(-1)


def augment_speech(x: Tensor) -> Tensor:
    """Log-mel clips moved by up to 6 frames and 2 bands, 0.5 louder or softer, a band and a time masked, with noise."""
    n, steps, bands = x.shape
    voiced = (x.amax(-1, keepdim=True) > 0).to(x.dtype)
    x = x + voiced * (torch.rand(n, 1, 1) - 0.5)
    x = moved(x.transpose(1, 2), torch.randint(-2, 3, (n,))).transpose(1, 2)
    x = moved(x, torch.randint(-6, 7, (n,)))
    for axis, size, widest in ((1, steps, 8), (2, bands, 5)):
        start, width = torch.randint(0, size, (n, 1)), torch.randint(0, widest + 1, (n, 1))
        index = torch.arange(size)
        kept = (index < start) | (index >= start + width)
        x = x * kept.unsqueeze(2 if axis == 1 else 1)
    return x + 0.1 * torch.randn_like(x)


def augment_motion(x: Tensor) -> Tensor:
    """Acceleration and rotation rate of a device that is turned a little, scaled by 0.8 to 1.2, with noise."""
    skew = torch.randn(len(x), 3, 3) * 0.15
    turn = torch.matrix_exp(skew - skew.transpose(1, 2))
    turned = torch.cat([x[:, :, :3] @ turn, x[:, :, 3:] @ turn], dim=-1)
    return turned * (0.8 + 0.4 * torch.rand(len(x), 1, 1)) + 0.02 * torch.randn_like(x)


@dataclass(frozen=True)
class Task:
    """file: the archive. scale: the model reads x * scale, a power of two. augment: (n, T, channels) -> same."""

    file: str
    scale: float
    classes: int
    epochs: int
    augment: Callable[[Tensor], Tensor]


TASKS = {
    "fsdd": Task("fsdd_logmel.npz", 2.0**-9, 10, 30, augment_speech),
    "har": Task("har_spsw.npz", 2.0**-10, 5, 15, augment_motion),
}


def read(task: Task) -> tuple[Split, Split, Split]:
    """Train, validation and test split; click.ClickException where the data is not there."""
    folder = os.environ.get("ISOBIT_DATA")
    if not folder:
        raise click.ClickException(f"ISOBIT_DATA is not set; set it to the folder that holds {task.file}")
    path = Path(folder) / task.file
    if not path.exists():
        raise click.ClickException(f"{path}: there is no such file; ISOBIT_DATA must name the folder that holds it")
    with np.load(path, allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["x"].astype(np.float32)) * task.scale
        y, split = torch.from_numpy(arrays["y"].astype(np.int64)), torch.from_numpy(arrays["split"])
    train, validation, test = (Split(x[split == part], y[split == part]) for part in range(3))
    return train, validation, test


def parameter_groups(model: nn.Module) -> list[dict[str, object]]:
    """Matrices decay; A_log and the vectors (biases, norms, D) do not."""
    decays = {name: p.ndim >= 2 and not name.endswith("A_log") for name, p in model.named_parameters()}
    return [
        {"params": [p for name, p in model.named_parameters() if decays[name]], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in model.named_parameters() if not decays[name]], "weight_decay": 0.0},
    ]


class ActivationPenalty(RangePenalty):
    """RangePenalty of modules with one result; torch's recurrent layers have two, and their values stay within 1."""

    def _observe(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor):
            super()._observe(module, inputs, output)


@torch.no_grad()
def evaluate(model: nn.Module, samples: Split) -> tuple[float, float]:
    """Accuracy and mean cross entropy at the last step."""
    model.eval()
    logits = torch.cat([model(x)[:, -1] for x in samples.x.split(256)])
    accuracy = (logits.argmax(-1) == samples.y).double().mean().item()
    return accuracy, nn.functional.cross_entropy(logits, samples.y).item()


def train(
    family: str, task: Task, split: Split, validation: Split, epochs: int, seed: int = SEED
) -> SequenceClassifier:
    """The model of the epoch with the best validation accuracy, then the least validation loss."""
    torch.manual_seed(seed)
    model = SequenceClassifier(split.x.shape[2], task.classes, family)
    steps = epochs * -(-len(split.x) // BATCH)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    penalty = ActivationPenalty(model)
    best, chosen = (-1.0, 0.0), model.state_dict()
    for epoch in range(epochs):
        model.train()
        for rows in torch.split(torch.randperm(len(split.x)), BATCH):
            logits = model(task.augment(split.x[rows]))[:, -1]
            loss = nn.functional.cross_entropy(logits, split.y[rows], label_smoothing=LABEL_SMOOTHING) + penalty.take()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        accuracy, validation_loss = evaluate(model, validation)
        penalty.terms.clear()
        if (accuracy, -validation_loss) > best:
            best, chosen = (accuracy, -validation_loss), copy.deepcopy(model.state_dict())
        print(f"epoch {epoch + 1}: validation accuracy {accuracy:.2%}, loss {validation_loss:.4f}", flush=True)
    trained = SequenceClassifier(split.x.shape[2], task.classes, family)
    trained.load_state_dict(chosen)
    return trained


@click.command(help=__doc__)
@click.argument("data", type=click.Choice(list(TASKS)))
@click.argument("family", type=click.Choice(list(LAYERS)))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The .safetensors to write."
)
@click.option("--epochs", type=click.IntRange(1), help="Instead of the data set's own number.")
@click.option("--seed", type=int, default=SEED, show_default=True, help="Of the first weights and of the batches.")
def main(data: str, family: str, out: Path, epochs: int | None, seed: int) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.monotonic()
    task = TASKS[data]
    split, validation, test = read(task)
    model = train(family, task, split, validation, epochs or task.epochs, seed)
    save_file(model.state_dict(), out)
    print(f"validation {evaluate(model, validation)[0]:.2%}, test {evaluate(model, test)[0]:.2%}, ", end="")
    print(f"{out} {out.stat().st_size} bytes, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
