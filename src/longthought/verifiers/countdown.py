"""Countdown: does an arithmetic expression use every number exactly once and give the target?"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

from longthought.core.types import Outcome, Verdict

MAX_CHARS = 200
MAX_NESTING = 32
MAX_NODES = 128

_SYNONYMS = str.maketrans({"×": "*", "÷": "/", "−": "-"})
_FOREIGN = re.compile(r"[^0-9+\-*/() ]")
_NO_OPERATOR = re.compile(r"[0-9)] *\(")
_OPERATIONS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


class _NotArithmeticError(Exception):
    """The text is not an arithmetic expression; the message says why, in plain words."""


def grade(expression: str, numbers: Sequence[int], target: int) -> Verdict:
    """Grade an expression over ``+ - * /`` (also ``× ÷ −``), parentheses and non-negative integers.

    Value 1.0 when every one of ``numbers`` is used exactly once and the exact value is ``target``, else 0.0. The
    outcome is ``GRADED`` when the text is an arithmetic expression, right or wrong, and ``UNPARSABLE`` when it is not:
    a unary sign, ``**``, ``//``, a decimal point, letters, an equation, more than one expression, or more than
    ``MAX_CHARS`` characters, ``MAX_NESTING`` open parentheses or ``MAX_NODES`` numbers and operators.
    Never raises; nothing is executed.

    Source: the Countdown task of TinyZero, with exact fractions in place of ``eval`` and floats.
    """
    try:
        tree = _parse(expression)
        used = sorted(_leaves(tree))
        if used != sorted(numbers):
            return Verdict(0.0, Outcome.GRADED, f"uses {_listed(used)}, not each of {_listed(sorted(numbers))} once")
        value = _value(tree)
    except _NotArithmeticError as refusal:
        return Verdict(0.0, Outcome.UNPARSABLE, str(refusal))
    except ZeroDivisionError:
        return Verdict(0.0, Outcome.GRADED, "divides by zero")
    if value != target:
        return Verdict(0.0, Outcome.GRADED, f"gives {value}, not {target}")
    return Verdict(1.0, Outcome.GRADED, f"gives {target}")


def _parse(expression: str) -> ast.expr:
    """The syntax tree of an expression that holds nothing but binary operations on integers."""
    text = " ".join(expression[: MAX_CHARS + 1].split())
    _refuse_early(expression, text)
    text = text.translate(_SYNONYMS)
    try:
        tree = ast.parse(text, mode="eval").body
        nodes = sum(1 for _ in _checked(tree))
    except (SyntaxError, ValueError, MemoryError, RecursionError, SystemError) as error:
        raise _NotArithmeticError("not one complete arithmetic expression") from error
    if nodes > MAX_NODES:
        raise _NotArithmeticError(f"more than {MAX_NODES} numbers and operators")
    return tree


def _refuse_early(expression: str, text: str) -> None:
    """What must not reach Python's parser: long, deep, or of foreign characters."""
    if len(expression) > MAX_CHARS:
        raise _NotArithmeticError(f"longer than {MAX_CHARS} characters")
    if not text:
        raise _NotArithmeticError("empty")
    text = text.translate(_SYNONYMS)
    if foreign := _FOREIGN.search(text):
        raise _NotArithmeticError(f"{foreign.group()!a} is no digit, operator or parenthesis")
    if _NO_OPERATOR.search(text):
        raise _NotArithmeticError("an operator is missing before a parenthesis")
    if _nesting(text) > MAX_NESTING:
        raise _NotArithmeticError(f"parentheses nested deeper than {MAX_NESTING}")


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest


def _checked(tree: ast.expr) -> Iterator[ast.expr]:
    """Every node of the tree, each proved to be an integer or one of the four operations."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            pending += (node.left, node.right)
        elif isinstance(node, ast.UnaryOp):
            raise _NotArithmeticError("a sign before a number is not allowed")
        elif isinstance(node, ast.BinOp):
            raise _NotArithmeticError("only + - * / are allowed")
        elif not (isinstance(node, ast.Constant) and type(node.value) is int):
            raise _NotArithmeticError("not an arithmetic expression of integers")


def _leaves(tree: ast.expr) -> list[int]:
    return [node.value for node in _checked(tree) if isinstance(node, ast.Constant) and type(node.value) is int]


def _value(tree: ast.expr) -> Fraction:
    """Exact value. Recursion is bounded by ``MAX_NODES``."""
    if isinstance(tree, ast.BinOp):
        return _OPERATIONS[type(tree.op)](_value(tree.left), _value(tree.right))
    return Fraction(_leaves(tree)[0])


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
