# ruff: noqa: E501  a template is one line
"""Chat templates as programs of strangers: the dialect of transformers, and nothing that burns time or memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from longthought.core.errors import CheckpointError, DataError
from longthought.text.sandbox import render

MESSAGES = [{"role": "user", "content": "a <b> 'c'\n é"}, {"role": "assistant", "content": " 12 "}]

DIALECT = [
    "{% for m in messages %}\n  {%- if m.role == 'user' %}\n    {{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    "{{ messages | tojson }}|{{ messages | tojson(indent=2) }}|{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true) }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content | trim }}{% break %}{% endfor %}",
    "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ 1 ~ 'a' ~ none ~ missing ~ true }}|{{ messages | length }}|{{ messages[::-1][0].role }}|{{ 'abc'[1:] }}",
    "{% for i in range(9) if i % 3 == 0 and i != 3 %}{{ i }}{{ ',' if not loop.last }}{% else %}none{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% macro say(x, y='!') %}[{{ x }}{{ y }}]{% endmacro %}{{ say('a') }}{{ say('b', y='?') }}",
    "{{ messages | map(attribute='role') | join(', ') }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ '%s-%05d' % ('a', 7) }}|{{ '%s' | format(3) }}|{{ '{:>4}|{}'.format('a', 2) }}|{{ 'a-b'.split('-') | last }}",
    "{{ messages is defined and tools is none }}|{{ 'x' is string }}|{{ missing is defined }}|{{ messages is iterable }}",
    "{% set x %}{{ messages[0].content | upper | replace('A', 'bb') | indent(2) }}{% endset %}{{ x }}{{ dict(a=1).items() | list }}",
    "{{ 2 ** 10 }} {{ 7 // 2 }} {{ 'ab' * 3 }} {{ [1] + [2] }} {{ messages[0].content in ['a'] }} {{ 3 in [3] }}",
    "{% filter upper %}a{{ messages[1].content }}{% endfilter %}{{ messages | last }}",
    "{%- for a in [1, 2] recursive -%}{{ a }}{%- endfor -%}   x {# comment #}\n   {% if true %}y\n{% endif %}z",
]


@pytest.mark.parametrize("template", DIALECT)
def test_renders_as_transformers(template: str) -> None:
    variables = {"messages": MESSAGES, "tools": None, "documents": None, "add_generation_prompt": True}
    [theirs], _ = render_jinja_template([MESSAGES], chat_template=template, add_generation_prompt=True)
    ours = render(template, variables, 100)
    assert ours.replace(", 'thinking'", "") == theirs


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["{{ x }}", "{% if x %}", "{% endif %}", "\n", "  ", "a", "{%- set y = 1 %}", "{# c #}"]))
)
def test_white_space_is_that_of_transformers(parts: list[str]) -> None:
    template = "".join(parts)
    try:
        ours = render(template, {"x": " 1 "}, 10)
    except CheckpointError:
        with pytest.raises(Exception, match=r"end|tag|expected"):
            render_jinja_template([[]], chat_template=template, x=" 1 ")
        return
    assert ours == render_jinja_template([[]], chat_template=template, x=" 1 ")[0][0]


DOUBLING = "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = NEXT %}{% endfor %}{{ LOOK }}"

HUNGRY = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999) | list | sort %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro _turn(x) %}{% endmacro %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ 'x' * 99999 * 99999 }}",
    "{{ [1] * 99999 * 99999 }}",
    "{{ 'x' | center(10**9) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, '999999999') }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000) | replace('', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).join([''] * 1000000) }}",
    "{{ ([{'c': 'a' * 1000000}] * 100000) | map(attribute='c') | join }}",
    "{{ ('\\n' * 1000000) | indent(1000000) }}",
    "{{ ('\\t' * 1000000).expandtabs(1000000) }}",
    "{{ (1).to_bytes(10**9) }}",
    "{% for i in range(999) %}{{ i | round(999999, 'floor') }}{% endfor %}",
    "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "{% set ns = namespace(n=0) %}{% block a %}{% set ns.n = ns.n + 1 %}{% if ns.n < 60 %}{{ self.a() }}{{ self.a() }}"
    "{% endif %}{% set ns.n = ns.n - 1 %}{% endblock %}",
    "{{ strftime_now('%999999999d') }}",
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}{% endset %}",
    "{{ 99 ** 99 ** 99 }}",
    DOUBLING.replace("NEXT", "ns.x ~ ns.x").replace("LOOK", "1"),
    DOUBLING.replace("NEXT", "ns.x + ns.x").replace("LOOK", "1"),
    *(
        DOUBLING.replace("NEXT", "[ns.x, ns.x]").replace("LOOK", look)
        for look in (
            "ns.x",
            "ns.x | string",
            "ns.x | tojson",
            "ns.x == [ns.x]",
            "'%s' % ns.x",
            "ns.x ~ 'a'",
            "ns.x in [1]",
        )
    ),
    DOUBLING.replace("'a'", "2").replace("NEXT", "ns.x * ns.x").replace("LOOK", "1"),
]


@pytest.mark.parametrize("template", HUNGRY)
def test_no_template_burns_time_or_memory(template: str) -> None:
    with pytest.raises((DataError, CheckpointError), match=r"template"):
        render(template, {"messages": MESSAGES}, 10)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ dict.mro() }}",
        "{{ namespace(__class__=1) }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ 'a' | attr('__class__') + 1 }}",
        "{{ lipsum.__globals__ }}",
    ],
)
def test_nothing_of_python_is_reached(template: str) -> None:
    with pytest.raises(DataError, match="template"):
        render(template, {"messages": MESSAGES}, 10)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{% if %}", "line 2"),
        ("{% include 'a' %}", "another file"),
        ("{% extends 'a' %}", "another file"),
        ("{% import 'a' as b %}", "another file"),
        ("{% from 'a' import b %}", "another file"),
        ("{{ 'a' | urlize }}", "urlize"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "compiled"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "compiled"),
        ("a" * 2_000_000, "2,000,000"),
    ],
)
def test_what_is_no_template_is_refused(template: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        render(template, {}, 10)


def test_long_conversations_pass() -> None:
    template = "{% for m in messages %}{% if m.role == 'user' and loop.index0 < messages | length %}<{{ m.content | trim }}>{% endif %}{% endfor %}"
    messages = [{"role": "user", "content": "a" * 1000}] * 3000
    assert len(render(template, {"messages": messages}, 3_000_000)) == 1002 * 3000
