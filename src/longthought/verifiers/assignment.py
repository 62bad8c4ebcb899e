"""Answers that give everybody a role: ``Ann: knight, Bo: knave``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from longthought.core.types import Outcome, Verdict

MAX_CHARS = 2000

_SEPARATOR = re.compile(r"\s*[,;，；、\n]\s*")
_PIECE = re.compile(r"(\w+)\s*(?:[:：]|\bis an?\b|是)\s*(\w+)")


def roles(answer: str, gold: Mapping[str, str], words: Mapping[str, str]) -> Verdict:
    """1.0 when ``answer`` gives every name of ``gold`` its role, else 0.0 with the reason. Never raises.

    ``words`` maps the words for a role, in lower case, to the role. The answer is a list of ``name: role`` (also
    ``name is a role`` and ``name是role``), in any order, separated by commas, semicolons or line ends, with or without
    a full stop at the end; capitals do not count. Every name stands exactly once. Anything else – another name, another
    role, words around, more than ``MAX_CHARS`` characters – is ``UNPARSABLE``.
    """
    if len(answer) > MAX_CHARS:
        return _unparsable(f"longer than {MAX_CHARS} characters")
    names = {name.casefold(): name for name in gold}
    given: dict[str, str] = {}
    for piece in _SEPARATOR.split(answer.strip().removesuffix(".").removesuffix("。").strip()):
        match = _PIECE.fullmatch(piece)
        if match is None:
            return _unparsable(f"{piece[:40]!a} does not say who is what")
        name, role = names.get(match[1].casefold()), words.get(match[2].casefold())
        if name is None or role is None:
            return _unparsable(f"{piece[:40]!a} names nobody, or no role, of the problem")
        if name in given:
            return _unparsable(f"{name} stands twice")
        given[name] = role
    if missing := sorted(gold.keys() - given):
        return _unparsable(f"nothing is said of {', '.join(missing)}")
    wrong = sorted(name for name, role in gold.items() if given[name] != role)
    if wrong:
        return Verdict(0.0, Outcome.GRADED, f"wrong about {', '.join(wrong)}")
    return Verdict(1.0, Outcome.GRADED, "right about everybody")


def _unparsable(reason: str) -> Verdict:
    return Verdict(0.0, Outcome.UNPARSABLE, reason)
