"""The trained re-ranker as a stage of a search: does this text describe this very image?

The catalog holds no tokens. They are computed from its stored images when a row is first among the best of a
search, which takes less than a millisecond for a small image, and kept in memory for the next one.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image

from dualtower.data.transforms.images import open_image, to_size
from dualtower.errors import BrokenImage
from dualtower.inference.pair_scoring import image_states, reranker_of, text_states
from dualtower.models.dual_tower import DualTower
from dualtower.models.encoding import evaluation_mode
from dualtower.models.heads.reranker import TokenStates
from dualtower.search.records import StoredRow
from dualtower.search.requests import SHARPER, SearchRequest, image_digest
from dualtower.search.stages import Reorder
from dualtower.search.store import Store
from dualtower.types import Hit

__all__ = ["RerankStage", "TokenCache"]

log = logging.getLogger(__name__)
MAX_BYTES = 256 * 2**20
"""Memory for tokens: some 25,000 images of 20 patches, or 2,600 of 196, at a width of 128."""
OVERHEAD = 500
"""Bytes of the objects that hold the tokens of one image, about."""


class RerankStage:
    """Puts the best images for some words in order by the model's re-ranker.

    A score is what evaluation ranks by, divided by the scale of the towers' logits, so that it compares with the
    similarities of the rows behind: the similarity, plus the re-ranker's match times its stored weight, over the scale.

    The weight was chosen for words alone, compared with images. Of other requests (an image, a blend, unwanted
    words, titles or fused products to compare with) the stage has nothing to say.

    Args:
        model: With a re-ranker; embeds the requests, too.
        store: Holds the images.
        max_bytes: Bytes of tokens that are kept in memory, on the model's device.

    Raises:
        ConfigError: The model has no re-ranker.
    """

    def __init__(self, model: DualTower, store: Store, *, max_bytes: int = MAX_BYTES) -> None:
        self._reranker = reranker_of(model)
        if not float(self._reranker.weight):
            log.warning("the re-ranker counts with a weight of 0, so it leaves every order as it is")
        self._model, self._store = model, store
        self.tokens = TokenCache(max_bytes)

    def for_request(self, request: SearchRequest) -> Reorder | None:
        """What puts the rows of a request in order; None where it does not ask in words alone for images."""
        words, negative_texts = request.text.strip(), any(word.strip() for word in request.negative_texts)
        alone = request.image is None and not negative_texts and request.text_weight > 0
        return partial(self._reorder, words) if words and alone and request.target in (None, "image") else None

    def _reorder(self, words: str, hits: list[Hit]) -> list[Hit]:
        added = self._corrections(words, [hit.id for hit in hits]) / self._model.scale
        scored = [replace(hit, score=hit.score + more) for hit, more in zip(hits, added.tolist(), strict=True)]
        return sorted(scored, key=lambda hit: (-hit.score, hit.id))

    def _corrections(self, words: str, ids: Sequence[str]) -> np.ndarray:
        """What is to be added to the towers' logit of each row, float32 ``[N]``.

        A row whose image cannot be seen gets the mean of the others: it stands where its similarity puts it.
        """
        corrections = np.zeros(len(ids), np.float32)
        with evaluation_mode(self._model):
            tokens = self._image_tokens(ids)
            seen = [i for i, row_id in enumerate(ids) if tokens.get(row_id) is not None]
            images = [state for row_id in ids if (state := tokens.get(row_id)) is not None]
            if images:
                which = torch.zeros(len(images), dtype=torch.int64, device=self._model.device)
                text = text_states(self._model, [words]).take(which)
                image = TokenStates(
                    torch.cat([state.tokens for state in images]),
                    None,
                    torch.cat([state.embedding for state in images]),
                )
                match = self._reranker.weight * self._reranker(text, image)
                corrections[:] = float(match.mean())
                corrections[seen] = match.float().cpu().numpy()
        return corrections

    def _image_tokens(self, ids: Sequence[str]) -> dict[str, TokenStates | None]:
        """Id -> tokens of a row's present image, ``[1, T, W]``; None where there is none that can be seen."""
        found: dict[str, TokenStates | None] = {}
        keys: dict[str, Hashable] = {}
        new: list[tuple[str, Image.Image]] = []
        for row in self._store.get(ids):
            key, content = self._version(row)
            try:
                found[row.id] = self.tokens.get(key)
            except KeyError:
                opened = self._opened(row.id, self._store.image(row.id) if content is None else content)
                if opened is None:
                    self.tokens.put(key, None)
                else:
                    keys[row.id] = key
                    new.append((row.id, opened))
        if new:
            states = image_states(self._model, [(i, image) for i, (_, image) in enumerate(new)])
            for i, (row_id, _) in enumerate(new):
                tokens, embedding = states.tokens[i : i + 1].clone(), states.embedding[i : i + 1].clone()
                found[row_id] = TokenStates(tokens, None, embedding)  # a view would keep the others in memory
                self.tokens.put(keys[row_id], found[row_id])
        return found

    def _version(self, row: StoredRow) -> tuple[Hashable, bytes | None]:
        """What tells a row's image from those before, and the image, where it had to be read for that."""
        if row.number >= 0:
            return row.number, None
        content = self._store.image(row.id)  # Milvus numbers no versions
        return image_digest(content or b""), content

    def _opened(self, row_id: str, content: bytes | None) -> Image.Image | None:
        settings, reason = self._model.config.image_settings, "it has none"
        if content is not None:
            near = SHARPER * max(settings.width, settings.height)
            try:
                return to_size(open_image(content, near=near, where="catalog", row=row_id), settings)
            except BrokenImage as error:
                reason = error.reason
        log.warning("the re-ranker cannot see the image of row %r (%s): its similarity alone counts", row_id, reason)
        return None


class TokenCache:
    """Tokens of images in memory, of which those that were not asked for the longest make room; bears many threads.

    Args:
        max_bytes: Bytes that all tokens together may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._held: OrderedDict[Hashable, TokenStates | None] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> TokenStates | None:
        """Tokens of an image; None for one that is known to be unseen.

        Raises:
            KeyError: It is not held.
        """
        with self._lock:
            self._held.move_to_end(key)
            return self._held[key]

    def put(self, key: Hashable, states: TokenStates | None) -> None:
        """Hold tokens, as long as there is room."""
        with self._lock:
            if key in self._held:
                self.bytes -= _size(self._held.pop(key))
            self.bytes += _size(states)
            self._held[key] = states
            while self.bytes > self.max_bytes:
                self.bytes -= _size(self._held.popitem(last=False)[1])


def _size(states: TokenStates | None) -> int:
    return OVERHEAD + (0 if states is None else states.tokens.nbytes + states.embedding.nbytes)
