"""Does every setting of the recipe reach a stage? Each is changed, and the described road must change with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, get_args, get_type_hints

from longthought.core.errors import LongthoughtError
from longthought.diagnosis.finding import Finding, listed
from longthought.diagnosis.patient import Patient, Recipe, Walk
from longthought.diagnosis.proposals import proposals
from longthought.runs.describe import describe

_NAME = "settings are live"
_SECONDS = 20.0
_DAMAGE = {"refuse", "skip"}  # a choice that shows only where there is something to refuse


class _Leaf(NamedTuple):
    key: str
    kind: Any
    value: object


def settings_are_live(patient: Patient) -> list[Finding]:
    """Change every leaf of the recipe's settings and walk through the recipe again."""
    recipe = patient.recipe
    if recipe is None:
        return [Finding(_NAME, "skipped", "the stage was given without its recipe")]
    walked = recipe.walk(recipe.settings)
    before, began = _described(walked), time.process_time()
    inert, refused, late, count = [], [], [], 0
    for leaf in _leafs(recipe.settings):
        if set(get_args(leaf.kind)) == _DAMAGE:
            continue
        count += 1
        if time.process_time() - began > _SECONDS:
            late.append(leaf.key)
            continue
        seen = _changes(recipe, leaf, before)
        if seen is False:
            inert.append(f"{leaf.key}={leaf.value}")
        elif seen is None:
            refused.append(leaf.key)
    if inert:
        what = f"{len(inert)} of {count} settings change no stage: {listed(inert)}"
        if walked.stopped:
            why = f"the recipe looks at a result ({walked.stopped}); they may be read after that"
            return [Finding(_NAME, "warn", what, why)]
        why = "whatever you set there, the run is the same: read it in the recipe, refuse it by name, or take it out"
        return [Finding(_NAME, "fail", what, why)]
    left = f"; refused by name as they would change nothing here: {len(refused)}" if refused else ""
    if late:
        return [Finding(_NAME, "warn", f"no time was left for {len(late)} of {count} settings", listed(late))]
    return [
        Finding(_NAME, "ok", f"{count - len(refused)} of {count} settings were changed, each changed a stage{left}")
    ]


def _changes(recipe: Recipe, leaf: _Leaf, before: str) -> bool | None:
    """Whether another value changes the road; None where every value is refused before a stage has seen it."""
    accepted = refused = False
    for other in proposals(leaf.kind, leaf.value):
        try:
            settings = _with(recipe.settings, leaf.key, other)
        except (LongthoughtError, ValueError):
            continue
        try:
            if _described(recipe.walk(settings)) != before:
                return True
        except LongthoughtError as error:
            if "changes nothing" not in str(error) and "change nothing" not in str(error):
                return True  # a stage has refused the value: it is read
            refused = True
            continue
        accepted = True
    return None if refused or not accepted else False


def _leafs(settings: Any, prefix: str = "") -> Iterator[_Leaf]:
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        if not field.init:
            continue
        value, key = getattr(settings, field.name), prefix + field.name
        if is_dataclass(value):
            yield from _leafs(value, f"{key}.")
        else:
            yield _Leaf(key, hints[field.name], value)


def _with(settings: Any, key: str, value: object) -> Any:
    name, _, rest = key.partition(".")
    return replace(settings, **{name: _with(getattr(settings, name), rest, value) if rest else value})


def _described(walked: Walk) -> str:
    """Every step with all fields of its stage, those included that change no result, and what it is given."""
    steps = [(name, type(stage).__qualname__, _stage(stage), given) for name, stage, given in walked.steps]
    return json.dumps([steps, walked.stopped], sort_keys=True, default=str)


def _stage(stage: Any) -> Any:
    if not is_dataclass(stage):
        return describe(stage)
    return {field.name: describe(getattr(stage, field.name), field.name) for field in fields(stage)}
