"""Run by torchrun from `test_distributed`: gradients of DDP ranks against one process on the joined batch.

Prints one line of JSON from rank 0: the world size and the largest relative error of each case.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dualtower.distributed import all_gather_with_grad, all_gather_with_summed_grad, all_reduce_max, rank, world_size
from dualtower.errors import ConfigError
from dualtower.losses import LossConfig, build_loss
from dualtower.types import Embeddings

ROWS, WIDTH, DIM = 24, 6, 5
# Products with one, two and many rows; with 4 ranks of 6 rows, most of them live on several ranks.
PRODUCTS = torch.tensor([0, 1, 2, 3, 0, 5, 6, 1, 8, 2, 0, 11, 12, 13, 1, 15, 0, 17, 8, 19, 20, 0, 22, 2])

CONFIGS = [
    *(LossConfig(positives=positives) for positives in ("product", "ignore", "pair")),
    LossConfig(label_smoothing=0.1),
    LossConfig(tile=7),
    LossConfig(name="siglip"),
    LossConfig(name="siglip", tile=7),
    *(LossConfig(name="triplet", mining=mining) for mining in ("all", "semi-hard", "hardest")),
    LossConfig(name="hinge"),
]
SIMILARITIES = ("cosine", "dot", "euclidean")


class Towers(nn.Module):
    """Two small perceptrons with a learned scale and bias."""

    def __init__(self, normalize: bool) -> None:
        super().__init__()
        self.image, self.text = (
            nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, DIM)) for _ in range(2)
        )
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0))
        self.normalize = normalize

    def forward(self, pixels: Tensor, tokens: Tensor) -> Embeddings:
        image, text = self.image(pixels), self.text(tokens)
        if self.normalize:
            image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
        return Embeddings(image, text, scale=self.logit_scale.exp(), bias=self.logit_bias)


def gradients(config: LossConfig, similarity: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of every parameter: through DDP and `gather`, and of a copy that sees all rows at once."""
    torch.manual_seed(0)
    towers = Towers(similarity == "cosine").double()
    alone, together = copy.deepcopy(towers), DistributedDataParallel(towers)
    pixels, tokens = torch.randn(2, ROWS, WIDTH, dtype=torch.float64)
    loss = build_loss(config, similarity=similarity)

    seen = alone(pixels, tokens)
    loss(seen.image, seen.text, scale=seen.scale, bias=seen.bias, product_codes=PRODUCTS).backward()

    own = slice(rank() * ROWS // world_size(), (rank() + 1) * ROWS // world_size())
    for _ in range(2):  # the second pass fails where the first left a parameter without gradient
        together.zero_grad()
        seen = together(pixels[own], tokens[own])
        image, text, items = all_gather_with_grad(seen.image, seen.text, PRODUCTS[own])
        loss(image, text, scale=seen.scale, bias=seen.bias, product_codes=items).backward()
    assert torch.equal(items, PRODUCTS)
    return tuple({name: p.grad for name, p in m.named_parameters()} for m in (towers, alone))  # type: ignore


def relative_error(mine: Tensor, wanted: Tensor) -> float:
    largest = wanted.abs().max().item()
    return (mine - wanted).abs().max().item() / (largest or 1.0)


def compare() -> dict[str, dict[str, float]]:
    errors = {}
    for config in CONFIGS:
        for similarity in SIMILARITIES:
            mine, wanted = gradients(config, similarity)
            errors[f"{config}, {similarity}"] = {k: relative_error(mine[k], wanted[k]) for k in wanted}
            # Nothing compared is nothing proved: the towers must move, and the scale where it counts.
            assert all(wanted[k].abs().max() > 1e-4 for k in wanted if k.endswith("0.weight"))
            assert (wanted["logit_scale"] != 0) == (config.name in ("infonce", "siglip"))
    return errors


def check_the_rest() -> None:
    """Unequal batches are refused on every rank; `all_reduce_max` takes the largest of each."""
    if world_size() > 1:
        for exchange in (all_gather_with_grad, all_gather_with_summed_grad):
            try:
                exchange(torch.zeros(3 + (rank() == 1)))
            except ConfigError as error:
                assert "3, 4" in str(error)
            else:
                raise AssertionError("unequal batches were joined")
    assert all_reduce_max(float(rank()), -float(rank()), "cpu") == (world_size() - 1, 0)
    (halves,) = all_gather_with_grad(torch.full((2, 1), float(rank()), dtype=torch.bfloat16))
    assert halves.flatten().tolist() == [r for r in range(world_size()) for _ in range(2)]


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    assert world_size() == int(sys.argv[1]), f"{world_size()} ranks were started, not {sys.argv[1]}"
    check_the_rest()
    errors = compare()
    worst: list[Any] = [None] * world_size()
    dist.all_gather_object(worst, errors)
    if rank() == 0:
        print(json.dumps({"world_size": world_size(), "ranks": worst}))
    dist.barrier()
    gc.collect()  # DDP's reducers must let go of the process group before it ends, or the exit may abort
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
