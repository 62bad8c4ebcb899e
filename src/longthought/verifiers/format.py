"""The tag formats of R1-Zero, ``<think> reasoning </think> <answer> answer </answer>``, and of R1, with a summary."""

from __future__ import annotations

import re
from collections.abc import Sequence

from longthought.core.types import Outcome, Verdict

TAGS = ("<think>", "</think>", "<answer>", "</answer>")

_THINK_ANSWER = re.compile(r"<think>.*</think>\s*<answer>.*</answer>", re.DOTALL)
_THINK_SUMMARY = re.compile(r"<think>.*</think>.*<answer>.*</answer>.*", re.DOTALL)


def think_answer(text: str) -> Verdict:
    """1.0 when the whole text is ``<think>…</think> <answer>…</answer>``, else 0.0 with the reason.

    White space around it apart, the text begins with ``<think>``; each of the four tags stands exactly once and in this
    order; only white space stands between ``</think>`` and ``<answer>``; nothing follows ``</answer>``. Reasoning and
    answer may be empty.

    Source: the format reward of DeepSeek-R1 (arXiv:2501.12948, section 2.2.2).
    """
    text = text.strip()
    if (fault := _not_once(text, TAGS)) is not None:
        return fault
    if not text.startswith("<think>"):
        return _refused("text before <think>")
    if not text.endswith("</answer>"):
        return _refused("text after </answer>")
    if not _THINK_ANSWER.fullmatch(text):
        return _refused("tags out of order, or text between </think> and <answer>")
    return Verdict(1.0, Outcome.GRADED, "format kept")


def think_summary(text: str) -> Verdict:
    """1.0 when the text is ``<think>…</think>`` and then a summary with one ``<answer>…</answer>``, else 0.0 and why.

    White space apart, the text begins with ``<think>``; each of the four tags stands exactly once and in this order.
    Around the answer the summary may say anything. What ``think_answer`` accepts is such a text.

    Source: the output pattern of R1's cold start, reasoning and then a summary (arXiv:2501.12948, section 2.3.1).
    """
    text = text.strip()
    if (fault := _not_once(text, TAGS)) is not None:
        return fault
    if not text.startswith("<think>"):
        return _refused("text before <think>")
    if not _THINK_SUMMARY.fullmatch(text):
        return _refused("tags out of order, or no answer after </think>")
    return Verdict(1.0, Outcome.GRADED, "format kept")


def think_first(text: str) -> Verdict:
    """1.0 when the text is ``<think>…</think>`` and then an answer, else 0.0 with the reason.

    The text begins with ``<think>``; both tags stand exactly once; something other than white space follows.
    """
    if (fault := _not_once(text, TAGS[:2])) is not None:
        return fault
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


def _not_once(text: str, tags: Sequence[str]) -> Verdict | None:
    """What is wrong with the first tag that does not stand exactly once."""
    for tag in tags:
        if (times := text.count(tag)) != 1:
            return _refused(f"{tag} stands {times} times, not once")
    return None


def _refused(reason: str) -> Verdict:
    return Verdict(0.0, Outcome.UNPARSABLE, reason)
