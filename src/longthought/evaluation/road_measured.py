"""The evaluations of a run: of which model, on what, and how much better than the models before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from longthought.algorithms.statistics import mean_interval
from longthought.evaluation.readings import attempt, finite, mapping, part, reply_of, summary_of
from longthought.evaluation.report_data import Estimate, Reply
from longthought.evaluation.road_data import Asked, Gain, Measurement
from longthought.runs.describe import leafs

SUMMARIES: Final = ("evaluation/summary.json",)
_SETTINGS: Final = ("temperature", "top_p", "top_k", "split")  # of the sampling, that make another measurement
_MOST_NAMED = 2  # settings in a label
_PROBLEMS = 3  # shown, of each task


class Evaluated(NamedTuple):
    """An evaluation as it was asked for: its stage, the model, what was asked, and its folder."""

    stage: str
    model: str
    asked: Mapping[str, Any]
    folder: Path


class _Found(NamedTuple):
    """What it has found. ``means``: of every quantity, by the number of the problem; ``""`` is accuracy.

    ``key``: equal where the same problems were asked in the same way.
    """

    one: Evaluated
    content: Mapping[str, Any]
    means: Mapping[str, Mapping[int, float]]
    label: str
    key: object
    plain: Mapping[str, Any]


def measured(
    evaluations: Sequence[Evaluated], origins: Mapping[str, str]
) -> tuple[tuple[Measurement, ...], tuple[Asked, ...]]:
    """All measurements, with their gains, and what the models said. ``origins``: which model each one began with."""
    found = [read for one in evaluations if (read := attempt(one.folder, partial(_read, one), None)) is not None]
    labels = _labels(found)
    known: dict[tuple[str, object], _Found] = {}
    measurements = []
    for one in found:
        before = [known[model, one.key] for model in _before(one.one.model, origins) if (model, one.key) in known]
        known[one.one.model, one.key] = one
        gains = [attempt(one.one.folder, partial(_gain, one, other), None) for other in (before[:1] + before[-1:])]
        near, far = gains if gains else (None, None)
        summary = attempt(one.one.folder, partial(summary_of, one.content), None)
        if summary is not None:
            measurements.append(Measurement(one.one.stage, one.one.model, labels[one.key], summary, near, far))
    return tuple(measurements), tuple(_asked(found, labels))


def task_name(asked: Any) -> str:
    """``Countdown``; of several tasks in one, ``Mixture of Countdown and Requests``. Raises KeyError, TypeError."""
    if not isinstance(asked, Mapping):
        return ""
    name, parts = str(asked["is"]), asked.get("parts")
    inner = list(dict.fromkeys(_classes(parts))) if parts else []
    return f"{name} of {' and '.join(inner)}" if inner else name


def _classes(parts: Any) -> Iterator[str]:
    """Classes of the outermost objects in nested lists and mappings."""
    if isinstance(parts, Mapping) and "is" in parts:
        inner = [value for value in parts.values() if isinstance(value, Mapping) and "is" in value]
        yield from (str(value["is"]) for value in inner) if inner else (str(parts["is"]),)
    elif isinstance(parts, list | Mapping):
        for value in parts.values() if isinstance(parts, Mapping) else parts:
            yield from _classes(value)


def _read(one: Evaluated) -> _Found | None:
    """Raises whatever a damaged file makes of it."""
    nothing: dict[str, Any] = {}
    content = part(one.folder, SUMMARIES, mapping, nothing)
    if not content:
        return None
    problems = [str(problem) for problem in content["problems"]]
    parts = mapping(content.get("parts_by_problem") or {})
    means = {
        str(name): {int(i): finite(value) for i, value in mapping(found).items()}
        for name, found in {"": content["accuracy_by_problem"], **parts}.items()
    }
    settings = one.asked.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    ways = {name: settings.get(name) for name in _SETTINGS}
    label = attempt(f"the task of {one.stage}", lambda: task_name(one.asked.get("task")), "") or "problems"
    plain = {**leafs(one.asked.get("task"), ""), **ways, "problems": len(problems)}
    return _Found(one, content, means, label, (label, *problems, *map(str, ways.values())), plain)


def _labels(found: Sequence[_Found]) -> dict[object, str]:
    """A name for everything that was measured: its task, with settings where two would have the same name."""
    by_label: dict[str, dict[object, _Found]] = {}
    for one in found:
        by_label.setdefault(one.label, {}).setdefault(one.key, one)
    labels: dict[object, str] = {}
    for label, kinds in by_label.items():
        differing = _differing([one.plain for one in kinds.values()])
        used: set[str] = set()
        for count, (key, one) in enumerate(kinds.items(), 1):
            words = [_setting(name, one.plain[name]) for name in differing[:_MOST_NAMED]]
            named = f"{label} ({', '.join(words)})" if words and len(kinds) > 1 else label
            labels[key] = f"{named} {count}" if named in used else named
            used.add(named)
    return labels


def _setting(name: str, value: object) -> str:
    """``test split``, ``largest 28``."""
    last = name.rpartition(".")[2].replace("_", " ")
    return f"{value} {last}" if last in ("split", "problems") else f"{last} {value}"


def _differing(plain: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings that all have and that are not the same for all; what is sampled otherwise before what a task is."""
    shared = [name for name in plain[0] if all(name in one for one in plain)]
    other = [name for name in shared if len({repr(one[name]) for one in plain}) > 1]
    return sorted(other, key=lambda name: (name not in _SETTINGS, name.endswith("seed"), plain[0][name] is None))


def _before(model: str, origins: Mapping[str, str]) -> list[str]:
    """The models that a model comes from, the nearest first; a circle is left where it closes."""
    path: list[str] = []
    here = origins.get(model, "")
    while here and here not in path and here != model:
        path.append(here)
        here = origins.get(here, "")
    return path


def _gain(one: _Found, other: _Found) -> Gain | None:
    """Paired by problem: both were asked the same ones, in one order. None for fewer than two."""
    gaps = {name: _gap(one.means[name], other.means[name]) for name in one.means if name in other.means}
    accuracy = gaps.pop("", None)
    if accuracy is None:
        return None
    return Gain(other.one.model, accuracy, {name: gap for name, gap in gaps.items() if gap is not None})


def _gap(now: Mapping[int, float], was: Mapping[int, float]) -> Estimate | None:
    gaps = [[value - was[problem]] for problem, value in now.items() if problem in was]
    if len(gaps) < 2:
        return None
    low, high = mean_interval(gaps)
    return Estimate(sum(gap for (gap,) in gaps) / len(gaps), low, high)


def _asked(found: Sequence[_Found], labels: Mapping[object, str]) -> Iterator[Asked]:
    """The first problems of every task with what the models replied, the road's order; those most were asked first."""
    tasks: dict[str, dict[str, dict[str, tuple[str, Reply]]]] = {}
    for one in found:
        nothing: dict[str, tuple[str, Reply]] = {}
        told = attempt(one.one.folder, partial(_replies, one), nothing)
        for problem, pair in told.items():
            tasks.setdefault(labels[one.key], {}).setdefault(problem, {})[one.one.model] = pair
    for task, problems in tasks.items():
        chosen = sorted(problems.items(), key=lambda item: -len(item[1]))[:_PROBLEMS]
        for problem, replies in chosen:
            prompt = next(iter(replies.values()))[0]
            yield Asked(task, problem, prompt, tuple((model, reply) for model, (_, reply) in replies.items()))


def _replies(one: _Found) -> dict[str, tuple[str, Reply]]:
    """(prompt, reply) by problem. Raises TypeError, KeyError."""
    told = {
        str(found["problem"]): (str(found["prompt"]), reply_of(found)) for found in one.content.get("transcripts", ())
    }
    return {problem: (prompt, reply) for problem, (prompt, reply) in told.items() if reply is not None}
