"""A replayed step for a terminal: the checks, two methods side by side, the rollouts that change most."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from longthought.diagnosis.replay import TOLERANCE, Changed, Check, Recorded, Replayed, cosines, pull_cosine
from longthought.evaluation.terminal import printable

_FIRST = ("loss", "grad_norm", "ratio", "clip_low_share", "clip_high_share", "dual_clip_share", "entropy", "kl")
_LONGEST = 60


def reproduced(recorded: Recorded, found: Sequence[Check]) -> list[str]:
    """Whether the recorded method gives what was logged, in one line, or every metric that differs."""
    wrong = [one for one in found if not one.holds]
    if not found:
        return ["nothing was logged that could be checked"]
    if not wrong:
        return [f"reproduced: {len(found)} logged metrics of step {recorded.step} come out again (to {TOLERANCE:g})"]
    lines = [f"{one.name}: logged {one.logged:.6g}, now {one.found:.6g}" for one in wrong]
    return [f"not reproduced: {len(wrong)} of {len(found)} metrics differ", *lines]


def side_by_side(recorded: Replayed, asked: Replayed | None, name: str) -> Table:
    """Metrics of the recorded and of the asked method; those of the critic and of the sampler are left out."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("")
    made.add_column("recorded", justify="right")
    if asked is not None:
        made.add_column(printable(name), justify="right")
    both = [recorded] if asked is None else [recorded, asked]
    known = {metric for one in both for metric in one.metrics}
    rest = sorted(metric for metric in known - set(_FIRST) if not metric.startswith(("critic/", "logprob_gap")))
    for metric in (*(metric for metric in _FIRST if metric in known), *rest):
        made.add_row(metric.replace("_", " "), *(_number(one.metrics.get(metric)) for one in both))
    made.add_row("mean |advantage|", *(_number(one.advantage) for one in both))
    return made


def agreement(recorded: Replayed, asked: Replayed) -> str:
    """The cosines between the two."""
    weights = ", ".join(f"{one:.4f}" for one in cosines(recorded, asked)) or "not known"
    pulls = _cosine(recorded, asked)
    return f"cosine of the gradients, update by update: {weights}; of what the rollouts are pulled by: {pulls}"


def most_changed(recorded: Recorded, found: Sequence[Changed], count: int = 5) -> Table:
    """The rollouts whose share of the pull changes most, with the beginning of their text."""
    made = Table(
        title="rollouts that change most (share of what all are pulled by; + more likely, − less)",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("rollout", "reward", "recorded", "asked", "", "text"):
        made.add_column(
            name, no_wrap=name != "text", justify="right" if name in ("reward", "recorded", "asked") else "left"
        )
    for one in found[:count]:
        row = recorded.rows[one.row]
        text = " ".join(printable(row["text"]).split())
        made.add_row(
            f"{recorded.step}:{row['group']}:{row['sample']}",
            _number(row["reward"]),
            f"{one.before:+.2%}",
            f"{one.after:+.2%}",
            "turns" if one.turned else "",
            Text(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"),
        )
    return made


def grid(key: str, rows: Sequence[tuple[str, Replayed]], recorded: Replayed) -> Table:
    """One line for every value of a knob. cosine: of what the rollouts are pulled by, to the recorded method."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = [name for name in _FIRST if any(name in one.metrics for _, one in rows)]
    for name in (printable(key), *(name.replace("_", " ") for name in names), "mean |A|", "cosine"):
        made.add_column(name, justify="right")
    for value, one in rows:
        cells = [_number(one.metrics.get(name)) for name in names]
        made.add_row(value, *cells, _number(one.advantage), _cosine(recorded, one))
    return made


def _cosine(one: Replayed, other: Replayed) -> str:
    found = pull_cosine(one, other)
    return "not known" if math.isnan(found) else f"{found:.4f}"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.6g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.2e}"
