from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from longthought.evaluation.headline import decimal, number, percent, rows, sentence, with_interval
from longthought.evaluation.report import (
    Curve,
    DocumentKind,
    Estimate,
    EvaluationSummary,
    GateCheck,
    Reply,
    ReportData,
    TimePart,
    Transcript,
    flatten,
    picture,
    terminal_summary,
    write_report,
)
from longthought.evaluation.terminal import marked, printable, sparkline

HOSTILE = (
    "<think> low </think><script>alert(1)</script><img src=x onerror=alert(1)> [bold]x[/] \x1b[31m\x00 \ud800 & \"'"
)


def _summary(accuracy: float, step: int) -> EvaluationSummary:
    estimate = Estimate(accuracy, accuracy - 0.02, accuracy + 0.02)
    return EvaluationSummary(
        problems=200,
        samples=8,
        accuracy=estimate,
        length=Estimate(30.0),
        rejections=Estimate(2.0),
        reflections=Estimate(0.5),
        format_rate=Estimate(0.8),
        mixing=Estimate(0.1),
        cut=Estimate(0.05),
        pass_at_k=((1, estimate), (2, Estimate(accuracy + 0.1, accuracy + 0.05, accuracy + 0.15))),
        step=step,
    )


@pytest.fixture(scope="module")
def data() -> ReportData:
    curve = Curve((1, 2, 3), (0.1, None, 0.3), (0.0, None, 0.2), (0.2, None, 0.4))
    reply = Reply(HOSTILE, 12, "stop", False, "<b>28, not 33</b>")
    return ReportData(
        title="Zero <run>",
        task="Countdown",
        seed=7,
        steps=110,
        base=_summary(0.1, 0),
        trained=_summary(0.4, 110),
        curves={"accuracy": curve, "kl": curve, "my <own>": curve},
        evaluations=(_summary(0.3, 50),),
        transcripts=(Transcript("p<1>", "use 9 4 3 make 33", reply, None), Transcript("p2", "用", None, reply)),
        rejection_words=frozenset({"low", "小"}),
        seen="First.\n\nSecond <i>.",
        document_kinds=(DocumentKind("facts", 0.12, "9 * 2 = 18 <eos>"),),
        gate=(GateCheck("says yes to a hit", 0.88, ">= 0.6", True), GateCheck("cut", None, "<= 0.1", None)),
        time_parts=(TimePart("rl", "sampling", 80.0), TimePart("rl", "grading", 20.0)),
        speeds=(("sampling", 14230.0),),
        machine={"processor": "2 cores"},
        versions={"torch": "2.13"},
        settings={"rl": {"lr": 0.1, "names": {"b", "a"}}, "url": "https://example.org"},
        command="longthought zero --note '<x>'",
    )


@pytest.fixture(scope="module")
def page(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(data, path)
    return path.read_text(encoding="utf-8")


class _Tags(HTMLParser):
    VOID = frozenset({"meta", "path", "use", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_every_section_is_there_in_order_and_tags_are_balanced(page: str) -> None:
    parsed = _Tags(page)
    assert not parsed.open
    sections = [attributes["id"] for tag, attributes in parsed.tags if tag == "section"]
    assert sections == ["result", "curves", "pass-at-k", "transcripts", "seen", "time", "settings"]


def test_every_chart_says_how_to_read_it(page: str) -> None:
    assert page.count("<figure") == page.count("<figcaption>How to read it: ") == 8 + 4 + 1 + 1 + 1
    for term in ("pass@k is", "A live group is", "Entropy is"):
        assert term in page


def test_model_output_is_text_and_nothing_else(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    tags = _Tags(page).tags
    assert not [tag for tag, _ in tags if tag in ("script", "img", "iframe", "link", "object", "i", "b", "own", "run")]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert "default-src 'none'" in page
    assert "\x1b" not in page
    assert "\x00" not in page


def test_no_asset_is_loaded(page: str) -> None:
    for name in ("src", "href", "xlink:href", "action", "data"):
        targets = [attributes[name] or "" for _, attributes in _Tags(page).tags if name in attributes]
        assert all(target.startswith("#") for target in targets)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", page))
    assert "@import" not in page


def test_rejecting_words_are_marked_in_the_reasoning_only() -> None:
    pieces = marked("slow low 小 </think> low", frozenset({"low", "小"}))
    assert [piece for piece, rejected in pieces if rejected] == ["low", "小"]
    assert "".join(piece for piece, _ in pieces) == "slow low 小 </think> low"


def test_equal_data_gives_equal_bytes(data: ReportData, tmp_path: Path) -> None:
    reordered = dataclasses.replace(
        data,
        curves=dict(reversed(data.curves.items())),
        settings=dict(reversed(data.settings.items())),
        machine=dict(data.machine),
    )
    assert reordered == data
    for name, given in (("a", data), ("b", reordered)):
        write_report(given, tmp_path / f"{name}.html")
        picture(given, tmp_path / f"{name}.svg")
    for kind in ("html", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.svg", "b.html", "b.svg"]


def test_what_is_missing_is_named_and_never_zero(tmp_path: Path) -> None:
    write_report(ReportData("Interrupted"), tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    sections = dict(re.findall(r'<section id="([^"]+)">(.*?)</section>', page, flags=re.DOTALL))
    assert len(sections) == 7
    for content in sections.values():
        assert "not measured yet" in content
    assert not re.search(r">\s*(0|0\.0|0 %|0\.0 %|nan)\s*<", page)
    assert "<svg" not in page


def test_nan_is_not_a_measurement() -> None:
    missing = EvaluationSummary(8, 1, accuracy=Estimate(float("nan")))
    data = ReportData("x", base=missing, trained=missing)
    assert rows(data)[0].base == "not measured yet"
    assert "Neither" in sentence(data)


def test_the_headline_by_hand(data: ReportData) -> None:
    assert sentence(data).startswith(
        "After 110 RL steps the trained model solves 40.0 % of the test problems at the first try; "
        "its base solved 10.0 % (× 4.0)."
    )
    table = {row.label: (row.base, row.trained, row.change) for row in rows(data)}
    assert table["pass@1"] == ("10.0 % [8.0, 12.0]", "40.0 % [38.0, 42.0]", "× 4.00")
    assert table["answers in the right format"] == ("80.0 %", "80.0 %", "+0.0 points")
    assert table["problems × samples"][:2] == ("200 × 8", "200 × 8")
    assert table["seed"][0] == "7"


def test_a_base_that_solves_nothing_has_no_ratio() -> None:
    zero, some = (EvaluationSummary(8, 1, accuracy=Estimate(value, 0.0, 0.5)) for value in (0.0, 0.2))
    data = ReportData("x", base=zero, trained=some)
    assert rows(data)[0].change == "from zero"
    assert "×" not in sentence(data)
    assert "may be chance" in sentence(data)


@pytest.mark.parametrize(("low", "high", "chance"), [(-0.01, 0.1, True), (0.01, 0.1, False), (-0.2, -0.1, False)])
def test_chance_is_named_by_the_paired_interval(data: ReportData, low: float, high: float, chance: bool) -> None:
    told = sentence(dataclasses.replace(data, difference=Estimate(0.05, low, high)))
    assert ("may be chance" in told) is chance


def test_without_an_interval_certainty_is_not_claimed() -> None:
    models = [EvaluationSummary(8, 1, accuracy=Estimate(value)) for value in (0.1, 0.9)]
    assert "No interval" in sentence(ReportData("x", base=models[0], trained=models[1]))


def test_numbers_in_words() -> None:
    shown = [number(value) for value in (0.0, 0.88, 3.14159, 33.2, 14230.0, 1.2e-6, None)]
    assert shown == ["0", "0.88", "3.14", "33.2", "14,230", "1.2e-06", "not measured yet"]
    assert percent(0.4844) == "48.4 %"
    assert decimal(4.0) == "4.00"
    assert with_interval(Estimate(0.5, 0.4, None), percent) == "50.0 %"


def test_settings_are_flattened() -> None:
    flat = dict(flatten({"rl": {"gate": GateCheck("a", None, "b", True), "lr": [1, 2]}, "none": {}}))
    assert flat["rl.lr"] == "1, 2"
    assert flat["rl.gate.GateCheck.needed"] == "b"
    assert flat["none"] == "{}"


def test_a_curve_without_a_value_is_not_measured(tmp_path: Path) -> None:
    nothing = Curve((1, 2), (None, float("nan")))
    write_report(ReportData("x", curves={"length": nothing, "reflections": nothing}), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<svg" not in page


def test_a_curve_with_columns_of_unequal_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 steps but 1 values"):
        Curve((1, 2), (0.1,))
    with pytest.raises(ValueError, match="band"):
        Curve((1, 2), (0.1, 0.2), (0.1,), (0.1,))


def test_sparkline_by_hand() -> None:
    assert sparkline([0.0, None, 7.0]) == "▁ █"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([0.0, 2.0, 10.0, 12.0], width=2) == "▁█"
    assert sparkline([None]) == sparkline([]) == ""


def _printed(data: ReportData) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(terminal_summary(data))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_shows_the_same_headline_and_obeys_no_markup(data: ReportData) -> None:
    printed = _printed(data)
    assert " ".join(sentence(data).split()) in " ".join(printed.split())
    assert "10.0 % [8.0, 12.0]" in printed
    assert "[bold]x[/]" in printed
    assert "\x1b" not in printed
    assert "▁ █" in printed


def test_the_terminal_names_what_is_missing() -> None:
    assert _printed(ReportData("x")).count("not measured yet") >= 10


def test_printable_replaces_control_characters_and_lone_surrogates() -> None:
    assert printable("a\n\tb\x1b\x07\x9b\ud800对") == "a\n\tb\ufffd\ufffd\ufffd\ufffd对"


def test_the_picture_is_small_text_svg(data: ReportData, tmp_path: Path) -> None:
    steps = tuple(range(3000))
    noisy = Curve(steps, tuple((s * 7919 % 97) / 97 for s in steps), steps, steps)
    curves = dict.fromkeys(("accuracy", "length", "rejections"), noisy)
    picture(dataclasses.replace(data, curves=curves), tmp_path / "p.svg")
    svg = (tmp_path / "p.svg").read_text(encoding="utf-8")
    assert len(svg) < 150_000
    assert 'xmlns="http://www.w3.org/2000/svg"' in svg
    for title in ("Accuracy", "Response length", "Rejected attempts", "pass@k"):
        assert f">{title}</text>" in svg
