"""Findings about the use of a trained model: many tries, votes, and thoughts that are cut short or prolonged."""

from __future__ import annotations

from typing import Final

from longthought.evaluation.findings_charts import (
    Drawn,
    Line,
    curves,
    forced,
    passing,
    voting,
)
from longthought.evaluation.findings_measures import (
    forced_apart,
    forced_gap,
    forced_level,
    pass_gap,
    vote_gain,
)
from longthought.evaluation.findings_rules import (
    Claim,
    Finding,
    Quantity,
)

_R1: Final = "DeepSeek-R1 (arXiv:2501.12948)"
_CURVES: Final = "Each line is the mean over the seeds; shaded: from the lowest seed to the highest."


def _on(model: str) -> str:
    """The evaluation of a model on Countdown."""
    return f"{model}_countdown"


USE: Final[tuple[Finding, ...]] = (
    Finding(
        "j",
        "With many tries the base solves more than the model after RL",
        "Does RL Really Incentivize Reasoning Capacity (arXiv:2504.13837), section 3: RL wins at pass@1, and the "
        "curves cross: at large k the base solves more.",
        (Claim("pass@256, base − zero", pass_gap(256, "base_many", "zero_many")),),
        curves(
            "pass@k",
            Drawn(
                "pass@k",
                "k (tries per problem)",
                "solved problems (%)",
                (Line("base", passing("base_many")), Line("zero", passing("zero_many"))),
                log2=True,
            ),
        ),
        _CURVES,
        tuple(Quantity(f"pass@{k}, base − zero", pass_gap(k, "base_many", "zero_many")) for k in (1, 8, 32, 64, 128)),
    ),
    Finding(
        "k",
        "A majority vote raises accuracy",
        f"{_R1}, section 2.2.4, table 2: of R1-Zero, AIME 2024 goes from 71.0 % (pass@1) to 86.7 % (majority of 64).",
        tuple(Claim(f"{name}: majority of 32 − one try", vote_gain(_on(name), 32)) for name in ("base", "zero", "r1")),
        curves(
            "Majority",
            Drawn(
                "Majority vote",
                "votes",
                "right (%)",
                tuple(Line(name, voting(_on(name))) for name in ("base", "zero", "r1")),
                log2=True,
            ),
        ),
        _CURVES,
    ),
    Finding(
        "l",
        "A longer thought raises accuracy: a growing cap",
        "s1 (arXiv:2501.19393), figure 1 and section 4: accuracy grows with the tokens that the thought may have.",
        tuple(
            Claim(f"{name}: longest cap − {less} tokens", forced_gap(f"{name}_forcing", "cap", None, less))
            for name in ("zero", "r1")
            for less in (0, 96)
        ),
        curves(
            "Cap",
            Drawn(
                "Cap on the thought",
                "tokens",
                "right (%)",
                tuple(Line(name, forced(f"{name}_forcing", "cap")) for name in ("base", "zero", "r1")),
            ),
        ),
        _CURVES,
    ),
    Finding(
        "m",
        "Forcing the thought to go on raises accuracy",
        "s1 (arXiv:2501.19393), section 4, table 1: budget forcing with Wait raises AIME 2024 from 50.0 % to 56.7 %. "
        "Here the word is forced always, or only where the last verdict of the thought is not a success.",
        (
            *(
                Claim(f"{name}: always, once − never", forced_gap(f"{name}_forcing", "wait", 1, 0))
                for name in ("base", "zero", "r1")
            ),
            *(
                Claim(f"{name}: where unsure, once − never", forced_gap(f"{name}_forcing", "wait_unsure", 1, 0))
                for name in ("base", "zero", "r1")
            ),
        ),
        curves(
            "Forced to go on",
            *(
                Drawn(
                    title,
                    "times",
                    "right (%)",
                    tuple(Line(name, forced(f"{name}_forcing", way)) for name in ("base", "zero", "r1")),
                )
                for title, way in (("Always", "wait"), ("Where unsure", "wait_unsure"))
            ),
        ),
        _CURVES,
        (
            *(
                Quantity(
                    f"{name}: replies that are forced where unsure",
                    forced_level(f"{name}_forcing", "wait_unsure", 1, "touched"),
                    "percent",
                )
                for name in ("base", "zero", "r1")
            ),
            *(
                Quantity(
                    f"{name}: what it does to forced successes, always − where unsure",
                    forced_apart(f"{name}_forcing", "wait", "wait_unsure", 1),
                )
                for name in ("base", "zero", "r1")
            ),
        ),
    ),
)
