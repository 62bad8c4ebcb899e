"""Prompt templates to the letter, and nothing filled in that was not asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import transformers
from folders import distill, llama2, llama3, qwen
from hypothesis import given
from hypothesis import strategies as st

from longthought.core.errors import CheckpointError, DataError, SettingsError
from longthought.core.types import Message
from longthought.text import folder as folders
from longthought.text import templates
from longthought.text.renderer import TemplateRenderer
from longthought.text.templates import Template, file_prompt, math_prompt, search_prompt, tiny_zero_question

DIGESTS = {
    "R1_ZERO_LINES": "f5c3abe2a2a20183bb68ac3e5030eee38907bd05a250ae9663a586f391e42337",
    "R1_ZERO": "7f05515be7a6ad5276b94e50c11e219cc57d25c09f715ceb6a332535e9aa1706",
    "FILE_UPLOAD": "45e718c209246a85ab9edd367a84854b09a0c6b0afaa08043234a94f7b7341ae",
    "WEB_SEARCH_ZH": "26520ec2010163d604f8ebd442f391d0a6f26741b00d576b27c3c9bb0385bf1f",
    "WEB_SEARCH_EN": "0626f1984a3ff4d91859ad2cad443e04fcc2b61b6bd4784bfc49b89c05109f52",
    "TINY_ZERO": "4c586436c40cc4614f0f1bfb45feec4a9fe5c2d673d4f32cd351046054741856",
    "TINY_ZERO_QUESTION": "b7fcf94f54d4ea3eb29af716bf413e5b8519a1b60e38f902fabc195b84a6fad9",
    "MATH_DIRECTIVE": "1ac42a4db949361d680bccf674bfe78603b409d1c10f77fce293f14b9e14cc1e",
    "THINK_PREFIX": "9ebc01769b176bb074a065ea0974c130fc8afd12814360aaf809046160b2a999",
    "REFLECTION": "38e6558f5e03022ee601b01a2c6e8b3d73a0137122445595340be645c774211b",
    "FORMATTING": "9450423b385fbf5d088c6d315971e4bcad4cbd236ed846fce9bcbaea42a2dbd9",
    "STEP_BY_STEP": "474cc82c5bf0325723eed7a2c0bb049865318cf7903a9578b6c8bec6efaa00b7",
    "WAIT": "26b83994dca8b4b483edc45464ba07a5bde05cb7e6c5c61bb2e66da9d1e15fc7",
    "FINAL_ANSWER": "040a0a23fa886599e94d05e9f341a0815de49332455c8bd11f48fcc3090757ec",
    "OPEN_REASONER_ZERO": "b10b7ae1199f067e6064e641294a96a1bdf7402a254e150d6cbbdc5cd2ecac3c",
}
"""SHA-256 of the texts as published."""


def published(name: str) -> str:
    found = getattr(templates, name)
    return found.text if isinstance(found, Template) else found


@pytest.mark.parametrize("name", DIGESTS)
def test_to_the_letter(name: str) -> None:
    assert hashlib.sha256(published(name).encode()).hexdigest() == DIGESTS[name]


def test_one_line_and_many_are_the_same_words() -> None:
    assert published("R1_ZERO_LINES").split() == published("R1_ZERO").split()
    assert "\n" not in published("R1_ZERO")


@given(st.text(), st.text(), st.text())
def test_filling_touches_the_holes_alone(name: str, content: str, question: str) -> None:
    assert file_prompt(name, content, question) == (
        f"[file name]: {name}\n[file content begin]\n{content}\n[file content end]\n{question}"
    )


@pytest.mark.parametrize("template", templates.TEMPLATES, ids=lambda template: template.name)
@given(question=st.one_of(st.text(), st.sampled_from(["{question}", "{0}", "\\1", "{{x}}", "%s", "{cur_date}"])))
def test_a_question_fills_the_hole(template: Template, question: str) -> None:
    before, after = template.text.split("{question}")
    assert template.fill(question) == before + question + after


def test_search_prompt() -> None:
    text = search_prompt(["{question}", "b"], "2025-01-20", "why {cur_date}?")
    assert "\n[webpage 1 begin]{question}[webpage 1 end]\n[webpage 2 begin]b[webpage 2 end]\n" in text
    assert "- Today is 2025-01-20.\n" in text
    assert text.endswith("# The user's message is:\nwhy {cur_date}?")
    assert search_prompt([], "今天", "吗", "zh").endswith("# 用户消息为：\n吗")


def test_small_ones() -> None:
    assert math_prompt("1 + 1?") == "1 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert tiny_zero_question([44, 19, 35], 98).startswith(
        "Using the numbers [44 19 35], create an equation that equals 98."
    )
    assert templates.template_named("r1_zero") is templates.R1_ZERO


@pytest.mark.parametrize("text", ["", "no hole", "{question}{question}"])
def test_a_template_has_one_hole(text: str) -> None:
    with pytest.raises(SettingsError, match="question"):
        Template("mine", text, "")


def test_an_unknown_template_is_named() -> None:
    with pytest.raises(SettingsError, match="choose from r1_zero"):
        templates.template_named("r2_zero")


@pytest.mark.parametrize("make", [qwen, llama3, llama2, distill])
@pytest.mark.parametrize("template", templates.TEMPLATES, ids=lambda template: template.name)
def test_prompts_of_base_models(make, template: Template, tmp_path: Path) -> None:
    """As the tokenizer of transformers reads the filled text, its first token included; typed markup apart."""
    path = make(tmp_path)
    renderer, oracle = folders.load(path, template), transformers.AutoTokenizer.from_pretrained(path)
    question = "What is 12 + 34?"
    assert renderer.prompt((Message("user", question),)) == tuple(oracle(template.fill(question)).input_ids)
    typed = renderer.prompt((Message("user", f"{oracle.eos_token}</s>"),))
    assert oracle.eos_token_id not in typed


def test_replies_of_base_models(tmp_path: Path) -> None:
    renderer = folders.load(qwen(tmp_path), templates.TINY_ZERO)
    reply = (Message("user", "?"), Message("assistant", "<answer> 1 </answer>", reasoning="so"))
    ids, mask = renderer.example(reply)
    said = tuple(i for i, trained in zip(ids, mask) if trained)
    assert ids[: mask.index(True)] == renderer.prompt(reply[:1])
    assert renderer.text(said) == "<think> so </think>\n<answer> 1 </answer>"
    assert renderer.text(renderer.tokenizer.encode(" so </think> 1\nUser: and now")) == "<think> so </think> 1\n"
    assert renderer.stop == ("User:",)
    with pytest.raises(DataError, match="reasoning"):
        renderer.example((reply[0], Message("assistant", "1")))
    plain = TemplateRenderer(renderer.tokenizer, templates.R1_ZERO, renderer.stop_tokens)
    ids, mask = plain.example(reply)
    assert plain.text(tuple(i for i, t in zip(ids, mask) if t)) == " <think> so </think>\n<answer> 1 </answer>"


@pytest.mark.parametrize("roles", [(), ("system", "user"), ("user", "assistant", "user"), ("assistant",)])
def test_a_template_asks_one_question(roles: tuple[str, ...], tmp_path: Path) -> None:
    renderer = folders.load(qwen(tmp_path), templates.R1_ZERO)
    with pytest.raises(DataError, match="one message of the user"):
        renderer.prompt([Message(role, "a") for role in roles])


def test_a_base_model_needs_a_template(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no chat template.*r1_zero"):
        folders.load(qwen(tmp_path, None))
