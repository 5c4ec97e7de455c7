"""Runs and tables of queries: what other tools read out of them is what the report says."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import factories
import numpy as np
import pytest

from dualtower.cli import main
from dualtower.data.cards import Columns, DataCard, QueryColumns
from dualtower.data.items import ItemDataset
from dualtower.errors import ConfigError, DataError, QrelsError, UnknownName
from dualtower.evaluation import Evaluation, card_queries, evaluate, load_qrels, save_query_table, save_run
from dualtower.evaluation.qrels import Qrels
from dualtower.types import Item


def catalog(count: int = 60) -> ItemDataset:
    rows = [
        Item(
            f"r{i}",
            f"p{i // 2}",
            (f"{factories.TITLES[i // 2 % len(factories.TITLES)]} {i // 2}",),
            factories.png(factories.photo(i)),
        )
        for i in range(count)
    ]
    return ItemDataset.from_rows(rows)


def graded(count: int = 12) -> Qrels:
    relevant = tuple({f"r{i}": 1.0, f"r{i + 20}": 0.5, f"r{i + 30}": 2.0} for i in range(count))
    return Qrels(tuple(f"q{i}" for i in range(count)), tuple(factories.TITLES[:count]), relevant)


@pytest.fixture(scope="module")
def result() -> Evaluation:
    return evaluate(factories.spread_model(), catalog(), queries=graded(), bootstrap=0)


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """As trec_eval reads it: by query, best score first, whatever the order of the lines."""
    run: dict[str, list[tuple[str, float]]] = {}
    for line in path.read_text().splitlines():
        query, q0, document, _, score, tag = line.split()
        assert (q0, tag) == ("Q0", "my-run")
        run.setdefault(query, []).append((document, float(score)))
    return {query: sorted(hits, key=lambda hit: -hit[1]) for query, hits in run.items()}


def test_a_run_holds_the_reports_metrics(tmp_path: Path, result: Evaluation) -> None:
    save_run(tmp_path / "run.txt", result, tag="my run")
    run, qrels = read_run(tmp_path / "run.txt"), graded()
    assert list(run) == list(qrels.ids) and all(len(hits) == 60 for hits in run.values())
    ndcg, reciprocal, recall = [], [], []
    for query, relevant in zip(qrels.ids, qrels.relevant, strict=True):
        grades = [relevant.get(document, 0.0) for document, _ in run[query]]
        gain = sum(grade / math.log2(i + 2) for i, grade in enumerate(grades[:10]))
        ndcg.append(gain / sum(g / math.log2(i + 2) for i, g in enumerate(sorted(relevant.values(), reverse=True))))
        reciprocal.append(1 / (1 + next(i for i, grade in enumerate(grades) if grade)))
        recall.append(sum(grade > 0 for grade in grades[:10]) / len(relevant))
    figures = result.report.metrics["text_to_image"]
    assert figures["ndcg@10"].value == pytest.approx(np.mean(ndcg), abs=1e-9)
    assert figures["mrr"].value == pytest.approx(np.mean(reciprocal), abs=1e-9)
    assert figures["recall@10"].value == pytest.approx(np.mean(recall), abs=1e-9)


def test_a_run_is_cut_and_leaves_out_the_query_itself(tmp_path: Path) -> None:
    by_product = evaluate(factories.spread_model(), catalog(20), bootstrap=0)
    save_run(tmp_path / "run.txt", by_product, direction="image_to_image", depth=7, tag="my-run")
    run = read_run(tmp_path / "run.txt")
    assert len(run) == 20 and all(len(hits) == 7 for hits in run.values())
    assert all(query not in dict(hits) for query, hits in run.items())
    lines = [line.split() for line in (tmp_path / "run.txt").read_text().splitlines()]
    assert [int(rank) for _, _, _, rank, _, _ in lines] == list(range(1, 8)) * 20
    with pytest.raises(UnknownName, match="Did you mean 'text_to_image'"):
        save_run(tmp_path / "run.txt", by_product, direction="text_to_img")


def test_an_id_with_a_space_is_no_run(tmp_path: Path) -> None:
    spaced = ItemDataset.from_rows([Item("a b", "p", ("red mug",), factories.png(factories.photo()))])
    with pytest.raises(DataError, match="id 'a b' of a query has a space"):
        save_run(tmp_path / "run.txt", evaluate(factories.spread_model(), spaced, bootstrap=0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["queries.csv", "queries.jsonl"])
def test_the_table_of_queries_holds_the_reports_metrics(tmp_path: Path, result: Evaluation, name: str) -> None:
    save_query_table(tmp_path / name, result)
    if name.endswith("csv"):
        with (tmp_path / name).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    else:
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    for direction, figures in result.report.metrics.items():
        of = [row for row in rows if row["direction"] == direction]
        for metric, figure in figures.items():
            values = [float(row["rank" if metric == "median_rank" else metric]) for row in of]
            mean = np.median(values) if metric == "median_rank" else np.mean(values)
            assert figure.value == pytest.approx(mean, abs=1e-9)
    first = rows[0]
    assert (first["query"], first["text"], int(first["relevant"])) == ("q0", factories.TITLES[0], 3)
    with pytest.raises(ConfigError, match=r"ends in .csv or .jsonl"):
        save_query_table(tmp_path / "queries.xml", result)


BEIR = "query-id\tcorpus-id\tscore\nq1\tr1\t2\nq1\tr2\t0\nq2\tr3\t1\n"


def beir(folder: Path, judgments: str = BEIR, name: str = "qrels/test.tsv") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(judgments)
    lines = [
        {"_id": "q1", "text": "red mug", "metadata": {}},
        {"_id": "q2", "text": "tote bag"},
        {"_id": "q3", "text": "-"},
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "corpus.jsonl").write_text('{"_id": "r1", "text": "not read"}\n')
    return folder


def test_a_beir_folder(tmp_path: Path) -> None:
    folder = beir(tmp_path / "beir")
    expected = (("q1", "q2"), ("red mug", "tote bag"), ({"r1": 2.0}, {"r3": 1.0}))
    for path in (folder, folder / "qrels" / "test.tsv"):
        qrels = load_qrels(path)
        assert (qrels.ids, qrels.texts, qrels.relevant) == expected
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq3\tr9\t1\n")
    assert load_qrels(folder).ids == ("q1", "q2")
    assert load_qrels(folder / "qrels" / "dev.tsv").texts == ("-",)


def test_judgments_as_json_lines_and_as_csv(tmp_path: Path) -> None:
    lines = [{"query-id": "q1", "corpus-id": "r1", "score": 2}, {"query-id": "q2", "corpus-id": "r3", "score": 1.0}]
    folder = beir(tmp_path / "mteb", "".join(json.dumps(line) + "\n" for line in lines), "qrels/test.jsonl")
    assert load_qrels(folder).relevant == ({"r1": 2.0}, {"r3": 1.0})
    (tmp_path / "judged.csv").write_text('query,docid,relevance\n"red, or blue mug",r1,1\n')
    assert load_qrels(tmp_path / "judged.csv").texts == ("red, or blue mug",)


@pytest.mark.parametrize(
    ("judgments", "message"),
    [
        ("query-id\tcorpus-id\tscore\nq1\tr1\tgood\n", "grade 'good' is not a number"),
        ("query-id\tcorpus-id\tscore\nq1\tr1\n", "2 fields in .* whose header names 3"),
        ("query-id\tcorpus-id\tscore\nq9\tr1\t1\n", "1 query ids of .* have no text in .*queries.jsonl: 'q9'"),
        ("query-id\tcorpus-id\tscore\n", "names no relevant document"),
        ('{"query-id": "q1", "corpus-id": "r1", "score": 1}\n17\n', "line 2: 17 is not an object"),
        (
            '{"query-id": "q1", "corpus-id": "r1", "score": 1}\n{"query-id": "q1"}\n',
            "line 2: query, document or grade is missing",
        ),
    ],
)
def test_malformed_judgments(tmp_path: Path, judgments: str, message: str) -> None:
    with pytest.raises(QrelsError, match=message):
        load_qrels(beir(tmp_path / "beir", judgments))


def test_a_folder_without_judgments(tmp_path: Path) -> None:
    with pytest.raises(QrelsError, match=r"holds no qrels/test\.tsv"):
        load_qrels(tmp_path)
    for split in ("dev", "train"):
        beir(tmp_path, name=f"qrels/{split}.tsv")
    with pytest.raises(QrelsError, match=r"name the file, one of .*dev\.tsv"):
        load_qrels(tmp_path)


ANSWERS = [
    # id, product, query id, query, label: p0 answers two queries, and stands in a row for each
    ("r0", "p0", "7", "red mug", "Exact"),
    ("r1", "p1", "7", "red mug", "Irrelevant"),
    ("r2", "p0", "8", "gift", "Substitute"),
    ("r3", "p2", "8", "gift", "Exact"),
    ("r4", "p2", "8", "gift", "Substitute"),
    ("r5", "p3", None, None, None),
]
COLUMNS = QueryColumns("query", id="query_id", grade="label", grades={"Exact": 1, "Substitute": 0.1, "Irrelevant": 0})


def answers() -> ItemDataset:
    return ItemDataset.from_rows(
        [
            Item(
                i,
                p,
                (f"title {p}",),
                factories.png(factories.photo(k)),
                attributes={"query_id": q, "query": t, "label": g},
            )
            for k, (i, p, q, t, g) in enumerate(ANSWERS)
        ]
    )


def test_graded_queries_of_the_rows() -> None:
    gallery, qrels = card_queries(answers(), COLUMNS)
    assert gallery.ids == ["r0", "r1", "r3", "r5"] and gallery.product_ids == ["p0", "p1", "p2", "p3"]
    assert (qrels.ids, qrels.texts) == (("7", "8"), ("red mug", "gift"))
    assert qrels.relevant == ({"r0": 1.0}, {"r0": 0.1, "r3": 1.0})
    measured = evaluate(factories.spread_model(), gallery, queries=qrels, bootstrap=0)
    assert measured.report.protocol["directions"]["text_to_image"]["gallery"] == 4
    without = card_queries(answers(), QueryColumns("query"))[1]
    assert without.relevant == ({"r0": 1.0, "r1": 1.0}, {"r0": 1.0, "r3": 1.0})


def test_query_columns_that_do_not_fit() -> None:
    with pytest.raises(QrelsError, match="row r0: column 'label' has grade 'Exact'"):
        card_queries(answers(), QueryColumns("query", grade="label"))
    with pytest.raises(QrelsError, match="row r2: query '1' has another text than before, 'gift'"):
        rows = [Item(r.id, r.product_id, r.texts, r.image, {**r.attributes, "one": "1"}) for r in answers()]
        card_queries(ItemDataset.from_rows(rows), QueryColumns("query", id="one"))
    with pytest.raises(ConfigError, match=r"queries names 'query', which is not among columns\.attributes"):
        DataCard("shop", Columns("title"), queries=QueryColumns("query"))


def test_the_command_writes_runs_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factories.spread_model().save_pretrained(tmp_path / "model")
    (tmp_path / "shop").mkdir()
    with (tmp_path / "shop" / "test.jsonl").open("w") as stream:
        for product in answers():
            (tmp_path / "shop" / f"{product.id}.png").write_bytes(product.image)  # type: ignore[arg-type]
            row = {"id": product.id, "product": product.product_id, "title": product.texts[0], **product.attributes}
            stream.write(json.dumps({**row, "photo": f"{product.id}.png"}) + "\n")
    (tmp_path / "shop.md").write_text(
        "---\nname: shop\nsource: {path: shop}\n"
        "columns: {id: id, product_id: product, text: title, image: photo, attributes: [query, query_id, label]}\n"
        "queries: {text: query, id: query_id, grade: label, grades: {Exact: 1, Substitute: 0.1, Irrelevant: 0}}\n---\n"
    )
    command = ["evaluate", str(tmp_path / "model"), "--data.card", str(tmp_path / "shop.md"), "--bootstrap", "0"]
    exports = ["--run", str(tmp_path / "run.txt"), "--per-query", str(tmp_path / "queries.csv")]
    main([*command, "--qrels", "card", *exports, "--json", str(tmp_path / "metrics.json")])
    assert len((tmp_path / "run.txt").read_text().splitlines()) == 2 * 4
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["relevance"] == "qrels columns of shop"
    with (tmp_path / "queries.csv").open(newline="") as table:
        assert [row["query"] for row in csv.DictReader(table) if row["direction"] == "text_to_image"] == ["7", "8"]

    (tmp_path / "trec.txt").write_text("7 0 r0 1\n")
    (tmp_path / "texts.tsv").write_text("7\tred mug\n")
    main([*command, "--qrels", str(tmp_path / "trec.txt"), "--queries", str(tmp_path / "texts.tsv"), *exports[2:]])
    assert "red mug" in (tmp_path / "queries.csv").read_text()
    for wrong, complaint in (
        (["--per-query", "queries.xml"], "ends in .csv or .jsonl"),
        (["--queries", "texts.tsv"], "name that with --qrels"),
        (["--task", "product-to-product", *exports], "takes no --run, no --per-query"),
    ):
        with pytest.raises(SystemExit, match=complaint):
            main([*command, *wrong])
