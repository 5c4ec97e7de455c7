"""Pooling, padding and projection of pretrained text encoders are those of plain Transformers code."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from factories import TITLES, config, model, photo
from fake_hub import HubStandIn
from torch import Tensor, nn
from torch.nn import functional as F

from dualtower import DualTower, TextTowerConfig
from dualtower.config import from_dict, to_dict
from dualtower.data.transforms.tokenizer import load_tokenizer
from dualtower.errors import ConfigError
from dualtower.hub.model_folder import fingerprint_of
from dualtower.inference.explain import explain
from dualtower.launcher import parse_overrides
from dualtower.models.towers.base import pool_tokens
from dualtower.models.towers.config import DenseConfig
from dualtower.training.run import run

REPOSITORY = Path(__file__).parent.parent
TEXTS = [TITLES[0], "red", TITLES[5] + " " + TITLES[7], "navy blue mug"]
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
POSITIONS = 24


# ---- checkpoints, made by code


def word_tokenizer(specials: list[str], *, first: bool, begin: str | None, end: str, **named: Any) -> Any:
    """A tokenizer of whole words, with its special tokens before or behind them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for title in TITLES for word in title.split()})
    vocabulary = [*specials, *words] if first else [*words, *specials]
    ids = {token: place for place, token in enumerate(vocabulary)}
    built = Tokenizer(models.WordLevel(ids, unk_token=named["unk_token"]))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [token for token in (begin, end) if token is not None]
    built.post_processor = processors.TemplateProcessing(
        single=" ".join([*([begin] if begin else []), "$A", end]),
        special_tokens=[(token, ids[token]) for token in used],
    )
    return PreTrainedTokenizerFast(tokenizer_object=built, **named)


def bert_tokenizer(**named: Any) -> Any:
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return word_tokenizer(list(specials.values()), first=True, begin="[CLS]", end="[SEP]", **specials, **named)


def roberta_tokenizer(**named: Any) -> Any:
    return word_tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>"],
        first=True,
        begin="<s>",
        end="</s>",
        **{"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        **named,
    )


def clip_tokenizer(**named: Any) -> Any:
    """As CLIP's: the end of a text has the highest id, and stands for padding and unknown words too."""
    begin, end = "<|startoftext|>", "<|endoftext|>"
    roles = {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": end}
    return word_tokenizer([begin, end], first=False, begin=begin, end=end, **roles, **named)


def siglip_tokenizer() -> Any:
    """As SigLIP's: it gives no attention mask."""
    roles = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return word_tokenizer(
        ["<unk>", "</s>"], first=True, begin=None, end="</s>", model_input_names=["input_ids"], **roles
    )


def saved(network: Any, tokenizer: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert(folder: Path, *, width: int = 16, **named: Any) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    words = bert_tokenizer(**named)
    sizes = {"vocab_size": len(words), "hidden_size": width, "max_position_embeddings": POSITIONS}
    return saved(BertModel(BertConfig(**sizes, **SMALL)), words, folder)


def roberta(folder: Path, **named: Any) -> Path:
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(2)
    words = roberta_tokenizer(**named)
    sizes = {"vocab_size": len(words), "hidden_size": 16, "max_position_embeddings": POSITIONS + 2}
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return saved(RobertaModel(RobertaConfig(**sizes, **SMALL, **tokens)), words, folder)


def clip(folder: Path, *, eos: int | None = None, part: str = "CLIPModel", **named: Any) -> Path:
    """A CLIP, or one of its text models; `eos` is what its config says, by default the truth."""
    import transformers

    torch.manual_seed(3)
    words = clip_tokenizer(**named)
    text = {"vocab_size": len(words), "hidden_size": 16, "max_position_embeddings": POSITIONS, **SMALL}
    tokens = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1 if eos is None else eos}
    text |= {**tokens, "pad_token_id": 1, "projection_dim": 12}
    if part == "CLIPModel":
        vision = {"hidden_size": 16, "image_size": 16, "patch_size": 8, **SMALL}
        built = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    else:
        built = transformers.CLIPTextConfig(**text)
    return saved(getattr(transformers, part)(built), words, folder)


def siglip(folder: Path, *, part: str = "SiglipModel") -> Path:
    import transformers

    torch.manual_seed(4)
    words = siglip_tokenizer()
    text = {"vocab_size": len(words), "hidden_size": 16, "max_position_embeddings": POSITIONS, "projection_size": 12}
    text |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1, **SMALL}
    if part == "SiglipModel":
        vision = {"hidden_size": 16, "image_size": 16, "patch_size": 8, **SMALL}
        built = transformers.SiglipConfig(text_config=text, vision_config=vision)
    else:
        built = transformers.SiglipTextConfig(**text)
    return saved(getattr(transformers, part)(built), words, folder)


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def sentence_folder(
    folder: Path,
    modes: list[str],
    *,
    dense: Sequence[tuple[int, int, bool, str]] = (),
    normalize: bool = True,
    **named: Any,
) -> Path:
    """A folder in the layout of sentence-transformers around a BERT; `dense` is (in, out, bias, activation)."""
    bert(folder, **named)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": POSITIONS, "do_lower_case": False})
    flags = {f"pooling_mode_{flag}": flag in modes for flag in FLAGS}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, **flags, "include_prompt": True})
    for number, (before, after, bias, activation) in enumerate(dense, start=2):
        torch.manual_seed(number)
        layer = nn.Linear(before, after, bias=bias)
        settings = {"in_features": before, "out_features": after, "bias": bias, "activation_function": activation}
        write_json(folder / f"{number}_Dense" / "config.json", settings)
        weights = {f"linear.{name}": weight for name, weight in layer.state_dict().items()}
        safetensors.torch.save_file(weights, folder / f"{number}_Dense" / "model.safetensors")
        modules.append((f"{number}_Dense", "Dense"))
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    return folder


def built(folder: Path, *, tokenizer: Any = None, **text: Any) -> DualTower:
    """A dual tower that starts from a checkpoint."""
    name = str(folder)
    settings = TextTowerConfig(pretrained=name, **{"max_length": POSITIONS, **text})
    return DualTower.create(replace(config(), text=settings), tokenizer or load_tokenizer(name)).eval()


# ---- what plain code makes of them


def states(folder: Path, tokens: Mapping[str, Tensor]) -> Any:
    from transformers import AutoModel

    with torch.inference_mode():
        return AutoModel.from_pretrained(folder).eval()(**tokens)


def by_hand(rule: str, states: Any, tokens: Mapping[str, Tensor], *, end: int = -1) -> Tensor:
    """Pool row by row, over the real tokens alone."""
    if rule == "pooler":
        return states.pooler_output
    pooled = []
    for row, mask in enumerate(tokens["attention_mask"].bool()):
        real, ids = states.last_hidden_state[row][mask], tokens["input_ids"][row][mask].tolist()
        rules: dict[str, Callable[[], Tensor]] = {
            "mean": lambda real=real: real.mean(0),
            "max": lambda real=real: real.max(0).values,
            "cls": lambda real=real: real[0],
            "last": lambda real=real: real[-1],
            "eos": lambda real=real, ids=ids: real[ids.index(end)],
        }
        pooled.append(rules[rule]())
    return torch.stack(pooled)


def features_of(tower: DualTower, texts: list[str] = TEXTS) -> Tensor:
    with torch.inference_mode():
        return tower.text_features(tower.collator().tokens(texts)).pooled


def assert_saving_keeps(tower: DualTower, folder: Path) -> DualTower:
    """What is loaded equals what was saved, bit for bit, without the checkpoint that it was made from."""
    expected = tower.encode_text(TEXTS)
    loaded = DualTower.from_pretrained(tower.save_pretrained(folder))
    assert loaded.config.text == tower.config.text and loaded.fingerprint == tower.fingerprint
    assert np.array_equal(loaded.encode_text(TEXTS), expected)
    return loaded


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("rule", ["mean", "max", "cls", "last", "eos", "pooler"])
@pytest.mark.parametrize("encoder", [bert, roberta])
def test_pooling_is_that_of_plain_code(tmp_path: Path, encoder: Any, rule: Any, side: str) -> None:
    folder = encoder(tmp_path / "encoder", padding_side=side)
    if (encoder, rule) == (bert, "eos"):
        with pytest.raises(ConfigError, match=r"names no end-of-text token.*text\.pooling last"):
            built(folder, pooling=rule)
        return
    if (rule, side) == ("pooler", "left"):
        with pytest.raises(ConfigError, match="pads on the left"):
            built(folder, pooling=rule)
        return
    tower = built(folder, pooling=rule)
    tokens = load_tokenizer(folder)(TEXTS, padding=True, return_tensors="pt")
    assert (tokens["attention_mask"][1, 0 if side == "left" else -1] == 0).all()
    ours = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    expected = by_hand(rule, states(folder, ours), ours, end=2)
    torch.testing.assert_close(features_of(tower), expected, atol=1e-6, rtol=1e-5)
    assert tower.config.text.pooling == rule
    assert len({tuple(row.tolist()) for row in expected}) == len(TEXTS)
    assert_saving_keeps(tower, tmp_path / "model")


@pytest.mark.parametrize("rule", ["mean", "max", "cls", "last", "eos"])
def test_the_side_of_the_padding_does_not_matter(tmp_path: Path, rule: Any) -> None:
    """A RoBERTa counts positions from the first real token, so that both sides must give the same."""
    right, left = (built(roberta(tmp_path / side, padding_side=side), pooling=rule) for side in ("right", "left"))
    torch.testing.assert_close(features_of(right), features_of(left), atol=1e-5, rtol=1e-4)
    alone = torch.cat([features_of(left, [text]) for text in TEXTS])
    torch.testing.assert_close(features_of(left), alone, atol=1e-5, rtol=1e-4)


def test_a_text_without_an_end_is_taken_at_its_last_token() -> None:
    from dualtower.models.towers.base import end_places

    ids = torch.tensor([[5, 9, 9, 9], [5, 6, 7, 9], [9, 9, 5, 6], [5, 6, 7, 9]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    assert end_places(ids, mask, 9).tolist() == [1, 2, 3, 3]
    assert end_places(ids, mask, None).tolist() == [1, 2, 3, 3]


def test_pooling_of_either_side_by_hand() -> None:
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert pool_tokens(tokens, mask, "cls").tolist() == [[0, 1], [8, 9]]
    assert pool_tokens(tokens, mask, "last").tolist() == [[2, 3], [10, 11]]
    with pytest.raises(ValueError, match="eos"):
        pool_tokens(tokens, mask, "eos")


# ---- CLIP


def text_features(folder: Path, class_name: str, **tokens: Tensor) -> Tensor:
    import transformers

    network = getattr(transformers, class_name).from_pretrained(folder).eval()
    with torch.inference_mode():
        if class_name == "CLIPTextModelWithProjection":
            return network(**tokens).text_embeds
        found = network.get_text_features(**tokens)
    return found if isinstance(found, Tensor) else found.pooler_output  # an object since Transformers 5


@pytest.mark.parametrize("eos", [2, None], ids=["eos_token_id = 2", "eos_token_id"])
@pytest.mark.parametrize("part", ["CLIPModel", "CLIPTextModelWithProjection"])
def test_clip_brings_its_pooling_and_its_projection(tmp_path: Path, part: str, eos: int | None) -> None:
    folder = clip(tmp_path / "clip", eos=eos, part=part)
    tower = built(folder)
    text = tower.config.text
    assert (text.pooling, text.padding) == ("eos", "longest")
    assert text.projection == (DenseConfig(12, bias=False),) and tower.text_tower.width == 12
    tokens = load_tokenizer(folder)(TEXTS, padding=True, return_tensors="pt")
    expected = text_features(folder, part, **tokens)
    torch.testing.assert_close(features_of(tower), expected, atol=1e-6, rtol=1e-5)
    assert_saving_keeps(tower, tmp_path / "model")


def test_clip_is_pooled_at_its_end_with_padding_on_either_side(tmp_path: Path) -> None:
    """Its padding consists of end-of-text tokens; they are not where a text ends."""
    for eos in (2, None):
        folder = clip(tmp_path / f"clip{eos}", eos=eos, part="CLIPTextModel", padding_side="left")
        tokens = dict(load_tokenizer(folder)(TEXTS, padding=True, return_tensors="pt"))
        end = len(load_tokenizer(folder)) - 1
        expected = by_hand("eos", states(folder, tokens), tokens, end=end)
        torch.testing.assert_close(features_of(built(folder)), expected, atol=1e-6, rtol=1e-5)


def test_a_bare_text_model_of_clip_has_no_projection(tmp_path: Path) -> None:
    folder = clip(tmp_path / "clip", part="CLIPTextModel")
    tower = built(folder)
    assert (tower.config.text.pooling, tower.config.text.projection) == ("eos", ())
    tokens = load_tokenizer(folder)(TEXTS, padding=True, return_tensors="pt")
    torch.testing.assert_close(features_of(tower), states(folder, tokens).pooler_output, atol=1e-6, rtol=1e-5)


def test_pooling_that_is_named_comes_before_the_checkpoints(tmp_path: Path) -> None:
    folder = clip(tmp_path / "clip")
    tower = built(folder, pooling="mean", padding="fixed")
    assert (tower.config.text.pooling, tower.config.text.padding) == ("mean", "fixed")
    assert tower.config.text.projection == (DenseConfig(12, bias=False),)
    assert tower.collator().tokens(["red"])["input_ids"].shape == (1, POSITIONS)


def test_words_cannot_be_hidden_behind_the_end_of_a_text(tmp_path: Path) -> None:
    folder = clip(tmp_path / "clip")
    with pytest.raises(ConfigError, match="token_dropout"):
        run(finetuning(tmp_path, folder, "--train.token-dropout", "0.2"))


# ---- SigLIP


@pytest.mark.parametrize("part", ["SiglipModel", "SiglipTextModel"])
def test_siglip_reads_its_padding(tmp_path: Path, part: str) -> None:
    folder = siglip(tmp_path / "siglip", part=part)
    tower = built(folder)
    assert (tower.config.text.pooling, tower.config.text.padding) == ("pooler", "fixed")
    tokens = tower.collator().tokens(TEXTS)
    assert tokens["input_ids"].shape == (len(TEXTS), POSITIONS) and tokens["attention_mask"].sum(1).max() < POSITIONS
    theirs = load_tokenizer(folder)(TEXTS, padding="max_length", max_length=POSITIONS, return_tensors="pt")
    assert "attention_mask" not in theirs
    if part == "SiglipModel":
        expected = text_features(folder, part, **theirs)
    else:
        from transformers import SiglipTextModel

        with torch.inference_mode():
            expected = SiglipTextModel.from_pretrained(folder).eval()(**theirs).pooler_output
    assert tower.text_tower.width == expected.shape[1] == 12
    torch.testing.assert_close(features_of(tower), expected, atol=1e-6, rtol=1e-5)
    loaded = assert_saving_keeps(tower, tmp_path / "model")
    together, alone = features_of(loaded), torch.cat([features_of(loaded, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_siglip_may_be_pooled_in_another_way(tmp_path: Path) -> None:
    folder = siglip(tmp_path / "siglip")
    tower = built(folder, pooling="mean", padding="longest", max_length=16)
    assert tower.text_tower.width == 16 and not [n for n in tower.text_tower.state_dict() if "head" in n]
    together, alone = features_of(tower), torch.cat([features_of(tower, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)  # here padding does not count


def test_words_of_texts_of_a_fixed_length_are_explained(tmp_path: Path) -> None:
    tower = built(siglip(tmp_path / "siglip"))
    shown = explain(tower, "red mug", photo())
    assert [word for word, _ in shown.words] == ["red", "mug"]
    whole, one = (tower.encode_text([text]) for text in ("red mug", "mug"))
    image = tower.encode_image([photo()])
    fall = float(tower.similarity(image, whole) - tower.similarity(image, one))
    assert shown.words[0][1] == pytest.approx(fall, abs=1e-5)


# ---- sentence-transformers

TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("mode", "rule"), [("cls_token", "cls"), ("mean_tokens", "mean"), ("max_tokens", "max"), ("lasttoken", "last")]
)
@pytest.mark.parametrize(
    "dense",
    [[], [(16, 20, True, TANH)], [(16, 20, False, IDENTITY), (20, 12, True, "torch.nn.modules.activation.GELU")]],
    ids=["plain", "one dense", "two dense"],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_folder(tmp_path: Path, mode: str, rule: str, dense: Any, normalize: bool) -> None:
    folder = sentence_folder(tmp_path / "model", [mode], dense=dense, normalize=normalize)
    tower = built(folder)
    tokens = dict(load_tokenizer(folder)(TEXTS, padding=True, return_tensors="pt"))
    tokens.pop("token_type_ids", None)
    expected = by_hand(rule, states(folder, tokens), tokens)
    after = {TANH: torch.tanh, IDENTITY: lambda x: x, "torch.nn.modules.activation.GELU": F.gelu}
    for number, (_, _, _, activation) in enumerate(dense, start=2):
        weights = safetensors.torch.load_file(folder / f"{number}_Dense" / "model.safetensors")
        expected = after[activation](expected @ weights["linear.weight"].T + weights.get("linear.bias", 0))
    if normalize:
        expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(features_of(tower), expected, atol=1e-6, rtol=1e-5)
    text = tower.config.text
    assert (text.pooling, text.padding, text.normalize) == (rule, "longest", normalize)
    assert [(layer.width, layer.bias) for layer in text.projection] == [(after, bias) for _, after, bias, _ in dense]
    assert_saving_keeps(tower, tmp_path / "ours")


def test_present_layouts_name_their_pooling(tmp_path: Path) -> None:
    for given in ("cls", ["cls"]):
        folder = sentence_folder(tmp_path / f"model{type(given).__name__}", ["mean_tokens"])
        write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": 16, "pooling_mode": given})
        assert built(folder).config.text.pooling == "cls"


def broken(folder: Path, path: str, change: Callable[[Any], Any]) -> None:
    write_json(folder / path, change(json.loads((folder / path).read_text())))


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (
            "modules.json",
            lambda m: [*m, {**m[0], "type": "x.LayerNorm"}],
            r"lists Transformer, .*, LayerNorm; what can",
        ),
        ("modules.json", lambda m: m[:1], "Transformer; what can"),
        ("modules.json", lambda m: [{**m[0], "path": "0_Transformer"}, *m[1:]], "lies in 0_Transformer/"),
        ("modules.json", lambda m: [m[0], m[1], m[3], m[2]], "Normalize, Dense; what can"),
        ("modules.json", lambda m: {"a": 1}, "no list of modules"),
        ("modules.json", lambda m: [], "what can"),
        ("1_Pooling/config.json", lambda p: {**p, "pooling_mode_mean_tokens": True}, r"cls \+ mean; what can"),
        ("1_Pooling/config.json", lambda p: {"pooling_mode": "weightedmean"}, "weightedmean; what can"),
        ("2_Dense/config.json", lambda d: {**d, "activation_function": "my.Swish"}, "'Swish'; what can"),
        ("2_Dense/config.json", lambda d: {**d, "module_input_name": "token_embeddings"}, "token_embeddings"),
        ("sentence_bert_config.json", lambda s: {**s, "do_lower_case": True}, "tells A from a"),
    ],
)
def test_what_cannot_be_taken_over_is_one_clear_line(tmp_path: Path, path: str, change: Any, message: str) -> None:
    folder = sentence_folder(tmp_path / "model", ["cls_token"], dense=[(16, 12, True, TANH)])
    words = load_tokenizer(folder)
    words.add_tokens(["A", "a"])
    broken(folder, path, change)
    with pytest.raises(ConfigError, match=message) as caught:
        built(folder, tokenizer=words)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "dense", ["cls_token"], dense=[(16, 12, True, TANH)])
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"2_Dense holds no model\.safetensors"):
        built(folder)
    folder = sentence_folder(tmp_path / "wide", ["cls_token"], dense=[(20, 12, True, TANH)])
    with pytest.raises(ConfigError, match="takes vectors of 20, and they are 16 wide"):
        built(folder)
    folder = bert(tmp_path / "bert")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights of its encoder: pooler\.dense\.bias and 1 more"):
        built(folder, pooling="pooler")
    assert built(folder).config.text.pooling == "mean"
    kept = {name: weight for name, weight in kept.items() if "layer.1.output" not in name}
    safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights of its encoder: encoder\.layer\.1\.output"):
        built(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"pooling": "pooler", "padding": "longest"}, r"--model\.text\.padding fixed"),
        (
            {"max_length": 16},
            rf"padded to {POSITIONS} tokens, and text\.max_length is 16; type --model\.text\.max-length",
        ),
    ],
)
def test_siglip_settings_that_cannot_be(tmp_path: Path, text: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(siglip(tmp_path / "siglip"), **text)


def test_an_encoder_without_pooler(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    words = bert_tokenizer()
    small = DistilBertConfig(vocab_size=len(words), dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    folder = saved(DistilBertModel(small), words, tmp_path / "distilbert")
    with pytest.raises(ConfigError, match=r"'distilbert' encoder has none; type --model\.text\.pooling"):
        built(folder, pooling="pooler")


@pytest.mark.parametrize("name", ["bow", "lstm", "textcnn"])
@pytest.mark.parametrize("setting", [{"pooling": "last"}, {"pooling": "eos"}, {"normalize": True}])
def test_other_towers_refuse_what_is_an_encoders(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--model\.text\.name bert"):
        DualTower(replace(config(name), text=replace(config(name).text, **setting)))


def test_a_default_prompt_is_said_to_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = sentence_folder(tmp_path / "model", ["cls_token"])
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    write_json(folder / "config_sentence_transformers.json", prompts)
    built(folder)
    assert "'query: '" in caplog.text


# ---- what was saved before


def test_models_of_before_keep_their_config_and_their_fingerprint(tmp_path: Path) -> None:
    """The re-ranker's seal and every catalog hold fingerprints: new settings must not change those of old models."""
    assert fingerprint_of(to_dict(TextTowerConfig()), {}) == "f3e82ecba8ea0be0"
    for name in ("bert", "bow"):
        tower = model(name)
        folder = tower.save_pretrained(tmp_path / name)
        written = json.loads((folder / "config.json").read_text())["model"]["text"]
        assert not {"padding", "projection", "normalize"} & set(written) and written["pooling"] == "auto"
        loaded = DualTower.from_pretrained(folder)
        assert loaded.config.text == tower.config.text and loaded.fingerprint == tower.fingerprint
        assert loaded.collator().padding == "longest"


def test_an_encoder_saved_before_is_pooled_as_it_was(tmp_path: Path) -> None:
    """Without a rule in its config a CLIP text encoder was pooled by the mean, and so it stays."""
    folder = clip(tmp_path / "clip", part="CLIPTextModel")
    tower = built(folder, pooling="mean")
    saved_before = tower.save_pretrained(tmp_path / "model")
    broken(
        saved_before,
        "config.json",
        lambda values: {
            **values,
            "model": {
                **values["model"],
                "text": {k: v for k, v in values["model"]["text"].items() if k != "padding"} | {"pooling": "auto"},
            },
        },
    )
    loaded = DualTower.from_pretrained(saved_before)
    assert loaded.config.text.pooling == loaded.config.text.padding == "auto"
    assert np.array_equal(loaded.encode_text(TEXTS), tower.encode_text(TEXTS))


def test_a_projection_survives_json() -> None:
    text = TextTowerConfig(projection=(DenseConfig(12, bias=False), DenseConfig(8, activation="tanh")), normalize=True)
    assert from_dict(TextTowerConfig, json.loads(json.dumps(to_dict(text)))) == text


# ---- runs


def finetuning(folder: Path, encoder: Path | None, *args: str) -> Any:
    """A smoke run of the recipe that starts from pretrained towers."""
    sys.path.insert(0, str(REPOSITORY / "recipes"))
    from finetune_pretrained import smoke

    given = [] if encoder is None else ["--model.text.pretrained", str(encoder)]
    options = ["--data.card", str(REPOSITORY / "data_cards" / "synthetic.md"), "--out", str(folder / "run")]
    length = ["--model.text.max-length", str(POSITIONS), "--data.workers", "0", "--train.steps", "2"]
    return parse_overrides(smoke(), [*given, *options, *length, *args])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "args", "expected"),
    [
        (None, ["--model.text.pooling", "cls"], ("cls", "auto", 0)),
        (None, ["--model.text.pooling", "last", "--model.text.padding", "fixed"], ("last", "fixed", 0)),
        (clip, [], ("eos", "longest", 1)),
        (siglip, [], ("pooler", "fixed", 0)),
        (
            lambda folder: sentence_folder(folder, ["cls_token"], dense=[(16, 12, True, TANH)]),
            [],
            ("cls", "longest", 1),
        ),
    ],
    ids=["cls", "last", "clip", "siglip", "sentence-transformers"],
)
def test_a_run_from_the_command_line(tmp_path: Path, encoder: Any, args: list[str], expected: Any) -> None:
    folder = None if encoder is None else encoder(tmp_path / "encoder")
    assert run(finetuning(tmp_path, folder, *args))
    if folder is not None:
        shutil.rmtree(folder)
    loaded = DualTower.from_pretrained(tmp_path / "run" / "model")
    text = loaded.config.text
    assert (text.pooling, text.padding, len(text.projection)) == expected
    assert np.isfinite(loaded.encode_text(TEXTS)).all()


CREATE = """
import sys
from dataclasses import replace
from dualtower import DualTower, TextTowerConfig
from dualtower.data.transforms.tokenizer import load_tokenizer
sys.path.insert(0, sys.argv[1])
from factories import config
for name in ("user/sentences", "user/plain"):
    text = TextTowerConfig(pretrained=name, max_length=20)
    text = DualTower.create(replace(config(), text=text), load_tokenizer(name)).config.text
    print(text.pooling, len(text.projection), text.normalize)
"""


@pytest.mark.slow
def test_the_hub_is_asked_for_the_rule_too(tmp_path: Path) -> None:
    with HubStandIn(tmp_path) as hub:
        hub.add_repo(
            "model", "user/sentences", sentence_folder(tmp_path / "s", ["cls_token"], dense=[(16, 12, True, TANH)])
        )
        hub.add_repo("model", "user/plain", bert(tmp_path / "plain"))
        here = str(Path(__file__).parent)
        assert hub.run(CREATE, here).splitlines() == ["cls 1 True", "mean 0 False"]
    again = hub.run(CREATE, here, HF_HUB_OFFLINE="1")  # all from the cache
    assert again.splitlines() == ["cls 1 True", "mean 0 False"]
