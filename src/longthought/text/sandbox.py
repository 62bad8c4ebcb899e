# ruff: noqa: N802  jinja2 looks visitors up by the name of the node
"""Run chat templates that somebody else wrote: what transformers renders, within bounds.

A template is a program. jinja2's sandbox keeps it from Python's internals; it does not keep ``{% for %}`` from burning
an hour, or ``'x' * 10 ** 9`` from filling the memory. Here everything that a template does is paid for in signs that
it reads or writes, from a purse that only a hostile template empties. There are no threads and no clocks: the same
template on the same conversation either passes everywhere or nowhere.

The dialect is that of ``transformers/utils/chat_template_utils.py`` (5.23): blocks are trimmed, ``break`` and
``continue`` exist, ``tojson`` writes plain JSON, ``raise_exception`` refuses, ``strftime_now`` tells the date,
``{% generation %}`` encloses what the assistant says. What no chat template needs and no purse bounds is left out: the
filters pprint, random, urlize, wordwrap, xmlattr, striptags, and lipsum.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from math import prod
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any, NoReturn

from jinja2 import Environment, Template, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from longthought.core.errors import CheckpointError, DataError

TEMPLATE_LIMIT = 2**20
"""Largest chat template, in signs; real ones have some thousand."""

PURSE = 2**24
"""What a rendering may cost beside ``COPIES`` times the conversation: signs read and written, ``TURN`` for every turn
of a loop and every call, ``PART`` for every item of a list."""

COPIES, TURN, PART = 64, 16, 8
LARGEST_INT = 10**6

_LEFT_OUT = ("pprint", "random", "urlize", "wordwrap", "xmlattr", "striptags")
_BURNS = "it does more work than any conversation needs"
_purse: ContextVar[list[int]] = ContextVar("purse")


class Refusal(TemplateError):
    """The template said ``raise_exception``."""


def render(template: str, variables: Mapping[str, Any], size: int) -> str:
    """What a template makes of ``variables``, which hold about ``size`` signs.

    Raises:
        CheckpointError: see :func:`compiled`.
        DataError: the template refuses the conversation, fails on it, or does what it may not.
    """
    program = compiled(template)
    with _paid(PURSE + COPIES * size):
        try:
            pieces = []
            for piece in program.generate(**variables):
                pieces.append(piece)
                _pay(len(piece))
            return "".join(pieces)
        except Refusal as error:
            raise DataError(f"the chat template refuses this conversation: {str(error)[:500]}") from None
        except SecurityError as error:
            raise DataError(f"the chat template does what a template may not: {error}") from None
        except Exception as error:  # a template may do anything wrong
            raise DataError(f"the chat template fails on this conversation: {_said(error)}") from None


@lru_cache(maxsize=32)
def compiled(template: str) -> Template:
    """A template, ready to run.

    Raises:
        CheckpointError: it is too long, no template, or wants other files.
    """
    if len(template) > TEMPLATE_LIMIT:
        raise CheckpointError(f"the chat template has {len(template):,} signs; none needs more than {TEMPLATE_LIMIT:,}")
    with _paid(PURSE):
        try:
            return _Environment().from_string(template)
        except TemplateSyntaxError as error:
            raise CheckpointError(f"line {error.lineno} of the chat template is no template: {error.message}") from None
        except Exception as error:  # nested too deeply, too large a constant
            raise CheckpointError(f"the chat template cannot be compiled: {_said(error)}") from None


@contextmanager
def _paid(amount: int) -> Iterator[None]:
    token = _purse.set([amount])
    try:
        yield
    finally:
        _purse.reset(token)


def _pay(amount: int) -> None:
    purse = _purse.get()
    purse[0] -= amount
    if purse[0] < 0:
        raise SecurityError(_BURNS)


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}``: writes what stands in it."""

    tags = {"generation"}  # noqa: RUF012  the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Macro) -> str:
        return str(caller())


class _Attributes(Namespace):
    """``namespace()``, without names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # a template may name a value "self"
        self, *rest = args
        found = dict(*rest, **values)
        for name in found:
            _public(name)
        Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        Namespace.__setitem__(self, name, value)


class _Dict:
    """``dict()`` as a function: the class itself has more than a template may see."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def __init__(self) -> None:
        dialect = [_Generation, loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=dialect, finalize=_finalize)
        self.filters["tojson"] = _tojson
        kept = {name: step for name, step in self.filters.items() if name not in _LEFT_OUT}
        self.filters = {name: _priced(name, step) for name, step in kept.items()}
        self.filters |= {"_turn": _turn, "_tested": _tested, "_read": _read, "_cut": _cut}
        self.tests = {name: _priced(name, step) for name, step in self.tests.items()}
        own = {"raise_exception": _raise, "strftime_now": _now, "dict": _Dict(), "namespace": _Attributes}
        self.globals = {name: value for name, value in self.globals.items() if name != "lipsum"} | own

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if found := next(tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)), None):
            kind = type(found).__name__.lower()
            raise TemplateSyntaxError(f"{kind} asks for another file; a chat template is one file", found.lineno)
        _Meter().visit(tree)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _pay(TURN)
        if operator == "*":
            _pay(_product(left, right))
        elif operator == "**":
            _pay(_power(left, right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            _pay((1 + left.count("%")) * _weight(right))
        result = super().call_binop(context, operator, left, right)
        _pay(_length(result))
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as in jinja2
        _pay(TURN)
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped
        if isinstance(method, BuiltinMethodType | MethodType):
            _prepay(method.__name__, (method.__self__, *args, *kwargs.values()))
        elif isinstance(method, Macro | BlockReference):
            _pay(8 * TURN)
        else:
            _prepay("", (*args, *kwargs.values()))
        result = super().call(__context, __obj, *args, **kwargs)
        _pay(_length(result))
        return result


class _Meter(NodeTransformer):
    """Rewrite a template to pay where jinja2 asks nobody: turns of loops, macros, ``~``, comparing, cutting."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.test is not None:
            node.test = _through("_tested", node.test)
        return self._body(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._body(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("join", nodes.List(node.nodes, lineno=node.lineno, environment=node.environment))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _through("_read", node.expr)
        for operand in node.ops:
            operand.expr = _through("_read", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through("_cut", node) if isinstance(node.arg, nodes.Slice) else node

    def _body(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        written = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        written += sum(len(const.value) for const in node.find_all(nodes.Const) if isinstance(const.value, str))
        price = nodes.Const(TURN + written, lineno=node.lineno, environment=node.environment)
        node.body.insert(0, nodes.ExprStmt(_through("_turn", price), lineno=node.lineno, environment=node.environment))
        return node


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


@pass_context  # so that it is not run once, when the template is compiled
def _turn(context: Context, price: int) -> None:
    _pay(price)


@pass_context
def _tested(context: Context, passed: object) -> object:
    _pay(TURN)
    return passed


def _read(value: object) -> object:
    _pay(_weight(value))
    return value


def _cut(value: object) -> object:
    _pay(_length(value))
    return value


def _finalize(value: object) -> object:
    return _read(value)


def _priced(name: str, step: Any) -> Callable[..., Any]:
    """A filter or test that pays for what it reads before it runs, and for what it made after."""

    @wraps(step)  # jinja2 marks filters that want the environment
    def paid(*args: Any, **kwargs: Any) -> Any:
        args = tuple(list(value) if isinstance(value, GeneratorType) else value for value in args)
        values = [value for value in (*args, *kwargs.values()) if not isinstance(value, _OF_JINJA)]
        _pay(TURN)
        if name in _SHALLOW:
            _pay(sum(map(_length, values[1:])) + (0 if name in _FREE else _length(values[0])))
            _prepay(name, [value for value in values if isinstance(value, int)])
        else:
            _prepay(name, values)
        result = step(*args, **kwargs)
        _pay(0 if name in _FREE else _length(result))
        return result

    return paid


_OF_JINJA = (Context, Environment, nodes.EvalContext)
_FREE = frozenset(("length", "count", "first", "last", "default", "d", "attr", "defined", "undefined", "none"))
_SHALLOW = _FREE | {
    *("list", "map", "select", "reject", "selectattr", "rejectattr", "batch", "slice", "reverse", "items"),
    *("mapping", "sequence", "iterable", "number", "integer", "boolean", "true", "false", "callable"),
}
"""Filters and tests that do not look into the parts of what they are given."""


_WIDENING = frozenset(
    ("indent", "expandtabs", "tojson", "center", "ljust", "rjust", "zfill", "batch", "slice", "round", "to_bytes")
)
"""Filters and methods that write as much as a number says."""

_REPEATING = frozenset(("join", "indent", "expandtabs", "translate", "format", "format_map", "tojson"))
"""Filters and methods that may write one operand as often as another has parts."""


def _prepay(name: str, values: Sequence[Any]) -> None:
    """Pay for a call before it is made, for what it may write, too. Method ``name`` of, or filter on, ``values[0]``."""
    for value in values:
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            raise SecurityError(f"it uses the number {str(value)[:20]}; none above {LARGEST_INT:,} is needed")
    if name == "sum" and any(isinstance(value, list | tuple) for value in values[1:]):
        raise SecurityError("it adds up lists")
    widens = name in _WIDENING
    weights = [abs(value) * widens if isinstance(value, int) else _weight(value) for value in values]
    _pay(sum(weights))
    if name in ("format", "format_map") and values and isinstance(values[0], str):
        _check_format(values[0])
    if name == "replace" and len(values) > 2 and isinstance(values[0], str) and isinstance(values[1], str):
        _pay(values[0].count(values[1]) * weights[2])
    elif name in _REPEATING:
        _pay(prod(1 + weight for weight in weights))


def _product(left: object, right: object) -> int:
    """What ``left * right`` costs."""
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > 4096:
            raise SecurityError("it multiplies numbers without end")
        return TURN
    times = left if isinstance(left, int) else right
    return abs(times) * (_length(left) + _length(right)) if isinstance(times, int) else TURN


def _power(left: object, right: object) -> int:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > 4096:
        raise SecurityError("it raises numbers without end")
    return TURN


_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\d{4}|\*)|\{[^{}]*\d{4}|:[^{}]*\{")


def _check_format(pattern: str) -> None:
    """Refuse fields of a thousand places, or of a width that is only known later."""
    if _WIDE.search(pattern):
        raise SecurityError("it formats into a field that is too wide")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object = "") -> NoReturn:
    raise Refusal(str(message))


def _now(pattern: str) -> str:
    if len(pattern) > 100 or re.search(r"%[-_0^#]*\d", pattern):
        raise SecurityError("it asks for a date in a format without end")
    return datetime.now().strftime(pattern)


def _public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it gives a namespace the name {name[:40]!r}, which begins with an underscore")


def _length(value: object) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return PART * len(value) if isinstance(value, list | tuple | dict | range) else 0


def _weight(value: object) -> int:
    """Signs that a value has when it is written out. Raises SecurityError once they exceed the purse."""
    weight, most = 0, _purse.get()[0]
    waiting = [value]
    while waiting and weight <= most:
        item = waiting.pop()
        weight += _length(item)
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item
    if weight > most:
        raise SecurityError(_BURNS)
    return weight


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
