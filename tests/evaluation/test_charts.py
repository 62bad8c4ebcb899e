from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from longthought.evaluation.charts import (
    Bar,
    Panel,
    Series,
    bars,
    chart,
    line_with_band,
    pass_at_k_chart,
    picture_svg,
    running_mean,
)


def _texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()).strip()
        for element in ElementTree.fromstring(svg).iter()
        if element.tag.endswith("text")
    ]


def test_running_mean_by_hand() -> None:
    assert running_mean([1.0, 2.0, 6.0, 3.0], 3) == [1.5, 3.0, 11 / 3, 4.5]
    assert running_mean([1.0, math.nan, 3.0], 3) == [1.0, 2.0, 3.0]
    assert math.isnan(running_mean([math.nan], 3)[0])


def test_lines_have_labels_and_units() -> None:
    series = [("trained", [1.0, None, 3.0], [0.5, None, 2.0], [1.5, None, 4.0]), ("base", [1.0, 1.0, 1.0], [], [])]
    texts = _texts(line_with_band([1, 2, 3], series, "RL step", "tokens per answer", "Length"))
    assert {"trained", "base", "RL step", "tokens per answer", "Length"} <= set(texts)


def test_pass_at_k_names_every_k() -> None:
    ks = [1, 2, 4, 8, 16, 32, 64]
    texts = _texts(pass_at_k_chart([Series("base", ks, [10.0 * i for i in range(7)])]))
    assert [text for text in texts if text in map(str, ks)][:7] == ["1", "2", "4", "8", "16", "32", "64"]


def test_bars_say_time_and_share() -> None:
    texts = _texts(bars([Bar("rl", "rl · sampling", 90.0), Bar("rl", "rl · grading", 30.0)], "time (s)", "Time"))
    assert {"1 min 30 s · 75 %", "30.0 s · 25 %", "rl"} <= set(texts)


def test_inline_charts_take_the_colour_of_the_page_and_load_nothing() -> None:
    svg = chart(Panel("A", "x", "y", (Series("a", [1, 2], [1.0, 2.0]),)))
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "http" not in svg
    assert "<style" not in svg


def test_ids_do_not_collide_on_one_page() -> None:
    first, second = (chart(Panel(title, "x", "y", (Series("a", [1, 2], [1.0, 2.0]),))) for title in "AB")
    ids = [re.findall(r' id="([^"]+)"', svg) for svg in (first, second)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    for svg, own in zip((first, second), ids):
        assert set(re.findall(r'(?:href="|url\()#([\w-]+)', svg)) == set(own)


@pytest.mark.parametrize("label", ["$x$ < & >", "_hidden", "</text><script>alert(1)</script>", "对 -->", "x" * 500])
def test_hostile_labels_stay_text(label: str) -> None:
    svg = chart(Panel("A", "x", "y", (Series(label, [1], [1.0]), Series("b", [1], [1.0]))))
    assert "<script" not in svg
    assert any(text[:3] == label.lstrip("_")[:3] for text in _texts(svg))


@pytest.mark.parametrize("y", [[], [None], [math.nan, math.inf], [0.0], [-1.0, 1.0]])
def test_odd_values_are_drawn(y: list[float | None]) -> None:
    series = Series("a", list(range(len(y))), y, y, y)
    ElementTree.fromstring(chart(Panel("A", "x", "y", (series,), (series,))))


def test_long_runs_stay_small() -> None:
    steps = list(range(20_000))
    values = [math.sin(step) for step in steps]
    assert len(chart(Panel("A", "x", "y", (Series("a", steps, values, values, values),)))) < 100_000


def test_equal_numbers_give_equal_bytes_whatever_the_users_style() -> None:
    panel = Panel("A", "x", "y", (Series("a", [1, 2], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5]),))
    plain = chart(panel)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.hashsalt": None}):
        assert chart(panel) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_an_empty_picture_says_so_and_is_a_file_of_its_own() -> None:
    svg = picture_svg([Panel("A", "x", "y"), Panel("B", "x", "y")])
    assert _texts(svg).count("not measured yet") == 2
    assert "#010203" not in svg
