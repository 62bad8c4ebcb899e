"""``longthought replay``: a recorded step of RL, computed again with another method."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from longthought.cli.parser import Parser, add_settings, add_threads, at_least
from longthought.core.errors import RunError, SettingsError

if TYPE_CHECKING:
    from longthought.diagnosis.replay import Recorded, Replayed
    from longthought.models.transformer import Transformer
    from longthought.recipes.catalogue import Recipe
    from longthought.runs.record import Record, StageRecord
    from longthought.stages.method import Method
    from longthought.stages.rl import RL

_EPILOG = """Without --method, key=value changes settings of the run's recipe; with it, knobs of that method.

  longthought replay runs/quickstart --step 120
  longthought replay runs/quickstart --step 120 rl.clip_high=0.2
  longthought replay runs/quickstart --step 120 --method grpo beta=0.01
  longthought replay runs/quickstart --step 120 --grid rl.clip_high=0.2,0.28,0.4

The first step, and those whose weights are still kept (after the last two states), are computed exactly."""


class _Context(NamedTuple):
    """A run, its recipe and its settings, and the stage of it that is looked at."""

    record: Record
    recipe: Recipe
    settings: Any
    stage: StageRecord
    rl: RL


def parser() -> Parser:
    """The command line of ``replay``."""
    made = Parser(
        "replay",
        "Compute a recorded step of RL again from its stored rollouts: as it was, which must give what was logged,\n"
        "and with another method or other knobs. Nothing is sampled or written; the run may still be going on.",
        _EPILOG,
    )
    add = made.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run")
    add("--step", type=at_least(1), required=True, metavar="K", help="step of the stage")
    add("--stage", metavar="NAME", help="stage of the run (default: the last one of RL)")
    add(
        "--method",
        "--objective",
        metavar="NAME",
        help="a method as its paper chose it: grpo, dr_grpo, dapo, rloo, gspo, …",
    )
    add("--grid", metavar="KEY=A,B,…", help="a table over the values of one setting or knob")
    add("--json", action="store_true", help="print JSON")
    add_threads(made)
    add_settings(made, "change a setting of the recipe or a knob of the method")
    return made


def execute(arguments: Namespace) -> int:
    """Check the recorded step, then compare."""
    from longthought.cli.threads import set_threads
    from longthought.diagnosis.replay import read, replay
    from longthought.runs.record import Record

    record = Record.read(arguments.run)
    context = _context(record, arguments.stage)
    method = _asked(context, arguments.method, arguments.assignments)
    variants = _variants(context, arguments)
    set_threads(arguments.threads or record.launches[-1].threads)
    recorded = read(context.stage.path, context.rl, arguments.step)
    model = _input(context)
    found = replay(recorded, model)
    asked = None if method is None else replay(recorded, model, method)
    rows = [(value, replay(recorded, model, one)) for value, one in variants]
    for note in recorded.notes:
        print(f"longthought: warning: {note}", file=sys.stderr)
    name = arguments.method or "with " + " ".join(arguments.assignments)
    if arguments.json:
        print(json.dumps(_content(recorded, found, asked, rows), ensure_ascii=False, allow_nan=False, indent=1))
    else:
        _show(recorded, found, asked, name, (arguments.grid or "").partition("=")[0], rows)
    return 0


def _context(record: Record, name: str | None) -> _Context:
    from longthought.cli.rehearsal import rehearse
    from longthought.recipes.catalogue import find
    from longthought.runs.settings import from_dict
    from longthought.stages.rl import RL

    recipe = find(record.recipe)
    settings = from_dict(recipe.settings, record.settings)
    rehearsal = rehearse(recipe, settings)
    stages = {step.name: step.stage for step in rehearsal.steps}
    started = [stage.name for stage in record.stages()]
    known = [stage for stage in started if isinstance(stages.get(stage), RL)]
    if name is not None:
        record.stage(name)
    chosen = name or (known[-1] if known else "")
    if chosen not in known:
        what = (
            f"the stage {name} of {record.path} is not one of RL" if name else f"{record.path} has no stage of RL yet"
        )
        why = (
            f"; the recipe could be read only up to where it looks at a result: {rehearsal.stopped}"
            if rehearsal.stopped
            else ""
        )
        raise RunError(f"{what}; stages of RL: {', '.join(known) or 'none'}{why}")
    return _Context(record, recipe, settings, record.stage(chosen), stages[chosen])


def _input(context: _Context) -> Transformer:
    """The model that the stage was given: of the recipe, or of an earlier stage whose files are those it was given."""
    from longthought.cli.rehearsal import rehearse
    from longthought.runs.artifacts import CONFIG, Checkpoint
    from longthought.runs.describe import describe
    from longthought.runs.run import STAGE

    try:
        given = json.loads((context.stage.path / STAGE).read_bytes())["given"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{context.stage.path / STAGE} is truncated or altered") from error
    steps = rehearse(context.recipe, context.settings).steps
    own = [step.given for step in steps if step.name == context.stage.name and isinstance(step.given, Checkpoint)]
    earlier = [one for one in context.record.stages() if one.number < context.stage.number and one.finished]
    made = [
        Checkpoint(folder) for one in reversed(earlier) for folder in (one.artifact(),) if (folder / CONFIG).is_file()
    ]
    for candidate in [*own, *made]:
        if json.loads(json.dumps(describe(candidate, "given"))) == given:
            return candidate.load().model
    raise RunError(
        f"the model that {context.stage.path} started from is not there any more, or was altered: bring it back to "
        "replay its steps"
    )


def _asked(context: _Context, name: str | None, words: Sequence[str]) -> Method | None:
    """The method that is asked for; None if nothing is. Raises SettingsError for what changes nothing."""
    if name is not None:
        return _named(context, name, words)
    if not words:
        return None
    method = _with_settings(context, words)
    if method == context.rl.method:
        raise SettingsError(
            f"{' '.join(words)} changes nothing in the method of the stage {context.stage.name}: replay knows other "
            "methods, not other rollouts or optimizers"
        )
    return method


def _named(context: _Context, name: str, words: Sequence[str]) -> Method:
    from difflib import get_close_matches
    from typing import get_args

    from longthought.recipes.methods import Knobs, MethodName, method
    from longthought.runs.settings import override

    names = get_args(MethodName)
    if name not in names:
        near = get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingsError(f"there is no method {name!r}: {hint}There are: {', '.join(names)}")
    knobs = override(Knobs(), [word.removeprefix("knobs.") for word in words])
    return method(cast("MethodName", name), knobs, context.rl.max_tokens, context.rl.method.shaping)


def _with_settings(context: _Context, words: Sequence[str]) -> Method:
    """The method of the stage after a change of the recipe's settings."""
    from longthought.cli.rehearsal import rehearse
    from longthought.runs.settings import override

    changed = rehearse(context.recipe, override(context.settings, words))
    found = {step.name: step.stage for step in changed.steps}.get(context.stage.name)
    if found is None or not hasattr(found, "method"):
        raise SettingsError(f"with {' '.join(words)} the recipe has no stage {context.stage.name} of RL")
    method: Method = found.method
    return method


def _variants(context: _Context, arguments: Namespace) -> list[tuple[str, Method]]:
    if arguments.grid is None:
        return []
    key, sign, text = arguments.grid.partition("=")
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not sign or not values:
        raise SettingsError(f"--grid {arguments.grid}: give a key and values, as clip_high=0.2,0.28,0.4")
    words = [word for word in arguments.assignments if word.partition("=")[0] != key]
    made = []
    for value in values:
        every = [*words, f"{key}={value}"]
        one = _with_settings(context, every) if arguments.method is None else _named(context, arguments.method, every)
        made.append((value, one))
    if len(values) > 1 and all(one == made[0][1] for _, one in made):
        raise SettingsError(f"--grid {arguments.grid} changes nothing in the method of the stage {context.stage.name}")
    return made


def _show(
    recorded: Recorded,
    found: Replayed,
    asked: Replayed | None,
    name: str,
    key: str,
    rows: Sequence[tuple[str, Replayed]],
) -> None:
    from rich.console import Console

    from longthought.diagnosis.replay import changed, checks
    from longthought.diagnosis.replay_table import agreement, grid, most_changed, reproduced, side_by_side

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=120)
    for line in reproduced(recorded, checks(recorded, found)):
        console.print(line)
    console.print(side_by_side(found, asked, name))
    if asked is not None:
        console.print(agreement(found, asked))
        different = changed(found, asked)
        console.print()
        console.print(most_changed(recorded, different) if different else "no rollout is pulled otherwise")
    if rows:
        console.print(grid(key, rows, found))


def _content(
    recorded: Recorded, found: Replayed, asked: Replayed | None, rows: Sequence[tuple[str, Replayed]]
) -> dict[str, Any]:
    from longthought.diagnosis.replay import changed, checks, cosines, pull_cosine

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def told(one: Replayed) -> dict[str, Any]:
        return {
            "metrics": {k: plain(v) for k, v in one.metrics.items()},
            "advantage": one.advantage,
            "pulls": one.pulls,
        }

    tested = checks(recorded, found)
    content: dict[str, Any] = {
        "step": recorded.step,
        "exact": recorded.exact,
        "notes": recorded.notes,
        "reproduced": bool(tested) and all(one.holds for one in tested),
        "checks": [{"name": one.name, "logged": one.logged, "found": one.found} for one in tested],
        "recorded": told(found),
    }
    if asked is not None:
        content["asked"] = told(asked)
        content["cosines"] = [plain(one) for one in cosines(found, asked)]
        content["pull_cosine"] = plain(pull_cosine(found, asked))
        rollouts = [(recorded.rows[one.row], one) for one in changed(found, asked)[:5]]
        content["changed"] = [
            {"group": row["group"], "sample": row["sample"], "before": one.before, "after": one.after}
            for row, one in rollouts
        ]
    if rows:
        content["grid"] = {value: told(one) for value, one in rows}
    return content
