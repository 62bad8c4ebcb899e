"""Which curves a report draws, how each is labelled, and how to read it."""

from __future__ import annotations

from dataclasses import dataclass

from longthought.evaluation.charts import Panel, Series, pass_at_k_panel
from longthought.evaluation.report_data import CURVE_NAMES, Curve, Estimate, EvaluationSummary, ReportData


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """One chart of one or more curves. ``scale`` multiplies the values: 100 turns shares into per cent."""

    title: str
    ylabel: str
    curves: tuple[tuple[str, str], ...]  # (name in ReportData.curves, label in the legend)
    reading: str
    scale: float = 1.0

    def panel(self, data: ReportData) -> Panel:
        """The panel with what was measured of it; without lines and points when nothing was."""
        drawn = (_line(label, data.curves[name], self.scale) for name, label in self.curves if name in data.curves)
        lines = tuple(line for line in drawn if line.measured)
        return Panel(self.title, "RL step", self.ylabel, lines, self._held_out(data))

    def _held_out(self, data: ReportData) -> tuple[Series, ...]:
        """Evaluations on the test problems, for a chart of one curve."""
        name = self.curves[0][0]
        models = [data.base, *data.evaluations, data.trained]
        dated = {m.step: estimate_of(m, name) for m in models if m is not None and m.step is not None}
        known = [(step, estimate) for step, estimate in sorted(dated.items()) if estimate is not None]
        if len(self.curves) > 1 or not known:
            return ()
        return (_points("test problems", known, self.scale),)


RESULTS: tuple[CurvePanel, ...] = (
    CurvePanel(
        "Accuracy",
        "correct answers (%)",
        (("accuracy", "training prompts"),),
        "Higher is better; the diamonds are problems held out of training, so a line far above them means memorising.",
        100.0,
    ),
    CurvePanel(
        "Response length",
        "tokens per answer",
        (("length", "training prompts"),),
        "A rise means that the model learned to think longer, unless the reward itself asks for length.",
    ),
    CurvePanel(
        "Attempts rejected and words of reflection",
        "per answer",
        (("rejections", "rejected attempts"), ("reflections", "reflection words")),
        "Rejected attempts are tries that the model itself calls wrong before it answers; reflection words are counted "
        "from a list, whether they change anything or not.",
    ),
    CurvePanel(
        "Right format",
        "answers (%)",
        (("format_rate", "training prompts"),),
        "The share of answers that could be parsed; one that could not is never correct.",
        100.0,
    ),
    CurvePanel(
        "Language mixing",
        "answers (%)",
        (("mixing", "training prompts"),),
        "The share of answers that think in more than one script; it tends to rise where no reward punishes it.",
        100.0,
    ),
    CurvePanel(
        "Live groups",
        "groups (%)",
        (("live", "training prompts"),),
        "A live group is a problem that has right and wrong answers among those sampled: the others teach little.",
        100.0,
    ),
    CurvePanel(
        "Entropy",
        "nats per token",
        (("entropy", "training prompts"),),
        "Entropy is how undecided the model is about its next token; near zero it no longer explores.",
    ),
    CurvePanel(
        "Cut answers",
        "answers (%)",
        (("cut", "training prompts"),),
        "The share of answers ended by the token limit; when it is high, the limit and not the model sets the length.",
        100.0,
    ),
)

SPECIALIST: tuple[CurvePanel, ...] = (
    CurvePanel(
        "KL divergence",
        "nats per token",
        (("kl", "policy from reference"),),
        "How far the policy has moved from the model that training began with.",
    ),
    CurvePanel(
        "Clip share",
        "tokens (%)",
        (("clip_share", "clipped"),),
        "The share of tokens whose probability ratio left the trust interval: their gradient was dropped.",
        100.0,
    ),
    CurvePanel(
        "Gradient norm",
        "L2 norm before clipping",
        (("grad_norm", "gradient"),),
        "Single spikes are harmless when clipped; a steady rise announces divergence.",
    ),
    CurvePanel(
        "Log-probability gap",
        "nats per token",
        (("logprob_gap", "learner − sampler"),),
        "Sampler and learner should agree on what was sampled: anything but a small, flat line is a defect.",
    ),
)


def specialist_curves(data: ReportData) -> tuple[CurvePanel, ...]:
    """Panels for the specialist. A run whose objective has no KL term has no KL to show."""
    return tuple(panel for panel in SPECIALIST if panel.curves[0][0] != "kl" or not data.curves or "kl" in data.curves)


def other_curves(data: ReportData) -> tuple[CurvePanel, ...]:
    """Panels for the curves whose names we do not know."""
    reading = "A quantity recorded by the run under this name."
    unknown = sorted(set(data.curves) - set(CURVE_NAMES))
    return tuple(CurvePanel(name, "as recorded", ((name, name),), reading) for name in unknown)


def pass_at_k(data: ReportData) -> Panel:
    """pass@k of base and trained model."""
    models = (("base", data.base), ("trained", data.trained))
    lines = tuple(_points(label, list(m.pass_at_k), 100.0) for label, m in models if m is not None and m.pass_at_k)
    return pass_at_k_panel(lines, "pass@k")


def picture_panels(data: ReportData) -> tuple[Panel, ...]:
    """The four panels of the picture: accuracy, length, rejected attempts, pass@k."""
    rejected = CurvePanel("Rejected attempts", "per answer", (("rejections", "training prompts"),), "")
    return (RESULTS[0].panel(data), RESULTS[1].panel(data), rejected.panel(data), pass_at_k(data))


def estimate_of(summary: EvaluationSummary, name: str) -> Estimate | None:
    """The summary's estimate of a curve's quantity, None for one that is measured in training only."""
    found: Estimate | None = getattr(summary, name, None)
    return found


def _line(label: str, curve: Curve, scale: float) -> Series:
    low, high = ([None if v is None else scale * v for v in bound] for bound in (curve.low, curve.high))
    return Series(label, curve.steps, [None if v is None else scale * v for v in curve.values], low, high)


def _points(label: str, known: list[tuple[int, Estimate]], scale: float) -> Series:
    bounded = any(estimate.low is not None and estimate.high is not None for _, estimate in known)
    y = [scale * estimate.value for _, estimate in known]
    low = [None if estimate.low is None else scale * estimate.low for _, estimate in known] if bounded else []
    high = [None if estimate.high is None else scale * estimate.high for _, estimate in known] if bounded else []
    return Series(label, [step for step, _ in known], y, low, high)
