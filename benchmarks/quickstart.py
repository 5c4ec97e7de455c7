"""The README's first command on this machine: how long it takes, and the table that it ends with.

    python benchmarks/quickstart.py

Trains recipes/train_clip_style.py as it stands, on the synthetic catalog, and reads its metrics.json and history.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ranked_sizes, save_results

from dualtower.evaluation.bootstrap import Interval
from dualtower.evaluation.reports.report import LABELS, TITLES, format_interval, format_number

RECIPE = Path(__file__).parent.parent / "recipes" / "train_clip_style.py"
DIRECTIONS = ("text_to_image", "image_to_text")
METRICS = ("recall@1", "recall@10", "hit@1", "hit@10", "mrr", "ndcg@10")
"""Those that the README has room for; the run's report has all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the run in this folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = args.out or Path(name) / "run"
        command = [sys.executable, str(RECIPE), "--out", str(out)]
        subprocess.run(command, check=True, cwd=RECIPE.parent.parent)
        metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        history = [json.loads(line) for line in (out / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    minutes = max(line.get("seconds", 0) for line in history) / 60
    header = ["metric"]
    for direction in DIRECTIONS:
        header += [TITLES[direction], "chance"]
    save_results(
        "quickstart",
        title="The first command of the README",
        tables=[(header, [row(metrics, metric) for metric in METRICS])],
        values={"minutes": minutes, **metrics},
        notes=f"Trained in {minutes:.1f} minutes. {ranked_sizes(metrics['protocol'])}",
    )


def row(metrics: dict[str, Any], metric: str) -> list[str]:
    """One metric in both directions, with its interval and its chance level."""
    cells = [LABELS.get(metric, metric)]
    for direction in DIRECTIONS:
        chance = metrics["protocol"]["directions"][direction]["chance"][metric]
        cells += [format_interval(metric, Interval(**metrics[direction][metric])), format_number(metric, chance)]
    return cells


if __name__ == "__main__":
    main()
