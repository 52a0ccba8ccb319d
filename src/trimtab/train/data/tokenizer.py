"""Tokenizers: one given, or one trained on the data: byte-level BPE, WordPiece for BERT, Unigram for T5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trimtab.errors import DataError, UnreadableFile, UsageError

SENTINELS = 100
"""T5's ``<extra_id_0>`` to ``<extra_id_99>`` (Raffel et al. 2020, section 3.1.4; T5TokenizerFast's
extra_ids).
"""
TRAINING_CHARACTERS = {"bpe": 50_000_000, "wordpiece": 50_000_000, "unigram": 20_000_000}
"""Text that a tokenizer is trained on at most: more changes the vocabulary little and costs minutes."""
LEAST_VOCABULARY = 300
"""Below this a byte-level vocabulary has no room for merges."""


def load_tokenizer(name: str) -> Any:
    """The tokenizer in a folder, a ``tokenizer.json``, or on the hub.

    Raises:
        UnreadableFile: there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if name.endswith(".json"):
            return PreTrainedTokenizerFast(tokenizer_file=name)
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        text = str(error).strip()
        raise UnreadableFile(
            f"--tokenizer {name}: no tokenizer there: "
            f"{text.splitlines()[0] if text else type(error).__name__}"
        ) from error


def train_tokenizer(model_type: str, texts: Iterable[str], *, vocab_size: int) -> Any:
    """A tokenizer of the kind that ``model_type`` uses, with at most ``vocab_size`` ids, trained on
    ``texts``.

    Raises:
        UsageError: ``vocab_size`` leaves no room.
        DataError: no text.
    """
    kind = {"bert": "wordpiece", "t5": "unigram"}.get(model_type, "bpe")
    least = LEAST_VOCABULARY + (SENTINELS if kind == "unigram" else 0)
    if vocab_size < least:
        raise UsageError(f"a vocabulary of {vocab_size} is too small to train a tokenizer: at least {least}")
    text = _up_to(texts, TRAINING_CHARACTERS[kind])
    train = {"bpe": _train_bpe, "wordpiece": _train_wordpiece, "unigram": _train_unigram}[kind]
    return train(text, vocab_size, model_type)


def _up_to(texts: Iterable[str], characters: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        yield text
        taken += len(text)
        if taken >= characters:
            return
    if not taken:
        raise DataError("the data hold no text to train a tokenizer on")


def _train_bpe(texts: Iterator[str], vocab_size: int, model_type: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    begin_end = ("<|endoftext|>", "<|endoftext|>") if model_type.startswith("gpt") else ("<s>", "</s>")
    specials = list(dict.fromkeys(begin_end))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin_end[0], eos_token=begin_end[1], pad_token=begin_end[1]
    )


def _train_wordpiece(texts: Iterator[str], vocab_size: int, model_type: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106  a token, no password
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",  # noqa: S106
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def _train_unigram(texts: Iterator[str], vocab_size: int, model_type: str) -> Any:
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - SENTINELS,
        special_tokens=["<pad>", "</s>", "<unk>"],  # T5's ids 0, 1, 2
        unk_token="<unk>",  # noqa: S106
        initial_alphabet=[chr(code) for code in range(ord("!"), ord("~") + 1)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>", eos_token="</s>", unk_token="<unk>",  # noqa: S106
        extra_special_tokens=[f"<extra_id_{number}>" for number in range(SENTINELS)],
    )  # fmt: skip


def check_vocabulary(tokenizer: Any, vocab_size: int, *, task: str) -> None:
    """Refuse a tokenizer that the model or the task cannot use.

    Raises:
        UsageError: it makes ids beyond the model's vocabulary, or lacks a mark that the task needs.
    """
    if len(tokenizer) > vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} ids but the model's vocabulary has {vocab_size}; use "
            "the model's own "
            "tokenizer, or leave --tokenizer out to train one that fits"
        )
    if task == "masked-lm" and tokenizer.mask_token_id is None:
        raise UsageError("masked-lm needs a tokenizer with a mask token; this one has none")
    if task == "span-corruption":
        sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
        if sentinel is None or sentinel == tokenizer.unk_token_id:
            raise UsageError(
                "span-corruption needs a tokenizer with T5's <extra_id_0> … sentinels; this one has none"
            )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer as a folder that ``AutoTokenizer.from_pretrained`` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))


def set_token_ids(hf: Any, tokenizer: Any) -> None:
    """Set on the model's config (in place) the marks of the tokenizer that its data are made with."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(tokenizer, key, None)
        if token is not None:
            setattr(hf, key, token)
    if hf.is_encoder_decoder and hf.pad_token_id is not None:
        hf.decoder_start_token_id = hf.pad_token_id
