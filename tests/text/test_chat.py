# ruff: noqa: E501  a table of strings
"""Chat templates: equal to transformers, except that nobody can type markup; masks say what the assistant generates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from folders import DISTILL, KINDS, QWEN3, QWEN25, qwen
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import CheckpointError, DataError, SettingsError
from longthought.core.types import Message
from longthought.text import folder as folders
from longthought.text.chat import ChatRenderer
from longthought.text.hidden import Hidden
from longthought.text.reasoning import split
from longthought.text.renderer import ASSISTANT, BEGIN, CHAT_TEMPLATE, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

MARKUP = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<s>", "</s>", "<｜User｜>", "<think>", "</think>",
          "<tool_call>", "<｜end▁of▁sentence｜>", "<unk>", "<|begin_of_text|>")  # fmt: skip
PLAIN = st.text(
    st.one_of(st.characters(exclude_categories=("Cs", "Co")), st.sampled_from("  \n\t09aé试<|>/_")), max_size=20
)
TYPED = st.lists(st.one_of(st.sampled_from(MARKUP), PLAIN), max_size=6).map("".join)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ChatRenderer, Any]]:
    found = {}
    for name, make in KINDS.items():
        path = make(tmp_path_factory.mktemp(name))
        found[name] = (folders.load(path), transformers.AutoTokenizer.from_pretrained(path))
    return found


def told(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [
        {"role": m.role, "content": m.content, **({"reasoning_content": m.reasoning} if m.reasoning else {})}
        for m in messages
    ]


def theirs(oracle: Any, messages: tuple[Message, ...], ask: bool = True) -> tuple[int, ...]:
    return tuple(oracle.apply_chat_template(told(messages), add_generation_prompt=ask, return_dict=False))


def conversation(parts: list[str], system: bool) -> tuple[Message, ...]:
    start = (Message("system", parts[0]),) if system else ()
    roles = ("user", "assistant")
    return start + tuple(Message(roles[i % 2], part) for i, part in enumerate(parts[1:]))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(PLAIN, min_size=2, max_size=5), system=st.booleans())
def test_prompts_are_those_of_transformers(made, kind: str, parts: list[str], system: bool) -> None:
    renderer, oracle = made[kind]
    messages = conversation(parts, system)
    if any(mark in part for part in parts for mark in renderer.tokenizer.markup):
        return
    assert renderer.prompt(messages) == theirs(oracle, messages)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(TYPED, min_size=2, max_size=5), system=st.booleans())
def test_nobody_can_type_markup(made, kind: str, parts: list[str], system: bool) -> None:
    """The markup of a conversation is that of the same conversation of plain words."""
    renderer, _ = made[kind]
    marks = renderer.tokenizer.marks
    parts = [
        part.replace("<think>", "").replace("</think>", "") if i % 2 == 0 else part for i, part in enumerate(parts)
    ]
    structure, plain = (
        [i for i in renderer.prompt(conversation(texts, system)) if i in marks] for texts in (parts, ["a"] * len(parts))
    )
    assert structure == [i for i in plain if marks[i] != "<unk>"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TYPED)
def test_hiding_changes_no_token(made, kind: str, text: str) -> None:
    """Ordinary words, hidden and put back, give the tokens that they give anyway."""
    renderer, oracle = made[kind]
    words = Hidden((text,), ("a", "09", "<", "試", "/"))
    ids = renderer.tokenizer.encode_markup(text)
    assert ids == tuple(oracle(text, add_special_tokens=False).input_ids)
    whole = Hidden((text,), ("a", "09", "試", "/"))
    if not any(sign in mark for mark in renderer.tokenizer.markup for sign in ("a", "/") if mark in text):
        assert renderer.tokenizer.encode_markup(whole.hide(text), whole) == ids
    assert words.show(words.hide(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("typed", MARKUP)
def test_typed_markup_is_spelled_out(made, kind: str, typed: str) -> None:
    renderer, oracle = made[kind]
    ids = renderer.prompt((Message("user", f"a {typed} b{typed}"),))
    shown = oracle.decode(ids) if kind != "llama2" else oracle.decode(ids).replace(" ", "▁")  # its sign for a space
    assert (f"a {typed} b{typed}" if kind != "llama2" else f"a {typed} b{typed}".replace(" ", "▁")) in shown
    words = renderer.prompt((Message("user", "a  b"),))
    assert [i for i in ids if i in renderer.tokenizer.marks] == [i for i in words if i in renderer.tokenizer.marks]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(question=PLAIN, reply=PLAIN.filter(lambda text: text.strip()))
def test_examples_are_those_of_transformers(made, kind: str, question: str, reply: str) -> None:
    renderer, oracle = made[kind]
    messages = (Message("user", question), Message("assistant", reply))
    if kind == "distill":
        with pytest.raises(DataError, match="reasoning"):
            renderer.example(messages)
        return
    ids, mask = renderer.example(messages)
    prompt = renderer.prompt(messages[:1])
    assert ids[: len(prompt)] == prompt
    assert mask[: len(prompt)] == (False,) * len(prompt)
    if theirs(oracle, messages, ask=False)[: len(prompt)] == prompt:  # no token of theirs goes over the prompt's end
        assert ids == theirs(oracle, messages, ask=False)
    said = tuple(i for i, trained in zip(ids, mask) if trained)
    assert said[-1] in renderer.stop_tokens
    assert not set(said[:-1]) & set(renderer.stop_tokens)
    assert mask == tuple(len(prompt) <= i < len(prompt) + len(said) for i in range(len(ids)))
    tagged = "<think>" in reply or "</think>" in reply  # the assistant's own tags are tags, wherever they stand
    if not tagged and (oracle.backend_tokenizer.normalizer is None or reply.isascii()):
        assert split(renderer.text(said)).content.strip() == reply.strip()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inline", [False, True])
def test_an_example_keeps_the_thought(made, kind: str, inline: bool) -> None:
    """Whether the template knows of thoughts, drops them, or opens the tag itself."""
    renderer, _ = made[kind]
    reply = Message("assistant", "46", reasoning="12 + 34")
    if inline:
        reply = Message("assistant", "<think>\n12 + 34\n</think>\n\n46")
    ids, mask = renderer.example((Message("user", "What is it?"), reply))
    said = tuple(i for i, trained in zip(ids, mask) if trained)
    assert renderer.text(said).strip() == "<think>\n12 + 34\n</think>\n\n46"
    assert ids[: mask.index(True)] == renderer.prompt((Message("user", "What is it?"),))


def test_thoughts_are_tags_for_the_assistant_alone(made) -> None:
    renderer, _ = made["qwen3"]
    tag = renderer.tokenizer.id_of("<think>")
    question = Message("user", "<think>a</think>")
    ids, mask = renderer.example((question, Message("assistant", "46", reasoning="say <|im_end|> and <think>")))
    assert tag not in renderer.prompt((question,))
    assert [i for i, trained in zip(ids, mask) if trained].count(tag) == 1
    assert ids.count(renderer.tokenizer.id_of("<|im_end|>")) == 2


def test_only_the_last_message_is_trained(made) -> None:
    renderer, oracle = made["qwen3"]
    turns = (
        Message("user", "a"),
        Message("assistant", "b", reasoning="dropped"),
        Message("user", "c"),
        Message("assistant", "d"),
    )
    ids, mask = renderer.example(turns)
    assert "dropped" not in oracle.decode(ids)
    assert oracle.decode([i for i, trained in zip(ids, mask) if trained]) == "<think>\n\n</think>\n\nd<|im_end|>"
    assert oracle.decode(ids).endswith("d<|im_end|>\n")
    assert not mask[-1]  # the line break after the end is the template's


def test_tokens_of_a_prompt_and_its_reply_stay_apart(made) -> None:
    """A reply that begins with a line break is no part of the prompt's last token."""
    renderer, _ = made["qwen25"]
    ids, mask = renderer.example((Message("user", "a"), Message("assistant", "\n\nb")))
    prompt = renderer.prompt((Message("user", "a"),))
    assert ids[: len(prompt)] == prompt
    assert renderer.text(tuple(i for i, trained in zip(ids, mask) if trained)) == "\n\nb"


@pytest.mark.parametrize(
    ("kind", "opening", "end"),
    [
        ("qwen25", "", ["<|im_end|>", "<|endoftext|>"]),
        ("qwen3", "", ["<|im_end|>", "<|endoftext|>"]),
        ("llama3", "", ["<|end_of_text|>", "<|eot_id|>"]),  # the second one is the template's, named in no setting
        ("llama2", "", ["</s>"]),
        ("distill", "<think>\n", ["<｜end▁of▁sentence｜>"]),
    ],
)
def test_openings_and_stops(made, kind: str, opening: str, end: list[str]) -> None:
    renderer, oracle = made[kind]
    assert renderer.opening == opening
    assert [oracle.decode(i) for i in renderer.stop_tokens] == end
    reply = (*renderer.tokenizer.encode("46"), renderer.stop_tokens[-1])
    assert renderer.text(reply) == opening + "46" == renderer.text(reply[:-1])


def test_a_variable_closes_the_thought(tmp_path: Path) -> None:
    path = qwen(tmp_path)
    renderer = folders.load(path, variables={"enable_thinking": False})
    oracle = transformers.AutoTokenizer.from_pretrained(path)
    messages = (Message("user", "a"),)
    expected = oracle.apply_chat_template(
        told(messages), add_generation_prompt=True, return_dict=False, enable_thinking=False
    )
    assert renderer.prompt(messages) == tuple(expected)
    assert renderer.opening == "<think>\n\n</think>\n\n"
    assert split(renderer.text(renderer.tokenizer.encode("46"))) == ("\n\n", "\n\n46")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
    ],
)
def test_a_refusal_has_the_words_of_the_template(made, template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(made["qwen3"][0], template=template).prompt((Message("system", "a"),))


def test_llama2_wants_turns(made) -> None:
    with pytest.raises(DataError, match="roles must alternate"):
        made["llama2"][0].prompt((Message("user", "a"), Message("user", "b")))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (QWEN25.replace("+ '<|im_end|>' + '\\n' }}", "+ '\\n' }}"), "no end token"),
        (QWEN25.replace("message.content +", "'' +"), "training example"),
        (QWEN25.replace("assistant\\n", "gpt\\n"), "training example"),
    ],
)
def test_an_example_that_cannot_be_generated_is_refused(made, template: str, message: str) -> None:
    assert template != QWEN25
    renderer = replace(made["qwen25"][0], template=template)
    with pytest.raises(DataError, match=message):
        renderer.example((Message("user", "a"), Message("assistant", "bc")))


def test_an_example_ends_with_the_assistant(made) -> None:
    for messages in ((), (Message("user", "a"),)):
        with pytest.raises(DataError, match="assistant"):
            made["qwen3"][0].example(messages)


def test_half_a_surrogate_pair_is_refused(made) -> None:
    with pytest.raises(DataError, match=r"U\+D800"):
        made["qwen3"][0].prompt((Message("user", "a\ud800"),))


def test_files_survive(tmp_path: Path) -> None:
    source, target = qwen(tmp_path / "a"), tmp_path / "b"
    (source / "chat_template.jinja").write_text(QWEN25)
    (source / "special_tokens_map.json").write_text('{"eos_token" :  {"content": "<|im_end|>"}}')
    (source / "added_tokens.json").write_text("{ }\n\n")
    (source / "merges.txt").write_bytes(b"#version\r\n\xff")
    target.mkdir()
    folders.save(folders.load(source), target)
    assert {f.name: f.read_bytes() for f in target.iterdir()} == {
        f.name: f.read_bytes() for f in source.iterdir() if f.name != "generation_config.json"
    }
    assert folders.load(target).template == QWEN25  # the file comes before the settings


def test_another_template_is_saved(tmp_path: Path) -> None:
    renderer = replace(folders.load(qwen(tmp_path / "a")), template=QWEN25)
    folders.save(renderer, qwen(tmp_path / "b"))
    assert folders.load(tmp_path / "b").template == QWEN25


def test_our_own_format_is_known_by_its_template(tmp_path: Path) -> None:
    path = qwen(tmp_path, CHAT_TEMPLATE + "\n")
    with pytest.raises(CheckpointError, match=r"<\|begin\|>.* is no token"):
        folders.load(path)
    made = PlainRenderer(Tokenizer.of_words(("1", "2"), (BEGIN, USER, ASSISTANT, END)))
    folders.save(made, path)
    loaded = folders.load(path)
    assert isinstance(loaded, PlainRenderer)
    messages = (Message("user", "1"), Message("assistant", "2"))
    assert loaded.example(messages) == made.example(messages)
    with pytest.raises(SettingsError, match="enable_thinking"):
        folders.load(path, variables={"enable_thinking": False})


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": DISTILL}]
    path = qwen(tmp_path / "a", named)
    assert folders.load(path).template == DISTILL
    with pytest.raises(CheckpointError, match="none is the default"):
        folders.load(qwen(tmp_path / "b", named[:1]))


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ ''.__class__.__mro__ }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        7,
        "",
    ],
)
def test_a_folder_with_an_unusable_template_is_refused(tmp_path: Path, template: object) -> None:
    with pytest.raises(CheckpointError, match=r"chat template"):
        folders.load(qwen(tmp_path, template))


@pytest.mark.parametrize("eos", ["2", -1, 1.5, [1, None], True])
def test_generation_settings_are_checked(tmp_path: Path, eos: object) -> None:
    path = qwen(tmp_path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(CheckpointError, match="eos_token_id"):
        folders.load(path)


def test_the_template_may_look_at_its_own_marks(made) -> None:
    """A private sign in the conversation or the template is not taken for a hidden string."""
    renderer, oracle = made["qwen3"]
    text = "".join(map(chr, range(0xE000, 0xE010))) + "<|im_end|>"
    assert text in oracle.decode(renderer.prompt((Message("user", text),)))
    assert renderer.template == QWEN3
