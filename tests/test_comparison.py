"""Two runs compared by what each query achieved: the saved file, the paired figures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_cli import command
from test_evaluation import ColorEncoder, catalog, qrels

from dualtower.errors import ConfigError
from dualtower.evaluation import (
    Evaluation,
    compare,
    compare_queries,
    evaluate,
    load_queries,
    save_queries,
    write_report,
)


def measured(noise: float = 0.0, **changes) -> Evaluation:
    return evaluate(ColorEncoder(noise), catalog(views=changes.pop("views", 3)), bootstrap=0, **changes)


def test_the_file_holds_what_every_query_achieved(tmp_path: Path) -> None:
    result = measured(60)
    found = load_queries(save_queries(tmp_path, result))
    assert list(found.directions) == list(result.directions)
    assert found.protocol == json.loads(json.dumps(result.report.to_dict()["protocol"]))
    for name, direction in result.directions.items():
        saved = found.directions[name]
        assert saved.keys == [direction.queries.keys[i] for i in direction.ranks.judged]
        assert saved.texts == (direction.queries.texts and [direction.queries.texts[i] for i in direction.ranks.judged])
        assert np.array_equal(saved.product_ids, direction.groups)
        assert list(saved.metrics) == list(direction.per_query)
        for metric, values in direction.per_query.items():
            assert np.array_equal(saved.metrics[metric], values)
    assert [path.name for path in tmp_path.iterdir()] == ["queries.parquet"]


def test_the_file_equals_the_measurements_themselves(tmp_path: Path) -> None:
    bad, good = measured(200), measured()
    saved = [load_queries(save_queries(tmp_path / name, r)) for name, r in (("bad", bad), ("good", good))]
    assert compare_queries(*saved, resamples=300) == compare(bad, good, resamples=300)
    gain = compare(bad, good, resamples=300)["text_to_image"]["mrr"]
    means = [result.report.metrics["text_to_image"]["mrr"].value for result in (bad, good)]
    assert gain.value == pytest.approx(means[1] - means[0]) and gain.value > 0


def test_the_command_takes_runs_models_and_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_report(tmp_path / "bad", measured(200), examples=1)
    write_report(tmp_path / "good", measured(), examples=1)
    (tmp_path / "good" / "model").mkdir()
    out = tmp_path / "difference.json"
    words = ("compare", tmp_path / "bad", tmp_path / "good" / "model", "--resamples", 200, "--json", out)
    assert command(*words) == 0
    printed = capsys.readouterr().out
    for expected in ("text → image, 4 queries", "MRR", "difference", "p", "one training run each"):
        assert expected in printed
    figures = json.loads(out.read_text())
    mrr = figures["text_to_image"]["mrr"]
    assert set(mrr) == {"first", "second", "value", "low", "high", "p"}
    assert mrr["value"] == pytest.approx(mrr["second"] - mrr["first"])
    assert figures["protocol"]["first"]["model_fingerprint"] == "colors-200"
    assert command("compare", tmp_path / "bad" / "queries.parquet", tmp_path / "good", "--resamples", 50) == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"views": 2}, r"text_to_image: the galleries differ \(12 and 8 items\)"),
        ({"queries": qrels(red_mug={"red-0": 1})}, r"text_to_image: the queries differ \(4 and 1\)"),
    ],
)
def test_other_queries_or_galleries_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, other: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(measured(), measured(**other))
    save_queries(tmp_path / "a", measured())
    save_queries(tmp_path / "b", measured(**other))
    assert command("compare", tmp_path / "a", tmp_path / "b") == 1
    assert len(capsys.readouterr().out.strip().splitlines()) == 1


def test_the_same_queries_with_other_answers_are_refused() -> None:
    first, second = (measured(queries=qrels(red_mug={photo: 1})) for photo in ("red-0", "red-1"))
    with pytest.raises(ConfigError, match=r"text_to_image: other items are relevant"):
        compare(first, second)
    with pytest.raises(ConfigError, match=r"text_to_image: the queries differ.*'red mug' and 'red cup'"):
        compare(first, measured(queries=qrels(red_cup={"red-0": 1})))


def test_a_folder_without_measured_queries_says_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_queries(tmp_path / "a", measured())
    assert command("compare", tmp_path / "a", tmp_path / "nowhere") == 1
    assert "queries.parquet" in (printed := capsys.readouterr().out) and "dualtower evaluate" in printed
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "queries.parquet").write_bytes(b"PAR1 no more")
    assert command("compare", tmp_path / "a", tmp_path / "b") == 1
    assert "cannot read" in capsys.readouterr().out
