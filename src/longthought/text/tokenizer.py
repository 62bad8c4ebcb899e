"""Tokenizers in Hugging Face's ``tokenizers`` format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from longthought.core.errors import CheckpointError, DataError
from longthought.core.types import TokenIds

UNKNOWN = "<unk>"
PADDING = "<pad>"


class Tokenizer:
    """Text to token ids and back.

    Special tokens are written by renderers, never parsed out of a user's text: ``encode`` treats ``<|end|>`` typed by
    a person as the plain characters that it is.
    """

    def __init__(self, backend: Backend, special: Sequence[str]) -> None:
        self._backend = backend
        self.special = tuple(special)
        self._special_ids = frozenset(self.id_of(token) for token in special)
        backend.encode_special_tokens = True

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

    @property
    def size(self) -> int:
        """Number of token ids."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def id_of(self, token: str) -> int:
        """Id of a token that must exist. Raises DataError otherwise."""
        found = self._backend.token_to_id(token)
        if found is None:
            raise DataError(f"the vocabulary has no token {token!r}")
        return int(found)

    def encode(self, text: str) -> TokenIds:
        """Token ids of plain text. Raises DataError when a word is not in a closed vocabulary."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        refused = {self._backend.token_to_id(UNKNOWN), self._backend.token_to_id(PADDING), *self._special_ids}
        if where := [text[slice(*span)] for i, span in zip(encoding.ids, encoding.offsets) if i in refused]:
            raise DataError(
                f"this model has no token for {', '.join(map(repr, dict.fromkeys(where)))}: its vocabulary is closed "
                f"({self.size} words, see tokenizer.json)"
            )
        return tuple(encoding.ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids. Special tokens are shown, so that a model cannot say anything that nobody sees."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def save(self, folder: Path, chat_template: str, end: str, begin: str | None = None) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` as ``AutoTokenizer`` reads them."""
        self._backend.encode_special_tokens = False
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        self._backend.encode_special_tokens = True
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PADDING,
            "unk_token": UNKNOWN,
            "eos_token": end,
            "bos_token": begin,
            "additional_special_tokens": [token for token in self.special if token not in (end, begin)],
            "clean_up_tokenization_spaces": False,
            "chat_template": chat_template,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read a folder written by ``save``. Raises CheckpointError when files are missing or damaged."""
        try:
            backend = Backend.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            listed = [config.get("bos_token"), config.get("eos_token"), *config.get("additional_special_tokens", [])]
            return cls(backend, [token for token in listed if token])
        except Exception as error:  # the backend raises bare Exception
            raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error}") from error
