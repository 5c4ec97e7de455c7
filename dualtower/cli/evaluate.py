"""Commands on a model: measure it, and explain what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from dualtower.cli.placing import to_place
from dualtower.config import to_json
from dualtower.errors import ConfigError

if TYPE_CHECKING:
    from dualtower.data.items import ItemDataset
    from dualtower.evaluation import Qrels
    from dualtower.models.dual_tower import DualTower

__all__ = ["CardSource", "Compare", "Evaluate", "Explain"]


@dataclass(frozen=True)
class CardSource:
    """Which products."""

    card: Path
    """Data card of the catalog."""
    source: str | None = None
    """Folder or Hub dataset to read instead of the card's own source."""
    on_error: Literal["raise", "skip"] = "raise"
    """Stop at the first bad row, or leave bad rows out and count them."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: recall@K, hit@K, MRR, nDCG, median rank in both directions, with intervals and chance.

    A model with one tower is measured by what of a product finds the others of it: images by images, or texts by texts.
    """

    model: Positional[str]
    """Model folder, or user/name on the Hub."""
    data: CardSource
    split: str = "test"
    """Split to measure on; `all` is the whole card."""
    qrels: Path | None = None
    """Relevance file or folder (Marqo JSON, TREC, BEIR): its queries search the whole card. `card`: the queries in the
    card's own columns search the products of the split."""
    queries: Path | None = None
    """Texts of the queries of a TREC file: lines of id, tab, text, or JSON."""
    missing: Literal["raise", "drop"] = "raise"
    """What to do with ids of the relevance file that the gallery lacks."""
    ks: tuple[int, ...] = (1, 5, 10)
    """Cut-offs K of recall@K and hit@K."""
    breakdown: tuple[str, ...] = ()
    """Attributes to break the figures down by."""
    task: Literal["text-image", "product-to-product"] = "text-image"
    """`product-to-product` compares ways to find similar products: title, image, their average, fused."""
    relevance: tuple[str, ...] = ()
    """Attributes whose values similar products share, for product-to-product; none is the same product."""
    rerank: int | None = None
    """Put the best N hits of each query in order again with the model's re-ranker, and report the gain."""
    json: Path | None = None
    """Write the figures to this file."""
    report: Path | None = None
    """Write report.md with images into this folder."""
    run_file: Annotated[Path | None, arg(name="run")] = None
    """Write the best 1,000 hits of each text (of an image-only model, of each image), best first, as a TREC run:
    `qid Q0 docid rank score tag`."""
    per_query: Path | None = None
    """Write what each query achieved to this file, which ends in .csv or .jsonl."""
    bootstrap: int = 1000
    """Resamples behind the intervals."""
    batch_size: int = 256
    """Rows embedded at a time."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision to embed in; auto is bf16 on an accelerator that has it, else fp32."""

    def run(self) -> None:
        from dualtower.evaluation import evaluate, rerank, save_query_table, save_run, write_report
        from dualtower.evaluation.breakdown import breakdown_table
        from dualtower.evaluation.exports import check_query_table
        from dualtower.evaluation.reports.report import TITLES
        from dualtower.files import write_text_atomically
        from dualtower.inference.pair_scoring import reranker_of
        from dualtower.models.dual_tower import DualTower

        if self.task == "product-to-product" and (unused := self._without_meaning()):
            raise ConfigError(f"--task product-to-product takes no {', no '.join(unused)}")
        if self.per_query:
            check_query_table(self.per_query)
        model = to_place(DualTower.from_pretrained(self.model), self.device, self.precision)
        if self.rerank is not None:
            reranker_of(model)  # says so before the evaluation where there is none
        items, queries = self._searched()
        if self.task == "product-to-product":
            self._report_similar(model, items)
            return
        result = evaluate(
            model,
            items,
            queries=queries,
            missing=self.missing,
            ks=self.ks,
            bootstrap=self.bootstrap,
            breakdown=self.breakdown,
            batch_size=self.batch_size,
            progress=True,
        )
        print(result.report.table())
        for attribute, tables in result.breakdowns.items():
            for name, rows in tables.items():
                print(f"\n{TITLES[name]} by {attribute}\n\n{breakdown_table(attribute, rows)}")
        again = None
        if self.rerank is not None:
            again = rerank(model, result, top=self.rerank, bootstrap=self.bootstrap, progress=True)
            print(f"\n{again.table()}")
        if items.skipped:
            print(f"left out {len(items.skipped)} rows; the first: {items.skipped[0]}")
        if self.json:
            figures = result.to_dict() | ({"reranked": again.to_dict()} if again else {})
            write_text_atomically(self.json, to_json(figures, indent=2))
        if self.report:
            sections = [again.section()] if again else []
            write_report(self.report, result, sections=sections, skipped=items.skipped)
        if self.per_query:
            save_query_table(self.per_query, result)
        if self.run_file:
            save_run(self.run_file, result, direction=next(iter(result.directions)), tag=model.fingerprint)

    def _searched(self) -> tuple[ItemDataset, Qrels | None]:
        """What is searched, and the queries of a relevance file or of the card, if any."""
        from dualtower.data.cards import load_card
        from dualtower.data.loading import load_items
        from dualtower.evaluation import card_queries, load_qrels

        card = load_card(self.data.card)
        of_card = self.qrels == Path("card")
        if of_card and card.queries is None:
            raise ConfigError(
                f"card {card.name!r} names no query columns; add queries: {{text: ..., grade: ...}} to it"
            )
        if self.queries and (of_card or not self.qrels):
            raise ConfigError("--queries holds the texts of a relevance file; name that with --qrels")
        queries = load_qrels(self.qrels, queries=self.queries) if self.qrels and not of_card else None
        split = self.split if queries is None else "all"
        items = load_items(card, split, source=self.data.source, on_error=self.data.on_error)
        return card_queries(items, card.queries) if of_card and card.queries else (items, queries)

    def _without_meaning(self) -> list[str]:
        """Options given that product-to-product would not look at."""
        given = {
            "--qrels": self.qrels,
            "--rerank": self.rerank is not None,
            "--breakdown": self.breakdown,
            "--report": self.report,
            "--run": self.run_file,
            "--per-query": self.per_query,
        }
        return [option for option, value in given.items() if value]

    def _report_similar(self, model: DualTower, items: ItemDataset) -> None:
        from dualtower.evaluation import evaluate_product_retrieval
        from dualtower.files import write_text_atomically

        similar = evaluate_product_retrieval(
            model,
            items,
            relevance=[name for given in self.relevance for name in given.split(",")],
            ks=self.ks,
            bootstrap=self.bootstrap,
            batch_size=self.batch_size,
            progress=True,
        )
        print(similar.table())
        if self.json:
            write_text_atomically(self.json, to_json(similar.to_dict(), indent=2))


@dataclass(frozen=True)
class Compare:
    """Compare two measurements query by query: differences with intervals and p-values. Needs no model."""

    first: Positional[Path]
    """Folder of a run (or of `evaluate --report`), its model folder, or its queries.parquet."""
    second: Positional[Path]
    """The run to compare it with, measured on the same queries and gallery."""
    resamples: int = 10_000
    """Resamples behind the intervals and p-values."""
    json: Path | None = None
    """Write the differences to this file."""

    def run(self) -> None:
        from dualtower.evaluation import compare_queries, comparison_metrics, comparison_table, load_queries
        from dualtower.files import write_text_atomically

        first, second = load_queries(self.first), load_queries(self.second)
        differences = compare_queries(first, second, resamples=self.resamples)
        figures = comparison_metrics(first, second, differences)
        print(comparison_table(figures, {name: len(of.keys) for name, of in first.directions.items()}))
        for name, of in first.directions.items():
            if alone := sorted(set(of.metrics) ^ set(second.directions[name].metrics)):
                print(f"{name}: {', '.join(alone)} left out, which only one of the two has")
        print(f"\n{_READING}")
        if self.json:
            write_text_atomically(self.json, to_json(figures, indent=2))


_READING = """\
difference: second - first, with a 95 % bootstrap interval by product. p: randomization test by product, not corrected
for the number of metrics. These are one training run each: the spread between seeds is not in the intervals."""


@dataclass(frozen=True)
class Explain:
    """Draw which words and which regions of an image made the score of the two.

    A model with one tower compares an image, or a text, with another one, which --target names.
    """

    model: Positional[str]
    """Model folder, or user/name on the Hub."""
    text: str | None = None
    """Title or query to explain the score of."""
    image: Path | None = None
    """Image of the product."""
    target: str | None = None
    """For a model with one tower: image file, or text, that --image or --text is compared with."""
    method: Literal["towers", "attention"] = "towers"
    """`towers`: what the score loses without a region or a word; `attention`: where the re-ranker looked."""
    out: Path = Path("explanation.png")
    """PNG to write: the image, its heat map, and the shaded words."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.evaluation.reports.figures import save_png
        from dualtower.inference.explain import draw_explanation, explain
        from dualtower.models.dual_tower import DualTower

        model = to_place(DualTower.from_pretrained(self.model), self.device)
        other = Path(self.target) if self.target and "image" in model.config.modalities else self.target
        found = explain(model, self.text, self.image, target=other, method=self.method)
        print(f"similarity {found.score:.3f}, by {found.method}")
        for word, weight in found.words:
            print(f"{weight:+.3f}  {word}")
        save_png(draw_explanation(found), self.out)
        print(self.out)
