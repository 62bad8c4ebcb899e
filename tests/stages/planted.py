"""Sets of examples and evaluations, written down instead of made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from longthought.core.types import Message
from longthought.stages.example_set import EXAMPLES, REPORT, ExampleSet, row, writing
from longthought.stages.measure import Folder

Said = tuple[str, str, str]
"""Question, thought, answer."""


def example_set(path: Path, said: Sequence[Said], prompts: int = 0, duplicates: int = 0) -> ExampleSet:
    """A set as rejection sampling leaves it."""
    kept = len({question for question, _, _ in said})
    report = {
        "prompts": prompts or kept,
        "prompts_kept": kept,
        "kept": {"reasoning": len(said), "general": 0},
        "dropped": {"duplicate": duplicates},
    }
    with writing(path, {"stage": "planted"}) as made:
        lines = [
            row((Message("user", question), Message("assistant", answer, thought)), {"number": number})
            for number, (question, thought, answer) in enumerate(said)
        ]
        (made / EXAMPLES).write_bytes(b"".join(line for line in lines if line is not None))
        (made / REPORT).write_text(json.dumps(report), encoding="utf-8")
    return ExampleSet(path)


def evaluation(path: Path, shares: Sequence[float], problems: Sequence[str] = ()) -> Folder:
    """An evaluation with these shares of right replies."""
    path.mkdir(parents=True)
    content = {
        "problems": list(problems) or [f"p/{number}" for number in range(len(shares))],
        "accuracy_by_problem": {str(number): share for number, share in enumerate(shares)},
    }
    (path / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    return Folder(path)
