# ruff: noqa: E501  the templates are kept as they are
"""Prompt templates to the letter, each with its source, and the functions that fill them.

A template is filled by replacing its holes and nothing else: braces, backslashes and holes' names in what is filled in
stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from longthought.core.errors import DataError, SettingsError
from longthought.text.reasoning import OPEN

HOLE: Final = "{question}"


@dataclass(frozen=True)
class Template:
    """A prompt for a base model: text with one hole, ``{question}``.

    Where the text ends with ``<think>``, the prompt begins the reply, and ``<think>`` is part of it.

    stop: strings that end a reply of a model that has no end-of-turn token, such as the next ``User:``.
    """

    name: str
    text: str
    source: str
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.text.count(HOLE) != 1:
            raise SettingsError(f"template {self.name!r} must hold {HOLE} once, not {self.text.count(HOLE)} times")

    @property
    def opening(self) -> str:
        """What the template begins of the reply: ``<think>`` and the white space after it, or nothing."""
        bare = self.text.rstrip()
        return self.text[len(bare) - len(OPEN) :] if bare.endswith(OPEN) else ""

    def fill(self, question: str) -> str:
        """The prompt that asks ``question``."""
        return filled(self.text, {"question": question})


def filled(text: str, values: Mapping[str, str]) -> str:
    """``text`` with each of its holes ``{name}`` replaced by ``values[name]``, in one pass.

    Raises:
        DataError: a name has no hole.
    """
    if missing := [name for name in values if f"{{{name}}}" not in text]:
        raise DataError(f"the template has no hole for {', '.join(missing)}")
    holes = re.compile("|".join(re.escape(f"{{{name}}}") for name in values) or "(?!)")
    return holes.sub(lambda hole: values[hole[0][1:-1]], text)


R1_ZERO = Template(
    "r1_zero",
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user "
    "with the answer. The reasoning process and answer are enclosed within <think> </think> and "
    "<answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>. User: {question}. Assistant:",
    "DeepSeek-R1, arXiv:2501.12948, table 1; on one line, `prompt` being the hole",
    ("User:",),
)

R1_ZERO_LINES = Template(
    "r1_zero_lines",
    """\
A conversation between User and Assistant. The user asks a question, and the Assistant solves it.
The assistant first thinks about the reasoning process in the mind and then provides the user
with the answer. The reasoning process and answer are enclosed within <think> </think> and
<answer> </answer> tags, respectively, i.e., <think> reasoning process here </think>
<answer> answer here </answer>. User: {question}. Assistant:""",
    "DeepSeek-R1, arXiv:2501.12948, table 1; with the line breaks of the printed table",
    ("User:",),
)

TINY_ZERO = Template(
    "tiny_zero",
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
    "User: {question}\n"
    "Assistant: Let me solve this step by step.\n<think>",
    "TinyZero, github.com/Jiayi-Pan/TinyZero, template `base`; the question is made by `tiny_zero_question`",
    ("User:",),
)

TINY_ZERO_QUESTION: Final = (
    "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic operations "
    "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the final "
    "answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
)
"""The question of TinyZero's Countdown."""

OPEN_REASONER_ZERO = Template(
    "open_reasoner_zero",
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: You must put your answer "
    "inside <answer> </answer> tags, i.e., <answer> answer here </answer>. And your final answer will be extracted "
    "automatically by the \\boxed{} tag.\nThis is the problem:\n{question}\nAssistant: <think>",
    "Open-Reasoner-Zero, arXiv:2503.24290; rendered from playground/zero_setting_base.py of its repository",
    ("User:",),
)

TEMPLATES: Final = (R1_ZERO, R1_ZERO_LINES, TINY_ZERO, OPEN_REASONER_ZERO)
"""The prompts for base models that may be chosen by name."""


def template_named(name: str) -> Template:
    """The prompt for base models of this name.

    Raises:
        SettingsError: there is none.
    """
    for template in TEMPLATES:
        if template.name == name:
            return template
    raise SettingsError(f"there is no prompt template {name!r}; choose from {', '.join(t.name for t in TEMPLATES)}")


FILE_UPLOAD: Final = """\
[file name]: {file_name}
[file content begin]
{file_content}
[file content end]
{question}"""
"""DeepSeek-R1, README, `file_template`."""

WEB_SEARCH_ZH: Final = """\
# 以下内容是基于用户发送的消息的搜索结果:
{search_results}
在我给你的搜索结果中，每个结果都是[webpage X begin]...[webpage X end]格式的，X代表每篇文章的数字索引。请在适当的情况下在句子末尾引用上下文。请按照引用编号[citation:X]的格式在答案中对应部分引用上下文。如果一句话源自多个上下文，请列出所有相关的引用编号，例如[citation:3][citation:5]，切记不要将引用集中在最后返回引用编号，而是在答案对应部分列出。
在回答时，请注意以下几点：
- 今天是{cur_date}。
- 并非搜索结果的所有内容都与用户的问题密切相关，你需要结合问题，对搜索结果进行甄别、筛选。
- 对于列举类的问题（如列举所有航班信息），尽量将答案控制在10个要点以内，并告诉用户可以查看搜索来源、获得完整信息。优先提供信息完整、最相关的列举项；如非必要，不要主动告诉用户搜索结果未提供的内容。
- 对于创作类的问题（如写论文），请务必在正文的段落中引用对应的参考编号，例如[citation:3][citation:5]，不能只在文章末尾引用。你需要解读并概括用户的题目要求，选择合适的格式，充分利用搜索结果并抽取重要信息，生成符合用户要求、极具思想深度、富有创造力与专业性的答案。你的创作篇幅需要尽可能延长，对于每一个要点的论述要推测用户的意图，给出尽可能多角度的回答要点，且务必信息量大、论述详尽。
- 如果回答很长，请尽量结构化、分段落总结。如果需要分点作答，尽量控制在5个点以内，并合并相关的内容。
- 对于客观类的问答，如果问题的答案非常简短，可以适当补充一到两句相关信息，以丰富内容。
- 你需要根据用户要求和回答内容选择合适、美观的回答格式，确保可读性强。
- 你的回答应该综合多个相关网页来回答，不能重复引用一个网页。
- 除非用户要求，否则你回答的语言需要和用户提问的语言保持一致。

# 用户消息为：
{question}"""
"""DeepSeek-R1, README, `search_answer_zh_template`."""

WEB_SEARCH_EN: Final = """\
# The following contents are the search results related to the user's message:
{search_results}
In the search results I provide to you, each result is formatted as [webpage X begin]...[webpage X end], where X represents the numerical index of each article. Please cite the context at the end of the relevant sentence when appropriate. Use the citation format [citation:X] in the corresponding part of your answer. If a sentence is derived from multiple contexts, list all relevant citation numbers, such as [citation:3][citation:5]. Be sure not to cluster all citations at the end; instead, include them in the corresponding parts of the answer.
When responding, please keep the following points in mind:
- Today is {cur_date}.
- Not all content in the search results is closely related to the user's question. You need to evaluate and filter the search results based on the question.
- For listing-type questions (e.g., listing all flight information), try to limit the answer to 10 key points and inform the user that they can refer to the search sources for complete information. Prioritize providing the most complete and relevant items in the list. Avoid mentioning content not provided in the search results unless necessary.
- For creative tasks (e.g., writing an essay), ensure that references are cited within the body of the text, such as [citation:3][citation:5], rather than only at the end of the text. You need to interpret and summarize the user's requirements, choose an appropriate format, fully utilize the search results, extract key information, and generate an answer that is insightful, creative, and professional. Extend the length of your response as much as possible, addressing each point in detail and from multiple perspectives, ensuring the content is rich and thorough.
- If the response is lengthy, structure it well and summarize it in paragraphs. If a point-by-point format is needed, try to limit it to 5 points and merge related content.
- For objective Q&A, if the answer is very brief, you may add one or two related sentences to enrich the content.
- Choose an appropriate and visually appealing format for your response based on the user's requirements and the content of the answer, ensuring strong readability.
- Your answer should synthesize information from multiple relevant webpages and avoid repeatedly citing the same webpage.
- Unless the user requests otherwise, your response should be in the same language as the user's question.

# The user's message is:
{question}"""
"""DeepSeek-R1, README, `search_answer_en_template`."""

MATH_DIRECTIVE: Final = r"Please reason step by step, and put your final answer within \boxed{}."
"""DeepSeek-R1, README, usage recommendations: what a mathematical question ends with."""

THINK_PREFIX: Final = "<think>\n"
"""DeepSeek-R1, README, usage recommendations: what every reply is made to begin with."""

STEP_BY_STEP: Final = "Let's think step by step"
"""Zero-shot chain of thought, arXiv:2205.11916."""

WAIT: Final = "Wait"
"""s1, arXiv:2501.19393: appended in place of the end of thinking, so that it goes on."""

FINAL_ANSWER: Final = "Final Answer:"
"""s1, arXiv:2501.19393: appended after the end of thinking, so that it stops."""

FEWER_TOKENS: Final = "let's use less than {tokens} tokens"
"""A request for a short thought; the number is the hole."""

THINK_TWICE: Final = (
    "{question}\nThe assistant's previous answer is: <answer> {answer} </answer>, and please re-answer."
)
"""Think Twice, arXiv:2503.19855: the next round of a question."""

REFLECTION: Final = "Wait! Maybe I made some mistakes! I need to rethink from scratch."
"""Marco-o1, README: appended to a thought."""

FORMATTING: Final = "Formatting re-enabled"
"""OpenAI o1, reasoning guide: first line of the developer message that brings markdown back."""

COLD_START: Final = "|special_token|{reasoning}|special_token|{summary}"
"""DeepSeek-R1, arXiv:2501.12948, section 2.3.1: the pattern of the cold-start data, its two parts being the holes."""


def file_prompt(file_name: str, file_content: str, question: str) -> str:
    """A question about a file, as DeepSeek-R1's application asks it."""
    return filled(FILE_UPLOAD, {"file_name": file_name, "file_content": file_content, "question": question})


def search_prompt(results: Sequence[str], date: str, question: str, language: Literal["zh", "en"] = "en") -> str:
    """A question about pages found on the web, as DeepSeek-R1's application asks it.

    results: the text of each page; they are numbered from 1.  date: today's, as it is to be read.
    """
    pages = [f"[webpage {i} begin]{page}[webpage {i} end]" for i, page in enumerate(results, 1)]
    text = {"zh": WEB_SEARCH_ZH, "en": WEB_SEARCH_EN}[language]
    return filled(text, {"search_results": "\n".join(pages), "cur_date": date, "question": question})


def math_prompt(question: str) -> str:
    """A mathematical question with the request for a boxed answer, on a line of its own."""
    return f"{question}\n{MATH_DIRECTIVE}"


def tiny_zero_question(numbers: Sequence[int], target: int) -> str:
    """TinyZero's Countdown question. Numbers are written as numpy writes them there: ``[44 19 35]``."""
    listed = f"[{' '.join(map(str, numbers))}]"
    return filled(TINY_ZERO_QUESTION, {"numbers": listed, "target": str(target)})
