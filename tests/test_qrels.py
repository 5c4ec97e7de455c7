"""Relevance files: good ones, bad ones, and the real one."""

from __future__ import annotations

import json

import pytest

from dualtower.errors import QrelsError
from dualtower.evaluation import Relevance, load_qrels


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "file"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_marqo_json_with_lists_and_with_grades(write):
    qrels = load_qrels(write('{"red mug": ["1", 2], "蓝色杯子": {"3": 2, "4": 0.5, "5": 0, "6": -1}}'))
    assert qrels.texts == ("red mug", "蓝色杯子")
    assert qrels.relevant == ({"1": 1, "2": 1}, {"3": 2, "4": 0.5})
    assert qrels.graded
    relevance = Relevance.from_qrels(qrels, ["4", "3", "2", "1"])
    assert relevance.items.tolist() == [2, 3, 0, 1]
    assert relevance.grades.tolist() == [1, 1, 0.5, 2]


def test_equal_query_texts_stay_apart(write):
    qrels = load_qrels(write('{"mug": ["1"], "mug": ["2"]}'))
    assert qrels.texts == ("mug", "mug")
    assert qrels.ids == ("0", "1")
    assert qrels.relevant == ({"1": 1}, {"2": 1})
    both = load_qrels(write("a 0 1 1\nb 0 2 1\n"), queries=write("a\tmug\nb\tmug\n", "queries.tsv"))
    assert both.ids == ("a", "b")
    assert both.texts == ("mug", "mug")


def test_trec(write):
    path = write("q1 0 d1 2\nq1\t0\td2\t0\n\nq2 0 d3 1\nred mug\t0\td4\t1\n")
    qrels = load_qrels(path)
    assert qrels.ids == qrels.texts == ("q1", "q2", "red mug")
    assert qrels.relevant == ({"d1": 2}, {"d3": 1}, {"d4": 1})
    texts = write(json.dumps({"q1": "one", "q2": "two", "red mug": "three", "q9": "unused"}), "q.json")
    assert load_qrels(path, queries=texts).texts == ("one", "two", "three")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no relevant document"),
        ("{}", "names no relevant document"),
        ('{"mug": {"1": 0}}', "names no relevant document"),
        ('{"mug": ["1"]', "not valid JSON"),
        ('["mug"]', "holds a JSON list"),
        ('{"mug": "1"}', "query 'mug': got '1'"),
        ('{"mug": [["1"]]}', "query 'mug': got"),
        ('{"mug": {"1": "good"}}', "document '1' has grade 'good'"),
        ('{"mug": {"1": NaN}}', "document '1' has grade nan"),
        ('{"mug": {"1": true}}', "document '1' has grade True"),
        ('{"mug": {"1": 1, "1": 2}}', "document '1' has two grades, 1 and 2"),
        ('{" ": ["1"]}', "query text is ' '"),
        ("q1 0 d1", "line 1: 3 fields"),
        ("q1 0 d1 1\nq1 0 d2 x", "line 2: grade 'x' is not a number"),
    ],
)
def test_malformed(write, text, message):
    with pytest.raises(QrelsError, match=message):
        load_qrels(write(text))


def test_missing_file_and_queries_that_do_not_fit(write, tmp_path):
    with pytest.raises(QrelsError, match="cannot read"):
        load_qrels(tmp_path / "nothing.json")
    with pytest.raises(QrelsError, match="cannot read"):
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        load_qrels(tmp_path / "binary")
    trec = write("q1 0 d1 1\nq2 0 d1 1")
    with pytest.raises(QrelsError, match=r"1 query ids of .* have no text in .*: 'q2'"):
        load_qrels(trec, queries=write("q1\tone", "q.tsv"))
    with pytest.raises(QrelsError, match="line 1: no tab"):
        load_qrels(trec, queries=write("q1 one", "q2.tsv"))
    with pytest.raises(QrelsError, match="leave out the file"):
        load_qrels(write('{"a": ["1"]}'), queries=trec)


def test_ids_that_the_gallery_lacks(write):
    qrels = load_qrels(write('{"mug": ["1", "8"], "cup": ["8", "9"]}'))
    with pytest.raises(QrelsError, match=r"2 document ids of file are not among the 2 ids of the gallery: 8, 9\."):
        Relevance.from_qrels(qrels, ["1", "2"])
    dropped = Relevance.from_qrels(qrels, ["1", "2"], missing="drop")
    assert dropped.counts.tolist() == [1, 0]
    with pytest.raises(QrelsError, match="2 document ids"):
        Relevance.from_qrels(load_qrels(write('{"cup": ["8", "9"]}')), ["1"], missing="drop")


@pytest.mark.shared
def test_real_query_set(shared_fashion):
    import pyarrow.parquet as parquet

    qrels = load_qrels(shared_fashion / "kagl_text_to_image.json")
    assert len(qrels) == 1977
    assert sum(len(documents) > 1 for documents in qrels.relevant) == 320
    assert not qrels.graded
    files = [shared_fashion / f"{split}.parquet" for split in ("train", "validation", "test")]
    ids = [str(i) for file in files for i in parquet.read_table(file, columns=["id"])["id"].to_pylist()]
    relevance = Relevance.from_qrels(qrels, ids)
    assert relevance.gallery_size == 44_072
    assert relevance.items.min() >= 44_072 - 2_867  # all relevant images lie in the test split
