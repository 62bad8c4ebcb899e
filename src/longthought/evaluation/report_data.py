"""What a report is made of: plain numbers and strings, so that a report can be written without a model or a tensor.

Every part may be absent (None or empty): a run that was interrupted still has a report, which says what is missing.
Shares are fractions of one, lengths are in tokens, times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longthought.evaluation.road_data import Road


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured mean with its 95 % interval, where one was computed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity over RL steps. ``low`` and ``high`` bound its 95 % interval at every step, or are empty.

    Example: ``Curve(steps=(1, 2), values=(0.07, 0.12), low=(0.02, 0.05), high=(0.12, 0.19))``

    Raises ValueError when the columns differ in length.
    """

    steps: tuple[int, ...]
    values: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if len(self.values) != len(self.steps):
            raise ValueError(f"a curve has {len(self.steps)} steps but {len(self.values)} values")
        if len(self.low) != len(self.high) or len(self.low) not in (0, len(self.steps)):
            bounds = f"{len(self.low)} low, {len(self.high)} high"
            raise ValueError(f"a band needs as many bounds as steps: {len(self.steps)} steps, {bounds}")


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """One model on the test problems, ``samples`` replies to each.

    accuracy: pass@1.  length: tokens of a reply.  rejections, reflections: words per reply.  format_rate: replies that
    could be parsed.  mixing: replies in more than one language.  cut: replies ended by the token limit.
    pass_at_k: (k, estimate) in rising k.  step: RL steps of the model.
    parts: mean of every named part of the score, over the problems whose score has it.
    """

    problems: int
    samples: int
    accuracy: Estimate | None = None
    length: Estimate | None = None
    rejections: Estimate | None = None
    reflections: Estimate | None = None
    format_rate: Estimate | None = None
    mixing: Estimate | None = None
    cut: Estimate | None = None
    pass_at_k: tuple[tuple[int, Estimate], ...] = ()
    step: int | None = None
    parts: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply with its verdict. ``correct`` is None when it could not be graded."""

    text: str
    tokens: int
    finish: str
    correct: bool | None
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The same problem before and after training."""

    problem: str
    prompt: str
    before: Reply | None = None
    after: Reply | None = None


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One check of the readiness gate. Example: ``GateCheck("says yes to a hit", 0.88, "≥ 0.60", True)``"""

    check: str
    measured: float | None
    needed: str
    passed: bool | None


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """One kind of document of the pretraining corpus, with its share of the documents and an example."""

    name: str
    share: float
    example: str


@dataclass(frozen=True, slots=True)
class TimePart:
    """Wall-clock seconds of one part of one stage. Example: ``TimePart("rl", "sampling", 81.2)``"""

    stage: str
    part: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything a report shows.

    curves: by the names of ``CURVE_NAMES`` (others are shown, under their own name, for the specialist).
    difference: trained − base in pass@1, paired by problem.  evaluations: held-out evaluations during training.
    own_base: whether the run made its base itself; what a base from elsewhere had seen is not known.
    seen: what the base model had seen before RL, in plain text.  speeds: (what, tokens per second).
    settings: may be nested; the report flattens them.  command: reproduces the run, exactly.
    rejection_words: highlighted in the transcripts.  road: of a run with other stages than these.
    """

    title: str
    task: str = ""
    seed: int | None = None
    steps: int | None = None
    base: EvaluationSummary | None = None
    trained: EvaluationSummary | None = None
    difference: Estimate | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    evaluations: tuple[EvaluationSummary, ...] = ()
    transcripts: tuple[Transcript, ...] = ()
    rejection_words: frozenset[str] = frozenset()
    own_base: bool = True
    seen: str = ""
    document_kinds: tuple[DocumentKind, ...] = ()
    gate: tuple[GateCheck, ...] = ()
    time_parts: tuple[TimePart, ...] = ()
    speeds: tuple[tuple[str, float], ...] = ()
    machine: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    command: str = ""
    road: Road | None = None


CURVE_NAMES: tuple[str, ...] = (
    "accuracy",
    "length",
    "rejections",
    "reflections",
    "format_rate",
    "mixing",
    "live",
    "entropy",
    "cut",
    "kl",
    "clip_share",
    "grad_norm",
    "logprob_gap",
)
