"""The tag format of R1-Zero: ``<think> reasoning </think> <answer> answer </answer>``."""

from __future__ import annotations

import re

from longthought.core.types import Outcome, Verdict

TAGS = ("<think>", "</think>", "<answer>", "</answer>")

_THINK_ANSWER = re.compile(r"<think>.*</think>\s*<answer>.*</answer>", re.DOTALL)


def think_answer(text: str) -> Verdict:
    """1.0 when the whole text is ``<think>…</think> <answer>…</answer>``, else 0.0 with the reason.

    White space around it apart, the text begins with ``<think>``; each of the four tags stands exactly once and in this
    order; only white space stands between ``</think>`` and ``<answer>``; nothing follows ``</answer>``. Reasoning and
    answer may be empty.

    Source: the format reward of DeepSeek-R1 (arXiv:2501.12948, section 2.2.2).
    """
    text = text.strip()
    for tag in TAGS:
        if (times := text.count(tag)) != 1:
            return _refused(f"{tag} stands {times} times, not once")
    if not text.startswith("<think>"):
        return _refused("text before <think>")
    if not text.endswith("</answer>"):
        return _refused("text after </answer>")
    if not _THINK_ANSWER.fullmatch(text):
        return _refused("tags out of order, or text between </think> and <answer>")
    return Verdict(1.0, Outcome.GRADED, "format kept")


def think_first(text: str) -> Verdict:
    """1.0 when the text is ``<think>…</think>`` and then an answer, else 0.0 with the reason.

    The text begins with ``<think>``; both tags stand exactly once; something other than white space follows.
    """
    for tag in TAGS[:2]:
        if (times := text.count(tag)) != 1:
            return _refused(f"{tag} stands {times} times, not once")
    if not text.lstrip().startswith("<think>"):
        return _refused("text before <think>")
    if not text.partition("</think>")[2].strip():
        return _refused("nothing after </think>")
    return Verdict(1.0, Outcome.GRADED, "format kept")


def extract_answer(text: str) -> str | None:
    """The content of the last complete ``<answer>…</answer>``, stripped; None if there is none.

    It does not ask for the strict format, so that a base model's answers can be read too.
    """
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end].strip()


def _refused(reason: str) -> Verdict:
    return Verdict(0.0, Outcome.UNPARSABLE, reason)
