"""The whole evaluation with a tiny encoder: directions, report, pages."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dualtower.data.items import ItemDataset
from dualtower.errors import ConfigError, DataError, QrelsError, RowError, UnknownName
from dualtower.evaluation import Qrels, compare, evaluate, write_report
from dualtower.types import Item

COLORS = {"red": (200, 30, 30), "绿色": (30, 180, 60), "blue": (40, 60, 210), "grey": (120, 120, 120)}


class ColorEncoder:
    """Embeds a text by the color it names and an image by its mean color; `noise` makes it worse."""

    def __init__(self, noise: float = 0.0, similarity: str = "cosine") -> None:
        self.noise = noise
        self.config = SimpleNamespace(similarity=similarity)
        self.fingerprint = f"colors-{noise}"

    def encode_text(self, texts, *, batch_size=256, progress=False):
        return self._finish([COLORS[text.split()[0]] for text in texts])

    def encode_image(self, images, *, batch_size=256, progress=False):
        opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
        return self._finish([np.asarray(image).mean((0, 1)) for image in opened])

    def _finish(self, colors):
        vectors = np.array(colors, np.float32).reshape(-1, 3) - 100
        vectors = vectors + self.noise * np.random.default_rng(0).normal(size=vectors.shape)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def photo(color, shade: int) -> bytes:
    image = Image.new("RGB", (12, 20), tuple(c + shade for c in color))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def catalog(views: int = 3, **changes) -> ItemDataset:
    rows = [
        Item(
            id=f"{name}-{view}",
            product_id=name,
            texts=(f"{name} mug",),
            image=changes.get("image", photo(color, 7 * view)),
            attributes={"color": name, "view": view},
        )
        for name, color in COLORS.items()
        for view in range(views)
    ]
    return ItemDataset.from_rows(rows, card="mugs", split="test")


def test_directions_queries_and_galleries():
    result = evaluate(ColorEncoder(), catalog(), ks=(1, 3), bootstrap=50)
    assert list(result.directions) == ["text_to_image", "image_to_text", "image_to_image"]
    sizes = {name: (d["queries"], d["gallery"]) for name, d in result.report.protocol["directions"].items()}
    assert sizes == {"text_to_image": (4, 12), "image_to_text": (12, 4), "image_to_image": (12, 12)}
    metrics = result.report.metrics
    assert metrics["text_to_image"]["recall@1"].value == pytest.approx(1 / 3)
    assert metrics["text_to_image"]["hit@1"].value == 1
    assert metrics["text_to_image"]["recall@3"].value == 1
    assert metrics["image_to_text"]["recall@1"].value == 1
    assert metrics["image_to_image"]["recall@3"].value == 1  # its own row does not stand in the way
    assert metrics["image_to_image"]["recall@1"].value == 0.5
    texts = result.directions["text_to_image"].queries
    assert texts.texts == [f"{name} mug" for name in COLORS]
    assert result.directions["image_to_text"].groups.shape == (12,)


def test_single_images_have_no_image_to_image():
    result = evaluate(ColorEncoder(), catalog(views=1), ks=(1,), bootstrap=0)
    assert list(result.directions) == ["text_to_image", "image_to_text"]
    assert result.report.metrics["text_to_image"]["recall@1"].low is None


def test_the_json_reads_as_promised(tmp_path):
    report = evaluate(ColorEncoder(30), catalog()).report
    written = json.loads(report.save(tmp_path).read_text())
    assert written == json.loads(json.dumps(report.to_dict()))
    assert list(written) == ["text_to_image", "image_to_text", "image_to_image", "protocol"]
    names = ["recall@1", "recall@5", "recall@10", "hit@1", "hit@5", "hit@10", "mrr", "mrr@10", "ndcg@10", "map"]
    names.append("median_rank")
    for direction in list(written)[:-1]:
        assert list(written[direction]) == names
        for figure in written[direction].values():
            assert list(figure) == ["value", "low", "high"]
            assert figure["low"] <= figure["value"] <= figure["high"]
    protocol = written["protocol"]
    assert protocol["card"] == "mugs"
    assert protocol["model_fingerprint"] == "colors-30"
    assert protocol["data_fingerprint"] == catalog().fingerprint
    assert protocol["ties"] == "expected"
    assert protocol["intervals"] == {
        "level": 0.95, "method": "bootstrap by product", "where_all_resamples_agree": "Clopper-Pearson",
        "resamples": 1000, "seed": 0,
    }  # fmt: skip
    assert protocol["directions"]["image_to_text"]["chance"]["recall@1"] == pytest.approx(0.25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json"]


def test_the_table_shows_figures_intervals_and_chance():
    table = evaluate(ColorEncoder(), catalog()).report.table().splitlines()
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == [
        "metric", "text → image", "chance", "image → text", "chance", "image → image", "chance",
    ]  # fmt: skip
    assert "0.333 [0.133, 0.735]" in table[2]  # four products that agree: exact bounds
    assert {line.split("|")[1].strip() for line in table[2:]} >= {"recall@10", "hit@5", "MRR", "nDCG@10", "median rank"}
    assert len({len(line) for line in table}) == 1


def qrels(**relevant) -> Qrels:
    texts = tuple(name.replace("_", " ") for name in relevant)
    return Qrels(tuple(map(str, range(len(texts)))), texts, tuple(relevant.values()), name="mugs.json")


def test_relevance_file_searches_the_whole_catalog_and_back():
    queries = qrels(red_mug={"red-0": 2, "red-1": 1}, blue_cup={"blue-0": 1}, grey_thing={"red-2": 1})
    result = evaluate(ColorEncoder(), catalog(), queries=queries, ks=(1, 3), bootstrap=20, breakdown=("color",))
    assert list(result.directions) == ["text_to_image", "image_to_text"]
    forward, backward = result.directions.values()
    assert (len(forward.ranks.judged), len(backward.ranks.judged)) == (3, 4)
    assert forward.per_query["recall@3"].tolist() == [1, 1, 0]
    assert backward.gallery.texts == ["red mug", "blue cup", "grey thing"]
    assert backward.per_query["recall@1"].tolist() == [1, 1, 0, 1]
    assert result.report.protocol["relevance"] == "qrels mugs.json"
    values = {row.value: row.queries for row in result.breakdowns["color"]["text_to_image"]}
    assert values == {"red": 2, "blue": 1}  # a query counts where its most relevant image does
    with pytest.raises(QrelsError, match="not among the 12 ids"):
        evaluate(ColorEncoder(), catalog(), queries=qrels(red_mug={"red-9": 1, "red-0": 1}))
    kept = qrels(red_mug={"red-9": 1, "red-0": 1}, blue_mug={"blue-9": 1})
    dropped = evaluate(ColorEncoder(), catalog(), queries=kept, missing="drop", bootstrap=0)
    assert dropped.report.protocol["directions"]["text_to_image"]["queries_without_relevant"] == 1


def test_compare_pairs_queries():
    good, bad = (evaluate(ColorEncoder(noise), catalog(), bootstrap=0) for noise in (0, 200))
    found = compare(bad, good, resamples=500)
    assert found["text_to_image"]["mrr"].value > 0
    assert compare(good, good, resamples=100)["image_to_text"]["hit@1"].p_value == 1
    with pytest.raises(ConfigError, match="the galleries differ"):
        compare(good, evaluate(ColorEncoder(), catalog(views=2), bootstrap=0))


def test_unknown_attribute_and_nothing_to_measure():
    with pytest.raises(UnknownName, match=r"no attribute 'colr'.*Did you mean 'color'"):
        evaluate(ColorEncoder(), catalog(), breakdown=("colr",))
    with pytest.raises(DataError, match="no images to search"):
        evaluate(ColorEncoder(), catalog(image=None))


def test_report_page(tmp_path):
    result = evaluate(ColorEncoder(60), catalog(), bootstrap=50, breakdown=("color",))
    history = [
        {"step": 1, "epoch": 0.1, "seconds": 1.0, "loss": 5.0, "lr": 1e-3, "scale": 14.0, "samples_per_s": 90},
        {"step": 9, "epoch": 0.9, "seconds": 9.0, "loss": 3.0, "lr": 5e-4, "scale": 15.0, "samples_per_s": 95},
        {"step": 9, "epoch": 0.9, "seconds": 9.0, "validation": {"score": 0.4, "text_to_image/recall@10": 0.5}},
    ]
    page = write_report(tmp_path, result, history=history, skipped=[RowError("a.csv", 7, "no | image")], examples=2)
    text = page.read_text()
    assert result.report.table() in text
    for expected in ("绿色 mug", "## Protocol", "## By color", "a.csv, row 7: no | image", "curves.png"):
        assert expected in text
    linked = {part.split(")")[0] for part in text.split("](")[1:]}
    assert linked == {f"report/{path.name}" for path in (tmp_path / "report").iterdir()}
    assert len(linked) > 8
    for name in linked:
        with Image.open(tmp_path / name) as image:
            assert image.height > 50
    again = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    write_report(tmp_path, result, history=history, examples=2)
    assert all((tmp_path / "report" / name).read_bytes() == data for name, data in again.items())


def test_report_page_of_a_relevance_file_with_hostile_text(tmp_path):
    nasty = "red | <b>*mug*</b>\n# [x](y)"
    queries = Qrels(("a", "b"), (nasty, "blue " + "x" * 500), ({"red-0": 1}, {"blue-0": 1}))
    text = write_report(tmp_path, evaluate(ColorEncoder(), catalog(), queries=queries, bootstrap=0)).read_text()
    assert "red \\| &lt;b>\\*mug\\*&lt;/b> \\# \\[x\\](y)" in text
    assert "x" * 130 not in text
