"""How well is damage found in images, and where: knn, patch and reconstruction against each other.

    python benchmarks/damage_detection.py --model MODEL --source FOLDER [--drawn-model MODEL] [--anomalib PYTHON]

Scorers are fitted on whole products of the training split. Each test image is scored twice, as it is and with damage
drawn onto it (dualtower/data/synthetic/damage.py); both are saved as JPEG of quality 95, so that compression gives
nothing away. The methods were chosen on stains and tears on validation photos; scratches and missing parts were held
apart, and the figures of the two groups stand beside each other. Pixel AUROC is over all pixels of some of these.

`--anomalib` names the Python of an environment of its own with anomalib: its PatchCore, with a coreset of its own of
1,000 of 20,000 patches, reads the same patches of the same images; what differs is the memory and the score.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import counted, save_results
from PIL import Image

from dualtower import DualTower, load_card, load_items
from dualtower.curation.damage import DamageScorer, KNNScorer, PatchScorer, ReconstructionScorer, choose_threshold
from dualtower.curation.damage.scorer import smoothed, to_size
from dualtower.data.synthetic.damage import DEVELOPED, HELD_OUT, draw_damage
from dualtower.data.transforms.images import ImageSettings, open_image, to_pixels
from dualtower.evaluation.auroc import auroc, auroc_interval

CARDS = Path(__file__).parent.parent / "data_cards"
RATE = 0.01


ANOMALIB = """
import sys
import numpy as np
import torch
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
torch.set_num_threads(1)
torch.manual_seed(0)
given, got, memory = sys.argv[1:]
data = np.load(given)
model = PatchcoreModel(layers=["layer2"], backbone="resnet18", pre_trained=False, num_neighbors=9)
pool = torch.from_numpy(data["clean"]).float()
model.embedding_store.append(pool)
model.subsample_embedding(int(memory) / len(pool))
scores, maps = [], []
for image in torch.from_numpy(data["test"]).float():
    distances, places = model.nearest_neighbors(image, n_neighbors=1)
    scores.append(float(model.compute_anomaly_score(distances[None], places[None], image)))
    maps.append(distances.numpy())
np.savez(got, scores=np.array(scores), maps=np.stack(maps))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="trained on the fashion products")
    parser.add_argument("--source", help="folder with the fashion products")
    parser.add_argument("--drawn-model", help="trained on the drawn catalog")
    parser.add_argument("--rows", type=int, default=1000, help="test images at most, each whole and damaged")
    parser.add_argument("--clean", type=int, default=3000, help="training images at most")
    parser.add_argument("--anomalib", help="Python of an environment with anomalib")
    args = parser.parse_args()
    torch.set_num_threads(1)

    rows, values = [], {}
    for card, folder in (("synthetic", args.drawn_model), ("fashion_products", args.model)):
        if folder is None:
            continue
        model = DualTower.from_pretrained(folder)
        settings = model.config.image_settings
        source = args.source if card == "fashion_products" else None
        given = images(card, source, settings, args.clean, args.rows)
        for name, scorer in scorers(model, args.anomalib).items():
            found = measure(scorer, *given)
            name_of_card = "drawn catalog" if card == "synthetic" else "fashion products"
            cells = [f"{f.value:.3f} ({f.low:.3f} to {f.high:.3f})" for f in (found["held out"], found["developed"])]
            rest = [f"{found['types'][t]:.3f}" for t in (*HELD_OUT, *DEVELOPED)]
            alarms = f"{found['alarms']:.1%} / {found['caught']:.1%}"
            rows.append([name_of_card, name, *cells, *rest, f"{found['pixels']:.3f}", alarms, f"{found['speed']:.0f}"])
            values[f"{card}, {name}"] = {
                **found,
                "held out": vars(found["held out"]),
                "developed": vars(found["developed"]),
                "clean": len(given[0]),
                "rows": len(given[2]),
            }
            print(*rows[-1], sep=" | ", flush=True)
    sizes = "; ".join(
        f"{key.split(',')[0]}: {found['clean']:,} clean, {found['rows']:,} test images"
        for key, found in values.items()
        if "knn" in key
    )
    header = ["data", "method", "AUROC held out", "AUROC developed", *HELD_OUT, *DEVELOPED]
    save_results(
        "damage_detection",
        title="Damage found in test images",
        tables=[([*header, "pixel AUROC", f"alarms / caught at {RATE:.0%}", "images/s"], rows)],
        values=values,
        notes=(
            f"{sizes}; each test image is scored whole and damaged, {counted(1, 'model')} a catalog, intervals over "
            "products. Held out: scratches and missing parts, which nobody looked at while the methods were chosen; "
            "pixel AUROC is of 100 of these at most, over all their pixels. Alarms / caught: shares of the whole and "
            "of the damaged test images above a threshold that the clean images of a quarter of the training products "
            f"chose for a rate of {RATE:.0%}."
        ),
    )


def scorers(model: DualTower, anomalib: str | None) -> dict[str, DamageScorer]:
    """What is measured."""
    found: dict[str, DamageScorer] = {
        "knn, 10 neighbors": KNNScorer(model),
        "patch, memory of the 10 nearest images": PatchScorer(model),
        "patch, one memory (PatchCore)": PatchScorer(model, neighbors=0),
        "reconstruction by 64 principal components": ReconstructionScorer(),
    }
    return found | ({"anomalib's PatchCore, same patches": Anomalib(model, anomalib)} if anomalib else {})


class Anomalib(PatchScorer):
    """anomalib's memory and score, in a process of its own, of the patches that `PatchScorer` makes."""

    def __init__(self, model: DualTower, python: str) -> None:
        super().__init__(model, neighbors=0, memory=1000)  # its coreset takes a minute for these
        self.python = python

    def _fit(self, clean: torch.Tensor) -> None:
        super()._fit(clean)  # which measures the channels
        known = torch.cat(list(self._patches(clean))).flatten(0, 2)
        chosen = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[: 20 * self.memory]
        self.pool = known[chosen].numpy()

    def score(self, pixels: torch.Tensor) -> np.ndarray:
        return self._asked(pixels)["scores"]

    def heat_maps(self, pixels: torch.Tensor) -> np.ndarray:
        maps = torch.from_numpy(self._asked(pixels)["maps"]).unflatten(1, self.grid)
        return smoothed(to_size(maps, (pixels.shape[2], pixels.shape[3]))).numpy()

    def _asked(self, pixels: torch.Tensor) -> dict[str, np.ndarray]:
        test = torch.cat(list(self._patches(pixels)))
        self.grid = tuple(test.shape[1:3])
        with tempfile.TemporaryDirectory() as folder:
            given, got = Path(folder) / "given.npz", Path(folder) / "got.npz"
            np.savez(given, clean=self.pool, test=test.flatten(1, 2).numpy())
            subprocess.run([self.python, "-c", ANOMALIB, given, got, str(self.memory)], check=True)
            return dict(np.load(got))


def images(card: str, source: str | None, settings: ImageSettings, most_clean: int, most: int):
    """Clean training pixels and their product codes; whole and damaged test pixels, masks, types and product codes."""
    loaded = load_card(CARDS / f"{card}.md")
    train, test = (load_items(loaded, split, source=source, check_images=False) for split in ("train", "test"))
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(train))[:most_clean]
    clean = [saved(open_image(train[int(row)].image), settings) for row in chosen]
    whole, damaged, masks, types, products = [], [], [], [], []
    all_types = (*HELD_OUT, *DEVELOPED)
    for number, row in enumerate(rng.permutation(len(test))[:most].tolist()):
        shown = open_image(test[row].image)
        found = draw_damage(shown, all_types[number % len(all_types)], seed=number)
        whole.append(saved(shown, settings))
        damaged.append(saved(found.image, settings))
        undamaged = Image.fromarray(~found.mask).convert("RGB")  # white, as what images are padded with
        masks.append(to_pixels(undamaged, settings)[0] < 128)
        types.append(found.damage)
        products.append(test.codes[row])
    pixels = (torch.from_numpy(np.stack(some)) for some in (clean, whole, damaged))
    clean_pixels, *tested = pixels
    return clean_pixels, train.codes[chosen], *tested, np.stack(masks), np.array(types), np.array(products)


def saved(image: Image.Image, settings: ImageSettings) -> np.ndarray:
    """Pixels of an image that was saved as JPEG."""
    image.save(buffer := io.BytesIO(), "JPEG", quality=95)
    return to_pixels(open_image(buffer.getvalue()), settings)


def measure(scorer: DamageScorer, clean, clean_products, whole, damaged, masks, types, products) -> dict:
    """AUROC by group and type of damage, of pixels, and what a threshold does."""
    codes = np.unique(clean_products)
    held_out = np.isin(clean_products, np.random.default_rng(1).permutation(codes)[: len(codes) // 4])
    scorer.fit(clean[~held_out])
    start = time.perf_counter()
    scores = scorer.score(torch.cat([clean[held_out], whole, damaged]))
    speed = len(scores) / (time.perf_counter() - start)
    calm, good, bad = np.split(scores, np.cumsum([held_out.sum(), len(whole)]))
    limit = choose_threshold(calm, RATE).value
    found = {"alarms": float((good > limit).mean()), "caught": float((bad > limit).mean()), "speed": speed, "types": {}}

    def both(chosen: np.ndarray) -> tuple:
        """Whole and damaged versions of the chosen images, which are those of other types as well."""
        return np.concatenate([good[chosen], bad[chosen]]), np.arange(2 * chosen.sum()) >= chosen.sum()

    for group, names in (("held out", HELD_OUT), ("developed", DEVELOPED)):
        chosen = np.isin(types, names)
        found[group] = auroc_interval(*both(chosen), groups=np.tile(products[chosen], 2))
    for name in (*HELD_OUT, *DEVELOPED):
        found["types"][name] = auroc(*both(types == name))
    chosen = np.flatnonzero(np.isin(types, HELD_OUT))[:100]  # occlusion takes some sixty forward passes an image
    found["pixels"] = auroc(scorer.heat_maps(damaged[chosen]), masks[chosen])
    return found


if __name__ == "__main__":
    main()
