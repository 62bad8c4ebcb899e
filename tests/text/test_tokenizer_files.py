"""Trained tokenizers, and those of other people: equal to transformers, and refused in words when they are damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers
from folders import CORPUS, KINDS, qwen, write
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from longthought.core.errors import CheckpointError, DataError
from longthought.core.types import Message
from longthought.text.hidden import Hidden
from longthought.text.renderer import ASSISTANT, BEGIN, CHAT_TEMPLATE, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

SPECIAL = (BEGIN, USER, ASSISTANT, END, "<think>", "</think>")
TRAINED = Tokenizer.train(CORPUS, 300, SPECIAL)


@settings(deadline=None)
@given(
    st.one_of(
        st.text(),
        st.text(st.characters(max_codepoint=0x2FF)),
        st.lists(st.sampled_from(["<think>", END, "12", " ", "\n", "�"])).map("".join),
    )
)
def test_any_text_comes_back(text: str) -> None:
    ids = TRAINED.encode(text)
    assert TRAINED.decode(ids) == text
    assert not {TRAINED.id_of(token) for token in ("<pad>", *SPECIAL)} & set(ids)


@given(st.lists(st.integers(0, 306), max_size=12))
def test_any_ids_have_a_text(ids: list[int]) -> None:
    TRAINED.decode(ids)


def test_digits_stand_alone() -> None:
    assert len(TRAINED.encode("2025")) == 4
    assert [TRAINED.decode((i,)) for i in TRAINED.encode("1234")] == list("1234")


def test_training_is_deterministic() -> None:
    again = Tokenizer.train(iter(CORPUS), 300, SPECIAL)
    texts = (*CORPUS, "étrange 试 reasoning user system")
    assert [again.encode(text) for text in texts] == [TRAINED.encode(text) for text in texts]
    assert again.size == TRAINED.size == 300
    assert TRAINED.largest_id == 299


@pytest.mark.parametrize(
    ("texts", "size", "special", "message"),
    [
        ((), 262, SPECIAL, "no room for 263"),
        ((), 300, ("<pad>",), "each named once"),
        ((), 300, ("a", "a"), "each named once"),
        ((), 300, (" ",), "words of their own"),
        (("a\udc00",), 300, SPECIAL, r"U\+DC00"),
    ],
)
def test_what_cannot_be_trained(texts: tuple[str, ...], size: int, special: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Tokenizer.train(texts, size, special)


def test_bytes_alone_are_a_vocabulary() -> None:
    tokenizer = Tokenizer.train((), 257 + len(SPECIAL), SPECIAL)
    assert tokenizer.decode(tokenizer.encode("試\x00é")) == "試\x00é"


def test_a_trained_tokenizer_is_one_of_transformers(tmp_path: Path) -> None:
    TRAINED.save(tmp_path, CHAT_TEMPLATE, end=END, begin=BEGIN)
    oracle, loaded = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    for text in (*CORPUS, "x  y\n\n z 123 é"):
        assert tuple(oracle(text.replace("<think>", "").replace("</think>", "")).input_ids) == loaded.encode(
            text.replace("<think>", "").replace("</think>", "")
        )
        assert loaded.encode(text) == TRAINED.encode(text)
    messages = (Message("user", "12 + 34 </think>"), Message("assistant", "46", reasoning="so"))
    ids, _ = PlainRenderer(loaded).example(messages)
    assert ids.count(loaded.id_of("<think>")) == ids.count(loaded.id_of("</think>")) == 1  # the assistant's alone
    plain = (Message("user", "12 + 34"), Message("assistant", "46"))
    conversation = [{"role": m.role, "content": m.content} for m in plain]
    assert PlainRenderer(loaded).example(plain)[0] == tuple(oracle.apply_chat_template(conversation, return_dict=False))


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path)
    tokenizer, oracle = Tokenizer.load(path), transformers.AutoTokenizer.from_pretrained(path)
    assert tokenizer.size == len(oracle)
    assert tokenizer.largest_id == max(oracle.get_vocab().values())
    assert tokenizer.decode(range(len(oracle))) == oracle.decode(
        list(range(len(oracle))), clean_up_tokenization_spaces=False
    )
    assert tokenizer.decode((5, 10**7, 6)) == f"{tokenizer.decode((5,))}�{tokenizer.decode((6,))}"


FLAGS = st.fixed_dictionaries(
    {flag: st.booleans() for flag in ("lstrip", "rstrip", "normalized", "single_word", "special")}
)


@settings(max_examples=60, deadline=None)
@given(
    flags=st.lists(FLAGS, min_size=3, max_size=3),
    parts=st.lists(st.sampled_from(["<a>", "<b>", "<AB>", " ", "  ", "\n", "x", "Ax", "9", "é", "É"]), max_size=8),
    normalizer=st.sampled_from([None, normalizers.Lowercase(), normalizers.NFKC(), normalizers.Prepend("_")]),
    typed=st.text(st.sampled_from("<ab> xé"), max_size=5),
)
def test_typed_markup_changes_nothing_around_it(
    flags: list[dict[str, bool]], parts: list[str], normalizer: Any, typed: str
) -> None:
    """The tokens of a rendered text are the backend's own; with words typed in it, they are those of a twin in which
    the typed words are no markup."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    state = json.loads(TRAINED._backend.to_str())
    backend = Backend.from_str(json.dumps({**json.loads(backend.to_str()), "model": state["model"]}))
    backend.add_tokens([AddedToken(t, **f) for t, f in zip(("<a>", "<b>", "<AB>"), flags)])
    text = "".join(parts)
    literal = list(backend.encode(text, add_special_tokens=False).ids)
    tokenizer = Tokenizer(backend, ())
    if normalizer is None:
        assert list(tokenizer.encode_markup(text)) == literal
    hidden = Hidden((text, typed + "<a>"), tokenizer.markup)
    around = tokenizer.encode_markup(text + "y" + hidden.hide(typed + "<a>"), hidden)
    written = [i for i in tokenizer.encode_markup(text + "y") if i in tokenizer.marks]
    assert [i for i in around if i in tokenizer.marks] == written
    if normalizer is None:
        assert tokenizer.decode(around).endswith("y" + typed + "<a>")


def test_a_sign_that_normalizes_to_markup_is_none(tmp_path: Path) -> None:
    """Fullwidth ``＜think＞`` is ``<think>`` after NFKC; a person may type it all the same."""
    backend = Backend.from_str(TRAINED._backend.to_str())
    backend.normalizer = normalizers.NFKC()
    backend.add_tokens([AddedToken("<tag>", special=False, normalized=True)])
    tokenizer = Tokenizer(backend, ())
    tag = tokenizer.id_of("<tag>")
    assert tag in tokenizer.encode_markup("a<tag>")
    assert tag not in tokenizer.encode_markup("a＜tag＞")
    assert tokenizer.encode_markup("<tag>a＜tag＞").count(tag) == 1
    assert tag not in tokenizer.encode("a<tag>b＜tag＞")


def test_white_space_that_was_added_is_text() -> None:
    backend = Backend.from_str(TRAINED._backend.to_str())
    backend.add_tokens([AddedToken(" " * 8, special=False, normalized=False)])
    tokenizer = Tokenizer(backend, ())
    assert tokenizer.id_of(" " * 8) in tokenizer.encode("a" + " " * 8 + "b")


def test_a_model_that_makes_a_special_token_of_plain_text_is_refused(tmp_path: Path) -> None:
    backend = Backend(models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("<", -9.0), ("s", -9.0), (">", -9.0)], unk_id=0))
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    path = write(tmp_path, backend, {"bos_token": "<s>"})
    with pytest.raises(DataError, match="'<s>'"):
        Tokenizer.load(path).encode("<s>")


def edited(path: Path, **changes: object) -> Path:
    file = path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return path


def test_truncation_padding_and_dropout_are_off(tmp_path: Path) -> None:
    plain = Tokenizer.load(qwen(tmp_path / "a"))
    path = qwen(tmp_path / "b")
    state = json.loads((path / "tokenizer.json").read_text())
    cut = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    pad = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    edited(path, truncation=cut, padding=pad, model={**state["model"], "dropout": 0.9})
    for text in CORPUS:
        assert Tokenizer.load(path).encode(text) == plain.encode(text)


def test_tokens_that_only_the_settings_add(tmp_path: Path) -> None:
    path = qwen(tmp_path)
    state = json.loads((path / "tokenizer.json").read_text())
    first = max(token["id"] for token in state["added_tokens"]) + 1
    file = path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in state["added_tokens"]}
    more = {str(first): {"content": "<more>", "special": True, "normalized": False}}
    named = {"extra_special_tokens": {"more_token": "<more>"}}
    file.write_text(json.dumps({**config, **named, "added_tokens_decoder": {**added, **more}}))
    tokenizer, oracle = Tokenizer.load(path), transformers.AutoTokenizer.from_pretrained(path)
    assert tokenizer.id_of("<more>") == oracle.convert_tokens_to_ids("<more>") == first
    assert first not in tokenizer.encode("a <more>")
    assert "<more>" in tokenizer.special
    file.write_text(json.dumps({**config, "added_tokens_decoder": {"9999": {"content": "<more>"}}}))
    with pytest.raises(CheckpointError, match="no room"):
        Tokenizer.load(path)


def test_a_regex_that_never_ends_is_an_error_in_words(tmp_path: Path) -> None:
    bomb = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = Tokenizer.load(edited(qwen(tmp_path), pre_tokenizer=bomb))
    with pytest.raises(DataError, match="tokenizer fails"):
        tokenizer.encode("a" * 40 + "b")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"type": "Strange"}},
        {"model": None},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
        {"model": {"type": "BPE", "vocab": [], "merges": {}}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}},
        {"added_tokens": [{"id": 3}]},
        {"added_tokens": 7},
        {"version": "9.0"},
        {"post_processor": {"type": "TemplateProcessing", "single": 1}},
    ],
)
def test_a_hostile_tokenizer_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=tmp_path.name):
        Tokenizer.load(edited(qwen(tmp_path), **changes))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 10**5, "\ufeff{}", '"\\ud800"', "null"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_files_that_are_no_json_objects_are_refused(name: str, content: str, tmp_path: Path) -> None:
    path = qwen(tmp_path)
    (path / name).write_text(content)
    with pytest.raises(CheckpointError, match=tmp_path.name):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": 7},
        {"eos_token": ["<|im_end|>"]},
        {"eos_token": "</s>"},
        {"additional_special_tokens": 3},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"1": 2}},
        {"added_tokens_decoder": {str(2**70): {"content": "q"}}},
    ],
)
def test_strange_settings_are_refused(config: dict[str, object], tmp_path: Path) -> None:
    path = qwen(tmp_path)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=tmp_path.name):
        Tokenizer.load(path)


def test_a_folder_of_the_old_kind_has_a_remedy(tmp_path: Path) -> None:
    path = qwen(tmp_path)
    (path / "tokenizer.json").rename(path / "vocab.json")
    with pytest.raises(CheckpointError, match=r"vocab\.json but no tokenizer\.json.*save_pretrained"):
        Tokenizer.load(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    path = qwen(tmp_path)
    (path / "tokenizer.json").unlink()
    os.mkfifo(path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="regular"):
        Tokenizer.load(path)
