"""Train the digits classifier and write quant/zoo/digits.safetensors.

Seeded and single-threaded, so that the same torch on the same processor gives the same file. The epoch is chosen on the
validation split; the test split is read once, for the figure printed at the end.
"""

from __future__ import annotations

import copy
import time

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from isobit.quant.zoo import digits
from isobit.quant.zoo.mamba import MambaClassifier

SEED = 0
EPOCHS = 120
BATCH = 64
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
PIXEL_NOISE = 0.1
SHIFT_PROBABILITY = 0.5
RANGE = 6.0
RANGE_PENALTY = 0.3


def tensors(samples: digits.Samples) -> tuple[Tensor, Tensor]:
    """Float rows (n, 8, 8) as the model reads them, and labels (n,)."""
    return torch.from_numpy(samples.x) * digits.INPUT_SCALE, torch.from_numpy(samples.y)


def augment(x: Tensor) -> Tensor:
    """Each image (8, 8) of x shifted by up to one pixel each way, zero filled, with normal noise, clipped to 0..1."""
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    origin = torch.randint(-1, 2, (2, len(x))) * (torch.rand(len(x)) < SHIFT_PROBABILITY) + 1
    rows, columns = origin.unsqueeze(-1) + torch.arange(8)
    shifted = padded[torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return (shifted + PIXEL_NOISE * torch.randn_like(shifted)).clamp(0, 1)


def parameter_groups(model: nn.Module) -> list[dict[str, object]]:
    """Matrices decay; A_log and the vectors (biases, norms, D) do not."""
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.endswith("A_log")]
    kept = [p for name, p in model.named_parameters() if p.ndim < 2 or name.endswith("A_log")]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}]


class RangePenalty:
    """RANGE_PENALTY times the mean square by which values leave -RANGE..RANGE, summed over the model's activations.

    The activations are the outputs of all leaf modules and the inputs of linear ones. The largest sets the scale of
    quantization, and the output of a selective recurrence, a product of several activations, grows outliers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.terms: list[Tensor] = []
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(self._observe)

    def _observe(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        observed = (inputs[0], output) if isinstance(module, nn.Linear) else (output,)
        self.terms += [(value.abs() - RANGE).relu().square().mean() for value in observed]

    def take(self) -> Tensor:
        """The penalty of the forward passes since the last call."""
        total = RANGE_PENALTY * torch.stack(self.terms).sum()
        self.terms.clear()
        return total


@torch.no_grad()
def evaluate(model: nn.Module, samples: digits.Samples) -> tuple[float, float]:
    """Accuracy and mean cross entropy at the last step."""
    x, y = tensors(samples)
    logits = model(x)[:, -1]
    return (logits.argmax(-1) == y).double().mean().item(), nn.functional.cross_entropy(logits, y).item()


def train(split: digits.Digits) -> MambaClassifier:
    """The model of the epoch with the best validation accuracy, then the least validation loss."""
    torch.manual_seed(SEED)
    model = digits.model()
    x, y = tensors(split.train)
    steps = EPOCHS * -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    penalty = RangePenalty(model)
    best, chosen = (-1.0, 0.0), model.state_dict()
    for epoch in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            logits = model(augment(x[rows]))[:, -1]
            loss = nn.functional.cross_entropy(logits, y[rows], label_smoothing=LABEL_SMOOTHING) + penalty.take()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        accuracy, validation_loss = evaluate(model, split.validation)
        penalty.take()
        if (accuracy, -validation_loss) > best:
            best, chosen = (accuracy, -validation_loss), copy.deepcopy(model.state_dict())
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: validation accuracy {accuracy:.2%}, loss {validation_loss:.4f}", flush=True)
    trained = digits.model()
    trained.load_state_dict(chosen)
    return trained


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.monotonic()
    split = digits.data()
    model = train(split)
    save_file(model.state_dict(), digits.WEIGHTS)
    validation, test = evaluate(model, split.validation)[0], evaluate(model, split.test)[0]
    print(f"validation {validation:.2%}, test {test:.2%}, {digits.WEIGHTS.stat().st_size} bytes, ", end="")
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
