"""Are the self-supervised losses and their gradients those of lightly, on one process?

    pip install --no-deps lightly lightly_utils
    python benchmarks/pretrain_losses.py

The same random vectors in float64 go through both: NT-Xent (SimCLR), NT-Xent with lightly's memory bank as the queue
(MoCo v2), and the negative cosine (BYOL). Rows are products of their own, since lightly knows of none. What two and
four ranks make of a batch is compared with one process in tests/test_self_supervised.py, and not with lightly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import save_results
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from torch import Tensor
from torch.nn import functional as F

from dualtower.losses import contrast_with_queue, negative_cosine, nt_xent

ROWS, DIM, QUEUE = 64, 32, 512
TEMPERATURES = (0.07, 0.2, 0.5)
LIMIT = 1e-6

Loss = Callable[[Tensor, Tensor], Tensor]


def simclr(temperature: float) -> tuple[Loss, Loss]:
    theirs = NTXentLoss(temperature=temperature)
    codes = torch.arange(ROWS)

    def ours(first: Tensor, second: Tensor) -> Tensor:
        first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
        return nt_xent(first, second, scale=1 / temperature, product_codes=codes)

    return ours, theirs


def moco(temperature: float) -> tuple[Loss, Loss]:
    theirs = NTXentLoss(temperature=temperature, memory_bank_size=(QUEUE, DIM))
    theirs(torch.randn(2, DIM), torch.randn(2, DIM))  # fills the bank at random
    queue = F.normalize(torch.randn(QUEUE, DIM, dtype=torch.float64), dim=1)
    theirs.memory_bank.bank = queue.clone()
    shown = torch.stack([torch.arange(ROWS), torch.full((ROWS,), -1)], dim=1)

    def ours(first: Tensor, second: Tensor) -> Tensor:
        query, key = F.normalize(first, dim=1), F.normalize(second, dim=1)
        nothing = torch.full((QUEUE, 2), -1)
        return contrast_with_queue(query, key, queue=queue, scale=1 / temperature, shown=shown, queue_shown=nothing)

    return ours, lambda first, second: theirs(first, second.detach())


def byol(temperature: float) -> tuple[Loss, Loss]:
    theirs = NegativeCosineSimilarity()
    return negative_cosine, lambda first, second: theirs(first, second.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    rows, values = [], {}
    for name, make in {"NT-Xent (SimCLR)": simclr, "queue (MoCo v2)": moco, "negative cosine (BYOL)": byol}.items():
        worst = {"loss": 0.0, "gradient": 0.0}
        for seed, temperature in enumerate(TEMPERATURES):
            torch.manual_seed(seed)
            ours, theirs = make(temperature)
            first, second = (torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True) for _ in range(2))
            found = []
            for loss in (ours, theirs):
                value = loss(first, second)
                found.append((value, *torch.autograd.grad(value, (first, second), allow_unused=True)))
            (loss, *gradients), (their_loss, *their_gradients) = found
            worst["loss"] = max(worst["loss"], abs((loss - their_loss) / their_loss).item())
            for mine, other in zip(gradients, their_gradients, strict=True):
                if mine is None or other is None:
                    assert mine is None and other is None, f"{name}: a gradient that the other side has not"
                    continue
                worst["gradient"] = max(worst["gradient"], ((mine - other).abs().max() / other.abs().max()).item())
        rows.append([name, f"{worst['loss']:.1e}", f"{worst['gradient']:.1e}"])
        values[name] = worst
    alike = all(error <= LIMIT for worst in values.values() for error in worst.values())
    notes = (
        f"Largest relative difference over temperatures {', '.join(map(str, TEMPERATURES))}, {ROWS} rows of {DIM} "
        f"numbers in float64: {'all' if alike else 'not all'} are within {LIMIT:g}."
    )
    save_results(
        "pretrain_losses",
        title="Self-supervised losses against lightly's",
        tables=[(["loss", "difference of the loss", "of its gradients"], rows)],
        values=values,
        notes=notes,
    )


if __name__ == "__main__":
    main()
