"""An objective with parts of its own, and a loader that streams: what a training must carry beside a dual tower."""

from __future__ import annotations

import base64
import copy
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower import Batch, DualTower, Item
from dualtower.data.batches import Collator
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.augmentation import BatchRNG
from dualtower.distributed import all_gather_with_grad
from dualtower.objectives.base import Objective, Views

QUEUE = 40


class Pair(NamedTuple):
    """Two views of every image: predicted from the first ``[B, D]``, and embedded by the momentum copy ``[B, D]``."""

    query: Tensor
    key: Tensor


class MomentumContrast(Objective):
    """Tell the other view of an image from those in a queue (He et al. 2020, arXiv:1911.05722), with a predictor."""

    views = Views(images=2, texts=0)
    lr_factors: ClassVar = {"predictor": 2.0}

    def __init__(self, model: DualTower, *, momentum: float = 0.9) -> None:
        super().__init__(model, idle=("text_tower", "text_head", "logit_scale", "logit_bias", "reranker", "fusion"))
        width = model.config.embed_dim
        self.momentum = momentum
        self.predictor = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, width))
        self.momentum_tower = copy.deepcopy(model.image_tower).requires_grad_(False)
        self.momentum_head = copy.deepcopy(model.image_head).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(QUEUE, width), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, draw: BatchRNG) -> Pair:
        assert batch.pixels is not None and len(batch.more_views) == 1 and batch.tokens is None
        with torch.no_grad():
            key = self.momentum_head(self.model.image_features(batch.more_views[0], self.momentum_tower).pooled)
        return Pair(self._predicted(batch.pixels), F.normalize(key, dim=1))

    def _predicted(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.predictor(self.model.image_head(self.model.image_features(pixels).pooled)), dim=1)

    def loss(self, outputs: Pair, batch: Batch) -> Tensor:
        query, key = all_gather_with_grad(*outputs)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.T], dim=1) / 0.2
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

    def remember(self, outputs: Pair) -> Tensor:
        return outputs.key

    def after_step(self, remembered: Sequence[Tensor], progress: float) -> None:
        for old, new in zip(self._copies(), self._originals(), strict=True):
            old.lerp_(new, 1 - self.momentum)
        (keys,) = all_gather_with_grad(torch.cat(list(remembered)))
        places = (self.place + torch.arange(len(keys), device=keys.device)) % QUEUE
        self.queue[places] = keys
        self.place.copy_((self.place + len(keys)) % QUEUE)

    def _copies(self) -> Iterator[Tensor]:
        return itertools.chain(self.momentum_tower.parameters(), self.momentum_head.parameters())

    def _originals(self) -> Iterator[Tensor]:
        return itertools.chain(self.model.image_tower.parameters(), self.model.image_head.parameters())

    @torch.no_grad()
    def validate(self, items: ItemDataset, *, batch_size: int) -> dict[str, float]:
        """Share of images whose mirrored view, once predicted, is nearest to them."""
        self.eval()
        collator = Collator(None, self.model.config.image_settings)
        pixels = collator([items[row] for row in range(len(items))]).pixels
        assert pixels is not None
        pixels = pixels.to(self.queue.dtype)
        images = self.model(Batch((), torch.empty(0), pixels=pixels)).image
        nearest = (self._predicted(pixels.flip(-1)) @ images.T).argmax(1)
        return {"score": (nearest == torch.arange(len(pixels))).double().mean().item()}


class ShardStream:
    """Batches from files of one row per line, of which no more than a batch is in memory.

    Every rank reads files of its own, in an order that changes with the epoch.

    Args:
        shards: Files of all ranks.
        collator: Makes batches.
        batch_size: Rows of a batch; what is left at a file's end is dropped.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, shards: Sequence[Path], collator: Collator, *, batch_size: int, rank: int, world_size: int):
        self.shards, self.collator, self.batch_size = list(shards)[rank::world_size], collator, batch_size
        self.epoch = self.shard = self.offset = 0

    def __iter__(self) -> Iterator[Batch]:
        order = np.random.default_rng(self.epoch).permutation(len(self.shards))
        while self.shard < len(order):
            with self.shards[order[self.shard]].open("rb") as stream:
                stream.seek(self.offset)
                while len(lines := list(itertools.islice(iter(stream.readline, b""), self.batch_size))) > 0:
                    self.offset = stream.tell()
                    if len(lines) == self.batch_size:
                        yield self.collator([_row(line) for line in lines])
            self.shard, self.offset = self.shard + 1, 0
        self.epoch, self.shard = self.epoch + 1, 0

    def __len__(self) -> int:
        return 3  # nobody has counted the rows: so many batches are called an epoch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "shard": self.shard, "offset": self.offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.shard, self.offset = (state[name] for name in ("epoch", "shard", "offset"))


def write_shards(items: ItemDataset, folder: Path, *, count: int) -> list[Path]:
    """Deal rows out to files that `ShardStream` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.jsonl" for number in range(count)]
    for number, path in enumerate(paths):
        rows = [items[row] for row in range(number, len(items), count)]
        path.write_text("".join(_line(row) + "\n" for row in rows))
    return paths


def _line(row: Item) -> str:
    assert isinstance(row.image, bytes)
    return json.dumps([row.id, row.product_id, row.texts, base64.b64encode(row.image).decode()])


def _row(line: bytes) -> Item:
    row_id, product_id, texts, image = json.loads(line)
    return Item(row_id, product_id, tuple(texts), base64.b64decode(image))
