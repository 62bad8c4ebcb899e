"""Tokenizers in Hugging Face's ``tokenizers`` format: of words, trained on a corpus, or read from a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Encoding, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from longthought.core.errors import CheckpointError, DataError
from longthought.core.files import json_object
from longthought.core.types import TokenIds
from longthought.text.hidden import Hidden
from longthought.text.tokenizer_files import (
    CONFIG,
    ROLES,
    TOKENIZER,
    backend_of,
    content_of,
    extra_special,
    ran,
    read_files,
    settings_of,
)

UNKNOWN = "<unk>"
PADDING = "<pad>"

PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before byte pairs are merged: words with the sign before them, single digits, signs, white space.
The pattern of Qwen2's tokenizer."""

_SEAM = ("\ue000seam-7d1f0c65\ue001", "\ue000seam-3ab94e28\ue001")
"""Stand for a markup token, by whether it is matched in normalized text, in what the second backend reads. A text that
holds one is refused."""


class Tokenizer:
    """Text to token ids and back.

    *Markup* is what only renderers write: special tokens, and the other tokens that were added to a vocabulary, such as
    Qwen's ``<think>``, runs of white space excepted. It is never parsed out of a user's text: ``encode`` treats
    ``<|end|>`` typed by a person as the plain characters that it is.

    marks: the markup, by token id; ``markup``: the same, longest first.
    roles: the named special tokens of the folder, such as ``{"eos_token": "<|im_end|>"}``.
    files: the bytes of the files that it was read from, by name; empty if it was made here.
    prefix: token ids that stand before every text that is no conversation (the beginning-of-text token of Llama).
    """

    def __init__(self, backend: Backend, special: Sequence[str]) -> None:
        self.special = tuple(special)
        self.roles: Mapping[str, str] = {}
        self.files: Mapping[str, bytes] = {}
        self.prefix: TokenIds = ()
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        marks = {i: token for i, token in added.items() if token.special or token.content.strip(" \t\r\n▁")}
        self.marks: Mapping[int, str] = {i: token.content for i, token in marks.items()}
        self._refused: Set[int | None] = {*self.marks, *map(self.id_of, special)}
        self._seam_of = {i: _SEAM[token.normalized] for i, token in marks.items()}
        self.markup = tuple(sorted(set(self.marks.values()), key=lambda mark: (-len(mark), mark)))
        self._plain = _without(self.markup, backend)
        self._seam_ids = frozenset(self._plain.token_to_id(seam) for seam in _SEAM)

    @classmethod
    def of_words(cls, words: Iterable[str], special: Sequence[str]) -> Tokenizer:
        """One token for each word of a closed vocabulary; numbers are words.

        Runs of digits, of letters and of Han characters, tags and single signs are split from each other, so that
        ``(9*4)-3`` and ``( 9 * 4 ) - 3`` are the same tokens. Decoding puts a space between tokens.
        """
        ordered = [PADDING, UNKNOWN, *special]
        ordered += [word for word in dict.fromkeys(words) if word not in ordered]
        backend = Backend(models.WordLevel({word: index for index, word in enumerate(ordered)}, unk_token=UNKNOWN))
        pieces = Regex(r"</?[a-z]+>|[0-9]+|[A-Za-z]+|\p{Han}|[^\s]")
        backend.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PADDING, *special)])
        return cls(backend, special)

    @classmethod
    def train(cls, texts: Iterable[str], size: int, special: Sequence[str], tags: Sequence[str] = ()) -> Tokenizer:
        """Byte pairs merged by frequency in a corpus: any text is encoded, and decoded to what it was.

        The first ids are ``<pad>`` and ``special``, the next 256 the bytes; digits are tokens of their own. The same
        texts in the same order give the same tokenizer.

        Args:
            size: number of token ids. A corpus too small for so many merges gives fewer.
            tags: further markup, which is not special: decoders of other people show it, such as ``<think>``. The last
                ids are theirs.

        Raises:
            DataError: ``size`` leaves no room for the bytes, a special token is empty or named twice, or a text holds
                half of a surrogate pair.
        """
        reserved = [PADDING, *special, *tags]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        if len(set(reserved)) < len(reserved) or not all(token.strip() for token in reserved):
            raise DataError(
                f"special tokens must be words of their own, each named once, {PADDING!r} being there: {special}"
            )
        if size < (least := len(reserved) + len(alphabet)):
            raise DataError(f"a vocabulary of {size} tokens has no room for {least}: 256 bytes and the special tokens")
        backend = Backend(models.BPE())
        split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
        backend.decoder = decoders.ByteLevel()
        backend.train_from_iterator(
            map(_whole, texts),
            trainers.BpeTrainer(
                vocab_size=size - len(tags),
                special_tokens=[AddedToken(token, special=True, normalized=False) for token in (PADDING, *special)],
                initial_alphabet=alphabet,
                show_progress=False,
            ),
        )
        backend.add_tokens([AddedToken(token, normalized=False) for token in tags])
        return cls(backend, special)

    @cached_property
    def size(self) -> int:
        """Number of token ids."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @cached_property
    def largest_id(self) -> int:
        """The largest token id; a model must have a row for it. In some vocabularies ids are left out."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)

    def knows(self, token: str) -> bool:
        """Whether ``token`` is one token."""
        return self._backend.token_to_id(token) is not None

    def id_of(self, token: str) -> int:
        """Id of a token that must exist. Raises DataError otherwise."""
        found = self._backend.token_to_id(token)
        if found is None:
            raise DataError(f"the vocabulary has no token {token!r}")
        return int(found)

    def encode(self, text: str, tags: Sequence[str] = ()) -> TokenIds:
        """Token ids of what somebody said. Of all markup only ``tags`` is read as such.

        Raises:
            DataError: a word is not in a closed vocabulary, or the text holds half of a surrogate pair.
        """
        if tags := tuple(tag for tag in tags if tag in self.markup):
            typed = Hidden((text,), self.markup)
            return self.encode_markup(typed.hide(text, but=tags), typed)
        encoding = ran(lambda: self._plain.encode(_whole(text), add_special_tokens=False))
        self._check(text, encoding, self._refused | self._seam_ids)
        return tuple(encoding.ids)

    def encode_markup(self, text: str, typed: Hidden | None = None, cut: int = 0) -> TokenIds:
        """Token ids of a rendered text, in which markup is read as such. No token goes over the position ``cut``.

        typed: what people have typed and looks like markup; ``text`` holds single signs instead of it. It is put back
            and becomes plain characters. Other tokens are those that the whole text has, its markup read.
        """
        encoding = ran(lambda: self._backend.encode(_whole(text), add_special_tokens=False))
        ids, spans = encoding.ids, encoding.offsets
        found = [(i, start, end) for i, (start, end) in zip(ids, spans) if i in self.marks]
        written = [mark for mark in found if text[mark[1] : mark[2]].strip() == self.marks[mark[0]].strip()]
        if len(written) == len(found) and not cut and not (typed and typed.occurs_in(text)):
            self._check(text, encoding, set())
            return tuple(ids)
        return self._sewn(text, written, typed, cut)

    def _sewn(self, text: str, written: list[tuple[int, int, int]], typed: Hidden | None, cut: int) -> TokenIds:
        """Encode with a seam in the place of every markup token, all other markup being plain characters."""
        show: Callable[[str], str] = typed.show if typed else str
        pieces: list[str] = []
        seams: list[int | None] = []
        at = 0
        cuts = [(None, cut, cut)] if cut else []
        for i, start, end in sorted([*written, *cuts], key=lambda mark: mark[1:]):
            pieces += [show(text[at:start]), _SEAM[False] if i is None else self._seam_of[i]]
            seams.append(i)
            at = end
        whole = "".join((*pieces, show(text[at:])))
        encoding = ran(lambda: self._plain.encode(whole, add_special_tokens=False))
        self._check(whole, encoding, self._refused)
        if sum(i in self._seam_ids for i in encoding.ids) != len(seams):
            raise DataError("the text holds a sequence of private signs that this tokenizer reserves for itself")
        waiting = iter(seams)
        sewn = (next(waiting) if i in self._seam_ids else i for i in encoding.ids)
        return tuple(i for i in sewn if i is not None)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids. Special tokens are shown, so that a model cannot say anything that nobody sees.

        An id without a token (a model may have more rows than its tokenizer has ids) is shown as ``�``.
        """
        unknown = [at for at, i in enumerate(ids) if not 0 <= i <= self.largest_id or not self._backend.id_to_token(i)]
        if not unknown:
            return str(self._backend.decode(list(ids), skip_special_tokens=False))
        edges = [-1, *unknown, len(ids)]
        return "�".join(self.decode(ids[a + 1 : b]) for a, b in pairwise(edges))

    def save(self, folder: Path, chat_template: str, end: str, begin: str | None = None) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` as ``AutoTokenizer`` reads them."""
        known = self.files.get(TOKENIZER) or self._backend.to_str(pretty=True).encode()
        (folder / TOKENIZER).write_bytes(known)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PADDING if self.knows(PADDING) else None,
            "unk_token": UNKNOWN if self.knows(UNKNOWN) else None,
            "eos_token": end,
            "bos_token": begin,
            "additional_special_tokens": [token for token in self.special if token not in (end, begin)],
            "clean_up_tokenization_spaces": False,
            "chat_template": chat_template,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of a model folder, one of ours or of Hugging Face.

        Raises:
            CheckpointError: files are missing or damaged, or the tokenizer is of a kind that we cannot run.
        """
        files = read_files(folder)
        try:
            settings = settings_of(files, folder)
            state = json_object(files[TOKENIZER].decode(), folder / TOKENIZER)
            backend = backend_of(state, settings, folder / TOKENIZER)
            roles = {role: name for role in ROLES if (name := content_of(settings.get(role)))}
            listed = [roles.get("bos_token"), roles.get("eos_token"), *extra_special(settings)]
            tokenizer = cls(backend, list(dict.fromkeys(token for token in listed if token)))
            tokenizer.roles = roles
            tokenizer.prefix = tokenizer._start()
        except (DataError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise CheckpointError(f"{folder}: the tokenizer cannot be used: {error}") from error
        tokenizer.files = files
        return tokenizer

    def _start(self) -> TokenIds:
        """What the post-processor writes before a text. (transformers 5 reads no ``add_bos_token`` beside it.)"""
        bare = ran(lambda: self._backend.encode("a", add_special_tokens=False)).ids
        whole = ran(lambda: self._backend.encode("a", add_special_tokens=True)).ids
        starts = (at for at in range(len(whole)) if bare and whole[at : at + len(bare)] == bare)
        return tuple(whole[: next(starts, 0)])

    @cached_property
    def is_closed(self) -> bool:
        """Whether a word that the vocabulary lacks has no tokens at all."""
        return isinstance(self._backend.model, models.WordLevel)

    @cached_property
    def _unknown(self) -> int | None:
        name = getattr(self._backend.model, "unk_token", None) or self.roles.get("unk_token")
        found = self._backend.token_to_id(name) if isinstance(name, str) else None
        return None if found is None else int(found)

    def _check(self, text: str, encoding: Encoding, refused: Set[int | None]) -> None:
        """Refuse words outside a closed vocabulary, and plain text of which the model makes a token in ``refused``."""
        refused = refused | {self._unknown} if self.is_closed else refused - {self._unknown}
        where = [text[slice(*span)] for i, span in zip(encoding.ids, encoding.offsets) if i in refused]
        if not where:
            return
        named = ", ".join(map(repr, dict.fromkeys(where)))
        if self.is_closed:
            kind = f"its vocabulary is closed ({self.size} words, see {TOKENIZER})"
        else:
            kind = "its vocabulary makes a special token of it"
        raise DataError(f"this model has no token for {named}: {kind}")


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise DataError(f"the text holds half of a surrogate pair, {code} at {error.start}: no character") from None
    return text


def _without(markup: Sequence[str], backend: Backend) -> Backend:
    """A copy that reads no markup but seams, under the same ids."""
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in markup
    state["post_processor"] = None
    plain = Backend.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    plain.add_tokens([AddedToken(_SEAM[False], normalized=False), AddedToken(_SEAM[True], normalized=True)])
    return plain
