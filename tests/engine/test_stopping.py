"""Stop strings: the short tail that is decoded against the whole reply."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from torch import nn

from longthought.core.errors import SettingsError
from longthought.core.types import Completion, Finish, SamplingParams
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.stopping import Decode, StopStrings, text_before_stop
from longthought.models.config import ModelConfig
from longthought.rollout.scripted import ScriptedSampler

FLOAT32 = EngineSettings(precision="float32")
TEXTS = ["a", "b", "ab", "bab", " ", " a", "<a>", "é", "得", "得a", "😀", "😀b"]
PIECES = sorted(
    {*(bytes([byte]) for text in TEXTS for byte in text.encode()), b"ab", b" b", "é".encode(), b"\xf0\x9f", b"\x80a"}
)


def of_bytes(tokens: Sequence[int]) -> str:
    """As byte-level vocabularies decode: characters may be spread over tokens."""
    return b"".join(PIECES[token] for token in tokens).decode("utf-8", "replace")


def silent(tokens: Sequence[int]) -> str:
    """Every third token shows nothing, as special tokens that are skipped."""
    return of_bytes([token for token in tokens if token % 3])


def of_sentence_pieces() -> Decode:
    """Marks for spaces, the first of which is dropped, and bytes for what has no piece."""
    words = ["▁", "a", "b", "▁a", "▁b", "ab", "é", "<", ">", *(f"<0x{byte:02X}>" for byte in "得😀".encode())]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*words, "<unk>"])}, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return lambda tokens: str(backend.decode([token % len(words) for token in tokens]))


def of_words() -> Decode:
    """Words of a closed vocabulary, with spaces put between them; a special token is skipped."""
    words = ["a", "b", "ab", "<a>", "é", "得"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*words, "<unk>"])}, unk_token="<unk>"))
    backend.add_special_tokens([AddedToken("b", special=True)])
    return lambda tokens: str(backend.decode([token % len(words) for token in tokens]))


DECODERS = {"bytes": of_bytes, "silent": silent, "sentence pieces": of_sentence_pieces(), "words": of_words()}


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@given(
    tokens=st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=40),
    strings=st.lists(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4).map("".join), min_size=1, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_a_reply_ends_where_its_whole_text_first_holds_a_string(
    decode: Decode, tokens: list[int], strings: list[str]
) -> None:
    watch = StopStrings(strings, decode)
    for end in range(1, len(tokens) + 1):
        held = any(string in decode(tokens[:end]) for string in strings)
        assert watch.completed(tokens[:end]) == held
        if held:
            break


@given(
    text=st.text("abé得😀", min_size=1, max_size=30),
    strings=st.lists(st.text("abé得😀", min_size=1, max_size=3), min_size=1, max_size=3),
    least=st.integers(0, 20),
)
@settings(max_examples=300, deadline=None)
def test_strings_completed_before_min_tokens_do_not_count(text: str, strings: list[str], least: int) -> None:
    """One byte, one token: a string is completed by the token of its last byte."""
    data = text.encode()
    watch = StopStrings(strings, lambda tokens: bytes(tokens).decode("utf-8", "replace"), least)
    for end in range(1, len(data) + 1):
        completed = any(data[:end].endswith(string.encode()) for string in strings)
        assert watch.completed(list(data[:end])) == (completed and end >= least)
        if completed and end >= least:
            break


def test_only_a_tail_is_decoded() -> None:
    sizes = []

    def decode(tokens: Sequence[int]) -> str:
        sizes.append(len(tokens))
        return "a" * len(tokens)

    watch = StopStrings(["bbb", "b"], decode)
    assert not any(watch.completed([0] * end) for end in range(1, 500))
    assert max(sizes) == 4


def test_tokens_that_show_nothing_may_stand_within_a_string() -> None:
    a, space = PIECES.index(b"a"), PIECES.index(b" ")
    nothing = [token for token in range(len(PIECES)) if not silent([token])]
    reply = [a, *nothing * 5, a]
    assert silent(reply) == "aa"
    assert StopStrings(["aa"], silent).completed(reply)
    assert not StopStrings([" a"], silent).completed([space, *reply])


def spelled(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


class Parrot(nn.Module):
    """A model that says ``text``, a byte a token, to every prompt of one token."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.config = ModelConfig(256, 256, max_position_embeddings=64)
        self.lm_head = nn.Linear(256, 256, bias=False)
        self.lm_head.weight = nn.Parameter(100 * torch.eye(256))
        self._bytes = torch.tensor(list(text.encode().ljust(64)))

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, *rest: object) -> torch.Tensor:
        return torch.eye(256)[self._bytes[positions]]


@pytest.mark.parametrize(
    ("said", "stop", "options", "kept", "shown", "finish"),
    [
        ("one two three", ("two",), {}, "one two", "one ", Finish.STOP_STRING),
        ("one two three", ("xyz", "two", "one two"), {}, "one two", "", Finish.STOP_STRING),
        ("one two", ("one t", "one"), {}, "one", "", Finish.STOP_STRING),
        ("one", ("o",), {}, "o", "", Finish.STOP_STRING),
        ("a 😀 b", ("😀",), {}, "a 😀", "a ", Finish.STOP_STRING),
        ("a 😀 b", (" 😀 ",), {}, "a 😀 ", "a", Finish.STOP_STRING),
        ("one two", ("two",), {"max_tokens": 7}, "one two", "one ", Finish.STOP_STRING),
        ("one two", ("two",), {"max_tokens": 6}, "one tw", "one tw", Finish.LENGTH),
        ("one two", ("two",), {"stop_tokens": (ord("o"),)}, "o", "o", Finish.STOP),
        ("one two", ("two",), {"stop_tokens": (ord("w"), ord("!"))}, "one tw", "one tw", Finish.STOP),
        ("two two", ("two",), {"min_tokens": 4}, "two two", "two ", Finish.STOP_STRING),
        ("two two", ("two",), {"min_tokens": 3}, "two", "", Finish.STOP_STRING),
        ("one", ("xyz",), {}, None, None, Finish.BUDGET),
    ],
)
def test_engine_and_script_end_alike(said, stop, options, kept, shown, finish) -> None:
    params = SamplingParams(temperature=0, stop=stop, **options)
    [[completion]] = Engine(Parrot(said), FLOAT32, decode=spelled).sample([(1,)], params)
    assert completion.finish is finish
    if kept is not None:
        assert (spelled(completion.token_ids), text_before_stop(completion, spelled, stop)) == (kept, shown)
    if not params.min_tokens:
        script = ScriptedSampler({(1,): [tuple(said.encode().ljust(63))]}, decode=spelled)
        [[scripted]] = script.sample([(1,)], params)
        assert (scripted.token_ids, scripted.finish) == (completion.token_ids, completion.finish)


def test_one_token_may_complete_several_strings() -> None:
    decode = dict(enumerate(["x", "abc"])).__getitem__
    joined = lambda tokens: "".join(map(decode, tokens))  # noqa: E731
    assert text_before_stop(Completion((0, 1), (0.0, 0.0), Finish.STOP_STRING), joined, ("c", "b")) == "xa"
    assert text_before_stop(Completion((0, 1), (0.0, 0.0), Finish.STOP), joined, ("c", "b")) == "xabc"


def test_a_script_that_cannot_decode_refuses_stop_strings() -> None:
    with pytest.raises(SettingsError, match="decode"):
        ScriptedSampler({(1,): [(2, 3)]}).sample([(1,)], SamplingParams(stop=("a",)))
