"""A small run folder with traces, made by hand: every outcome, text that attacks, and a stage without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longthought.core.types import Completion, Finish, Group, Outcome, Problem, Rollout, Score, Verdict
from longthought.runs import traces
from longthought.runs.record import Launch, Record
from longthought.text.tokenizer import Tokenizer

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "<!-- <script> \u2028 ]]> &lt;b&gt; [bold]no markup[/bold]",
    "abc \u202egnp.exe\u202c \x1b[31mred\x07 \x00 tail",
    "w " * 500_000,
    "مرحبا שלום 你好",
    "",
)
WORDS = ("try", "wait", "33", "yes", "<think>", "</think>")
SPECIAL = ("<|begin|>", "<|user|>", "<|assistant|>", "<|end|>")
GRPO = {"is": "GRPO", "clip_low": 0.2, "clip_high": 0.28, "beta": 0.0}


def rollout(text: str, value: float | None = 1.0, **changes: Any) -> Rollout:
    """A rollout of three tokens; ``changes``: tokens, logprobs, finish, outcome, problem."""
    tokens = changes.get("tokens", (6, 7, 5))
    logprobs = changes.get("logprobs", (-0.5,) * len(tokens))
    outcome = changes.get("outcome", Outcome.GRADED if value is not None else Outcome.CRASHED)
    score = Score(value, value == 1.0, {"accuracy": value or 0.0}, Verdict(value, outcome, f"saw {text[:9]}"))
    completion = Completion(tokens, logprobs, changes.get("finish", Finish.STOP), 4)
    return Rollout(Problem(changes.get("problem", "p/1"), (), "33"), (2, 3, 8, 4), completion, text, score)


def write(folder: Path, step: int, groups: list[Group], trained: traces.PerTrained | None = None) -> Path:
    """The trace of a step; the reward is the value, the advantage 2 value - 1."""
    values = [[one.score.value for one in group] for group in groups]
    advantages = [[None if value is None else 2 * value - 1 for value in row] for row in values]
    return traces.write(folder, step, groups, rewards=values, advantages=advantages, shaping={}, trained=trained)


def run_of(path: Path, steps: int = 2) -> Path:
    """A run with a model folder that holds only a tokenizer, and ``steps`` steps of two groups of four."""
    path.mkdir(parents=True)
    Record(path, "tiny", {}, (Launch.now("longthought run tiny", 1),)).write()
    model = path / "01-base" / "model"
    model.mkdir(parents=True)
    Tokenizer.of_words(WORDS, SPECIAL).save(model, "", end="<|end|>", begin="<|begin|>")
    stage = path / "02-rl"
    stage.mkdir()
    for step in range(1, steps + 1):
        first = (
            rollout("<think>try 33</think>yes"),
            rollout("wait 33", 0.0),
            rollout("cut", 0.0, finish=Finish.LENGTH, tokens=(6,) * 7),
            rollout("gone", None),
        )
        second = tuple(rollout(text, 0.0, problem="p/2*x") for text in HOSTILE[:4])
        learned = [traces.Trained([-0.5, -0.1, -0.9], None, [0.1, 0.2, 0.3], 1, 0.25)]
        reasons = ("advantage 0", "cut by the token limit and filtered", "no reward")
        left = [traces.Trained(left_out=reason) for reason in reasons]
        write(stage / "traces", step, [first, second], [[*learned, *left], [None] * 4])
    asked = {"stage": {"is": "RL", "method": {"is": "Method", "objective": GRPO}}, "given": {}}
    (stage / "stage.json").write_text(json.dumps(asked), encoding="utf-8")
    return path
