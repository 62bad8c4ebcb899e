"""The report of a run, from what its folder holds: finished, stopped, or still going on.

A part that is missing is left out, and the report says that it is not measured yet. So is a part whose file is damaged,
with a warning: a report is for looking, and one bad file must not hide the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longthought.algorithms.statistics import mean_interval
from longthought.evaluation.readings import (
    Row,
    attempt,
    curves_of,
    log,
    mapping,
    number,
    optional,
    optional_whole,
    part,
    reply_of,
    summary_of,
    whole,
)
from longthought.evaluation.report_data import (
    DocumentKind,
    Estimate,
    GateCheck,
    ReportData,
    TimePart,
    Transcript,
)
from longthought.evaluation.road import road_of
from longthought.evaluation.road_measured import SUMMARIES
from longthought.runs.place import METRICS, TIMINGS
from longthought.runs.record import Launch, Record
from longthought.runs.run import STAGE

BASE, READINESS, BEFORE, RL, AFTER = "base", "readiness", "before", "rl", "after"
PLAIN = frozenset({BASE, READINESS, BEFORE, RL, AFTER})
"""Stages that are told as base and trained model; a run with any other is a road."""
CHECKS = ("readiness/checks.json", "checks.json")  # in the stage's own folder when a bound was missed
CORPUS = ("corpus.json",)
CURVES = (
    "accuracy",
    "length",
    "rejections",
    "reflections",
    "format_rate",
    "mixing",
    "live",
    "entropy",
    "cut",
    "kl",
    "grad_norm",
    "logprob_gap",
    "reward",
    "consistency",
)
_COUNTS = frozenset({"step", "tokens"})  # in timings.jsonl, beside seconds
_GIB = 1 << 30


def report_data(record: Record) -> ReportData:
    """Everything that a run folder tells: by the names of its stages, base, readiness, before, rl, after; a run with
    others as a road.

    Raises nothing for files that are missing or damaged.
    """
    nothing: dict[str, Any] = {}
    folders: dict[str, Path] = {}
    stages = attempt(record.path, lambda: {stage.name: stage.path for stage in record.stages()}, folders)
    metrics = log(stages.get(RL), METRICS)
    steps = metrics[-1]["step"] if metrics else None
    asked = part(stages.get(RL), (STAGE,), lambda found: mapping(found["stage"]), nothing)
    before = part(stages.get(BEFORE), SUMMARIES, mapping, nothing)
    after = part(stages.get(AFTER), SUMMARIES, mapping, nothing)
    timings = {name: log(path, TIMINGS) for name, path in stages.items()}
    launch = record.launches[-1]
    return ReportData(
        title=f"{_short(record.recipe)} · {record.path.resolve().name}",
        task=attempt("the task", lambda: _task(asked.get("task")), ""),
        seed=attempt("the seed", lambda: optional_whole(record.settings.get("seed")), None),
        steps=steps,
        base=attempt("the evaluation of the base", lambda: summary_of(before, 0), None),
        trained=attempt("the evaluation of the trained model", lambda: summary_of(after, steps), None),
        difference=attempt("the difference of the two evaluations", lambda: _difference(before, after), None),
        curves=attempt("the curves", lambda: curves_of(metrics, CURVES), {}),
        transcripts=attempt("the transcripts", lambda: _transcripts(before, after), ()),
        own_base=not stages or BASE in stages or READINESS in stages,
        seen=part(stages.get(BASE), CORPUS, _seen, ""),
        document_kinds=part(stages.get(BASE), CORPUS, _kinds, ()),
        gate=part(stages.get(READINESS), CHECKS, _gate, ()),
        time_parts=attempt("the timings", lambda: _time_parts(timings), ()),
        speeds=_speeds(timings, log(stages.get(BASE), METRICS), metrics, asked),
        machine=attempt("the machine", lambda: _machine(launch), {}),
        versions=attempt("the versions", lambda: {str(k): str(v) for k, v in launch.versions.items()}, {}),
        settings=record.settings,
        command=_command(record),
        road=road_of(record) if stages.keys() - PLAIN else None,
    )


def _short(recipe: str) -> str:
    return recipe.rpartition("/")[2]


def _task(asked: Any) -> str:
    """``Countdown: count 3, largest 28, …``, of the stage's own description."""
    if not isinstance(asked, Mapping):
        return ""
    parts = [
        f"{name.replace('_', ' ')} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in asked.items()
        if name != "is" and not isinstance(value, Mapping)
    ]
    return f"{asked['is']}: {', '.join(parts)}" if parts else str(asked["is"])


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Estimate | None:
    """Trained − base in pass@1, problem by problem, with its interval; None unless the problems are the same."""
    if not before or not after or before["problems"] != after["problems"] or len(before["problems"]) < 2:
        return None
    was, now = before["accuracy_by_problem"], after["accuracy_by_problem"]
    gaps = [[number(now[str(i)]) - number(was[str(i)])] for i in range(len(before["problems"]))]
    low, high = mean_interval(gaps)
    return Estimate(sum(gap for (gap,) in gaps) / len(gaps), low, high)


def _transcripts(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Transcript, ...]:
    """The same problems in both evaluations, side by side; those of the one where there is no other yet."""
    was, now = ({str(t["problem"]): t for t in found.get("transcripts", ())} for found in (before, after))
    names = [name for name in was if name in now] if was and now else [*was, *now]
    return tuple(
        Transcript(name, str((was.get(name) or now[name])["prompt"]), reply_of(was.get(name)), reply_of(now.get(name)))
        for name in names
    )


def _seen(corpus: Mapping[str, Any]) -> str:
    text = str(corpus["description"])
    if "tokens" in corpus and "parameters" in corpus:
        tokens, parameters = whole(corpus["tokens"]), whole(corpus["parameters"])
        text += f"\n\nThe base has {parameters:,} parameters and read {tokens:,} tokens."
    return text


def _kinds(corpus: Mapping[str, Any]) -> tuple[DocumentKind, ...]:
    return tuple(DocumentKind(str(k["name"]), number(k["share"]), str(k["example"])) for k in corpus["kinds"])


def _gate(found: Mapping[str, Any]) -> tuple[GateCheck, ...]:
    return tuple(
        GateCheck(
            str(check["check"]),
            optional(check["measured"]),
            str(check["needed"]),
            check["passed"] if isinstance(check["passed"], bool) else None,
        )
        for check in found["checks"]
    )


def _time_parts(timings: Mapping[str, Sequence[Row]]) -> tuple[TimePart, ...]:
    """Seconds of every part of every stage, summed over its steps, in the order in which they came."""
    parts: list[TimePart] = []
    for stage, rows in timings.items():
        names = dict.fromkeys(name for row in rows for name in row if name not in _COUNTS)
        parts += [TimePart(stage, name, sum(number(row.get(name, 0.0)) for row in rows)) for name in names]
    return tuple(parts)


def _speeds(
    timings: Mapping[str, Sequence[Row]], base: Sequence[Row], metrics: Sequence[Row], asked: Mapping[str, Any]
) -> tuple[tuple[str, float], ...]:
    """Tokens per second of what was timed."""

    def generated() -> dict[int, float]:
        replies = whole(asked["prompts"]) * whole(asked["samples"])
        return {row["step"]: replies * number(row["length"]) for row in metrics if "length" in row}

    readers: dict[str, Callable[[], float | None]] = {
        "pretraining": lambda: _pretraining_speed(timings.get(BASE, ()), base),
        "sampling in RL": lambda: _speed(timings.get(RL, ()), "sampling", generated),
        "training in RL (on what was sampled)": lambda: _speed(timings.get(RL, ()), "training", generated),
        "evaluation of the base": lambda: _evaluation_speed(timings.get(BEFORE, ())),
        "evaluation of the trained model": lambda: _evaluation_speed(timings.get(AFTER, ())),
    }
    found = [(what, attempt(f"the speed of {what}", reader, None)) for what, reader in readers.items()]
    return tuple((what, speed) for what, speed in found if speed is not None)


def _pretraining_speed(timings: Sequence[Row], metrics: Sequence[Row]) -> float | None:
    """Tokens up to the last step that was timed and logged, by the seconds up to there."""
    read = {row["step"]: number(row["tokens"]) for row in metrics if "tokens" in row}
    known = [row["step"] for row in timings if row["step"] in read]
    if not known:
        return None
    seconds = sum(number(row["training"]) for row in timings if row["step"] <= known[-1])
    return _ratio(read[known[-1]], seconds)


def _speed(timings: Sequence[Row], part: str, tokens: Callable[[], Mapping[int, float]]) -> float | None:
    if not timings:
        return None
    done = tokens()
    known = [row for row in timings if row["step"] in done]
    return _ratio(sum(done[row["step"]] for row in known), sum(number(row[part]) for row in known))


def _evaluation_speed(timings: Sequence[Row]) -> float | None:
    tokens, seconds = (sum(number(row[name]) for row in timings) for name in ("tokens", "evaluation"))
    return _ratio(tokens, seconds)


def _ratio(tokens: float, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None


def _machine(launch: Launch) -> dict[str, str]:
    facts = {str(name): str(value) for name, value in launch.machine.items()}
    memory = launch.machine.get("memory")
    if isinstance(memory, int):
        facts["memory"] = f"{memory / _GIB:.1f} GiB"
    return {**facts, "threads": str(launch.threads)}


def _command(record: Record) -> str:
    """The command of the last launch; with a note when launches differ in what the bits of a result depend on."""
    command = str(record.launches[-1].command)
    conditions = [attempt("the launches", launch.conditions, None) for launch in record.launches]
    if any(other != conditions[-1] for other in conditions):
        return command + "\n# parts of this run were computed with other versions, threads or CPU (see run.json)"
    return command
