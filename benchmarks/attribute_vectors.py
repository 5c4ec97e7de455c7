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
from statistics import mean

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
from dualtower.data.items import ItemDataset
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
    parser.add_argument(
        "--dropouts", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="one is chosen on the validation split"
    )
    args = parser.parse_args()

    validation, test = (
        load_items(load_card(CARD), split, source=args.source, check_images=False) for split in ("validation", "test")
    )
    judged = {dropout: figure(answers(args, dropout, 0, validation)) for dropout in args.dropouts}
    print("nDCG@10 of the codes on the validation split, by dropout:", judged, flush=True)
    dropout = max(judged, key=lambda dropout: judged[dropout])
    found: dict[str, list[AttributeRetrieval]] = {question: [] for question in QUESTIONS}
    for seed in range(args.seeds):
        for question, answered in answers(args, dropout, seed, test).items():
            found[question].append(answered)
    rows = [row for question in QUESTIONS for row in table_rows(question, found[question])]
    protocol = found[QUESTIONS[0]][0].protocol
    save_results(
        "attribute_vectors",
        title="Products of the same type, found by their attributes",
        tables=[(["the type is", "missing", "vector", *METRICS, "ndcg@10 against one-hot, by training"], rows)],
        values={question: [each.to_dict() for each in of] for question, of in found.items()} | {"dropout": dropout},
        notes=(
            f"{protocol['queries']:,} of {protocol['rows']:,} products of the test split, one row each, search the "
            "others; brackets are 95 % intervals over queries of the first of "
            f"{counted(args.seeds, 'training')} of {args.epochs:g} epochs, and the last column has the median gain and "
            f"the range over all of them. The encoder learned with a dropout of {dropout:g}, chosen on the validation "
            "split. `completed` is the one-hot vector in which the decoder has filled in what is missing."
        ),
    )


def answers(args: argparse.Namespace, dropout: float, seed: int, items: ItemDataset) -> dict[str, AttributeRetrieval]:
    """The three questions, asked of the encoders of one seed."""
    whole = trained(args, NAMES, dropout, seed)
    without = trained(args, tuple(name for name in NAMES if name != TYPE), dropout, seed)
    asked = zip(QUESTIONS, (whole, without, whole), (True, True, False), strict=True)
    return {
        question: evaluate_attribute_retrieval(model, items, relevance=[TYPE], hide=hide)
        for question, model, hide in asked
    }


def figure(answered: dict[str, AttributeRetrieval]) -> float:
    """What chooses between encoders: nDCG@10 of the codes where the type is hidden, over all shares missing."""
    return mean(
        kinds["code"]["ndcg@10"].value for question in QUESTIONS[:2] for kinds in answered[question].metrics.values()
    )


def trained(args: argparse.Namespace, names: tuple[str, ...], dropout: float, seed: int) -> DualTower:
    """An encoder of these attributes."""
    out = args.out / f"{len(names)}_attributes_{dropout:g}_{seed}"
    if not (out / "metrics.json").exists():
        config = RunConfig(
            model=ModelConfig(
                text=None,
                image=None,
                attribute_encoder=AttributeEncoderConfig(AttributesConfig(names, dropout=dropout)),
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
