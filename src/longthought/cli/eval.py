"""``longthought eval``: measure a model on held-out problems."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from longthought.cli.parser import Parser, add_model, add_settings, at_least, share, temperature

if TYPE_CHECKING:
    from longthought.cli.subject import Subject
    from longthought.core.types import Group
    from longthought.evaluation.evaluate import EvaluationSettings
    from longthought.evaluation.report_data import EvaluationSummary

_ROWS = ("accuracy", "format")
"""Parts of the score that have a row under another name."""


def parser() -> Parser:
    """The command line of ``eval``."""
    made = Parser(
        "eval",
        "Sample answers to held-out problems, grade them by rule, and print what was measured with its 95 % interval.\n"
        "A run is measured on its own task, as it measures itself unless an option says otherwise; nothing is written.",
    )
    add_model(made)
    made.add_argument("--problems", type=at_least(2), metavar="N", help="how many problems")
    made.add_argument("--samples", type=at_least(1), metavar="N", help="answers to each problem")
    made.add_argument("--max-tokens", type=at_least(1), metavar="N", help="longest answer, in tokens")
    made.add_argument("--temperature", type=temperature, metavar="T", help="0: always the most likely word")
    made.add_argument("--top-p", type=share, metavar="P", help="sample only the likeliest tokens of probability P")
    made.add_argument("--top-k", type=at_least(0), metavar="K", help="sample only the K likeliest tokens (0: all)")
    made.add_argument("--split", choices=("train", "dev", "test"), help="which problems")
    made.add_argument("--seed", type=at_least(0), metavar="N", help="of the samples")
    made.add_argument("--json", action="store_true", help="print JSON, and nothing else, to standard output")
    add_settings(made, "for a model folder outside a run: change a setting of the recipe")
    return made


def execute(arguments: Namespace) -> int:
    """Evaluate and print."""
    import time

    from longthought.cli.subject import subject
    from longthought.cli.threads import set_threads
    from longthought.engine.engine import Engine
    from longthought.engine.sharding import ShardedEngine
    from longthought.evaluation.evaluate import evaluate, summarize
    from longthought.runs.progress import progress
    from longthought.training.team import Team

    model = subject(arguments.path, arguments.stage, arguments.recipe, arguments.template, arguments.assignments)
    threads = set_threads(arguments.threads or model.threads)
    policy = model.checkpoint.load()
    testing = model.testing()
    settings = _settings(testing.settings, arguments)
    began = time.perf_counter()
    sampler = ShardedEngine(Engine(policy))
    workers = testing.workers if threads == 1 else 1  # the answers are the same for any number of them
    with Team(workers, sampler.handlers) as team, progress("evaluate", settings.problems) as bar:
        sampler.join(team)
        groups = evaluate(
            testing.task,
            sampler,
            policy.renderer,
            settings,
            lambda done, accuracy: bar.update(done, {"pass@1": round(accuracy, 3)}),
        )
    seconds = time.perf_counter() - began
    summary = summarize(groups, testing.lexicon)
    if arguments.json:
        print(_json(model, settings, summary, {"tokens": _tokens(groups), "seconds": seconds}))
    else:
        print(f"{model.label}: {testing.task.name}, {_described(settings)}\n")
        print(_table(summary))
        speed = f"{_tokens(groups):,} tokens in {seconds:.1f} s, {_tokens(groups) / seconds:,.0f} tokens/s"
        print(f"\nIn brackets: 95 % intervals, clustered by problem. {speed}.")
    return 0


def _settings(default: EvaluationSettings, arguments: Namespace) -> EvaluationSettings:
    from dataclasses import replace

    names = ("problems", "samples", "max_tokens", "temperature", "top_p", "top_k", "split", "seed")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if given.get("temperature") == 0:
        given.setdefault("samples", 1)  # all would be equal
    return replace(default, **given)


def _described(settings: EvaluationSettings) -> str:
    return (
        f"{settings.problems:,} problems of the {settings.split} split × {settings.samples:,} samples at temperature "
        f"{settings.temperature:g}, at most {settings.max_tokens:,} tokens, seed {settings.seed}"
    )


def _table(summary: EvaluationSummary) -> str:
    from longthought.evaluation.headline import MEASURES, percent, printable, with_interval

    rows = [(m.label, with_interval(getattr(summary, m.field), m.show)) for m in MEASURES]
    rows += [(f"pass@{k}", with_interval(estimate, percent)) for k, estimate in summary.pass_at_k if k > 1]
    rows += [(printable(name), with_interval(mean)) for name, mean in summary.parts.items() if name not in _ROWS]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def _json(model: Subject, settings: EvaluationSettings, summary: EvaluationSummary, cost: dict[str, float]) -> str:
    import json
    from dataclasses import asdict

    content: dict[str, Any] = {
        "model": str(model.checkpoint.path),
        "recipe": model.recipe,
        "evaluation": asdict(settings),
        "summary": asdict(summary),
        **cost,
    }
    return json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)


def _tokens(groups: list[Group]) -> int:
    return sum(len(rollout.completion.token_ids) for group in groups for rollout in group)
