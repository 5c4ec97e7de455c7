"""Texts: the identity of a title, and a vocabulary trained on the catalog's own words.

A text tower that starts from scratch needs no vocabulary of the whole web. `train_tokenizer` learns the
pieces of the titles at hand with SentencePiece (unigram model, Kudo 2018, https://arxiv.org/abs/1804.10959),
which needs no word borders and so treats Chinese titles like English ones. The result is a Transformers fast
tokenizer: it saves to one ``tokenizer.json``, and SentencePiece is not needed to load it.
"""

from __future__ import annotations

import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualtower.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch  # half of the memory of whoever needs nothing here but the form of a title

__all__ = ["load_tokenizer", "normalize_title", "tokenize", "train_tokenizer"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # ids 0, 1, 2, 3
SMALLEST_VOCABULARY = 32
MAX_CHARACTERS = 1_000  # of one text in training: SentencePiece would drop a longer one as a whole
MAX_TEXTS = 1_000_000  # in training: more do not change the vocabulary, but cost minutes
LONGEST_PIECE = 16  # characters, with the mark of the space before it: SentencePiece's default
# All but one character in ten thousand get a piece of their own. SentencePiece's default of one in two
# thousand would lose the digit 8 of an English catalog.
CHARACTER_COVERAGE = 0.9999
SMALLEST_COVERAGE = 0.98  # SentencePiece accepts no less
# A piece must be seen often enough to learn its vector. Without this limit, a small catalog of texts without
# spaces gets pieces such as "brownstripes", and a title with brown dots is a title of unseen words.
CHARACTERS_PER_PIECE = 150
_SHELL = ("__call__", "_encode_plus", "_batch_encode_plus", "set_truncation_and_padding")


def normalize_title(text: str) -> str:
    """Return the form of a title that decides whether two titles are equal.

    Compatibility characters, case and white space do not count: ``"Ｂlue  MUG "`` equals ``"blue mug"``.
    """
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 8000, lowercase: bool = True) -> Any:
    """Learn a vocabulary from texts and return it as a Transformers fast tokenizer.

    ``[PAD]``, ``[UNK]``, ``[CLS]`` and ``[SEP]`` have the ids 0 to 3; an encoded text is ``[CLS] ... [SEP]``.
    The same texts in the same order give the same tokenizer on every machine.

    Args:
        texts: The titles of the training split. Empty ones are passed over.
        vocab_size: Largest number of tokens; small catalogs get fewer, as many as their texts can teach.
        lowercase: Whether upper and lower case are the same.

    Returns:
        A ``transformers.PreTrainedTokenizerFast``.

    Raises:
        ConfigError: `vocab_size` is too small to hold an alphabet.
        DataError: There is no text to learn from.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(f"vocab_size {vocab_size} is too small; give {SMALLEST_VOCABULARY} or more")
    normalizer = _normalizer(lowercase)
    normalized = [normalizer.normalize_str(text[:MAX_CHARACTERS]) for text in texts]
    pieces = _train_unigram([text for text in normalized if text], vocab_size)

    # No byte pieces: a character that the catalog never had becomes [UNK].
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL_TOKENS.index("[UNK]"), byte_fallback=False))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # a title that contains "[SEP]" is a title like any other
    )


def load_tokenizer(name: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Any:
    """Load a tokenizer that `train_tokenizer` or any Transformers model has saved.

    Args:
        name: A folder or a Hub id.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Do not ask the network; what is not cached is an error.

    Raises:
        ConfigError: Neither a folder with a tokenizer nor a model on the Hub.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name), revision=revision or "main", local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no tokenizer in {str(name)!r}; give a folder with tokenizer.json or a model's Hub id ({error})"
        ) from error


def tokenize(tokenizer: Any, texts: Sequence[str], *, max_length: int, fixed: bool = False) -> dict[str, torch.Tensor]:
    """Encode texts as ``tokenizer(texts, padding=..., truncation=True)`` does.

    Where a tokenizer is a shell around the `tokenizers` library, as nearly all are, the library is asked itself: of
    the time of a single text, which every search pays, the shell takes half.

    Args:
        tokenizer: A Transformers tokenizer.
        texts: One per row.
        max_length: Longer texts are cut.
        fixed: Pad to `max_length` instead of the longest text.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 ``[B, L]``.
    """
    import torch
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import TruncationStrategy
    from transformers.utils import PaddingStrategy

    padding = PaddingStrategy.MAX_LENGTH if fixed else PaddingStrategy.LONGEST
    own, shell = type(tokenizer), PreTrainedTokenizerFast
    if any(getattr(own, name, None) is not getattr(shell, name, None) for name in _SHELL):  # it does more, or is slow
        encoded = tokenizer(
            list(texts),
            padding=padding,
            truncation=True,
            max_length=max_length,
            return_attention_mask=True,  # a SigLIP's tokenizer gives none of its own accord
            return_tensors="pt",
        )
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    tokenizer.set_truncation_and_padding(
        padding_strategy=padding,
        truncation_strategy=TruncationStrategy.LONGEST_FIRST,
        max_length=max_length,
        stride=0,
        pad_to_multiple_of=None,
        padding_side=None,
    )
    encodings = tokenizer.backend_tokenizer.encode_batch(list(texts))
    return {
        "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
        "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
    }


def _normalizer(lowercase: bool) -> Any:
    """Unicode form, case and white space: the same in training and in use."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.NFKC()]
    if lowercase:
        steps += [normalizers.Lowercase(), normalizers.NFKC()]
    spaces_and_controls = Regex(r"[\s\p{Cc}\p{Cf}▁]+")  # the last one is SentencePiece's own mark of a space
    steps += [normalizers.Replace(spaces_and_controls, " "), normalizers.Strip()]
    return normalizers.Sequence(steps)


def _train_unigram(texts: Sequence[str], vocab_size: int) -> list[tuple[str, float]]:
    """Pieces and their log probabilities, the special tokens first."""
    import sentencepiece

    if not texts:
        raise DataError("no text to train a tokenizer on; every text is empty")
    texts = texts[:: -(-len(texts) // MAX_TEXTS)]
    counts = Counter(character for text in texts for character in text)
    vocab_size = min(vocab_size, max(counts.total() // CHARACTERS_PER_PIECE, 2 * len(counts) + 8))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *_repeated_words(texts)]),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=_coverage(counts, vocab_size),
        max_sentencepiece_length=LONGEST_PIECE,
        normalization_rule_name="identity",  # the texts are normalized already
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece="[PAD]",
        unk_piece="[UNK]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        num_threads=4,  # fixed: partial sums per thread are added in order, so every machine rounds alike
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(trained.id_to_piece(i), trained.get_score(i)) for i in range(trained.get_piece_size())]


def _repeated_words(texts: Sequence[str]) -> list[str]:
    """Words of more than one text, which go into the training as sentences of their own.

    SentencePiece draws its candidates from repeated substrings that are followed by different characters. A
    brand that never ends a title is always followed by a space and would be no candidate: "nike" would stay
    two pieces for ever. With the words beside them, fashion titles take a quarter fewer tokens.
    """
    counts = Counter(word for text in texts for word in text.split(" ") if len(word) < LONGEST_PIECE)
    return [word for word, count in counts.items() if count > 1]


def _coverage(counts: Counter[str], vocab_size: int) -> float:
    """Share of characters that get a piece; of a large alphabet, what fits into half of the vocabulary."""
    alphabet = counts.most_common()
    kept = sum(count for _, count in alphabet[: vocab_size // 2])
    if len(alphabet) >= vocab_size and kept < SMALLEST_COVERAGE * counts.total():
        raise ConfigError(
            f"vocab_size {vocab_size} is too small for texts of {len(alphabet)} different characters; "
            f"give {2 * len(alphabet)} or more"
        )
    return min(CHARACTER_COVERAGE, max(SMALLEST_COVERAGE, kept / counts.total()))
