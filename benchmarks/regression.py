"""Two states of this repository side by side: has anything become slower?

    git worktree add ../before COMMIT
    python benchmarks/regression.py --before ../before --model runs/fashion/model --source FOLDER_OF_FASHION_PRODUCTS

Both states stay ready in processes of their own and take turns of some seconds (A B B A ...), so that a machine that
drifts drifts for both. The ratio is taken turn by turn; its interval is that of the median of these ratios (95 %, by
resampling). Each state runs this script as it has it, so that modules may move and names may change between the two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CARD = "data_cards/fashion_products.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--model", type=Path, required=True, help="model folder, trained by the main recipe")
    parser.add_argument("--source", type=Path, required=True, help="folder with the fashion products' Parquet files")
    parser.add_argument("--turns", type=int, default=40, help="of each state")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        MEASURES[args.measure](args, _Turns())
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Let both states take their turns at every measure, and write the table."""
    from common import save_results

    rows, values = [], {}
    for name in args.only:
        sides = {"before": _Side(name, args.before.resolve(), args), "after": _Side(name, ROOT, args)}
        for number in range(args.turns):
            for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
                sides[side].measure()
        for side in sides.values():
            side.end()
        taken = {name: side.taken for name, side in sides.items()}
        ratios = [b / a for a, b in zip(taken["before"], taken["after"], strict=True)]
        low, high = _interval(ratios)
        before, after, ratio = (statistics.median(part) for part in (taken["before"], taken["after"], ratios))
        rows.append([f"{name}, {UNITS[name]}", f"{before:.4g}", f"{after:.4g}", f"{ratio:.3f} ({low:.3f}–{high:.3f})"])
        values[name] = {**taken, "ratios": ratios, "ratio": ratio, "low": low, "high": high}
        print(" | ".join(rows[-1]), flush=True)
    save_results(
        "regression",
        title="Before and after",
        tables=[(["measure", "before", "after", "after / before"], rows)],
        values=values,
        notes=f"Before is commit {_commit(args.before)}, after is {_commit(ROOT)}; {args.turns} turns each.",
    )


class _Turns:
    """What a measuring process tells, on the standard output that it was started with, and when it goes on."""

    def __init__(self) -> None:
        self._told = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what else is printed

    def wait(self, value: float = 0.0) -> None:
        """Tell a value and wait for the next turn; ends the process where there is none."""
        print(json.dumps(value), file=self._told, flush=True)
        if not sys.stdin.readline():
            os._exit(0)


class _Side:
    """One state, in a process that measures when it is told to."""

    def __init__(self, name: str, checkout: Path, args: argparse.Namespace) -> None:
        command = [sys.executable, str(checkout / "benchmarks" / Path(__file__).name), "--measure", name]
        for option in ("before", "model", "source"):
            command += [f"--{option}", str(getattr(args, option).resolve())]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, text=True, cwd=checkout, env=environment, **pipes)
        self.taken: list[float] = []
        self._next()  # it is ready

    def measure(self) -> None:
        """Let it take a turn."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        self.taken.append(self._next())

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _next(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._process.args} has ended; run it by hand to see why")
        return float(json.loads(line))


def training(args: argparse.Namespace, turns: _Turns) -> None:
    """Milliseconds per step of the main recipe, in float32, ten steps a turn."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    calls, begin = itertools.count(1), time.perf_counter()

    def after_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        nonlocal begin, first
        first = first or optimizer
        if optimizer is not first:  # a step may have several
            return
        number = next(calls)
        if number >= 20 and number % 10 == 0:
            turns.wait(100 * (time.perf_counter() - begin))
            begin = time.perf_counter()

    first: torch.optim.Optimizer | None = None
    register_optimizer_step_post_hook(after_step)
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["train_clip_style.py", "--data.card", CARD, "--data.source", str(args.source), "--out", folder]
        sys.argv += ["--train.steps", "100000", "--train.precision", "fp32", "--train.validate-every", "99"]
        sys.argv += ["--overwrite"]
        runpy.run_path("recipes/train_clip_style.py", run_name="__main__")


def evaluation(args: argparse.Namespace, turns: _Turns) -> None:
    """Seconds to measure the test split both ways, with intervals, its images read and embedded."""
    from dualtower import DualTower, evaluate, load_card, load_items

    model = DualTower.from_pretrained(args.model)
    items = load_items(load_card(CARD), "test", source=args.source)
    evaluate(model, items[:256], bootstrap=0)
    turns.wait()
    while True:
        turns.wait(_seconds(lambda: evaluate(model, items)))


def embedding(args: argparse.Namespace, turns: _Turns) -> None:
    """Seconds to embed 1,500 images."""
    from dualtower import DualTower, load_card, load_items

    model = DualTower.from_pretrained(args.model)
    items = load_items(load_card(CARD), "train", source=args.source, check_images=False)[:1500]
    images = [product.image for product in items]
    model.encode_image(images)
    turns.wait()
    while True:
        turns.wait(_seconds(lambda: model.encode_image(images)))


def search(args: argparse.Namespace, turns: _Turns) -> None:
    """Median milliseconds from words to hits with their rows, one query at a time, over all products."""
    from dualtower import DualTower, load_card, load_items
    from dualtower.search.engine import SearchEngine, SearchRequest
    from dualtower.search.local.store import LocalStore

    catalog = Path(f"{args.model}.{_commit(Path.cwd())}.catalog")  # each state searches what it has written itself
    if not catalog.exists():
        command = [sys.executable, "-m", "dualtower", "index", args.model, "--data.card", CARD, "--out", catalog]
        command += ["--data.source", args.source, "--split", "all"]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    store = LocalStore(catalog)
    engine = SearchEngine(store, DualTower.from_pretrained(args.model))
    items = load_items(load_card(CARD), "test", source=args.source, check_images=False)
    titles = [texts[0] for texts in items.texts[:1000]]
    turns.wait()
    while True:
        turns.wait(
            statistics.median(1000 * _seconds(lambda t=title: engine.find(SearchRequest(text=t))) for title in titles)
        )


MEASURES: dict[str, Callable[[argparse.Namespace, _Turns], None]] = {
    "training": training,
    "evaluation": evaluation,
    "embedding": embedding,
    "search": search,
}
UNITS = {"training": "ms per step", "evaluation": "s", "embedding": "s for 1,500 images", "search": "ms (p50)"}


def _interval(ratios: list[float]) -> tuple[float, float]:
    draws = np.random.default_rng(0).choice(ratios, size=(10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
