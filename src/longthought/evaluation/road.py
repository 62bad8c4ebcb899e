"""A run of any stages, from what its folder holds: finished, stopped, or still going on.

No name of a stage means anything here. A stage is known by what it was asked (``stage.json``), by the files that it
wrote, and by the digests of what it was given. What is missing or damaged is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from longthought.core.files import read_json
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
    whole,
)
from longthought.evaluation.report_data import Curve
from longthought.evaluation.road_data import Product, Road, Stop
from longthought.evaluation.road_measured import SUMMARIES, Evaluated, measured, task_name
from longthought.models import cost
from longthought.models.config import ModelConfig
from longthought.runs.artifacts import PROVENANCE
from longthought.runs.lineage import Given, Lineage, Node, lineage
from longthought.runs.place import METRICS
from longthought.runs.record import Done, Record, StageRecord
from longthought.runs.run import STAGE
from longthought.tasks.examples import Examples
from longthought.tasks.preferences import Labels, Preferences

KINDS: Final[Mapping[str, tuple[str, Product]]] = {
    "Pretrain": ("pretraining", "model"),
    "LongContext": ("pretraining, longer context", "model"),
    "SFT": ("supervised fine-tuning", "model"),
    "RL": ("reinforcement learning", "model"),
    "Distillation": ("distillation", "model"),
    "RewardModel": ("reward model", "reward model"),
    "SafetyModel": ("safety model", "reward model"),
    "Evaluate": ("evaluation", "measurement"),
    "ColdStart": ("cold start", "data"),
    "RejectionSampling": ("rejection sampling", "data"),
    "Merge": ("merging of examples", "data"),
    "MeasureDifficulty": ("difficulty of problems", "data"),
    "Comparing": ("comparing", "data"),
    "Labelling": ("labelling", "data"),
    "CheckReadiness": ("readiness gate", "other"),
    "CheckDiversity": ("diversity of examples", "other"),
    "Forcing": ("budget forcing", "other"),
    "Parts": ("parts of the recipe", "other"),
    "Select": ("choice of the better model", "other"),
}
"""What stages do and make, as long as nothing that they made tells; a class that is not here has its name."""

CONFIG, REWARD, REPORT, WATCH = "config.json", "reward.json", "report.json", "hacking.json"
EXAMPLES, PREFERENCES, LABELS = "examples.jsonl", "preferences.jsonl", "labels.jsonl"
CURVES: Final = (
    "accuracy",
    "length",
    "reward",
    "mixing",
    "format_rate",
    "cut",
    "live",
    "entropy",
    "kl",
    "nll",
    "loss",
)
KEPT_BY: Final = (
    "part/",
    "look/",
    "shaping/",
    "held_out_",
    "accuracy/",
    "length/",
    "reward/",
    "format_rate/",
)
"""Quantities that begin so are curves as well."""
_SPARSE: Final = ("look/", "held_out_")  # measured at some steps: the line leads from one to the next
_TOLD: Final[Mapping[str, Mapping[str, str]]] = {
    "corpus.json": {"tokens": "tokens read"},
    "examples.json": {
        "replies": "examples",
        "epochs": "epochs",
        "tokens": "tokens read",
        "trained tokens": "tokens learned",
    },
    "judgements.json": {
        "trained on": "judgements",
        "held out": "held out",
        "epochs": "epochs",
        "tokens": "tokens read",
    },
}
"""Of the files that training stages write when they are done: what is shown, and as what."""
_LOGGED: Final = {"tokens": "tokens read", "trained": "tokens learned", "own": "tokens of its own"}
_ASKED: Final = {"prompts": "prompts a step", "samples": "samples of each"}
_INSIDE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_CONTENT: Final = ("Conversations", "Preferences", "Labels")  # known by what they say, not by their files


def road_of(record: Record) -> Road:
    """The road of a run. Raises nothing for files that are missing or damaged."""
    nothing: list[StageRecord] = []
    stages = attempt(record.path, record.stages, nothing)
    found = attempt("where the stages come from", lambda: lineage(record), None)
    nodes = {node.key: node for node in found.nodes} if found is not None else {}
    known = [_Stage.read(stage, nodes.get(str(stage.path))) for stage in stages]
    sources = _Sources(record, found, known)
    stops, evaluated = [], []
    for one in known:
        stop = attempt(one.record.path, partial(_stop, one, sources), None)
        stop = stop or Stop(one.record.name, "", "other", one.record.finished)
        stops.append(stop)
        if (one.folder / SUMMARIES[0]).is_file():
            evaluated.append(Evaluated(stop.name, stop.origin or stop.name, one.asked, one.folder))
    origins = {stop.name: stop.origin for stop in stops if stop.makes == "model"}
    return Road(tuple(stops), *measured(evaluated, origins))


class _Stage(NamedTuple):
    """A stage with what it was asked and what is known of it. ``made``: the folder of what it made, or None."""

    record: StageRecord
    node: Node | None
    asked: Mapping[str, Any]
    made: Path | None

    @property
    def folder(self) -> Path:
        return self.record.path

    @classmethod
    def read(cls, record: StageRecord, node: Node | None) -> _Stage:
        nothing: dict[str, Any] = {}
        asked = part(record.path, (STAGE,), lambda found: mapping(found["stage"]), nothing)
        made = attempt(record.path, lambda: _made(record), None) if record.finished else None
        return cls(record, node, asked, made)


def _made(record: StageRecord) -> Path | None:
    """Raises RunDamaged; None for a path that leads out of the stage."""
    path = record.path / Done.read(record.path).artifact
    return path if record.path.resolve() in path.resolve().parents else None


class _Sources:
    """By which name a thing that a stage was given is known."""

    def __init__(self, record: Record, found: Lineage | None, stages: Sequence[_Stage]) -> None:
        own = {str(stage.folder): stage.record.name for stage in stages}
        others = {node.key: node for node in found.nodes} if found is not None else {}
        self._names = {**{key: _abroad(node) for key, node in others.items()}, **own}
        self._stages = {stage.record.name: stage for stage in stages}
        self._contents: dict[str, str] | None = None
        self._run = record.path

    def name(self, given: Given) -> str:
        """Empty where nothing is known."""
        if given.source:
            return self._names.get(given.source, Path(given.source).name)
        return self._by_content().get(given.fingerprint, "") if given.kind in _CONTENT else ""

    def stage(self, name: str) -> _Stage | None:
        """The stage of this name."""
        return self._stages.get(name)

    def _by_content(self) -> dict[str, str]:
        """Sets of examples and judgements of this run by what is said in them: that is what a stage notes of them."""
        if self._contents is None:
            self._contents = {}
            for stage in self._stages.values():
                content = attempt(stage.made, partial(_content, stage.made), "") if stage.made is not None else ""
                self._contents.setdefault(content, stage.record.name)
            self._contents.pop("", None)
        return self._contents


def _content(made: Path) -> str:
    """Empty for what is no such set. Raises DataError, and what a damaged ``provenance.json`` makes of it."""
    if (made / EXAMPLES).is_file():
        return Examples.read(made / EXAMPLES).conversations.fingerprint
    kinds: dict[str, type[Preferences] | type[Labels]] = {PREFERENCES: Preferences, LABELS: Labels}
    for name, kind in kinds.items():
        if (made / name).is_file():
            share = number(read_json(made, PROVENANCE)["held_out"])
            return kind.read(made / name, held_out=share).fingerprint
    return ""


def _watched(told: Any) -> str:
    """What a watch over a stage of RL has found, in words. Raises TypeError, KeyError."""
    handed = f"the weights after step {whole(told['weights_after_step']):,} are handed on"
    found = (
        f"Hacking of the reward was found: {told['why']}" if told["hacking"] else "No hacking of the reward was found"
    )
    return f"{found}; {handed}."


def _abroad(node: Node) -> str:
    return f"{Path(node.run).name}/{node.name}" if node.run else node.name


def _stop(stage: _Stage, sources: _Sources) -> Stop:
    metrics = log(stage.folder, METRICS)
    what, makes = _kind(stage)
    origin, beside = _given(stage, sources)
    data = tuple(_data(stage, metrics))
    config = _config(stage, sources.stage(origin), makes)
    return Stop(
        stage.record.name,
        what,
        makes,
        stage.record.finished,
        origin,
        beside,
        attempt(f"the task of {stage.record.name}", lambda: task_name(stage.asked.get("task")), ""),
        metrics[-1]["step"] if metrics else None,
        attempt(f"the steps of {stage.record.name}", lambda: optional_whole(stage.asked.get("steps")), None),
        data,
        tuple(_dropped(stage)),
        config.parameters() if config is not None and makes == "model" else None,
        stage.node.seconds if stage.node is not None else None,
        _flops(stage, config, metrics),
        attempt(f"the curves of {stage.record.name}", lambda: _curves(metrics), {}),
        part(stage.folder, (WATCH,), _watched, ""),
    )


def _kind(stage: _Stage) -> tuple[str, Product]:
    """What the stage does, in words, and what it makes: by its files, or by its class while there are none."""
    name = str(stage.asked.get("is", ""))
    what, makes = KINDS.get(name, (_INSIDE.sub(" ", name).lower(), "other"))
    made = stage.made
    if made is None:
        return what, makes
    if (made / CONFIG).is_file():
        return what, "reward model" if (made / REWARD).is_file() else "model"
    if (made / REPORT).is_file() or (made / EXAMPLES).is_file():
        return what, "data"
    return what, "measurement" if (stage.folder / SUMMARIES[0]).is_file() else makes


def _given(stage: _Stage, sources: _Sources) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The model that a stage began with, and whatever else of it is known by name."""
    origin, beside = "", []
    for given in stage.node.given if stage.node is not None else ():
        name = sources.name(given)
        if not name:
            continue
        if not origin and given.where.startswith("given"):
            origin = name
        elif (role := _role(given)) and (role, name) not in beside:
            beside.append((role, name))
    return origin, tuple(beside)


def _role(given: Given) -> str:
    """As what a thing was given: ``teacher``, ``examples``; ``preference reward``, where only its class tells."""
    words = [word for word in given.where.split(".")[1:] if word != "conversations"]
    last = words[-1] if words else "model"
    return _INSIDE.sub(" ", given.kind).lower() if "[" in last else last.replace("_", " ")


def _data(stage: _Stage, metrics: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """What the stage used and made. Files that it writes when it is done come first, then its logs."""
    found: dict[str, float] = {}
    nothing: dict[str, Any] = {}
    for file, names in _TOLD.items():
        told = part(stage.folder, (file,), mapping, nothing)
        found |= {label: told[name] for name, label in names.items() if _is_number(told.get(name))}
    if "reward" in (metrics[-1] if metrics else ()) or stage.asked.get("is") == "RL":
        found |= {label: stage.asked[name] for name, label in _ASKED.items() if _is_number(stage.asked.get(name))}
    found |= _counted(part(stage.made, (REPORT,), mapping, nothing))
    last = metrics[-1] if metrics else {}
    found |= {label: last[name] for name, label in _LOGGED.items() if label not in found and _is_number(last.get(name))}
    if stage.node is not None and stage.node.sampled is not None:
        found["tokens sampled"] = stage.node.sampled
        if stage.asked.get("is") == "RL" and stage.node.trained is not None:
            found["tokens learned"] = stage.node.trained
    accuracy = part(stage.folder, ("judgements.json",), lambda told: optional(told["measures"]["accuracy"]), None)
    found |= {"held-out accuracy": accuracy} if accuracy is not None else {}
    if "own" in last and not last["own"]:
        found.pop(_LOGGED["own"], None)
    yield from found.items()


def _counted(report: Mapping[str, Any]) -> dict[str, float]:
    """The counts of a set of data; of what is kept, by kind."""
    counts = {str(name).replace("_", " "): value for name, value in report.items() if _is_number(value) and value}
    counts.pop("tokens", None)  # those that were sampled: the trace store knows them as well
    kept = report.get("kept")
    if isinstance(kept, Mapping):
        counts |= {f"kept ({name})": value for name, value in kept.items() if _is_number(value) and value}
    return counts


def _dropped(stage: _Stage) -> Iterator[tuple[str, int]]:
    """Why samples were not kept, as the report of a set of data tells."""
    dropped = part(stage.made, (REPORT,), lambda found: mapping(found).get("dropped"), None)
    if isinstance(dropped, Mapping):
        for reason, count in dropped.items():
            yield str(reason), attempt(f"{stage.made}: {reason}", partial(whole, count), 0)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and optional(value) is not None


def _config(stage: _Stage, origin: _Stage | None, makes: Product) -> ModelConfig | None:
    """The shape of the stage's model: training keeps that of the model it begins with."""
    folders = [one.made for one in (origin, stage) if one is not None and one.made is not None]
    folders = folders if makes != "reward model" else folders[:1]
    found = next((folder for folder in folders if (folder / CONFIG).is_file()), None)
    return attempt(found, lambda: ModelConfig.read(found), None) if found is not None else None


def _flops(stage: _Stage, config: ModelConfig | None, metrics: Sequence[Row]) -> float | None:
    """2 A for each token sampled, 6 A for each learned (forward 2, backward 4), A numbers that a token meets."""
    node = stage.node
    if config is None or node is None:
        return None
    learned = metrics[-1].get("tokens", 0) if metrics and node.sampled is None else 0
    if stage.asked.get("is") == "RL":
        learned = node.trained or 0
    if not _is_number(learned) or not (learned or node.sampled):
        return None
    return float(cost.active_matrices(config) * (2 * (node.sampled or 0) + 6 * number(learned)))


def _curves(metrics: Sequence[Row]) -> dict[str, Curve]:
    more = sorted({str(name) for row in metrics for name in row if str(name).startswith(KEPT_BY)})
    curves = curves_of(metrics, (*CURVES, *more))
    return {name: _dense(curve) if name.startswith(_SPARSE) else curve for name, curve in curves.items()}


def _dense(curve: Curve) -> Curve:
    """Only the steps at which it was measured."""
    known = [(step, value) for step, value in zip(curve.steps, curve.values) if value is not None]
    return Curve(tuple(step for step, _ in known), tuple(value for _, value in known))
