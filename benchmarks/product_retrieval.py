r"""Similar products: the fused vector against title, image and their average; its heads against linear probes.

    pip install scikit-learn
    python recipes/train_product_fusion.py --base runs/compare/quality/60_minutes/model \
        --data.card data_cards/fashion_products.md --data.source FOLDER --task.labels articleType,baseColour \
        --task.heads articleType,baseColour --train.minutes 8 --train.batch-size 512
    python benchmarks/product_retrieval.py --source FOLDER --model runs/product_fusion/model

Protocol: every test row searches the other test rows; relevant is what shares articleType and baseColour. The probes
are logistic regressions on the embeddings of one tower alone, fitted on the train rows, their regularization chosen on
the validation rows; the heads of the fusion were trained on the same train rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from common import save_results
from sklearn.linear_model import LogisticRegression

from dualtower import DualTower, load_card, load_items
from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import class_labels
from dualtower.evaluation import class_metrics, evaluate_product_retrieval
from dualtower.evaluation.classification import predicted_classes
from dualtower.evaluation.reports.report import format_interval

CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"
METRICS = ("precision@1", "precision@10", "recall@10", "ndcg@10")
STRENGTHS = (0.1, 1.0, 10.0)  # inverse regularization of the probes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products")
    parser.add_argument("--model", required=True, help="a model with a fusion")
    parser.add_argument("--relevance", nargs="+", default=["articleType", "baseColour"])
    args = parser.parse_args()

    model = DualTower.from_pretrained(args.model)
    card = load_card(CARD)
    train, validation, test = (
        load_items(card, split, source=args.source, check_images=False) for split in ("train", "validation", "test")
    )
    similar = evaluate_product_retrieval(model, test, relevance=args.relevance)
    rows = [[kind, *(format_interval(m, table[m]) for m in METRICS)] for kind, table in similar.metrics.items()]
    for other, table in similar.gains.items():
        cells = [f"{table[m].value:+.3f} ({table[m].low:+.3f} to {table[m].high:+.3f})" for m in METRICS]
        rows.append([f"fused − {other}", *cells])
    heads = head_rows(model, train, validation, test)
    save_results(
        "product_retrieval",
        title="Similar products on the test rows",
        tables=[
            (["vector", *METRICS], rows),
            (["attribute", "predicted from", "accuracy", "macro-F1"], [row[:4] for row in heads]),
        ],
        values={**similar.to_dict(), "heads": {f"{row[0]}, {row[1]}": row[4] for row in heads}},
    )


def head_rows(model: DualTower, train: ItemDataset, validation: ItemDataset, test: ItemDataset) -> list[list]:
    """Attribute, what it was predicted from, accuracy, macro-F1, plain figures."""
    splits = (train, validation, test)
    sides = {
        "title, linear probe": [model.encode_text([t[0] for t in s.texts]) for s in splits],
        "image, linear probe": [model.encode_image(s.images) for s in splits],
    }
    fused = predicted_classes(model, test)
    rows = []
    for name, known in model.config.fusion.tasks.items():
        labels = [
            class_labels({name: known}, [{name: value} for value in s.attributes[name]])[:, 0].numpy() for s in splits
        ]
        counts = np.bincount(labels[0][labels[0] >= 0], minlength=len(known))
        predictions = {side: probe(arrays, labels) for side, arrays in sides.items()} | {"fused, head": fused[name]}
        for side, predicted in predictions.items():
            figures = class_metrics(labels[2], predicted, training_counts=counts)
            rows.append([name, side, f"{figures.accuracy:.3f}", f"{figures.macro_f1:.3f}", figures.to_dict()])
    return rows


def probe(arrays: list[np.ndarray], labels: list[np.ndarray]) -> np.ndarray:
    """Classes that the best of some logistic regressions predicts for the test rows."""
    known = [label >= 0 for label in labels]
    fitted = [
        LogisticRegression(C=strength, max_iter=300).fit(arrays[0][known[0]], labels[0][known[0]])
        for strength in STRENGTHS
    ]
    best = max(fitted, key=lambda p: p.score(arrays[1][known[1]], labels[1][known[1]]))
    return best.predict(arrays[2])


if __name__ == "__main__":
    main()
