r"""Attribute vectors: products of the same type found by codes of an autoencoder, and by one-hot vectors.

    python benchmarks/attribute_vectors.py --source FOLDER --out attribute_vectors

Three questions, each with 0 %, 20 % and 50 % of all values missing, in queries and in the products they search:

- The type is hidden in the queries, and the products keep it: a new product whose type nobody has entered yet. The
  types of the test rows were never seen, those of the train rows were: the encoder has learned what a type goes with.
- The type is in none of the vectors, and the encoder has never seen one: what the other attributes alone say.
- The type is read like all others. Each answer then holds its question; it is the figure that is often shown, and says
  how a vector bears missing values, not what it has understood.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import counted, save_results, spread

from dualtower import (
    AttributeEncoderConfig,
    AttributesConfig,
    DataConfig,
    DualTower,
    EvaluationConfig,
    ModelConfig,
    ReconstructionConfig,
    RunConfig,
    TrainConfig,
    load_card,
    load_items,
    run,
)
from dualtower.evaluation.attributes import METRICS, AttributeRetrieval, evaluate_attribute_retrieval
from dualtower.evaluation.reports.report import format_interval

CARD = Path(__file__).parent.parent / "data_cards" / "fashion_products.md"
NAMES = ("masterCategory", "subCategory", "articleType", "baseColour", "usage")
TYPE = "articleType"
QUESTIONS = ("hidden in the queries", "in none of the vectors", "read like all others")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder with the fashion products")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for the trained encoders; one that is there is used"
    )
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each encoder")
    args = parser.parse_args()

    test = load_items(load_card(CARD), "test", source=args.source, check_images=False)
    found: dict[str, list[AttributeRetrieval]] = {question: [] for question in QUESTIONS}
    for seed in range(args.seeds):
        whole = trained(args, NAMES, seed)
        without = trained(args, tuple(name for name in NAMES if name != TYPE), seed)
        for question, model, hide in zip(QUESTIONS, (whole, without, whole), (True, True, False), strict=True):
            found[question].append(evaluate_attribute_retrieval(model, test, relevance=[TYPE], hide=hide))
    rows = [row for question in QUESTIONS for row in table_rows(question, found[question])]
    protocol = found[QUESTIONS[0]][0].protocol
    save_results(
        "attribute_vectors",
        title="Products of the same type, found by their attributes",
        tables=[(["the type is", "missing", "vector", *METRICS, "ndcg@10 against one-hot, by training"], rows)],
        values={question: [each.to_dict() for each in of] for question, of in found.items()},
        notes=(
            f"{protocol['queries']:,} of {protocol['rows']:,} products of the test split, one row each, search the "
            "others; brackets are 95 % intervals over queries of the first of "
            f"{counted(args.seeds, 'training')} of {args.epochs:g} epochs, and the last column has the median gain and "
            "the range over all of them. `completed` is the one-hot vector in which the decoder has filled in what is "
            "missing."
        ),
    )


def trained(args: argparse.Namespace, names: tuple[str, ...], seed: int) -> DualTower:
    """An encoder of these attributes."""
    out = args.out / f"{len(names)}_attributes_{seed}"
    if not (out / "metrics.json").exists():
        config = RunConfig(
            model=ModelConfig(
                text=None,
                image=None,
                attribute_encoder=AttributeEncoderConfig(AttributesConfig(names, dropout=0.5)),
                embed_dim=64,
            ),
            data=DataConfig(card=CARD, source=args.source, workers=0),
            objective="attributes",
            reconstruction=ReconstructionConfig(relevance=(TYPE,)),
            train=TrainConfig(epochs=args.epochs, lr=1e-3, seed=seed, precision="fp32"),
            evaluation=EvaluationConfig(bootstrap=0),
            out=out,
            overwrite=True,
        )
        run(config)
    return DualTower.from_pretrained(out / "model")


def table_rows(question: str, trainings: list[AttributeRetrieval]) -> list[list[str]]:
    """Shares and vectors down; figures of the first training, and the gain of all of them."""
    rows = []
    for share, kinds in trainings[0].metrics.items():
        for kind, table in kinds.items():
            gains = [each.gains[share][kind].value for each in trainings if kind in each.gains[share]]
            cells = [format_interval(name, table[name]) for name in METRICS]
            rows.append([question, f"{share:.0%}", kind, *cells, spread(gains, 3) if gains else ""])
    return rows


if __name__ == "__main__":
    main()
