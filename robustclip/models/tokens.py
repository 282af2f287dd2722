"""Texts to token ids, by the tokenizer that a CLIP was trained with; each is open_clip's own."""

import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from robustclip.models.vocabulary import word_ids

_SHOWN = 4  # names of special tokens in a message
_BEGINNINGS = ("\u2581", "\u0120")  # marks of SentencePiece and of byte-level BPE before a word


class Reading(NamedTuple):
    """[L, T] token ids of texts, cut to the context; [L] the lengths that they need, special tokens included;
    [L] whether a text itself spells a special token.
    """

    tokens: Tensor
    lengths: Tensor
    special: Tensor


class Tokenizer(Protocol):
    """Texts to [L, context_length] token ids; longer texts are cut without a message.

    context_length  of the text tower
    leading         special tokens before the words: learned vectors stand behind them
    padding         the id behind the words
    specials        the names of special tokens
    identity        what differs from CLIP's own tokenizer, for the fingerprint; empty if nothing does
    """

    context_length: int
    leading: int
    padding: int
    specials: tuple[str, ...]
    identity: str

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor: ...

    def read(self, texts: list[str]) -> Reading:
        """The token ids with what a caller must know to refuse texts instead of cutting them."""
        ...

    def words(self) -> dict[str, int]:
        """Every word that is one token, with its row in the token table."""
        ...


class ClipTokenizer:
    """CLIP's own tokenizer: lower-cased byte pairs between <start_of_text> and <end_of_text>."""

    def __init__(self, context_length: int, **options: Any) -> None:
        self._tokenizer = open_clip.SimpleTokenizer(context_length=context_length, **options)
        self.context_length, self.leading, self.padding = context_length, 1, 0
        self.specials: tuple[str, ...] = ("<start_of_text>", "<end_of_text>")
        self.identity = repr(sorted(options.items())) if options else ""

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor:
        return self._tokenizer(texts, context_length)

    def read(self, texts: list[str]) -> Reading:
        tokens = self._tokenizer(texts, self.context_length + 1)
        special = (tokens >= tokens[:, :1]).sum(dim=1) != 2  # the first is [SOS], and only [EOS] is higher
        return Reading(tokens[:, : self.context_length], tokens.argmax(dim=1) + 1, special)

    def words(self) -> dict[str, int]:
        return word_ids()


class HubTokenizer:
    """A tokenizer of the transformers package, such as those of SigLIP, CLIPA and MetaCLIP 2."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._wrapper, self._tokenizer = tokenizer, tokenizer.tokenizer
        self._lock = threading.Lock()  # it keeps the padding of a call as its state
        self._clean: Callable[[str], str] = tokenizer.clean_fn
        self._clips = tokenizer.tokenizer_mode == "clips"  # adds beginning, end and class token by itself
        self.context_length = int(tokenizer.context_length or 77)
        self.padding = self._tokenizer.pad_token_id or 0
        self._special_ids = set(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}
        sample = [int(self(["a"])[0, 0])] if self._clips else self._ids(["a"], add_special_tokens=True)[0]
        self.leading = int(sample[0] in self._special_ids)
        self.specials = tuple(self._tokenizer.all_special_tokens[:_SHOWN])
        self.identity = self._digest()

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor:
        with self._lock:
            return self._wrapper(texts, context_length)

    def read(self, texts: list[str]) -> Reading:
        cleaned = [self._clean(text) for text in texts]
        with self._lock:
            words = self._ids(cleaned, add_special_tokens=False)
            whole = self._ids(cleaned, add_special_tokens=True)
        lengths = [len(row) + 3 for row in words] if self._clips else [len(row) for row in whole]
        special = [not self._special_ids.isdisjoint(row) for row in words]
        return Reading(self(texts), torch.tensor(lengths), torch.tensor(special))

    def words(self) -> dict[str, int]:
        table: dict[str, int] = self._tokenizer.get_vocab()
        added = {*self._tokenizer.get_added_vocab(), *self._tokenizer.all_special_tokens}
        mark = next((mark for mark in _BEGINNINGS if any(token[:1] == mark for token in table)), "")
        return {
            token.removeprefix(mark): index
            for token, index in sorted(table.items(), key=lambda entry: entry[1])
            if token.startswith(mark) and token != mark and not token.startswith("##") and token not in added
        }

    def _ids(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        encoded = self._tokenizer(
            texts, add_special_tokens=add_special_tokens, padding=False, truncation=False, verbose=False
        )
        return encoded["input_ids"]

    def _digest(self) -> str:
        """sha256 of the vocabulary and of what is done to a text before and after."""
        facts = {
            "vocabulary": self._tokenizer.get_vocab(),
            "clean": getattr(self._clean, "__name__", repr(self._clean)),
            "mode": self._wrapper.tokenizer_mode,
            "strip": self._wrapper.strip_sep_token,
            "sample": self(["A photo of a cat, 3 dogs & Zürich!"]).tolist(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
