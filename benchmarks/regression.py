"""Two states of this repository side by side: has anything become slower?

    git worktree add ../before COMMIT
    python benchmarks/regression.py --before ../before --model runs/fashion/model --source FOLDER_OF_FASHION_PRODUCTS

Each measure runs in a process of its own, before and after in turn (A B A B ...), so that a machine that drifts drifts
for both. A figure is the median of its rounds; the ratio is taken round by round. Everything is asked for through the
public interface, which both states have.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARD = "data_cards/fashion_products.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--model", type=Path, required=True, help="model folder, trained by the main recipe")
    parser.add_argument("--source", type=Path, required=True, help="folder with the fashion products' Parquet files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](args)))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Run every measure on both states in turn, and write the table."""
    from common import save_results

    rows, values = [], {}
    for name in args.only:
        taken: dict[str, list[float]] = {"before": [], "after": []}
        for number in range(args.rounds):
            order = [("before", args.before.resolve()), ("after", ROOT)]
            for side, checkout in order if number % 2 == 0 else order[::-1]:
                taken[side].append(_in_process_of_its_own(name, checkout, args))
                print(f"{name}, round {number + 1}, {side}: {taken[side][-1]:.4g}", flush=True)
        ratios = [b / a for a, b in zip(taken["before"], taken["after"], strict=True)]
        middle = [statistics.median(part) for part in (taken["before"], taken["after"], ratios)]
        cells = [f"{middle[0]:.4g}", f"{middle[1]:.4g}", f"{middle[2]:.3f} ({min(ratios):.3f}–{max(ratios):.3f})"]
        rows.append([f"{name}, {UNITS[name]}", *cells])
        values[name] = {**taken, "ratios": ratios}
    save_results(
        "regression",
        title="Before and after",
        tables=[(["measure", "before", "after", f"after / before, median and range of {args.rounds} rounds"], rows)],
        values=values,
        notes=f"Before is commit {_commit(args.before)}, after is {_commit(ROOT)}.",
    )


def training(args: argparse.Namespace) -> float:
    """Median milliseconds per step of the main recipe, in float32, as a run's own history tells them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "recipes/train_clip_style.py", "--data.card", CARD, "--data.source", args.source]
        command += ["--train.steps", "60", "--train.precision", "fp32", "--train.validate-every", "99"]
        command += ["--evaluation.bootstrap", "0", "--out", folder, "--overwrite"]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        lines = [json.loads(line) for line in Path(folder, "history.jsonl").read_text().splitlines()]
    return 256_000 / statistics.median(line["samples_per_s"] for line in lines[2:] if "loss" in line)


def evaluation(args: argparse.Namespace) -> float:
    """Seconds to measure the test split both ways, with intervals, its pictures read and embedded."""
    from dualtower import DualTower, evaluate, load_card, load_products

    model = DualTower.from_pretrained(args.model)
    products = load_products(load_card(CARD), "test", source=args.source)
    evaluate(model, products[:256], bootstrap=0)
    return _seconds(lambda: evaluate(model, products))


def embedding(args: argparse.Namespace) -> float:
    """Seconds to embed 6,000 pictures."""
    from dualtower import DualTower, load_card, load_products

    model = DualTower.from_pretrained(args.model)
    products = load_products(load_card(CARD), "train", source=args.source, check_images=False)[:6000]
    pictures = [product.image for product in products]
    model.encode_image(pictures[:1500])
    return _seconds(lambda: model.encode_image(pictures))


def search(args: argparse.Namespace) -> float:
    """Median milliseconds from words to hits with their rows, one query at a time, over all products."""
    from dualtower import DualTower, load_card, load_products
    from dualtower.retrieval.finder import Finder, Question
    from dualtower.retrieval.local import LocalStore

    catalogue = Path(f"{args.model}.{_commit(Path.cwd())}.catalogue")  # each state searches what it has written itself
    if not catalogue.exists():
        command = [sys.executable, "-m", "dualtower", "index", args.model, "--data.card", CARD, "--out", catalogue]
        command += ["--data.source", args.source, "--split", "all"]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    store = LocalStore(catalogue)
    finder = Finder(store, DualTower.from_pretrained(args.model))
    products = load_products(load_card(CARD), "test", source=args.source, check_images=False)
    titles = [texts[0] for texts in products.texts[:1000]]
    for title in titles[:50]:
        finder.find(Question(text=title))
    return statistics.median(1000 * _seconds(lambda t=title: finder.find(Question(text=t))) for title in titles)


MEASURES: dict[str, Callable[[argparse.Namespace], float]] = {
    "training": training,
    "evaluation": evaluation,
    "embedding": embedding,
    "search": search,
}
UNITS = {"training": "ms per step", "evaluation": "s", "embedding": "s for 6,000 pictures", "search": "ms (p50)"}


def _in_process_of_its_own(name: str, checkout: Path, args: argparse.Namespace) -> float:
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", name]
    for option in ("before", "model", "source"):
        command += [f"--{option}", str(getattr(args, option).resolve())]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=checkout, env=environment)
    return float(json.loads(result.stdout.splitlines()[-1]))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
