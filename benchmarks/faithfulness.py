"""Do explanations show what made the score? Hide the region that they point at, and as much elsewhere.

    python benchmarks/faithfulness.py --source FOLDER --model MODEL [MODEL ...]

For pairs of a KAGL title and its photo, the hottest tenth of the image is hidden, and then a tenth chosen at random
by shuffling the cells of the same heat map. Hidden is what is painted with the image's mean color (which is how the
explanation from the towers itself asks) or what is blurred (which it never saw). The score of the pair (for a
re-ranker its corrected logit) should fall further in the first case. The gap is the mean of
fall(hottest) - fall(random), with its bootstrap interval over pairs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import save_results
from PIL import Image, ImageFilter

from dualtower import DualTower, load_card, load_items
from dualtower.evaluation import intervals, load_qrels
from dualtower.inference.explain import Explanation, explain
from dualtower.inference.pair_scoring import score_pairs

CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products and kagl_text_to_image.json")
    parser.add_argument("--model", required=True, nargs="+")
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--share", type=float, default=0.1, help="of the image that is hidden")
    args = parser.parse_args()

    items = load_items(load_card(CARD), "test", source=args.source, check_images=False)
    pairs = some_pairs(Path(args.source) / "kagl_text_to_image.json", items, args.pairs)
    rows, values = [], {}
    for name in args.model:
        model = DualTower.from_pretrained(name)
        for method in ("towers", *(["attention"] if model.reranker is not None else [])):
            for filling, falls in measure(model, pairs, method, args.share).items():
                figures = intervals({**falls, "gap": falls["hottest"] - falls["random"]}, bootstrap=10_000)
                cells = [cell(figures[k]) for k in ("hottest", "random", "gap")]
                rows.append([Path(name).parent.name, method, filling, *cells])
                values[f"{name}, {method}, {filling}"] = {k: [f.value, f.low, f.high] for k, f in figures.items()}
    save_results(
        "faithfulness",
        title=f"Fall of the score when {args.share:.0%} of the image is hidden, {args.pairs} pairs",
        tables=[(["model", "method", "hidden by", "hottest", "random", "gap"], rows)],
        values=values,
    )


def cell(figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def some_pairs(path: Path, items, count: int) -> list[tuple[str, bytes]]:
    """Titles of the relevance file with a relevant photo each."""
    image_of = dict(zip(items.ids, items.variants, strict=True))
    qrels = load_qrels(path)
    found = [
        (text, image_of[doc])
        for text, documents in zip(qrels.texts, qrels.relevant, strict=True)
        for doc in list(documents)[:1]
        if doc in image_of
    ]
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[i] for i in chosen]


def measure(
    model: DualTower, pairs: list[tuple[str, bytes]], method: str, share: float
) -> dict[str, dict[str, np.ndarray]]:
    """Filling -> ``hottest`` and ``random`` -> how far the score of each pair falls, ``[N]``."""
    random = np.random.default_rng(1)
    texts = [text for text, _ in pairs]
    whole, hidden_ = [], {filling: {"hottest": [], "random": []} for filling in FILLINGS}
    for text, image in pairs:
        found = explain(model, text, image, method=method)
        shuffled = replace(found, heat=random.permutation(found.heat.flatten()).reshape(found.heat.shape))
        whole.append(Image.fromarray(found.pixels))
        for filling, variants in hidden_.items():
            variants["hottest"].append(hidden(found, share, filling))
            variants["random"].append(hidden(shuffled, share, filling))
    before = score(model, texts, whole, method)
    return {
        filling: {kind: before - score(model, texts, images, method) for kind, images in variants.items()}
        for filling, variants in hidden_.items()
    }


def hidden(found: Explanation, share: float, filling: str) -> Image.Image:
    """The image without the hottest share of it."""
    pixels, heat = found.pixels.copy(), found.heat_map()
    count = round(share * heat.size)
    hottest = np.unravel_index(np.argsort(-heat, axis=None, kind="stable")[:count], heat.shape)
    pixels[hottest] = FILLINGS[filling](found.pixels)[hottest]
    return Image.fromarray(pixels)


def mean_color(pixels: np.ndarray) -> np.ndarray:
    """An image of one color."""
    return np.broadcast_to(pixels.reshape(-1, 3).mean(0).round().astype(np.uint8), pixels.shape)


def blurred(pixels: np.ndarray) -> np.ndarray:
    """An image whose details are as large as an eighth of it."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(max(pixels.shape) / 8)))


FILLINGS = {"mean color": mean_color, "blur": blurred}


def score(model: DualTower, texts: list[str], images: list[Image.Image], method: str) -> np.ndarray:
    """Scaled similarity of each pair, with the re-ranker's correction where its attention is explained."""
    logits = model.scale * (model.encode_text(texts) * model.encode_image(images)).sum(1)
    if method == "attention":
        own = np.arange(len(texts))
        logits = logits + score_pairs(model, texts, images, np.stack([own, own], axis=1))
    return logits


if __name__ == "__main__":
    main()
