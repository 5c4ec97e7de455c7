"""The tokenizer cuts texts exactly as SentencePiece does, survives saving, and never fails on odd titles."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
import torch

from dualtower.data.transforms import tokenizer as text_module
from dualtower.data.transforms.tokenizer import load_tokenizer, normalize_title, tokenize, train_tokenizer
from dualtower.errors import ConfigError, DataError

ENGLISH = [
    f"{brand} {kind} {color} {thing} {number}"
    for number, brand in enumerate(["Nike", "Puma", "Fabindia"], start=7)
    for kind in ["Men's", "Women's"]
    for color in ["Blue", "Navy-Blue", "Crème"]
    for thing in ["Running Shoes", "T-shirt", "Tote Bag"]
]
CHINESE = [
    f"{color}{pattern}{material}{thing}"
    for color in ["蓝色", "红色", "米白色"]
    for pattern in ["条纹", "圆点"]
    for material in ["棉质", "陶瓷"]
    for thing in ["手提袋", "马克杯", "连衣裙"]
]
ODD = [
    "Ｂｌｕｅ　ＳＨＩＲＴ",
    "a\u200bb\tc\n",
    "ŻÓŁĆ 🙂🙂 x",
    "▁▁",
    "İstanbul ß ﬁ",
    "红色 Nike T恤",
    "",
    "  ",
    "[SEP] [CLS] <s>",
]


def trained_by_sentencepiece(
    monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> tuple[object, sentencepiece.SentencePieceProcessor]:
    """Our tokenizer, and the SentencePiece model that it was made from."""
    models: list[io.BytesIO] = []
    real = sentencepiece.SentencePieceTrainer.train

    def spy(**options: object) -> None:
        real(**options)
        models.append(options["model_writer"])

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", spy)
    tokenizer = train_tokenizer(texts)
    return tokenizer, sentencepiece.SentencePieceProcessor(model_proto=models[0].getvalue())


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE, ENGLISH + CHINESE], ids=["en", "zh", "both"])
def test_ids_and_pieces_are_those_of_sentencepiece(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    tokenizer, reference = trained_by_sentencepiece(monkeypatch, texts)
    assert len(tokenizer) == reference.get_piece_size()
    for text in ENGLISH + CHINESE + ODD:
        normalized = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
        assert tokenizer(text)["input_ids"] == [2, *reference.encode(normalized), 3], text
        assert tokenizer.tokenize(text) == reference.encode(normalized, out_type=str)


def test_special_tokens_have_fixed_ids_and_texts_are_padded_to_the_longest() -> None:
    tokenizer = train_tokenizer(ENGLISH)
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]"]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1)
    batch = tokenizer(["Blue", "Nike Men's Blue Running Shoes"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["attention_mask"][0] == [1, 1, 1] + [0] * (len(batch["input_ids"][1]) - 3)
    assert 1 in tokenizer("Blue 牛")["input_ids"]
    assert tokenizer("Nike [SEP] Blue")["input_ids"].count(3) == 1  # text in the shape of a special token is text


def test_words_and_case() -> None:
    tokenizer = train_tokenizer(ENGLISH)
    assert tokenizer.tokenize("NIKE blue shoes") == ["▁nike", "▁blue", "▁shoes"]  # never the end of a title
    assert tokenizer.decode(tokenizer("Nike Blue")["input_ids"], skip_special_tokens=True) == "nike blue"
    cased = train_tokenizer(ENGLISH, lowercase=False)
    assert cased.tokenize("Nike") == ["▁Nike"]
    assert len(train_tokenizer(CHINESE).tokenize("米白色圆点陶瓷马克杯")) < 8


def test_training_twice_gives_the_same_tokenizer_and_saving_keeps_it(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(iter(ENGLISH + CHINESE))
    again = train_tokenizer(ENGLISH + CHINESE)
    assert tokenizer.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, local_files_only=True)
    texts = ENGLISH + CHINESE + ODD
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert (
        loaded(texts[:5], padding=True, max_length=4, truncation=True)["input_ids"]
        == (tokenizer(texts[:5], padding=True, max_length=4, truncation=True)["input_ids"])
    )


def test_vocabulary_shrinks_to_what_the_texts_support_and_never_exceeds_the_limit() -> None:
    assert len(train_tokenizer(ENGLISH, vocab_size=8000)) < 500
    assert len(train_tokenizer(ENGLISH, vocab_size=48)) <= 48
    assert len(train_tokenizer(["x"])) >= 5


def test_small_catalogs_without_spaces_get_no_pieces_that_are_too_rare_to_learn() -> None:
    held_out = "蓝色条纹陶瓷手提袋"
    tokenizer = train_tokenizer([text for text in CHINESE if text != held_out])
    assert len(tokenizer) < 80
    seen = {piece for text in CHINESE if text != held_out for piece in tokenizer.tokenize(text)}
    assert set(tokenizer.tokenize(held_out)) <= seen


def test_very_long_and_very_many_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "▁blue" in train_tokenizer(["blue shirt " * 10_000, "red"]).get_vocab()
    monkeypatch.setattr(text_module, "MAX_TEXTS", 10)
    assert len(train_tokenizer(ENGLISH)) > 20


def test_bad_input_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every text is empty"):
        train_tokenizer(["", " \n", "\u200b"])
    with pytest.raises(ConfigError, match="32 or more"):
        train_tokenizer(ENGLISH, vocab_size=4)
    with pytest.raises(ConfigError, match="different characters"):
        train_tokenizer(ENGLISH + CHINESE, vocab_size=40)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, local_files_only=True)


def test_title_identity() -> None:
    assert normalize_title("Ｂlue  MUG ") == normalize_title("blue\tmug") == "blue mug"
    assert normalize_title("STRASSE") == normalize_title("Straße")
    assert normalize_title("Blue mug") != normalize_title("Blue mugs")
    for title in ODD:
        assert normalize_title(normalize_title(title)) == normalize_title(title)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_tokenize_is_what_the_tokenizer_itself_gives(fixed: bool, side: str) -> None:
    tokenizer = train_tokenizer(["blue striped mug", "red leather bag", "green cotton dress"] * 30, vocab_size=80)
    tokenizer.padding_side = side
    texts = ["blue mug", "", "red leather bag " * 9, "[PAD] dress", "\u00e9 \u4e2d"]
    for some in (texts, texts[:1], texts[2:]):
        padding = "max_length" if fixed else "longest"
        plain = tokenizer(some, padding=padding, truncation=True, max_length=12, return_tensors="pt")
        found = tokenize(tokenizer, some, max_length=12, fixed=fixed)
        assert all(torch.equal(found[name], plain[name]) and found[name].dtype == torch.int64 for name in found)


def test_a_tokenizer_that_does_more_than_its_library_is_asked_itself() -> None:
    trained = train_tokenizer(["blue striped mug", "red leather bag"] * 30, vocab_size=60)

    class Reversing(type(trained)):  # type: ignore[misc]
        def __call__(self, texts, **options):
            return super().__call__([text[::-1] for text in texts], **options)

    own = Reversing(tokenizer_object=trained.backend_tokenizer, pad_token="[PAD]")
    found = tokenize(own, ["gum eulb", "gab der"], max_length=12)
    assert torch.equal(found["input_ids"], tokenize(trained, ["blue mug", "red bag"], max_length=12)["input_ids"])
