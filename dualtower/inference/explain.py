"""Which words and which regions made the score of a text and an image, of two images, or of two texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from dualtower.data.transforms.images import open_image, to_pixels
from dualtower.errors import ConfigError, DataError, UnknownName
from dualtower.inference.pair_scoring import features_to_rerank, reranker_of
from dualtower.models.encoding import evaluation_mode
from dualtower.types import Batch

if TYPE_CHECKING:
    from dualtower.models.dual_tower import DualTower

__all__ = ["Explanation", "Method", "draw_explanation", "explain", "hide_windows"]

Method = Literal["towers", "attention"]
CELLS, WINDOW = 8, 2  # cells of a heat map along the longer side; side of what is hidden at a time, in cells
_WORD_BEGINS, _WORD_GOES_ON = "▁", "##"  # marks of SentencePiece and of WordPiece


@dataclass(frozen=True, eq=False)
class Explanation:
    """What made a score.

    Attributes:
        method: ``towers`` or ``attention``.
        score: Similarity of the towers.
        words: Words of the text with their weights; above 0 speaks for the match. None of two images.
        heat: Weight of each cell of the image, float32 ``[rows, columns]``; above 0 speaks for the match. None of two
            texts.
        pixels: The image as the model saw it, uint8 ``[H, W, 3]``; None of two texts.
    """

    method: str
    score: float
    words: list[tuple[str, float]]
    heat: np.ndarray | None
    pixels: np.ndarray | None

    def heat_map(self) -> np.ndarray:
        """`heat` at the size of the image, between 0 and 1, float32 ``[H, W]``.

        Raises:
            ConfigError: There is no image.
        """
        if self.heat is None or self.pixels is None:
            raise ConfigError("an explanation of two texts has no heat map; its words say all")
        height, width = self.pixels.shape[:2]
        heat = torch.from_numpy(self.heat)[None, None]
        smooth = F.interpolate(heat, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
        low, high = float(smooth.min()), float(smooth.max())
        return (smooth - low) / (high - low) if high > low else np.zeros_like(smooth)


def explain(
    model: DualTower,
    text: str | None = None,
    image: Any = None,
    *,
    target: Any = None,
    method: Method = "towers",
) -> Explanation:
    """Say what made the score of one pair: of a text and an image, or of two of the side that the model has.

    ``towers`` needs no other head. A region and a word weigh what the similarity loses without them: the image is
    seen again with one window after the other painted in its mean color (occlusion, https://arxiv.org/abs/1311.2901),
    and a cell weighs the mean of the windows over it; the text is read again without one word after the other.

    ``attention`` shows where the re-ranker looked, mean over its layers and heads: which cells the words, and which
    words the cells. It says what was looked at, not that it mattered: by `benchmarks/faithfulness.py`, hiding what it
    points at costs no more than hiding something else.

    Args:
        model: Any model; ``attention`` needs a re-ranker.
        text: A title or query.
        image: Path, encoded bytes or PIL image.
        target: For a model with one tower: another image or text, of which the one that is given is explained.
        method: One of the two.

    Raises:
        UnknownName: No such method.
        ConfigError: ``attention`` without a re-ranker, or not what this model compares.
        DataError: A text is empty.
        BrokenImage: An image cannot be decoded.
    """
    if method not in ("towers", "attention"):
        raise UnknownName("method", method, ("towers", "attention"))
    if method == "attention":
        reranker_of(model)
    model.config.require_tower("explain")
    if len(model.config.modalities) == 1:
        return _explain_alike(model, text, image, target)
    if target is not None or text is None or image is None:
        raise ConfigError("explain: this model compares a text with an image; give --text and --image, no --target")
    _check_text(text)
    pixels = to_pixels(open_image(image, where="explain"), model.config.image_settings)
    with evaluation_mode(model):
        tokens = model.collator().tokens([text])
        batch = Batch((text,), torch.zeros(1), torch.from_numpy(pixels)[None], tokens).to(model.device)
        words, heat, score = (_by_attention if method == "attention" else _by_towers)(model, batch)
    return Explanation(method, score, words, heat, np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def draw_explanation(explanation: Explanation, *, height: int = 320) -> Image.Image:
    """Draw the image, its heat map laid over it, and the words shaded by their weight."""
    font = ImageFont.load_default(size=16)
    if explanation.pixels is None:
        return _draw_words(explanation.words, width=2 * height, font=font)
    size = (round(height * explanation.pixels.shape[1] / explanation.pixels.shape[0]), height)
    image = Image.fromarray(explanation.pixels).resize(size, Image.Resampling.BICUBIC)
    warm = Image.fromarray(_warm(explanation.heat_map())).resize(size, Image.Resampling.BILINEAR)
    strip = _draw_words(explanation.words, width=2 * size[0] + 8, font=font)
    canvas = Image.new("RGB", (strip.width, height + 8 + strip.height), "white")
    canvas.paste(image, (0, 0))
    canvas.paste(Image.blend(image, warm, 0.55), (size[0] + 8, 0))
    canvas.paste(strip, (0, height + 8))
    return canvas


def _explain_alike(model: DualTower, text: Any, image: Any, target: Any) -> Explanation:
    """What of an image made its score with another image, or of a text with another text."""
    (modality,) = model.config.modalities
    given, other = (image, text) if modality == "image" else (text, image)
    if other is not None or given is None or target is None:
        raise ConfigError(
            f"explain: this model has a tower for {modality}s alone; give one as --{modality}, and another one that it "
            "is compared with as --target"
        )
    pixels = None
    with evaluation_mode(model):
        if modality == "image":
            first, second = (
                to_pixels(open_image(image, where="explain"), model.config.image_settings) for image in (given, target)
            )
            pixels = np.ascontiguousarray(first.transpose(1, 2, 0))
            batch = Batch(("0", "1"), torch.zeros(2), torch.from_numpy(np.stack([first, second]))).to(model.device)
            embedded = model(batch).image
        else:
            _check_text(given)
            _check_text(target)
            batch = Batch(("0", "1"), torch.zeros(2), tokens=model.collator().tokens([given, target])).to(model.device)
            embedded = model(batch).text
        score = float(model.similarity(embedded[:1], embedded[1:]))
        heat = None if pixels is None else _heat(model, batch, embedded[1:], score)
        words = [] if pixels is not None else _weights(model, batch, embedded[1:], score)
    return Explanation("towers", score, words, heat, pixels)


def _check_text(text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"explain: the text is {text!r}; give a non-empty string")


def _by_towers(model: DualTower, batch: Batch) -> tuple[list[tuple[str, float]], np.ndarray, float]:
    seen = model(batch)
    score = float(model.similarity(seen.image, seen.text))
    return _weights(model, batch, seen.image, score), _heat(model, batch, seen.text, score), score


def _heat(model: DualTower, batch: Batch, other: torch.Tensor, score: float) -> np.ndarray:
    """What the score of the batch's first image with an embedding ``[1, D]`` loses without each of its cells."""
    assert batch.pixels is not None
    images, windows = hide_windows(batch.pixels[0])
    hidden = model(Batch(tuple(map(str, range(len(images)))), torch.zeros(len(images)), pixels=images)).image
    falls = score - model.similarity(hidden, other)[:, 0].float().cpu()
    heat: torch.Tensor = (falls[:, None, None] * windows).sum(0) / windows.sum(0)
    return heat.numpy()


def _weights(model: DualTower, batch: Batch, other: torch.Tensor, score: float) -> list[tuple[str, float]]:
    """What the score of the batch's first text with an embedding ``[1, D]`` loses without each of its words."""
    assert batch.tokens is not None
    ids = batch.tokens["input_ids"][0][batch.tokens["attention_mask"][0].bool()]  # without padding
    spans = _words(model, ids)
    shortened = [torch.cat([ids[:start], ids[stop:]]) for _, start, stop in spans]
    without = _similarities(model, shortened, other)
    return [(word, score - rest) for (word, _, _), rest in zip(spans, without, strict=True)]


def hide_windows(pixels: torch.Tensor, filling: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy an image many times, each with one window hidden.

    Args:
        pixels: The image, ``[3, H, W]``.
        filling: What the windows show instead, of the same shape; None is the image's mean color.

    Returns:
        Images ``[N, 3, H, W]``, and which cells are hidden, float ``[N, rows, columns]``.
    """
    height, width = pixels.shape[1:]
    rows, columns = (max(1, round(CELLS * side / max(height, width))) for side in (height, width))
    top, left = (torch.arange(1 - WINDOW, count) for count in (rows, columns))  # windows also hang over the edges
    windows = []
    for first_row, first_column in torch.cartesian_prod(top, left).tolist():
        cells = torch.zeros(rows, columns)
        cells[max(first_row, 0) : first_row + WINDOW, max(first_column, 0) : first_column + WINDOW] = 1
        windows.append(cells)
    hidden = torch.stack(windows)
    over = F.interpolate(hidden[:, None], (height, width), mode="nearest").bool().to(pixels.device)
    if filling is None:
        filling = pixels.float().mean((1, 2), keepdim=True).round().to(pixels.dtype)
    return torch.where(over, filling, pixels), hidden


def _similarities(model: DualTower, sequences: Sequence[torch.Tensor], other: torch.Tensor) -> list[float]:
    """Similarity of token sequences of different lengths to one embedding ``[1, D]``; 0 for an empty one."""
    kept = [ids for ids in sequences if len(ids)]
    if not kept:
        return [0.0] * len(sequences)
    text = model.config.text
    assert text is not None
    length = text.max_length if text.padding == "fixed" else max(map(len, kept))
    padded = kept[0].new_full((len(kept), length), _tokenizer(model).pad_token_id or 0)
    mask = torch.zeros_like(padded)
    for row, ids in enumerate(kept):
        padded[row, : len(ids)], mask[row, : len(ids)] = ids, 1
    tokens = {"input_ids": padded, "attention_mask": mask}
    embedded = model(Batch(tuple(map(str, range(len(kept)))), torch.zeros(len(kept)), tokens=tokens)).text
    values = iter(model.similarity(other, embedded)[0].tolist())
    return [next(values) if len(ids) else 0.0 for ids in sequences]


def _by_attention(model: DualTower, batch: Batch) -> tuple[list[tuple[str, float]], np.ndarray, float]:
    reranker = reranker_of(model)
    seen = model(batch)
    words, patches = features_to_rerank(model, batch, seen)
    assert batch.tokens is not None and words is not None and patches is not None and patches.grid is not None
    text, image = reranker.text_states(words), reranker.image_states(patches)
    to_image, to_text = reranker.attention(text, image)
    heat = to_image[0].mean(0).reshape(patches.grid)
    weights = to_text[0].mean(0)
    shares = [
        (word, float(weights[start:stop].sum())) for word, start, stop in _words(model, batch.tokens["input_ids"][0])
    ]
    return shares, heat.float().cpu().numpy(), float(model.similarity(seen.image, seen.text))


def _words(model: DualTower, ids: torch.Tensor) -> list[tuple[str, int, int]]:
    """Words of a text as spans of its tokens, special tokens left out."""
    tokenizer = _tokenizer(model)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    marked = any(piece.startswith(_WORD_BEGINS) for piece in pieces)
    words: list[tuple[str, int, int]] = []
    for place, (token, piece) in enumerate(zip(ids.tolist(), pieces, strict=True)):
        if token in special:
            continue
        goes_on = not piece.startswith(_WORD_BEGINS) if marked else piece.startswith(_WORD_GOES_ON)
        shown = piece.removeprefix(_WORD_BEGINS).removeprefix(_WORD_GOES_ON)
        if goes_on and words and words[-1][2] == place:
            word, start, _ = words[-1]
            words[-1] = (word + shown, start, place + 1)
        else:
            words.append((shown, place, place + 1))
    return [word for word in words if word[0]]  # a lone mark of a word's begin shows nothing


def _tokenizer(model: DualTower) -> Any:
    if model.tokenizer is None:
        raise ConfigError("this model has no tokenizer; build it with DualTower(config, tokenizer)")
    return model.tokenizer


def _warm(heat: np.ndarray) -> np.ndarray:
    """Blue for 0 over white to red for 1, uint8 ``[H, W, 3]``."""
    stops = np.array([[49, 54, 149], [255, 255, 255], [165, 0, 38]], np.float32)
    places = np.array([0.0, 0.5, 1.0])
    return np.stack([np.interp(heat, places, stops[:, c]) for c in range(3)], axis=-1).astype(np.uint8)


def _draw_words(words: Sequence[tuple[str, float]], *, width: int, font: Any) -> Image.Image:
    """Words line by line, red behind what speaks for the match, blue behind what speaks against it."""
    strongest = max((abs(weight) for _, weight in words), default=0.0) or 1.0
    lines: list[list[tuple[str, float, int]]] = [[]]
    x = 0
    for word, weight in words:
        length = int(font.getlength(word)) + 10
        if x and x + length > width:
            lines.append([])
            x = 0
        lines[-1].append((word, weight / strongest, x))
        x += length + 4
    strip = Image.new("RGB", (width, 26 * len(lines)), "white")
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        for word, strength, x in line:
            fade = round(255 * (1 - 0.7 * abs(strength)))
            color = (255, fade, fade) if strength > 0 else (fade, fade, 255)
            box = (x, 26 * number, x + int(font.getlength(word)) + 10, 26 * number + 24)
            pen.rectangle(box, fill=color)
            pen.text((x + 5, 26 * number + 2), word, fill="black", font=font)
    return strip
