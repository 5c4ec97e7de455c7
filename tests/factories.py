"""Dual towers so small that they are built in milliseconds, for tests."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from dualtower import DualTower, ImageSettings, ImageTowerConfig, Item, ModelConfig, TextTowerConfig
from dualtower.data.transforms.tokenizer import train_tokenizer

TITLES = [
    f"{brand} {color} {thing}"
    for brand in ("Nike", "Puma", "Fila")
    for color in ("red", "navy blue", "white striped")
    for thing in ("mug", "running shoes", "tote bag", "dress")
]

TEXT = {
    "bert": TextTowerConfig(name="bert", width=16, layers=2, heads=2, max_length=16),
    "bow": TextTowerConfig(name="bow", width=16, max_length=16),
    "lstm": TextTowerConfig(name="lstm", width=16, layers=2, max_length=16),
    "textcnn": TextTowerConfig(name="textcnn", width=18, max_length=16),
}

_NARROW_RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 4}
_PLAIN_BLOCKS = {  # the network of the main recipe, whose layers normalize and activate at once
    "blocks": [{"type": "basic", "d": 1, "c": c, "s": 2, "gs": 0, "br": 1.0} for c in (8, 16)],
    "stem_type": "3x3",
    "stem_pool": "",
    "stem_chs": 8,
    "num_features": 0,
}
IMAGE = {
    "gernet": ImageTowerConfig(name="gernet_s", options=_PLAIN_BLOCKS),
    "resnet": ImageTowerConfig(name="resnet10t", options=_NARROW_RESNET),
    "vit": ImageTowerConfig(name="vit_tiny_patch16_224", options={"embed_dim": 24, "depth": 2, "num_heads": 2}),
    "swin": ImageTowerConfig(
        name="swin_tiny_patch4_window7_224", options={"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}
    ),
}

SETTINGS = ImageSettings(height=40, width=30)  # neither is a multiple of a ViT's patch


def tokenizer() -> Any:
    return train_tokenizer(TITLES, vocab_size=100)


def config(text: str = "bert", image: str = "resnet", **more: Any) -> ModelConfig:
    return replace(
        ModelConfig(text=TEXT[text], image=IMAGE[image], image_settings=SETTINGS, embed_dim=12),
        **more,
    )


def model(text: str = "bert", image: str = "resnet", *, seed: int = 0, **more: Any) -> DualTower:
    torch.manual_seed(seed)
    return DualTower.create(config(text, image, **more), tokenizer()).eval()


def photo(seed: int = 0, size: tuple[int, int] = (30, 40)) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def spread_model(text: str = "bow", image: str = "resnet", **more: Any) -> DualTower:
    """An untrained model whose embeddings still lie apart: normalized by the statistics of some images and titles."""
    made = model(text, image, head_norm="batch", **more)
    rows = [Item(str(i), str(i), (TITLES[i % len(TITLES)],), png(photo(i))) for i in range(72)]
    for part in made.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.momentum = None
    made.train()
    with torch.no_grad():
        made(made.collator()(rows))
    return made.eval()
