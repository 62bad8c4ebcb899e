"""The final answer in a worked solution: what follows ``####`` (GSM8K), what stands in the last ``\\boxed`` (MATH)."""

from __future__ import annotations

import re

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*(?=[{\d\\-])|\s+(?=\w))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def after_hashes(text: str) -> str | None:
    """What follows the last ``####``, without the commas of thousands; None without it. ``"#### 1,234"`` → ``"1234"``.

    Source: the answers of GSM8K (arXiv:2110.14168).
    """
    _, mark, answer = text.rpartition("####")
    answer = answer.strip()
    if not mark or not answer:
        return None
    return answer.replace(",", "") if _THOUSANDS.fullmatch(answer) else answer


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}`` or ``\fbox{…}``, also ``\boxed 5``; None without one that is closed.

    Source: the solutions of MATH (arXiv:2103.03874).
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start] != "{":
        return text[start:].split("$")[0].split()[0]
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return text[start + 1 : brace.start()].strip() or None
    return None
