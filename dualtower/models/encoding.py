"""From lists of texts, images and products to arrays of embeddings, in batches."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from dualtower.data.transforms.attributes import attribute_values
from dualtower.data.transforms.images import open_image, to_pixels
from dualtower.device import describe_device, find_device
from dualtower.errors import ConfigError, DataError
from dualtower.models.precision import TowerPrecision, WantedPrecision, inference_precision
from dualtower.sharding import combine, shard
from dualtower.threads import single_thread_pool
from dualtower.types import Batch, Embeddings

if TYPE_CHECKING:
    from PIL import Image

    from dualtower.data.batches import Collator
    from dualtower.models.config import ModelConfig
    from dualtower.models.heads import AttributeEncoder, ProductFusion
    from dualtower.models.towers import Tower

__all__ = ["Encoding", "evaluation_mode", "mix"]

CORE_BATCH = 64
"""Rows of a forward pass on one core: more fit its cache no longer."""
MANY = 1024
"""Images for which a copy of the image tower that infers faster is worth its making."""


class Encoding(nn.Module, ABC):
    """What turns texts, images and products into arrays: the part of `DualTower` that users call."""

    config: ModelConfig
    tokenizer: Any | None
    text_tower: Tower | None
    image_tower: Tower | None
    fusion: ProductFusion | None
    attribute_encoder: AttributeEncoder | None
    precision: TowerPrecision | None
    _origin = ""  # fingerprint of the model that `for_inference` made it from

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Tells models apart."""

    @abstractmethod
    def collator(self) -> Collator:
        """What makes the model's batches."""

    @abstractmethod
    def fuse(self, embeddings: Embeddings, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One vector per product."""

    @abstractmethod
    def compute_in(self, precision: TowerPrecision) -> None:
        """Let the towers compute in this precision and memory order."""

    @property
    def computes(self) -> dict[str, str]:
        """On which device it computes, and each tower in which precision; for reports."""
        towers = self.precision or TowerPrecision()
        held: dict[str, str] = {"text": towers.text, "image": towers.image}
        held = {name: precision for name, precision in held.items() if name in self.config.modalities}
        return {"device": describe_device(self.device), **held}

    def placed(self, device: str | torch.device = "auto", precision: WantedPrecision = "auto") -> Self:
        """Move this model to where, and set in what, it is to embed.

        In float32 on CUDA, cuDNN computes convolutions in TF32 unless ``torch.backends.cudnn.allow_tf32`` is False.

        Args:
            device: See `dualtower.device.find_device`.
            precision: See `dualtower.models.precision.inference_precision`.

        Raises:
            ConfigError: There is no such device.
        """
        found = device if isinstance(device, torch.device) else find_device(device)
        self.precision = inference_precision(found, precision)
        return self.to(found)

    def for_inference(self, precision: TowerPrecision | None = None) -> Self:
        """A model that embeds images faster, the same up to rounding; for an accelerator there is none but itself.

        `encode_image` makes one for every long list; make it yourself where you embed many short ones. Its image tower
        holds the weights of now, and learns no more; it has the fingerprint of this model, and cannot be saved.

        Args:
            precision: In what its towers compute; None is as in this model.
        """
        on_cpu = self.device.type == "cpu"
        if precision is None and (self._origin or not on_cpu):
            return self
        quick = copy.copy(self)
        quick._origin = self.fingerprint
        if on_cpu and self.image_tower is not None:
            quick._modules = {**self._modules, "image_tower": self.image_tower.for_inference()}
        if precision is not None:
            quick.compute_in(precision)
        return quick

    def encode_text(
        self, texts: Sequence[str], *, batch_size: int = 256, progress: bool = False, bf16: bool = False
    ) -> np.ndarray:
        """Embed texts, in any order of lengths.

        Args:
            texts: Non-empty strings.
            batch_size: Texts per forward pass, on a CPU 64 at most; texts of like length go together.
            progress: Show a progress bar.
            bf16: Compute in bfloat16: faster where the hardware has it, less exact everywhere.

        Returns:
            float32 ``[N, D]``, of unit length under cosine similarity.

        Raises:
            DataError: A text is empty or no string; names its position.
            ConfigError: The model has no text tower, or no tokenizer.
        """
        self.config.require("text", "encode_text")
        if isinstance(texts, str):
            raise DataError(f"encode_text takes a list of texts; type encode_text([{texts[:40]!r}])")
        if self.tokenizer is None:
            raise ConfigError("this model has no tokenizer; build it with DualTower(config, tokenizer)")
        for position, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"encode_text: text {position} is {text!r}; every text must be a non-empty string")
        collator, tokenizing = self.collator(), threading.Lock()  # tokenizers bear one caller at a time

        def prepare(rows: np.ndarray) -> Batch:
            with tokenizing:
                return _batch(len(rows), tokens=collator.tokens([texts[i] for i in rows]))

        order = np.argsort([len(text) for text in texts], kind="stable")  # like lengths need little padding
        return self._encode(prepare, lambda b: self(b).text, order, batch_size, "text", progress=progress, bf16=bf16)

    def encode_image(
        self,
        images: Sequence[Image.Image | str | Path | bytes],
        *,
        batch_size: int = 256,
        progress: bool = False,
        bf16: bool = False,
    ) -> np.ndarray:
        """Embed images: PIL images, paths, or encoded bytes.

        Arguments and result are those of `encode_text`.

        Raises:
            BrokenImage: An image is missing or cannot be decoded; names it.
            ConfigError: The model has no image tower.
        """
        self.config.require("image", "encode_image")
        if isinstance(images, str | bytes | Path):
            raise DataError("encode_image takes a list of images; type encode_image([image])")
        settings = self.config.image_settings

        def prepare(rows: np.ndarray) -> Batch:
            opened = (open_image(images[i], where="encode_image", row=int(i)) for i in rows)
            pixels = torch.from_numpy(np.stack([to_pixels(image, settings) for image in opened]))
            return _batch(len(rows), pixels=pixels)

        order = np.arange(len(images))
        model = self.for_inference() if len(images) >= MANY else self
        return model._encode(
            prepare, lambda b: model(b).image, order, batch_size, "image", progress=progress, bf16=bf16
        )

    def encode_product(
        self,
        *,
        text: Sequence[str | None] | None = None,
        image: Sequence[Image.Image | str | Path | bytes | None] | None = None,
        attributes: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int = 256,
        progress: bool = False,
    ) -> np.ndarray:
        """Embed whole products into one vector each; a product may lack its title or its image.

        Args:
            text: Titles, None where there is none.
            image: Images: PIL images, paths or encoded bytes, None where there is none.
            attributes: Attribute -> value of each product. Names that the model does not read are passed over; what is
                missing, or was never seen in training, counts as unknown.
            batch_size: Products per forward pass, on a CPU 64 at most.
            progress: Show a progress bar.

        Returns:
            float32 ``[N, D]`` of unit length.

        Raises:
            ConfigError: The model has no fusion.
            DataError: Lengths differ, a product has neither title nor image, or a quantity is no number.
            BrokenImage: An image is missing or cannot be decoded.
        """
        if self.fusion is None:
            raise ConfigError("this model has no fusion; recipes/train_product_fusion.py --base MODEL trains one")
        lengths = {len(side) for side in (text, image, attributes) if side is not None}
        if len(lengths) != 1:
            raise DataError(f"encode_product: text, image and attributes must be of one length, not {sorted(lengths)}")
        size = lengths.pop()
        nothing = [None] * size
        texts, images = nothing if text is None else text, nothing if image is None else image
        present = np.array([[i is not None, bool(t and t.strip())] for i, t in zip(images, texts, strict=True)], bool)
        if not present.any(1).all():
            row = int(np.flatnonzero(~present.any(1))[0])
            raise DataError(f"encode_product: product {row} has neither title nor image; leave it out")
        collator, settings, tokenizing = self.collator(), self.config.image_settings, threading.Lock()

        def pixels_of(given: Any, row: int) -> np.ndarray:
            return to_pixels(open_image(given, where="encode_product", row=row), settings)

        def prepare(rows: np.ndarray) -> Batch:
            sides: dict[str, Any] = {"present": torch.from_numpy(present[rows])}
            if image is not None:  # of a row without a side something stands there, and is never read
                blank = np.zeros((3, settings.height, settings.width), np.uint8)
                sides["pixels"] = torch.from_numpy(
                    np.stack([blank if images[i] is None else pixels_of(images[i], int(i)) for i in rows])
                )
            if text is not None:
                with tokenizing:
                    sides["tokens"] = collator.tokens([texts[i] or "-" for i in rows])
            if collator.attributes:
                sides["attributes"] = attribute_values(
                    collator.attributes, [attributes[i] if attributes else {} for i in rows]
                )
            return _batch(len(rows), **sides)

        model = self.for_inference() if size >= MANY else self
        return model._encode(
            prepare, lambda b: model.fuse(model(b), b)[0], np.arange(size), batch_size, "product", progress=progress
        )

    def encode_attributes(
        self, rows: Sequence[Mapping[str, Any]], *, batch_size: int = 256, progress: bool = False
    ) -> np.ndarray:
        """Encode the attributes of products, any of which may be missing, into one code each.

        Args:
            rows: Attribute -> value of each product. Names that the model does not read are passed over; what is
                missing, or was never seen in training, counts as unknown.
            batch_size: Products per forward pass, on a CPU 64 at most.
            progress: Show a progress bar.

        Returns:
            float32 ``[N, D]`` of unit length.

        Raises:
            ConfigError: The model has no attribute encoder.
            DataError: A quantity is no number.
        """
        encoder = self.attribute_encoder
        if encoder is None:
            raise ConfigError("this model has no attribute encoder; recipes/pretrain_attributes.py trains one")
        if isinstance(rows, Mapping):
            raise DataError("encode_attributes takes a list of products; type encode_attributes([{...}])")
        read = encoder.tower.config

        def prepare(places: np.ndarray) -> Batch:
            return _batch(len(places), attributes=attribute_values(read, [rows[i] for i in places]))

        def embed(batch: Batch) -> torch.Tensor:
            assert batch.attributes is not None
            return encoder.encode(batch.attributes)

        return self._encode(prepare, embed, np.arange(len(rows)), batch_size, "product", progress=progress)

    def compose(self, terms: Sequence[tuple[str | Image.Image | Path | bytes, float]]) -> np.ndarray:
        """Blend texts and images into one query; negative weights lead away from a term.

        ::

            model.compose([("red dress", 1.0), (Path("photo.jpg"), 0.6), ("floral", -0.5)])

        Args:
            terms: Pairs of a text (`str`) or image (PIL image, `Path` or encoded bytes) and its weight.

        Returns:
            float32 ``[D]``: the weighted sum of the terms' embeddings, of unit length under cosine similarity.

        Raises:
            DataError: There are no terms, a weight is not finite, or the terms cancel each other out.
            BrokenImage: An image is missing or cannot be decoded.
        """
        if isinstance(terms, str) or not terms:
            raise DataError("compose takes (text or image, weight) pairs, such as [('red dress', 1.0), (image, 0.6)]")
        for position, term in enumerate(terms):
            if isinstance(term, str) or len(term) != 2 or not np.isfinite(float(term[1])):
                raise DataError(f"compose: term {position} is {term!r}; give (text or image, finite weight)")
        weights = [float(weight) for _, weight in terms]
        parts = np.empty((len(terms), self.config.embed_dim), np.float32)
        is_text = np.array([isinstance(term, str) for term, _ in terms])
        if is_text.any():
            parts[is_text] = self.encode_text([term for term, _ in terms if isinstance(term, str)])
        if not is_text.all():
            parts[~is_text] = self.encode_image([term for term, _ in terms if not isinstance(term, str)])
        return mix(parts, weights, unit=self.config.similarity == "cosine")

    def _encode(
        self,
        prepare: Callable[[np.ndarray], Batch],
        embed: Callable[[Batch], torch.Tensor | None],
        order: np.ndarray,
        batch_size: int,
        unit: str,
        *,
        progress: bool,
        bf16: bool = False,
    ) -> np.ndarray:
        """Embed batch by batch, and return the embeddings in the order of the rows.

        Every core prepares and computes batches of its own; an accelerator computes one at a time, while the cores
        prepare the next. Where processes share their work (`sharding`), each embeds its shard of the batches.
        """
        from tqdm import tqdm

        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        device = self.device
        on_cpu = device.type == "cpu"
        size = min(batch_size, CORE_BATCH) if on_cpu else batch_size
        turn: AbstractContextManager[Any] = contextlib.nullcontext() if on_cpu else threading.Lock()
        embeddings = np.zeros((len(order), self.config.embed_dim), dtype=np.float32)

        def precision() -> AbstractContextManager[Any]:
            if bf16 or torch.is_autocast_enabled(device.type):
                return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
            return contextlib.nullcontext()  # a query would pay for autocast, too

        @torch.inference_mode()
        def work(start: int) -> int:
            rows = order[start : start + size]
            batch = prepare(rows)
            with turn, precision():
                embedded = embed(batch if on_cpu else batch.to(device))
                assert embedded is not None
                embeddings[rows] = embedded.float().cpu().numpy()
            return len(rows)

        with evaluation_mode(self):
            if len(order) <= size:  # a query should wait for no thread to start, and for no bar
                if len(order):
                    work(0)
                return embeddings
            starts = shard(range(0, len(order), size))
            total = sum(len(order[start : start + size]) for start in starts)
            with tqdm(total=total, disable=not progress, unit=unit) as bar, single_thread_pool() as pool:
                for done in pool.map(work, starts):
                    bar.update(done)
            combine(embeddings)
        return embeddings


def mix(vectors: Sequence[np.ndarray] | np.ndarray, weights: Sequence[float], *, unit: bool) -> np.ndarray:
    """The weighted sum of N embeddings, float32 ``[D]``; of unit length where they are.

    Raises:
        DataError: The terms cancel each other out.
    """
    if unit and len(vectors) == 1 and weights[0] > 0:  # as most questions are
        alone: np.ndarray = vectors[0]
        return alone
    mixed: np.ndarray = np.array(weights, np.float32) @ np.asarray(vectors)
    length = math.sqrt(float(mixed @ mixed))
    if unit and length < 1e-6 * (sum(map(abs, weights)) or 1):
        raise DataError(f"the terms cancel out (weights {list(weights)}); change a weight")
    return mixed / np.float32(length) if unit else mixed


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No dropout, no batch statistics, no gradients; afterwards every module trains or rests as before."""
    training = [module for module in model.modules() if module.training] if _trains(model) else []
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _trains(model: torch.nn.Module) -> bool:
    """Whether a part of it is in training mode. (`modules` takes ten times as long, which every query would pay.)"""
    parts: list[torch.nn.Module | None] = [model]
    for part in parts:
        if part is not None:
            if part.training:
                return True
            if part._modules:
                parts += part._modules.values()
    return False


def _batch(size: int, **sides: Any) -> Batch:
    """A batch without products: nothing here asks what is a positive of what."""
    return Batch(ids=tuple(map(str, range(size))), product_codes=torch.arange(size), **sides)
