"""A run of many stages, written here by hand with names that mean nothing: what is told of it, whole and spoiled."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import io
import logging
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from spoiled import misfits, remove_files, write_run

from longthought import stages
from longthought.core.types import Group, Score
from longthought.evaluation.behaviours import ENGLISH
from longthought.evaluation.evaluate import part_means, summarize
from longthought.evaluation.from_run import report_data
from longthought.evaluation.headline import difference, duration, flops, sentence
from longthought.evaluation.report import picture, terminal_summary, write_report
from longthought.evaluation.report_data import Curve, Estimate
from longthought.evaluation.road import KINDS, road_of
from longthought.evaluation.road_charts import columns, losses, part_columns, rl_rows
from longthought.evaluation.road_data import Road, Stop
from longthought.models import cost
from longthought.models.config import ModelConfig
from longthought.runs.record import Launch, Record
from longthought.runs.settings import fingerprint_of
from longthought.tasks.examples import Examples
from longthought.tasks.preferences import Preferences
from made_traces import rollout

CONFIG = ModelConfig(50, 32, 48, 2, 4, 2, 8)
HOSTILE = "<script>alert(1)</script> [bold]x[/] \x1b[31m \ud800"
PROBLEMS = ["p/1", "p/2", "p/2"]  # two problems may have one id
SUMS: dict[str, Any] = {"is": "Sums", "largest": 9}
WISHES: dict[str, Any] = {"is": "Wishes", "languages": ["en", "zh"]}
CHATS = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}]} for n in (1, 2)]
PAIRS = [{"prompt": f"say {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(30)]


def digest(stage: str) -> str:
    """Of what a stage made, as another one notes it."""
    return fingerprint_of({"it": stage})


def done(artifact: str, stage: str) -> dict[str, Any]:
    return {"artifact": artifact, "files": {"it": stage}, "stage": "", "given": ""}


def model(stage: str) -> dict[str, Any]:
    return {"is": "Checkpoint", "files": digest(stage), "template": None}


def evaluation(accuracies: list[float], wishes: list[float] | None = None) -> dict[str, Any]:
    def estimate(values: list[float]) -> dict[str, float]:
        mean = sum(values) / len(values)
        return {"value": mean, "low": mean - 0.125, "high": mean + 0.125}

    shares = {name: {"value": 0.625, "low": 0.5, "high": 0.75} for name in ("format_rate", "mixing", "cut")}
    found = {
        "summary": {"problems": 3, "samples": 8, "accuracy": estimate(accuracies), "length": estimate([20.0, 21.0])}
        | {"pass_at_k": [[1, estimate(accuracies)]], **shares},
        "accuracy_by_problem": {str(i): value for i, value in enumerate(accuracies)},
        "problems": PROBLEMS,
        "transcripts": [
            {
                "problem": "p/1",
                "prompt": f"add {HOSTILE}",
                "text": HOSTILE,
                "tokens": 4,
                "finish": "stop",
                "correct": True,
            }
        ],
    }
    if wishes is not None:
        found["summary"]["parts"] = {"preference": estimate(wishes), "accuracy": estimate(accuracies)}
        found["parts_by_problem"] = {"preference": {str(i): value for i, value in enumerate(wishes)}}
    return found


def looked(given: str, task: dict[str, Any], name: str, result: dict[str, Any]) -> dict[str, Any]:
    """The files of an evaluation."""
    asked = {"is": "Evaluate", "task": task, "settings": {"temperature": 1.0, "split": "test"}}
    return {
        f"{name}/stage.json": {"stage": asked, "given": model(given)},
        f"{name}/evaluation/summary.json": result,
        f"{name}/timings.jsonl": [{"step": 0, "evaluation": 2.0, "tokens": 100}],
        f"{name}/done.json": done("evaluation", name),
    }


STEPS = [{"step": n, "reward": n / 4, "accuracy": n / 8, "accuracy_low": 0.0, "accuracy_high": n / 6} for n in (1, 2)]
METRICS = [{**row, "length": 10.0 * row["step"], "mixing": 0.1, "reward/sums": 0.75} for row in STEPS]
METRICS[1] |= {"part/preference": 0.5, "shaping/liked": 0.25, "look/sums/judged": 0.5, "look/sums/proxy": 0.75}
REPORT = {"prompts": 4, "sampled": 32, "right": 20, "judged": 0, "tokens": 900, "kept": {"reasoning": 12, "general": 4}}
REPORT |= {"dropped": {"not right": 12, "mixed language": 8}, "pass_rates": {"never": 1}}
FILES: dict[str, Any] = {
    "01-alpha/stage.json": {"stage": {"is": "Pretrain", "steps": 10}, "given": None},
    "01-alpha/metrics.jsonl": [{"step": 5, "nll": 3.0, "tokens": 500}, {"step": 10, "nll": 2.0, "tokens": 1000}],
    "01-alpha/timings.jsonl": [{"step": 10, "training": 4.0}],
    "01-alpha/corpus.json": {"description": "Sums.", "kinds": [], "tokens": 1000, "parameters": 7},
    "01-alpha/model/config.json": CONFIG.to_hf(),
    "01-alpha/done.json": done("model", "01-alpha"),
    **looked("01-alpha", SUMS, "02-one", evaluation([0.0, 0.25, 0.5])),
    "03-beta/stage.json": {
        "stage": {"is": "RL", "task": SUMS, "steps": 2, "prompts": 3, "samples": 4},
        "given": model("01-alpha"),
    },
    "03-beta/metrics.jsonl": METRICS,
    "03-beta/timings.jsonl": [{"step": 1, "sampling": 2.0, "training": 1.0}, {"step": 2, "sampling": 3.0}],
    "03-beta/hacking.json": {"hacking": False, "why": "", "trained_steps": 2, "weights_after_step": 1},
    "03-beta/model/config.json": CONFIG.to_hf(),
    "03-beta/done.json": done("model", "03-beta"),
    **looked("03-beta", SUMS, "04-two", evaluation([0.5, 0.75, 0.7])),
    "05-picks/stage.json": {"stage": {"is": "RejectionSampling", "task": SUMS}, "given": model("03-beta")},
    "05-picks/examples/report.json": REPORT,
    "05-picks/examples/examples.jsonl": CHATS,
    "05-picks/done.json": done("examples", "05-picks"),
    "06-gamma/stage.json": {"stage": {"is": "SFT", "examples": {"is": "Examples"}}, "given": model("01-alpha")},
    "06-gamma/metrics.jsonl": [{"step": 0, "held_out_loss": 1.0}, {"step": 2, "nll": 0.5, "tokens": 60, "trained": 40}],
    "06-gamma/examples.json": {"replies": 16, "epochs": 2, "tokens": 60, "trained tokens": 40},
    "06-gamma/model/config.json": CONFIG.to_hf(),
    "06-gamma/done.json": done("model", "06-gamma"),
    **looked("06-gamma", SUMS, "07-three", evaluation([0.25, 0.5, 0.5])),
    **looked("06-gamma", WISHES, "08-four", evaluation([0.5, 0.5, 0.5], [0.1, 0.2, 0.3])),
    "09-liked/stage.json": {"stage": {"is": "RewardModel"}, "given": model("06-gamma")},
    "09-liked/judgements.json": {"trained on": 24, "held out": 6, "measures": {"accuracy": 0.875}},
    "09-liked/metrics.jsonl": [{"step": 3, "accuracy": 1.0, "held_out_accuracy": 0.875, "tokens": 300}],
    "09-liked/model/config.json": CONFIG.to_hf(),
    "09-liked/model/reward.json": {},
    "09-liked/done.json": done("model", "09-liked"),
    "10-delta/stage.json": {
        "stage": {"is": "RL", "task": {"is": "Mixture", "parts": [[SUMS, 1.0], [WISHES, 1.0]]}, "steps": 9}
        | {"method": {"shaping": [{"is": "PreferenceReward", "files": digest("09-liked")}]}},
        "given": model("06-gamma"),
    },
    "10-delta/metrics.jsonl": METRICS,
    "10-delta/model/config.json": CONFIG.to_hf(),
    "10-delta/done.json": done("model", "10-delta"),
    **looked("10-delta", SUMS, "11-five", evaluation([1.0, 1.0, 0.5])),
    **looked("10-delta", WISHES, "12-six", evaluation([0.5, 1.0, 0.5], [0.4, 0.6, 0.8])),
    "13-later/stage.json": {"stage": {"is": "RL", "task": SUMS, "steps": 5}, "given": model("10-delta")},
    "13-later/metrics.jsonl": METRICS,
}


def write(folder: Path, files: dict[str, Any]) -> Record:
    launch = Launch("longthought run far seed=7", 2, "2026", {"torch": "2"}, {"cpu": "fast"})
    return write_run(Record(folder, "far", {"seed": 7}, (launch,)), files)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("road") / "run"
    known = write(folder, FILES)
    content = Examples.read(folder / "05-picks/examples/examples.jsonl").conversations.fingerprint
    learned = copy.deepcopy(FILES["06-gamma/stage.json"])
    learned["stage"]["examples"]["conversations"] = {"is": "Conversations", "fingerprint": content}
    write(folder, {"06-gamma/stage.json": learned})
    return known


@pytest.fixture(scope="module")
def road(record: Record) -> Road:
    return road_of(record)


def stop(road: Road, name: str) -> Stop:
    return next(one for one in road.stops if one.name == name)


def test_every_stage_with_what_it_makes_and_began_with(road: Road) -> None:
    told = {one.name: (one.makes, one.origin, one.beside, one.finished) for one in road.stops}
    assert {name: facts for name, facts in told.items() if facts[0] != "measurement"} == {
        "alpha": ("model", "", (), True),
        "beta": ("model", "alpha", (), True),
        "picks": ("data", "beta", (), True),
        "gamma": ("model", "alpha", (("examples", "picks"),), True),
        "liked": ("reward model", "gamma", (), True),
        "delta": ("model", "gamma", (("preference reward", "liked"),), True),
        "later": ("model", "delta", (), False),
    }
    assert [one.name for one in road.models] == ["alpha", "beta", "gamma", "delta", "later"]
    assert stop(road, "delta").task == "Mixture of Sums and Wishes"
    assert stop(road, "beta").note == "No hacking of the reward was found; the weights after step 1 are handed on."


def test_data_and_cost_are_those_of_the_files(road: Road) -> None:
    assert dict(stop(road, "alpha").data) == {"tokens read": 1000}
    assert dict(stop(road, "beta").data) == {"prompts a step": 3, "samples of each": 4}
    assert dict(stop(road, "gamma").data) == {
        "examples": 16,
        "epochs": 2,
        "tokens read": 60,
        "tokens learned": 40,
    }
    assert dict(stop(road, "liked").data) == {
        "judgements": 24,
        "held out": 6,
        "held-out accuracy": 0.875,
        "tokens read": 300,
    }
    picks = stop(road, "picks")
    assert dict(picks.data) == {"prompts": 4, "sampled": 32, "right": 20, "kept (reasoning)": 12, "kept (general)": 4}
    assert picks.dropped == (("not right", 12), ("mixed language", 8))
    assert [stop(road, name).seconds for name in ("alpha", "beta", "one", "gamma")] == [4.0, 6.0, 2.0, None]
    assert [stop(road, name).steps for name in ("alpha", "beta", "later")] == [10, 2, 2]
    assert stop(road, "later").planned == 5


def test_work_is_six_for_each_number_that_a_learned_token_meets(road: Road) -> None:
    each = cost.active_matrices(CONFIG)
    assert stop(road, "alpha").flops == 6 * each * 1000
    assert stop(road, "gamma").flops == 6 * each * 60
    assert stop(road, "alpha").parameters == CONFIG.parameters()
    assert stop(road, "liked").parameters is None  # its head is another


def test_evaluations_belong_to_the_model_that_they_measured(road: Road) -> None:
    assert [(one.stage, one.model, one.task) for one in road.measurements] == [
        ("one", "alpha", "Sums"),
        ("two", "beta", "Sums"),
        ("three", "gamma", "Sums"),
        ("four", "gamma", "Wishes"),
        ("five", "delta", "Sums"),
        ("six", "delta", "Wishes"),
    ]
    six = road.measured("delta", "Wishes")
    assert six is not None
    assert six.summary.parts["preference"].value == pytest.approx(0.6)
    assert road.measured("alpha", "Wishes") is None


def test_gains_are_paired_by_problem_with_the_nearest_and_the_first_model(road: Road) -> None:
    five, six, two = (road.measured(*names) for names in (("delta", "Sums"), ("delta", "Wishes"), ("beta", "Sums")))
    assert five is not None and five.gain is not None and five.total is not None  # noqa: PT018
    assert (five.gain.against, five.total.against) == ("gamma", "alpha")
    assert five.gain.accuracy.value == pytest.approx((0.75 + 0.5 + 0.0) / 3)
    assert five.total.accuracy.value == pytest.approx((1.0 + 0.75 + 0.0) / 3)
    assert two is not None and two.gain is not None  # noqa: PT018
    # 1.96 × the standard error of 0.5, 0.5, 0.2
    assert two.gain.accuracy.low == pytest.approx(0.4 - 1.96 * 0.1, abs=1e-3)
    assert six is not None and six.gain is not None  # noqa: PT018
    assert six.gain.parts["preference"].value == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    first = road.measured("alpha", "Sums")
    assert first is not None
    assert (first.gain, first.total) == (None, None)


def test_other_problems_or_another_sampling_are_another_measurement(tmp_path: Path) -> None:
    files = copy.deepcopy(FILES)
    files["04-two/stage.json"]["stage"]["settings"]["temperature"] = 0.5
    files["07-three/evaluation/summary.json"]["problems"] = ["q/1", "q/2", "q/3"]
    files["07-three/stage.json"]["stage"]["task"] = SUMS | {"largest": 99}
    road = road_of(write(tmp_path, files))
    labels = {one.stage: one.task for one in road.measurements}
    assert labels["one"] == labels["five"] == "Sums (temperature 1.0, largest 9)"
    assert labels["two"] == "Sums (temperature 0.5, largest 9)"
    assert labels["three"] == "Sums (temperature 1.0, largest 99)"
    gains = {one.stage: one.gain.against if one.gain else None for one in road.measurements}
    assert gains == {"one": None, "two": None, "three": None, "four": None, "five": "alpha", "six": "gamma"}


def test_curves_of_rl_hold_parts_tasks_and_the_watch(road: Road) -> None:
    rows = rl_rows(stop(road, "beta"))
    titles = {title: [panel.title for panel in panels] for title, panels in rows}
    assert titles == {
        "": ["Accuracy", "Length", "Format and mixing", "Reward"],
        "Parts of the score": ["preference", "liked"],
        "What is paid for, and judgements that are not": ["sums"],
    }
    accuracy, length, _, reward = rows[0][1]
    assert accuracy.lines[0].y == [12.5, 25.0]
    assert accuracy.lines[0].high == pytest.approx([100 / 6, 100 / 3])
    assert length.lines[0].y == [10.0, 20.0]
    assert [line.label for line in reward.lines] == ["all prompts", "sums"]
    assert stop(road, "beta").curves["look/sums/judged"] == Curve((2,), (0.5,))  # only where it was measured
    assert rl_rows(stop(road, "gamma")) == []
    assert [panel.title for panel in losses(road)] == [
        "alpha: pretraining",
        "gamma: supervised fine-tuning",
        "liked: reward model",
    ]


def test_the_picture_has_a_row_for_every_model_and_a_series_for_every_task(road: Road) -> None:
    accuracy = columns(road)[0]
    [preference] = part_columns(road)
    assert [(series.label, list(series.x)) for series in accuracy.series] == [
        ("Sums", [0, 1, 2, 3]),
        ("Wishes", [2, 3]),
    ]
    assert accuracy.series[0].y[0] == pytest.approx(25.0)
    assert accuracy.series[0].low[0] == pytest.approx(12.5)
    assert preference.title == "Preference"
    assert preference.series[0].y == []
    assert preference.series[1].y == pytest.approx([0.2, 0.6])


def printed(record: Record) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(terminal_summary(report_data(record)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_page_and_the_terminal_show_the_numbers_of_the_files(record: Record, tmp_path: Path) -> None:
    data = report_data(record)
    write_report(data, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    sections = dict(re.findall(r'<section id="([^"]+)">(.*?)</section>', page, flags=re.DOTALL))
    names = ["result", "road", "measured", "curves", "losses", "data", "transcripts", "time", "settings"]
    assert list(sections) == names
    told = "On Sums, delta solves 83.3 % at the first try; alpha, from which it comes, solves 25.0 %: +58.3 points"
    assert told in sections["result"]
    for text in ("25.0 % [12.5, 37.5]", "+40.0 [+20.4, +59.6] over alpha", "tokens read 1,000", "not finished"):
        assert text in sections["road"]
    assert '<div class="up">+40.0 [' in sections["road"]
    assert '<div>0.60</div><div class="quiet">[0.47, 0.72]</div>' in sections["measured"]
    assert "+0.40 [" in sections["measured"]
    assert "No hacking of the reward was found" in sections["curves"]
    assert "mixed language" in sections["data"]
    assert page.count("<svg") == 2 + 3 * 3 + 3 + 1  # models; three stages of RL; losses; time
    assert "<script>alert" not in page
    assert not re.search(r"[\x1b\x00]", page)
    text = printed(record)
    assert told[:40] in text
    for part in (
        "25.0 % [12.5, 37.5]",
        "+40.0 [+20.4, +59.6]",
        "examples: picks",
        "2 of 5 steps",
        "0.60 (+0.40)",
        "1 k tokens read",
    ):
        assert part in text
    assert "\x1b" not in text


def test_equal_runs_give_equal_bytes_and_a_picture(record: Record, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(report_data(record), tmp_path / f"{name}.html")
        picture(report_data(record), tmp_path / f"{name}.svg")
    for kind in ("html", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for text in ("delta", "pass@1", "Wishes"):
        assert f">{text}</text>" in svg


def stages_of_the_package() -> list[str]:
    """Classes that make something of something: they have ``run`` and ``load``."""
    modules = [
        importlib.import_module(f"longthought.stages.{one.name}") for one in pkgutil.iter_modules(stages.__path__)
    ]
    found = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    return sorted(
        kind.__name__
        for kind in found
        if kind.__module__.startswith("longthought.stages.")
        and callable(getattr(kind, "run", None))
        and callable(getattr(kind, "load", None))
        and not inspect.isabstract(kind)
    )


def test_every_stage_has_words_and_is_known_before_it_has_made_anything(tmp_path: Path) -> None:
    names = stages_of_the_package()
    assert {"RL", "ColdStart", "RejectionSampling", "Select"} <= set(names)
    assert set(names) <= KINDS.keys()
    for number, name in enumerate(names):
        write(tmp_path, {f"{number + 1:02d}-{name}/stage.json": {"stage": {"is": name}, "given": None}})
    found = road_of(Record.read(tmp_path)).stops
    assert [(one.name, one.what, one.makes) for one in found] == [(name, *KINDS[name]) for name in names]


def test_judgements_are_known_by_what_they_say(tmp_path: Path) -> None:
    files = FILES | {
        "08-said/stage.json": {"stage": {"is": "Comparing"}, "given": model("06-gamma")},
        "08-said/preferences/preferences.jsonl": PAIRS,
        "08-said/preferences/provenance.json": {"held_out": 0.3},
        "08-said/preferences/report.json": {"pairs": 30, "agreement": 0.75},
        "08-said/done.json": done("preferences", "08-said"),
    }
    record = write(tmp_path, files)
    pairs = Preferences.read(tmp_path / "08-said/preferences/preferences.jsonl", held_out=0.3)
    asked = {"is": "RewardModel", "pairs": {"is": "Preferences", "fingerprint": pairs.fingerprint}}
    write(tmp_path, {"09-liked/stage.json": {"stage": asked, "given": model("06-gamma")}})
    road = road_of(record)
    assert stop(road, "liked").beside == (("pairs", "said"),)
    assert (stop(road, "said").what, stop(road, "said").makes) == ("comparing", "data")
    assert dict(stop(road, "said").data) == {"pairs": 30, "agreement": 0.75}


@pytest.mark.parametrize("there", range(0, len(FILES), 5))
def test_a_road_that_stopped_anywhere_is_told(tmp_path: Path, there: int, caplog: pytest.LogCaptureFixture) -> None:
    record = write(tmp_path, dict(list(FILES.items())[:there]))
    assert sentence(report_data(record))
    assert printed(record)
    assert caplog.text == ""  # what is not there yet is no reason to warn


def test_a_run_of_one_base_and_rl_is_told_as_ever(tmp_path: Path) -> None:
    plain = {name.replace("01-alpha", "01-base"): content for name, content in FILES.items() if "alpha" in name}
    assert report_data(write(tmp_path, plain)).road is None


def test_a_road_without_measurements_has_a_page(tmp_path: Path) -> None:
    record = write(tmp_path, {"01-alpha/stage.json": FILES["01-alpha/stage.json"]})
    data = report_data(record)
    assert sentence(data) == "1 stage, 0 finished. No model was evaluated yet, so there is no result to state."
    write_report(data, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("not measured yet") >= 5
    assert "<svg" not in page


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("spoiled", [b"{", b"[]", b'\xff{"step": 1}\n{"st\n{}\n'])
def test_a_damaged_file_hides_no_other_stage(tmp_path: Path, road: Road, name: str, spoiled: bytes) -> None:
    record = write(tmp_path, FILES)
    (tmp_path / name).write_bytes(spoiled)
    found = road_of(record)
    assert [one.name for one in found.stops] == [one.name for one in road.stops]
    here = name.partition("/")[0][3:]
    for one in found.stops:  # what begins with a damaged stage may not know it any more
        whole = stop(road, one.name)
        if here not in (one.name, whole.origin, *(name for _, name in whole.beside)) and one.name != "gamma":
            assert one == whole
    lost = [one.stage for one in road.measurements if one.stage not in {other.stage for other in found.measurements}]
    assert lost in ([], [here])


@pytest.mark.parametrize(
    "name", ["01-alpha/corpus.json", "03-beta/hacking.json", "05-picks/examples/report.json", "03-beta/stage.json"]
)
def test_damage_is_told(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    record = write(tmp_path, FILES)
    (tmp_path / name).write_bytes(b"[")
    with caplog.at_level(logging.WARNING):
        road_of(record)
    assert f"{name} cannot be read and counts as not measured" in caplog.text


def test_a_circle_of_models_ends(tmp_path: Path) -> None:
    files = FILES | {"01-alpha/stage.json": {"stage": {"is": "LongContext"}, "given": model("10-delta")}}
    road = road_of(write(tmp_path, files))
    found = {one.model: one for one in road.measurements if one.task == "Sums"}
    assert found["beta"].gain is not None
    assert found["beta"].gain.against == "alpha"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_value_of_the_wrong_kind_is_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    remove_files(tmp_path)
    record = write(tmp_path, misfits(FILES, data, most=4))
    assert len(road_of(record).stops) == 13
    assert printed(record)


def scored(*parts: dict[str, float]) -> Group:
    return tuple(
        dataclasses.replace(one, score=Score(1.0, True, values, one.score.verdict))
        for one, values in zip((rollout("a") for _ in parts), parts)
    )


def test_parts_are_means_over_the_problems_that_have_them() -> None:
    groups = [scored({"a": 1.0}, {"a": 0.0, "b": 4.0}), scored({"a": 1.0}, {"a": 1.0})]
    assert part_means(groups) == {"a": {0: 0.5, 1: 1.0}, "b": {0: 4.0}}
    parts = summarize(groups, ENGLISH).parts
    assert parts["a"].value == 0.75
    assert parts["a"].low == pytest.approx(0.75 - 1.96 * 0.25, abs=1e-3)
    assert parts["b"] == Estimate(4.0)


def test_costs_in_words() -> None:
    assert [flops(value) for value in (0.0, 999.0, 7.6e11, 2.5e25, float("inf"))] == [
        "0 FLOP",
        "999 FLOP",
        "760 GFLOP",
        "25 YFLOP",
        "not measured yet",
    ]
    assert [duration(value) for value in (9.25, 843.0, 7500.0, float("nan"))] == [
        "9.2 s",
        "14 min 03 s",
        "2 h 05 min",
        "not measured yet",
    ]
    assert difference(Estimate(-0.25, -0.5, 0.0)) == "−0.25 [−0.50, +0.00]"
