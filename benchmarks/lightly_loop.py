"""lightly's own SimCLR loop on a catalog of ours, as its documentation writes it: the peer of two benchmarks."""

from __future__ import annotations

import io
import itertools
import time
from typing import Any

import timm
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dualtower.data.items import ItemDataset

__all__ = ["train"]


class Photos(Dataset):
    """Two views of each image by lightly's own transform."""

    def __init__(self, items: ItemDataset, size: tuple[int, int], **transform: Any) -> None:
        self.items, self.transform = items, SimCLRTransform(input_size=size, **transform)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> list[Tensor]:
        image = self.items.images[row]
        opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image).convert("RGB")
        views: list[Tensor] = self.transform(opened)
        return views


def train(
    items: ItemDataset,
    backbone: nn.Module,
    *,
    size: tuple[int, int],
    batch_size: int,
    workers: int,
    bf16: bool,
    channels_last: bool,
    temperature: float,
    steps: int | None = None,
    seconds: float | None = None,
    lr: float = 1e-3,
) -> tuple[nn.Module, list[float]]:
    """Train a timm backbone; returns it and the seconds of each step.

    The optimizer is AdamW on a cosine, which on this budget is better than the SGD of lightly's example.
    """
    head = SimCLRProjectionHead(backbone.num_features, backbone.num_features, 128)
    model = nn.Sequential(backbone, head).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    criterion = NTXentLoss(temperature=temperature)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    loader = DataLoader(
        Photos(items, size), batch_size=batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    times, begin = [time.perf_counter()], time.perf_counter()

    def progress() -> float:
        if steps is not None:
            return (len(times) - 1) / steps
        assert seconds is not None
        return (time.perf_counter() - begin) / seconds

    for _ in itertools.count():
        for first, second in loader:
            if (done := progress()) >= 1:
                return backbone, [b - a for a, b in itertools.pairwise(times)]
            for group in optimizer.param_groups:
                group["lr"] = lr * min(done / 0.05, 1) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)).item())
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                if channels_last:
                    first, second = (x.contiguous(memory_format=torch.channels_last) for x in (first, second))
                loss = criterion(model(first).float(), model(second).float())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter())
    raise AssertionError


def fresh(name: str, options: dict[str, Any]) -> nn.Module:
    """A backbone without classifier, as dualtower builds it."""
    made: nn.Module = timm.create_model(name, num_classes=0, **options)
    return made
