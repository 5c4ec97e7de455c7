"""Every loss against its formula written out in loops, in float64; the tiled kernel against the plain one."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dualtower.config import from_dict, to_dict
from dualtower.errors import ConfigError, UnknownLoss, UnknownName
from dualtower.losses import (
    LOSSES,
    LossConfig,
    build_loss,
    contrast_with_keys,
    contrast_with_queue,
    info_nce,
    negative_cosine,
    nt_xent,
    pairwise_hinge,
    siglip,
    similarities,
    supervised_contrastive,
    tiles,
    triplet,
)

SIMILARITIES = ("cosine", "dot", "euclidean")
POSITIVES = ("product", "ignore", "pair")
PRODUCTS = torch.tensor([7, 3, 7, 1, 9, 3, 7, 2, 5])
EVERY = [
    partial(info_nce, tile=0),
    partial(info_nce, tile=4),
    partial(info_nce, tile=4, label_smoothing=0.1),
    partial(siglip, tile=0),
    partial(siglip, tile=4),
    partial(triplet, mining="all"),
    partial(triplet, mining="semi-hard"),
    partial(triplet, mining="hardest"),
    pairwise_hinge,
]


def name_of(loss: partial | object) -> str:
    if isinstance(loss, partial):
        return "-".join([loss.func.__name__, *(f"{k}={v}" for k, v in loss.keywords.items())])
    return loss.__name__


each_loss = pytest.mark.parametrize("loss", EVERY, ids=name_of)
each_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)
each_positives = pytest.mark.parametrize("positives", POSITIVES)


def batch(product_codes: Tensor = PRODUCTS, *, dim: int = 5, seed: int = 0, dtype=torch.float64) -> dict[str, Tensor]:
    """A joined batch with learned scale and bias; normalized rows."""
    random = torch.Generator().manual_seed(seed)
    image, text = (
        F.normalize(torch.randn(len(product_codes), dim, generator=random, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    values = {
        "image": image,
        "text": text,
        "scale": torch.tensor(3.7, dtype=torch.float64),
        "bias": torch.tensor(-1.3, dtype=torch.float64),
    }
    return {k: v.to(dtype).requires_grad_() for k, v in values.items()} | {"product_codes": product_codes}


def gradients(loss: Tensor, values: dict[str, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [values[k] for k in ("image", "text", "scale", "bias")]))


# The references: one pair, row or triplet at a time.


def pairs(values: dict[str, Tensor], similarity: str, positives: str):
    """s[i][j] and, for each row, its positives and its negatives."""
    image, text, product_codes = values["image"], values["text"], values["product_codes"].tolist()
    n = len(product_codes)
    s = [[-(a - b).norm() if similarity == "euclidean" else a.dot(b) for b in text] for a in image]
    same = [
        [i == j or (positives == "product" and product_codes[i] == product_codes[j]) for j in range(n)]
        for i in range(n)
    ]
    near = [
        [i == j or (positives != "pair" and product_codes[i] == product_codes[j]) for j in range(n)] for i in range(n)
    ]
    p = [[j for j in range(n) if same[i][j]] for i in range(n)]
    q = [[j for j in range(n) if not near[i][j]] for i in range(n)]
    return s, [list(column) for column in zip(*s, strict=True)], p, q


def reference_info_nce(values, similarity, positives, label_smoothing=0.0):
    s, transposed, p, q = pairs(values, similarity, positives)
    total = 0
    for side in (s, transposed):
        for i, row in enumerate(side):
            seen = sorted(p[i] + q[i])
            z = {j: values["scale"] * row[j] for j in seen}
            denominator = sum(z[j].exp() for j in seen)
            target = {j: (1 - label_smoothing) * (j in p[i]) / len(p[i]) + label_smoothing / len(seen) for j in seen}
            total = total - sum(target[j] * (z[j].exp() / denominator).log() for j in seen)
    return total / (2 * len(s))


def reference_siglip(values, similarity, positives):
    s, _, p, q = pairs(values, similarity, positives)
    total = 0
    for i, row in enumerate(s):
        for j in p[i] + q[i]:
            z = values["scale"] * row[j] + values["bias"]
            total = total - torch.sigmoid(z if j in p[i] else -z).log()
    return total / len(s)


def reference_triplet(values, similarity, positives, margin=0.2, mining="all"):
    s, transposed, p, q = pairs(values, similarity, positives)
    total = 0
    for side in (s, transposed):
        costs = []
        for i, row in enumerate(side):
            if mining == "hardest":
                chosen = [(min(p[i], key=row.__getitem__), max(q[i], key=row.__getitem__))]
            elif mining == "all":
                chosen = [(a, b) for a in p[i] for b in q[i] if margin + row[b] - row[a] > 0]
            else:
                chosen = []
                for a in p[i]:
                    below = [b for b in q[i] if row[b] < row[a]]
                    chosen.append((a, max(below, key=row.__getitem__) if below else min(q[i], key=row.__getitem__)))
            costs += [(margin + row[b] - row[a]).clamp_min(0) for a, b in chosen]
        total = total + sum(costs) / len(costs)
    return total / 2


def reference_hinge(values, similarity, positives, margin=0.2):
    s, transposed, p, q = pairs(values, similarity, positives)
    total = 0
    for side in (s, transposed):
        for i, row in enumerate(side):
            costs = [(margin + row[n] - row[a]).clamp_min(0) for a in p[i] for n in q[i]]
            total = total + sum(costs) / len(costs)
    return total / (2 * len(s))


CASES = [
    (info_nce, reference_info_nce, {}),
    (info_nce, reference_info_nce, {"label_smoothing": 0.2}),
    (siglip, reference_siglip, {}),
    (triplet, reference_triplet, {"mining": "all"}),
    (triplet, reference_triplet, {"mining": "semi-hard"}),
    (triplet, reference_triplet, {"mining": "hardest", "margin": 0.5}),
    (pairwise_hinge, reference_hinge, {}),
]


@pytest.mark.parametrize(("loss", "reference", "options"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
@each_similarity
@each_positives
def test_value_and_gradients_are_the_formula(loss, reference, options, similarity, positives):
    values = batch()
    got = loss(**values, similarity=similarity, positives=positives, **options)
    want = reference(values, similarity, positives, **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    wanted = torch.autograd.grad(want, [values[k] for k in ("image", "text", "scale", "bias")], allow_unused=True)
    for mine, theirs in zip(gradients(got, values), wanted, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, rtol=1e-10, atol=1e-12)


def test_one_row_per_product_is_plain_clip():
    values = batch(torch.arange(8))
    logits = values["scale"] * values["image"] @ values["text"].T
    clip = (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2
    torch.testing.assert_close(info_nce(**values), clip)


def test_kinds_of_positives_agree_where_products_are_distinct():
    values = batch(torch.arange(8))
    for loss in EVERY:
        product, ignore, pair = (loss(**values, positives=positives) for positives in POSITIVES)
        assert product == ignore == pair


@each_loss
@each_similarity
def test_gradcheck(loss, similarity):
    values = batch(dim=3)
    inputs = [values[k] for k in ("image", "text", "scale", "bias")]

    def function(image, text, scale, bias):
        return loss(image, text, scale=scale, bias=bias, product_codes=PRODUCTS, similarity=similarity)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("loss", [info_nce, partial(info_nce, label_smoothing=0.1), siglip], ids=name_of)
@each_similarity
@each_positives
def test_tiled_equals_plain(loss, similarity, positives):
    for rows, tile in ((1, 4), (16, 16), (37, 8), (13, 1), (21, 64)):
        product_codes = torch.randint(0, rows // 2 + 1, (rows,), generator=torch.Generator().manual_seed(rows))
        values = batch(product_codes, dim=7, seed=rows)
        plain = loss(**values, similarity=similarity, positives=positives, tile=0)
        tiled = loss(**values, similarity=similarity, positives=positives, tile=tile)
        torch.testing.assert_close(tiled, plain, rtol=1e-12, atol=1e-14)
        for mine, theirs in zip(gradients(tiled * 3, values), gradients(plain * 3, values), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_large_batches_are_tiled_by_default(monkeypatch):
    monkeypatch.setattr(tiles, "TILED_FROM", 9)
    monkeypatch.setattr(tiles, "TILE", 4)
    values = batch()
    for loss in (info_nce, siglip):
        assert "_TiledLoss" in _graph(loss(**values)) and "_TiledLoss" not in _graph(loss(**values, tile=0))
        torch.testing.assert_close(loss(**values), loss(**values, tile=0))
    monkeypatch.setattr(tiles, "TILED_FROM", 10)
    assert "_TiledLoss" not in _graph(info_nce(**values))


def _graph(loss: Tensor) -> str:
    names, nodes = "", [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names += node.name()
            nodes += [following for following, _ in node.next_functions]
    return names


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns, in the backward pass too."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("loss", [info_nce, siglip], ids=name_of)
@each_similarity
@each_positives
def test_tiles_are_the_largest_matrices(loss, similarity, positives):
    values = batch(torch.arange(64) // 2)
    for tile, expected in ((8, 64 * 5), (0, 64 * 64)):
        with Largest() as largest:
            gradients(loss(**values, similarity=similarity, positives=positives, tile=tile), values)
        assert largest.numel == expected


def test_tiles_leave_a_locked_tower_alone():
    values = batch()
    values["image"] = values["image"].detach()
    loss = info_nce(**values, tile=4)
    expected = info_nce(**values, tile=0)
    for name in ("text", "scale"):
        (mine,) = torch.autograd.grad(loss, values[name], retain_graph=True)
        (theirs,) = torch.autograd.grad(expected, values[name], retain_graph=True)
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("loss", [info_nce, siglip], ids=name_of)
def test_half_precision_is_computed_in_float32(loss):
    values = batch(torch.arange(40), dim=16, dtype=torch.bfloat16)
    exact = {k: v.detach().float().requires_grad_() if v.is_floating_point() else v for k, v in values.items()}
    for tile in (0, 16):
        value = loss(**values, tile=tile)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(**exact, tile=tile))
        mine, wanted = gradients(value, values), gradients(loss(**exact, tile=tile), exact)
        assert all(g.dtype == torch.bfloat16 for g in mine)
        for a, b in zip(mine, wanted, strict=True):
            torch.testing.assert_close(a, b.bfloat16(), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("tile", [0, 8])
def test_autocast_does_not_reach_the_logits(tile):
    values = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(**values, tile=tile)
    outside = info_nce(**values, tile=tile)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)
    for a, b in zip(gradients(inside, values), gradients(outside, values), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@each_loss
@each_similarity
def test_order_of_rows_does_not_matter(loss, similarity):
    values = batch()
    order = torch.randperm(len(PRODUCTS), generator=torch.Generator().manual_seed(1))
    shuffled = values | {k: values[k].detach()[order].requires_grad_() for k in ("image", "text")}
    shuffled["product_codes"] = PRODUCTS[order]
    first, second = loss(**values, similarity=similarity), loss(**shuffled, similarity=similarity)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)
    for a, b in zip(gradients(first, values)[:2], gradients(second, shuffled)[:2], strict=True):
        torch.testing.assert_close(a[order], b, rtol=1e-10, atol=1e-13)


@each_loss
@each_similarity
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scale_stays_finite(loss, similarity, dtype):
    values = batch(dtype=dtype)
    values["scale"] = torch.tensor(1e4, dtype=dtype, requires_grad=True)
    result = loss(**values, similarity=similarity)
    assert all(x.isfinite().all() for x in (result, *gradients(result, values)))


@each_loss
@each_similarity
@each_positives
@pytest.mark.parametrize("rows", [1, 2, 6])
def test_a_single_product_is_finite(loss, similarity, positives, rows):
    values = batch(torch.full((rows,), 4))
    result = loss(**values, similarity=similarity, positives=positives)
    assert all(x.isfinite().all() for x in (result, *gradients(result, values)))
    if positives != "pair" and name_of(loss).startswith(("triplet", "pairwise")):
        assert result == 0 and not any(g.any() for g in gradients(loss(**values, positives=positives), values))


@pytest.mark.parametrize("loss", [e for e in EVERY if "smoothing" not in name_of(e)], ids=name_of)
def test_positives_attract_and_negatives_repel(loss):
    """With unit vectors as texts, the gradient of the images is that of the similarities themselves."""
    values = batch(dim=len(PRODUCTS))
    values["text"] = torch.eye(len(PRODUCTS), dtype=torch.float64, requires_grad=True)
    together = PRODUCTS.unsqueeze(1) == PRODUCTS
    others = together & ~torch.eye(len(PRODUCTS), dtype=torch.bool)
    push = gradients(loss(**values), values)[0]
    assert (push[~together] >= 0).all() and (push[~together] > 0).any()
    for product in PRODUCTS.unique():
        own = product == PRODUCTS
        assert push[own][:, own].sum() < 0
    if not name_of(loss).startswith("info_nce"):  # there, positives share the probability among themselves
        assert (push[together] <= 0).all()
    assert not gradients(loss(**values, positives="ignore"), values)[0][others].any()
    assert (gradients(loss(**values, positives="pair"), values)[0][others] >= 0).all()


def test_positives_of_a_product_share_the_probability():
    """InfoNCE's least value with two equal rows of one product is log 2; without each other, zero."""
    values = batch(torch.tensor([1, 1]))
    values["image"] = values["text"] = F.normalize(torch.ones(2, 4, dtype=torch.float64)).requires_grad_()
    assert math.isclose(info_nce(**values).item(), math.log(2))
    assert info_nce(**values, positives="ignore").abs() < 1e-12


@each_loss
@each_similarity
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_vectors_give_no_nan(loss, similarity, dtype):
    values = batch(dtype=dtype)
    same = F.normalize(torch.ones(len(PRODUCTS), 5, dtype=dtype)).requires_grad_()
    values["image"], values["text"] = same, same.detach().clone().requires_grad_()
    result = loss(**values, similarity=similarity)
    assert all(x.isfinite().all() for x in (result, *gradients(result, values)))


@each_loss
def test_untouched_parameters_get_an_exact_zero(loss):
    """Distributed training waits for a gradient of every parameter."""
    values = batch()
    *_, scale, bias = gradients(loss(**values), values)
    name = name_of(loss)
    assert (scale != 0) == name.startswith(("info_nce", "siglip"))
    assert (bias != 0) == name.startswith("siglip")


def test_similarities_are_what_they_say():
    values = batch()
    image, text = values["image"].detach() * 2, values["text"].detach()
    torch.testing.assert_close(similarities(image, text, "dot"), image @ text.T)
    torch.testing.assert_close(similarities(image, text, "euclidean"), -torch.cdist(image, text))
    with pytest.raises(UnknownName, match="Did you mean 'euclidean'"):
        similarities(image, text, "euclid")  # type: ignore[arg-type]


def test_unknown_names_and_values_are_refused():
    values = batch()
    with pytest.raises(UnknownLoss, match="Did you mean 'infonce'"):
        LossConfig(name="infonec")
    with pytest.raises(UnknownLoss):
        from_dict(LossConfig, {"name": "arcface"})
    with pytest.raises(UnknownName, match="semi-hard"):
        triplet(**values, mining="hard")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="product"):
        info_nce(**values, positives="product_codes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tile"):
        info_nce(**values, tile=-1)
    with pytest.raises(ConfigError, match="label_smoothing"):
        LossConfig(label_smoothing=1.5)
    with pytest.raises(ConfigError, match="margin"):
        LossConfig(name="triplet", margin=0)
    with pytest.raises(ConfigError, match=r"'siglip' has no such option; it has: positives, tile"):
        LossConfig(name="siglip", margin=0.5)


@each_loss
def test_shapes_that_do_not_fit_are_refused(loss):
    values = batch()
    for wrong in ({"image": values["image"][:-1]}, {"product_codes": PRODUCTS[:1]}):
        with pytest.raises(ConfigError, match="joined batch"):
            loss(**(values | wrong))
    with pytest.raises(ConfigError, match="N > 0"):
        loss(**(values | {k: values[k][:0] for k in ("image", "text", "product_codes")}))


def test_build_loss_passes_the_options_on():
    values = batch()
    for name, similarity in itertools.product(LOSSES, SIMILARITIES):
        built = build_loss(LossConfig(name=name), similarity=similarity)
        torch.testing.assert_close(built(**values), LOSSES[name](**values, similarity=similarity))
    config = LossConfig(name="triplet", mining="hardest", margin=0.4, positives="pair")
    expected = triplet(**values, mining="hardest", margin=0.4, positives="pair")
    assert build_loss(config)(**values) == expected
    assert from_dict(LossConfig, to_dict(config)) == config


# Supervised contrastive


def test_supervised_contrastive_equals_its_formula() -> None:
    labels = torch.tensor([3, 1, 3, 2, 1, 3, -1, -1])
    rows = F.normalize(torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    scale, terms = 7.0, []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        positives = [j for j in others if labels[j] == labels[i] and labels[i] >= 0]
        total = sum(math.exp(scale * float(rows[i] @ rows[j])) for j in others)
        shares = [-math.log(math.exp(scale * float(rows[i] @ rows[p])) / total) for p in positives]
        if shares:
            terms.append(sum(shares) / len(shares))
    loss = supervised_contrastive(rows, labels, scale=scale)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda e: supervised_contrastive(e, labels, scale=scale), rows.clone().requires_grad_()
    )


@pytest.mark.parametrize("labels", [[1, 2, 3], [-1, -1, -1], [5]])
def test_supervised_contrastive_without_positives_is_zero(labels: list[int]) -> None:
    rows = torch.randn(len(labels), 4, requires_grad=True)
    loss = supervised_contrastive(rows, torch.tensor(labels), scale=10.0)
    loss.backward()
    assert loss.item() == 0 and (rows.grad == 0).all()


def test_supervised_contrastive_of_one_class_is_finite() -> None:
    rows = F.normalize(torch.randn(4, 3), dim=1)
    assert math.isfinite(supervised_contrastive(rows, torch.ones(4, dtype=torch.int64), scale=10.0).item())
    with pytest.raises(ConfigError, match=r"not \[4, 3\] and \[3\]"):
        supervised_contrastive(rows, torch.ones(3, dtype=torch.int64), scale=1.0)


def test_supervised_contrastive_leaves_kin_out_of_the_sums() -> None:
    labels, kin = torch.tensor([3, 1, 3, 2, 1, -1]), torch.tensor([0, 0, 1, 0, 2, 1])
    rows = F.normalize(torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    scale, terms = 7.0, []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        positives = [j for j in others if labels[j] == labels[i] and labels[i] >= 0]
        candidates = [j for j in others if kin[j] != kin[i] or j in positives]
        total = sum(math.exp(scale * float(rows[i] @ rows[j])) for j in candidates)
        shares = [-math.log(math.exp(scale * float(rows[i] @ rows[p])) / total) for p in positives]
        if shares:
            terms.append(sum(shares) / len(shares))
    loss = supervised_contrastive(rows, labels, scale=scale, kin=kin)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)


@pytest.mark.parametrize("tile", [1, 3, 100])
def test_tiled_it_is_the_same(tile: int) -> None:
    random = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(9, 5, dtype=torch.float64, generator=random), dim=1).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    labels, kin = torch.tensor([0, 1, 0, 2, 1, 1, -1, 3, -1]), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3])
    found = [
        (*torch.autograd.grad(loss, (rows, scale)), loss)
        for loss in (supervised_contrastive(rows, labels, scale=scale, kin=kin, tile=side) for side in (0, tile))
    ]
    for plain, tiled in zip(*found, strict=True):
        torch.testing.assert_close(tiled, plain)


def test_a_row_without_candidates_spoils_no_gradient() -> None:
    rows = F.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    labels, kin = torch.tensor([1, 1, -1]), torch.tensor([7, 8, 8])
    for tile in (0, 2):
        supervised_contrastive(rows, labels, scale=2.0, kin=torch.where(labels < 0, 7, kin), tile=tile).backward()
    assert rows.grad.isfinite().all()


def test_nt_xent_is_simclr_s_algorithm() -> None:
    """Algorithm 1 of https://arxiv.org/abs/2002.05709: 2N anchors, and 2N - 2 negatives of each."""
    random, count, temperature = torch.Generator().manual_seed(0), 6, 0.3
    first, second = (F.normalize(torch.randn(count, 5, dtype=torch.float64, generator=random), dim=1) for _ in "ab")
    both, losses = torch.cat([first, second]), []
    for i in range(2 * count):
        other = (i + count) % (2 * count)
        scores = [math.exp(float(both[i] @ both[k]) / temperature) for k in range(2 * count) if k != i]
        assert len(scores) == 2 * count - 1
        losses.append(-math.log(math.exp(float(both[i] @ both[other]) / temperature) / sum(scores)))
    products = torch.arange(count)
    loss = nt_xent(first, second, scale=1 / temperature, product_codes=products)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    labeled = nt_xent(first, second, scale=1 / temperature, product_codes=products, labels=torch.full((count,), -1))
    assert labeled.item() == pytest.approx(loss.item()), "rows without a label attract nobody else"


def test_nt_xent_takes_no_row_of_the_product_for_a_negative() -> None:
    first = F.normalize(torch.randn(3, 4), dim=1)
    second, products = first.flip(1), torch.tensor([5, 5, 9])
    ones = [nt_xent(first[rows], second[rows], scale=2.0, product_codes=products[rows]) for rows in ([0, 2], [1, 2])]
    both = nt_xent(first, second, scale=2.0, product_codes=products)
    parts = [first[0], second[0], first[1], second[1]]
    expected = 0.0
    for mine, other in [(0, 1), (1, 0), (2, 3), (3, 2)]:
        strange = [torch.exp(2 * parts[mine] @ view[2]) for view in (first, second)]
        own = torch.exp(2 * parts[mine] @ parts[other])
        expected -= torch.log(own / (own + sum(strange))).item()
    for view, other in ((first, second), (second, first)):
        strange = sum(torch.exp(2 * view[2] @ side[row]) for side in (first, second) for row in (0, 1))
        own = torch.exp(2 * view[2] @ other[2])
        expected -= torch.log(own / (own + strange)).item()
    assert both.item() == pytest.approx(expected / 6, rel=1e-5) and len(ones) == 2
    alike = nt_xent(first, second, scale=2.0, product_codes=products, labels=products)
    assert alike != both and alike.isfinite()


def test_nt_xent_of_one_row_is_zero() -> None:
    view = F.normalize(torch.randn(1, 4), dim=1).requires_grad_()
    loss = nt_xent(view, view.flip(1), scale=5.0, product_codes=torch.tensor([3]))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and view.grad.abs().max() < 1e-5


def test_contrast_with_a_queue_equals_its_formula() -> None:
    random, scale = torch.Generator().manual_seed(0), 4.0
    query, key, queue = (
        F.normalize(torch.randn(rows, 5, dtype=torch.float64, generator=random), dim=1) for rows in (4, 4, 6)
    )
    shown = torch.tensor([[1, 10], [2, -1], [3, 10], [4, 11]])
    queue_shown = torch.tensor([[-1, -1], [1, -1], [9, 10], [2, -1], [4, 12], [8, 11]])
    expected = []
    for i in range(4):
        own = math.exp(scale * float(query[i] @ key[i]))
        alike = [j for j in range(6) if shown[i, 1] == queue_shown[j, 1] and shown[i, 1] >= 0]
        kin = [j for j in range(6) if shown[i, 0] == queue_shown[j, 0] and shown[i, 0] >= 0 and j not in alike]
        scores = {j: math.exp(scale * float(query[i] @ queue[j])) for j in range(6) if j not in kin}
        total = own + sum(scores.values())
        expected.append(-sum(math.log(s / total) for s in [own, *(scores[j] for j in alike)]) / (1 + len(alike)))
    loss = contrast_with_queue(query, key, queue=queue, scale=scale, shown=shown, queue_shown=queue_shown)
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-12)


def test_contrast_with_keys_of_the_batch_is_cross_entropy_where_all_products_differ() -> None:
    query, key = (F.normalize(torch.randn(5, 4), dim=1) for _ in "ab")
    key.requires_grad_()
    query.requires_grad_()
    shown = torch.stack([torch.arange(5), torch.full((5,), -1)], dim=1)
    loss = contrast_with_keys(query, key, scale=3.0, shown=shown)
    torch.testing.assert_close(loss, F.cross_entropy(3.0 * query @ key.T, torch.arange(5)))
    loss.backward()
    assert query.grad is not None and key.grad is None, "keys are another network's"
    same = torch.tensor([[1, -1], [1, -1], [2, -1], [3, -1], [4, -1]])
    left_out = contrast_with_keys(query, key, scale=3.0, shown=same)
    logits = (3.0 * query @ key.T).clone()
    logits[0, 1] = logits[1, 0] = -math.inf
    torch.testing.assert_close(left_out, F.cross_entropy(logits, torch.arange(5)))


def test_negative_cosine_is_byol_s_distance() -> None:
    predicted, target = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.randn(6, 4).double()
    target.requires_grad_()
    loss = negative_cosine(predicted, target)
    distance = (F.normalize(predicted, dim=1) - F.normalize(target, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(2 + 2 * loss, distance)
    loss.backward()
    assert target.grad is None and predicted.grad is not None
