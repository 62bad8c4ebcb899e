"""math-verify, as a worker process runs it: no time-outs of its own, no ``eval``, nothing of PyTorch.

Everything here runs in a process that is killed at its deadline. math-verify sends plain arithmetic to SymPy's
``parse_expr`` and its LaTeX grammar sends numerals to ``sympify``, both of which end in ``eval``. Here they are
replaced, so that no text is ever evaluated as Python; an audit hook keeps a worker from programs, sockets and files all
the same.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from contextlib import suppress
from typing import Any

import latex2sympy2_extended.latex2sympy2 as grammar
import math_verify
import math_verify.parser
import sympy
import sympy.parsing.sympy_parser as evaluating
import sympy.physics.units  # simplify() does, and its import evaluates names of its own

_EXAMPLES = (
    (r"\frac{\sqrt{3}}{2}", r"\sin(60^\circ)"),
    ("x^2-1", "(x-1)(x+1)"),
    ("(1,2]", r"1<x\le 2"),
    ("2x+4y-3=0", "y=3/4-x/2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2.0\end{pmatrix}"),
)
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen",
              "socket.connect", "os.remove", "os.rename", "os.mkdir", "ctypes.dlopen", "pty.spawn")  # fmt: skip
_NUMERAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_DECIMAL_COMMA = re.compile(r"[+-]?(?:0,[0-9]+|[0-9]+,(?![0-9]{3}$)[0-9]+)")
_WATCHED = frozenset({"open", *_FORBIDDEN})
_Text = tuple[str, bool]


def warm_up() -> None:
    """Close the doors to ``eval``, grade what touches most of math-verify, then close the others."""
    logging.disable(logging.CRITICAL)
    plain = sympy.Number.__new__

    def number(kind: Any, *given: Any) -> Any:
        return _numeral(given[0]) if len(given) == 1 and isinstance(given[0], str) else plain(kind, *given)

    sympy.Number.__new__ = number
    math_verify.parser.parse_expr_cached = _arithmetic
    for module in (evaluating, sympy.parsing, sympy, grammar, math_verify.parser):
        module.parse_expr = _never
    for prediction, gold in _EXAMPLES:
        grade((prediction, False), (gold, False))
    sys.addaudithook(functools.partial(_refuse, os.getpid()))


def grade(prediction: _Text, gold: _Text) -> tuple[float | None, str, str]:
    """Value, outcome and evidence of a verdict. A text comes with whether it is prose."""
    golds = _read(*gold)
    if _same_text(prediction[0], gold[0]):
        return 1.0, "graded", "the same text"
    if not golds:
        return None, "no_gold", "the gold answer cannot be read as mathematics"
    predictions = _read(*prediction)
    if not predictions:
        return 0.0, "unparsable", "cannot be read as mathematics"
    equal = any(_equal(p, g) or _equal_complex(p, g) for g in golds for p in predictions)
    return float(equal), "graded", f"read as {_shown(predictions[0])}, gold as {_shown(golds[0])}"


def _read(text: str, prose: bool) -> list[Any]:
    """What math-verify reads, without its fallback to text."""
    if prose:
        targets = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]
        found = math_verify.parse(text, targets, fallback_mode="no_fallback", parsing_timeout=None)
        return list(found)
    found = []
    with suppress(Exception):
        normal = math_verify.parser.normalize_latex(text, math_verify.LatexExtractionConfig().normalization_config)
        found.append(math_verify.parser.parse_latex_cached(normal))
    if not found and text.count(r"\pm") == 1:
        return _read(", ".join(text.replace(r"\pm", sign) for sign in "+-"), False)
    if _DECIMAL_COMMA.fullmatch(text.strip()):
        found.append(_numeral(text.strip().replace(",", ".")))
    return found


def _equal(prediction: Any, gold: Any) -> bool:
    """math-verify's word, in its order, and never on two numbers that differ."""
    equal = math_verify.verify([gold], [prediction], timeout_seconds=None)
    return bool(equal) and not _far_apart(prediction, gold)


def _equal_complex(prediction: Any, gold: Any) -> bool:
    one, other = _complex(prediction), _complex(gold)
    return (one is not prediction or other is not gold) and _equal(one, other)


def _complex(value: Any) -> Any:
    """The letter i as the imaginary unit; the grammar keeps it a letter."""
    letters = [symbol for symbol in getattr(value, "free_symbols", ()) if str(symbol) == "i"]
    with suppress(Exception):
        return value.subs(dict.fromkeys(letters, sympy.I)) if letters else value
    return value


def _same_text(prediction: str, gold: str) -> bool:
    return _squeezed(prediction) == _squeezed(gold) != ""


def _squeezed(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|mbox|textit)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right|,|!|;|:|quad|displaystyle)(?![a-zA-Z])|[\s$]", "", text)
    return re.sub(r"\\[dt]frac", r"\\frac", text).rstrip(".").casefold()


def _far_apart(prediction: Any, gold: Any) -> bool:
    """Whether two exact numbers differ although math-verify, which compares a difference with 0, calls them equal."""
    numbers = all(isinstance(value, sympy.Expr) and not value.free_symbols for value in (prediction, gold))
    if not numbers or prediction.has(sympy.Float) or gold.has(sympy.Float) or _percent(prediction) or _percent(gold):
        return False
    try:
        one, other = (sympy.N(value.doit(), 30) for value in (prediction, gold))
        return bool(abs(one - other) > sympy.Float("1e-12") * max(abs(one), abs(other)))
    except Exception:
        return False


def _percent(value: Any) -> bool:
    return bool(value.has(sympy.UnevaluatedExpr))


def _shown(value: Any) -> str:
    try:
        return str(value)[:200]
    except Exception:
        return type(value).__name__


def _numeral(text: str) -> Any:
    """What ``sympy.Number`` makes of a text, without ``eval``."""
    if not _NUMERAL.fullmatch(text):
        raise ValueError(f"{text!a} is no number")
    return sympy.Float(text) if set(text) & set(".eE") else sympy.Integer(text)


def _never(*_: Any, **__: Any) -> Any:
    raise PermissionError("a grader does not evaluate source code")


def _arithmetic(expression: str) -> Any:
    """Digits and operators, read by the LaTeX grammar."""
    latex = expression.rstrip(" .").replace("×", r"\times ").replace("÷", r"\div ")
    latex = re.sub(r"\*\*\s*(\d+(?:\.\d+)?)", r"^{\1}", latex).replace("**", "^")
    return math_verify.parser.parse_latex_cached(latex)


def _refuse(zygote: int, event: str, arguments: tuple[Any, ...]) -> None:
    """In a worker, programs, sockets and files to write have no place."""
    if event not in _WATCHED or os.getpid() == zygote:
        return
    if event == "open" and not isinstance(arguments[0], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise PermissionError("a grader does not write files")
    if event in _FORBIDDEN:
        raise PermissionError(f"a grader does not call {event}")
