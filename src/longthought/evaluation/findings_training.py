"""Findings about training: what each claims, and what would show it in the runs of recipe ``findings``."""

from __future__ import annotations

from typing import Final

from longthought.evaluation.findings_charts import (
    Drawn,
    Line,
    curves,
    logged,
    models,
    played,
)
from longthought.evaluation.findings_measures import (
    early,
    growth,
    length_of,
    level,
    paired,
    score_part,
    shaping,
    share_of_gain,
    stretch,
    stretch_gap,
    tokens_sampled,
)
from longthought.evaluation.findings_rules import (
    Claim,
    Finding,
    Quantity,
)

_R1: Final = "DeepSeek-R1 (arXiv:2501.12948)"
_CURVES: Final = "Each line is the mean over the seeds; shaded: from the lowest seed to the highest."
_DOTS: Final = "Each point is one model of one seed, with its 95 % interval over problems."
_PASS1, _MIXING, _FORMAT = (
    ("pass@1", "correct", 100.0),
    ("Mixed languages", "mixed", 100.0),
    ("Format", "format", 100.0),
)
_MOST: Final = 5.0  # points of pass@1: what counts as a small cost


def _on(model: str) -> str:
    """The evaluation of a model on Countdown."""
    return f"{model}_countdown"


def _accuracy(*names: str) -> tuple[Quantity, ...]:
    return tuple(Quantity(f"pass@1 of {name}", level("correct", _on(name)), "percent") for name in names)


def _mixing(*names: str) -> tuple[Quantity, ...]:
    return tuple(Quantity(f"mixed replies of {name}", level("mixed", _on(name)), "percent") for name in names)


def _training(name: str, ylabel: str, label: str, *stages: str, scale: float = 1.0) -> Drawn:
    lines = tuple(Line(stage, logged(name, stage, scale)) for stage in stages)
    return Drawn(label, "step of RL", ylabel, lines)


def _answered(label: str, correct: bool) -> Drawn:
    stages = ("zero_grpo", "zero_dr_grpo")
    return Drawn(
        label, "step of RL", "tokens", tuple(Line(stage, played(length_of(correct), stage)) for stage in stages)
    )


TRAINING: Final[tuple[Finding, ...]] = (
    Finding(
        "a",
        "RL alone raises accuracy and the length of the thought",
        f"{_R1}, section 2.2.4, figures 2 and 3: without any fine-tuning before it, RL raises AIME 2024 pass@1 from "
        "15.6 % to 71.0 %, and replies grow from hundreds to thousands of tokens.",
        (
            Claim("pass@1, zero − base", paired("correct", _on("zero"), _on("base"))),
            Claim("tokens of a reply, zero − base", paired("length", _on("zero"), _on("base")), "tokens"),
        ),
        curves(
            "RL alone",
            _training("accuracy", "%", "Right replies", "zero", scale=100),
            _training("length", "tokens", "Length", "zero"),
        ),
        _CURVES,
        _accuracy("base", "zero"),
    ),
    Finding(
        "b",
        "Reflection and rejected attempts grow",
        f"{_R1}, section 2.2.4: reflection, where earlier steps are looked at again, and other ways to a solution "
        "arise by themselves as RL goes on (the aha moment).",
        (
            Claim(
                "rejected attempts of a reply, zero − base", paired("rejections", _on("zero"), _on("base")), "number"
            ),
            Claim("words of reflection, zero − base", paired("reflections", _on("zero"), _on("base")), "number"),
        ),
        curves(
            "Reflection",
            _training("rejections", "per reply", "Rejected attempts", "zero", "even_zero"),
            _training("reflections", "per reply", "Words of reflection", "zero", "even_zero"),
        ),
        _CURVES,
    ),
    Finding(
        "c",
        "R1-Zero mixes languages, more than its base",
        f"{_R1}, section 2.2.4: R1-Zero has poor readability and mixes languages. Here the corpus has a planted cause: "
        "its Chinese pages try longer before they give up. The control is a base whose corpus lacks it.",
        (
            Claim("mixed replies, zero − base", paired("mixed", _on("zero"), _on("base"))),
            Claim("control: even_zero − even", paired("mixed", _on("even_zero"), _on("even"))),
        ),
        curves("Mixing", _training("mixing", "%", "Mixed replies", "zero", "even_zero", scale=100)),
        _CURVES,
        _mixing("base", "zero", "even", "even_zero"),
    ),
    Finding(
        "d",
        "The language reward removes the mixing at a small cost",
        f"{_R1}, section 2.3.2: a reward for the share of words in the target language mends the mixing, with a slight "
        f"degradation of the performance. Small is called here what is below {_MOST:g} points of pass@1.",
        (
            Claim("mixed replies, zero − zero_one_language", paired("mixed", _on("zero"), _on("zero_one_language"))),
            Claim(
                "pass@1, zero_one_language − zero",
                paired("correct", _on("zero_one_language"), _on("zero")),
                threshold=-_MOST / 100,
            ),
        ),
        curves(
            "The language reward",
            _training("mixing", "%", "Mixed replies", "zero", "zero_one_language", scale=100),
            _training("accuracy", "%", "Right replies", "zero", "zero_one_language", scale=100),
        ),
        _CURVES,
        (*_mixing("zero", "zero_one_language"), *_accuracy("zero", "zero_one_language")),
    ),
    Finding(
        "e",
        "A cold start makes the thought readable, and RL learn faster",
        f"{_R1}, section 2.3.1: fine-tuning on few readable long chains before RL avoids its unstable early phase and "
        "the poor readability of R1-Zero, and gives a better result.",
        (
            Claim("right format, cold_start − zero", paired("format", _on("cold_start"), _on("zero"))),
            Claim("mixed replies, zero − cold_start", paired("mixed", _on("zero"), _on("cold_start"))),
            Claim("attempts made before, zero − cold_start", paired("repeated", _on("zero"), _on("cold_start"))),
            Claim("right over the first 10 steps, reasoner − zero", early("reasoner", "zero", 10)),
            Claim("right over all steps of reasoner, reasoner − zero", early("reasoner", "zero")),
        ),
        curves(
            "Learning after a cold start",
            _training("accuracy", "%", "Right replies", "zero", "reasoner", scale=100),
            _training("mixing", "%", "Mixed replies", "zero", "reasoner", scale=100),
        ),
        _CURVES,
        _accuracy("zero", "cold_start", "reasoner"),
    ),
    Finding(
        "f",
        "Fine-tuning the base on kept samples recovers most of the teacher",
        f"{_R1}, section 2.3.3: the base is fine-tuned anew on samples of the RL model that were kept; in version 2, "
        "table 3, it then stands with its teacher (AIME 2024: Dev2 74.0 %, Dev3 78.1 %). Most is called here more than "
        "half of the gain over the base.",
        (
            Claim(
                "share of the teacher's gain, taught",
                share_of_gain(_on("taught"), _on("reasoner"), _on("base")),
                "ratio",
                threshold=0.5,
            ),
        ),
        models("Kept samples", ("base", "taught", "reasoner"), _PASS1),
        _DOTS,
        _accuracy("base", "taught", "reasoner"),
    ),
    Finding(
        "g",
        "Distillation beats RL on the small student",
        f"{_R1}, section 4.1, table 6: of one 32B base, RL at scale makes 47.0 % of AIME 2024, distillation 72.6 %.",
        (
            Claim("equal compute: distilled − small_rl_1x", paired("correct", _on("distilled"), _on("small_rl_1x"))),
            Claim("5 × the compute: distilled − small_rl_5x", paired("correct", _on("distilled"), _on("small_rl_5x"))),
        ),
        models(
            "The student",
            ("small", "small_rl_1x", "small_rl_5x", "distilled", "distilled_logits", "r1"),
            _PASS1,
            ("Length", "length", 1.0),
        ),
        _DOTS,
        _accuracy("small", "small_rl_1x", "small_rl_5x", "distilled", "distilled_logits"),
    ),
    Finding(
        "h",
        "RL after distillation gains more",
        f"{_R1}, section 3.2: RL applied to the distilled models yields significant further gains.",
        (Claim("pass@1, distilled_rl − distilled", paired("correct", _on("distilled_rl"), _on("distilled"))),),
        models("RL of the student", ("distilled", "distilled_rl", "small_rl_5x"), _PASS1, _FORMAT),
        _DOTS,
        (
            *_accuracy("distilled", "distilled_rl"),
            Quantity("distilled_rl − small_rl_5x", paired("correct", _on("distilled_rl"), _on("small_rl_5x"))),
        ),
    ),
    Finding(
        "i",
        "Normalising by std and length makes wrong replies grow",
        "Dr. GRPO (arXiv:2503.20783), section 3: the division by a reply's length favours long wrong replies; without "
        "it and the division by std, wrong replies stay shorter and accuracy as high.",
        (
            Claim(
                "tokens of wrong replies, grpo − dr_grpo, last quarter",
                stretch_gap(length_of(False), "zero_grpo", "zero_dr_grpo", 0.75, 1.0),
                "tokens",
            ),
            Claim(
                "grpo: tokens of wrong replies, last quarter − first tenth",
                growth("zero_grpo", length_of(False), (0.0, 0.1), (0.75, 1.0)),
                "tokens",
            ),
        ),
        curves(
            "Length with and without normalisation", _answered("Wrong replies", False), _answered("Right replies", True)
        ),
        _CURVES,
        (
            Quantity(
                "dr_grpo: tokens of wrong replies, last quarter − first tenth",
                growth("zero_dr_grpo", length_of(False), (0.0, 0.1), (0.75, 1.0)),
                "tokens",
            ),
            *(
                Quantity(
                    f"{stage}: tokens of right replies, last quarter",
                    stretch(length_of(True), stage, 0.75, 1),
                    "tokens",
                )
                for stage in ("zero_grpo", "zero_dr_grpo")
            ),
            *_accuracy("zero_grpo", "zero_dr_grpo"),
        ),
    ),
    Finding(
        "n",
        "A preference reward that is kept on too long is hacked",
        f"{_R1}, version 2: preference rewards are paid in the last 400 of 1,700 steps only, since more lead to reward "
        "hacking: the reward goes on rising and what it stands for falls.",
        (
            Claim(
                "what the helpfulness model pays, last 16th − before the first quarter ends",
                growth("kept_on", shaping("helpful"), (0.1875, 0.25), (0.9375, 1.0)),
                "number",
            ),
            Claim(
                "hidden true preference, before the first quarter ends − last 16th",
                growth("kept_on", score_part("preference"), (0.9375, 1.0), (0.1875, 0.25)),
                "number",
            ),
            Claim(
                "hidden true preference, held out, r1 − kept_on",
                paired("preference", "r1_requests", "kept_on_requests"),
                "number",
            ),
        ),
        curves(
            "Preference reward",
            Drawn("Paid", "step of RL", "mean", (Line("helpfulness model", played(shaping("helpful"), "kept_on")),)),
            Drawn(
                "True", "step of RL", "mean", (Line("hidden preference", played(score_part("preference"), "kept_on")),)
            ),
        ),
        _CURVES,
        tuple(
            Quantity(f"hidden preference, held out, {name}", level("preference", f"{name}_requests"), "number")
            for name in ("ruled", "r1", "kept_on")
        ),
    ),
    Finding(
        "o",
        "R1 is above R1-Zero at equal RL tokens",
        f"{_R1}, tables 2 and 4: AIME 2024 pass@1 71.0 % (R1-Zero), 79.8 % (R1); R1 is readable and in one language.",
        (
            Claim("pass@1, r1 − zero", paired("correct", _on("r1"), _on("zero"))),
            Claim("mixed replies, zero − r1", paired("mixed", _on("zero"), _on("r1"))),
            Claim("right format, r1 − zero", paired("format", _on("r1"), _on("zero"))),
        ),
        models("R1-Zero and R1", ("base", "zero", "cold_start", "reasoner", "taught", "r1"), _PASS1, _MIXING, _FORMAT),
        _DOTS,
        (
            *_accuracy("zero", "r1"),
            *_mixing("r1"),
            Quantity("right format of r1", level("format", _on("r1")), "percent"),
            Quantity("tokens sampled in RL, zero", tokens_sampled("zero"), "tokens"),
            Quantity("tokens sampled in RL, r1", tokens_sampled("reasoner", "ruled", "r1"), "tokens"),
        ),
    ),
)
