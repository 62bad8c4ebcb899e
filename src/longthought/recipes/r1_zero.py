"""R1-Zero with a model and problems of one's own: measure, train by reinforcement alone, measure again.

Read ``r1_zero`` first: it is the whole road. Then ``stages/rl.py`` for what one step of RL is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from longthought.core.errors import CheckpointError, SettingsError
from longthought.core.protocols import Task, Verifier
from longthought.engine.engine import EngineSettings
from longthought.evaluation.behaviours import ENGLISH
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.models.lora import LoRA
from longthought.models.precision import Precision
from longthought.recipes.methods import Knobs, MethodName, Shaped, method, summands
from longthought.recipes.sources import mixture
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.stages.measure import Evaluate
from longthought.stages.rl import RL
from longthought.tasks.fields import Fields
from longthought.tasks.file_problems import Reading
from longthought.tasks.files import FileTask
from longthought.tasks.grading import Grading, ReplyForm
from longthought.text.templates import TEMPLATES, Template
from longthought.training.learner import LearnerSettings
from longthought.training.optimizer import AdamW
from longthought.training.schedule import Schedule
from longthought.verifiers.choice import Choice
from longthought.verifiers.exact import Exact, Number, SetMatch
from longthought.verifiers.function import Function
from longthought.verifiers.math import Math

VERIFIERS: Final[dict[str, Verifier]] = {
    "math": Math(),
    "exact": Exact(),
    "number": Number(),
    "choice": Choice(),
    "set": SetMatch(),
}


@dataclass(frozen=True)
class Problems:
    """A file of problems with answers, and how a reply is graded.

    file: .jsonl, .json, .parquet, .csv or .tsv; prompt and answer are found by the names of the columns.
    mix: further sources, each FILE, GENERATOR:LEVEL or gym:NAME, with @WEIGHT for another share than 1.
    test: a file of held-out problems; none: a tenth of the problems, chosen by their text.
    fields: which columns hold what, as prompt=question,answer=final; empty: found by themselves.
    bad: rows that cannot be used are listed and refused, or skipped and counted.
    test_share: share of the problems that is held out when there is no test file.
    verifier: math, exact, number, choice, set, or a function of yours, as mine.py:verify.
    form: of a reply: think_answer, summary, think, or free.
    format_weight: reward of the form alone; not with free.
    strict: a reply without the form earns nothing.
    instruction: follows every question of a file on a line of its own, such as how to write the answer.
    """

    file: Path | None = Path("problems.jsonl")
    mix: tuple[str, ...] = ()
    test: Path | None = None
    fields: str = ""
    bad: Literal["refuse", "skip"] = "refuse"
    test_share: float = 0.10
    verifier: str = "math"
    form: ReplyForm = "think_answer"
    format_weight: float = 0.1
    strict: bool = True
    instruction: str = ""


@dataclass(frozen=True)
class Adapter:
    """Train a LoRA instead of all weights.

    rank: of its matrices; 0: no LoRA, all weights are trained.
    alpha: its scale.
    """

    rank: int = 0
    alpha: float = 32.0

    def __post_init__(self) -> None:
        if not self.rank and self.alpha != 32.0:
            raise SettingsError(f"adapter.alpha={self.alpha} changes nothing with adapter.rank=0: set the rank, too")


@dataclass(frozen=True)
class Learning:
    """Reinforcement learning.

    method: an algorithm of recipes/methods.py.
    steps: rollout batches.
    prompts: problems of one step.
    samples: replies to each problem.
    updates: optimizer steps on each batch, on disjoint parts of it.
    max_tokens: longest reply, in tokens.
    longer: from a step on, replies may be longer: pairs of a step and tokens, such as [[500, 1024]].
    temperature: of the rollouts, and of the log-probabilities that are trained.
    lr: learning rate; none: 1e-6 for all weights, 1e-5 for a LoRA.
    warmup: steps over which it rises.
    final: what it falls to at the end, as a share of lr.
    reference_every: the reference becomes the policy every so many steps; 0: never.
    micro_tokens: tokens of one forward pass; memory, not mathematics.
    gap_limit: largest mean gap of log-probs, in nats, between sampler and learner; none: 1e-3, in bfloat16 3e-2.
    """

    method: MethodName = "grpo"
    steps: int = 100
    prompts: int = 16
    samples: int = 8
    updates: int = 1
    max_tokens: int = 512
    longer: tuple[tuple[int, int], ...] = ()
    temperature: float = 1.0
    lr: float | None = None
    warmup: int = 5
    final: float = 1.0
    reference_every: int = 0
    micro_tokens: int = 4096
    gap_limit: float | None = None

    def __post_init__(self) -> None:
        if self.lr is not None and self.lr <= 0:
            raise SettingsError(f"rl.lr={self.lr:g}: must be positive")
        if self.warmup < 0 or not 0 <= self.final <= 1:
            raise SettingsError(f"rl.warmup={self.warmup}, rl.final={self.final:g}: at least 0, and from 0 to 1")


@dataclass(frozen=True)
class R1ZeroSettings:
    """Everything that a run depends on.

    model: folder of a Llama, Qwen2, Qwen2.5 or Qwen3 model in Hugging Face layout.
    template: prompt template of a base model, such as r1_zero; empty: the chat template of the folder.
    seed: of problems and samples.
    workers: processes that share every step, one per core.
    precision: of matrix products: float32, bfloat16, or auto, the fastest here; bits repeat on the same kind of CPU.
    evaluation: before and after; of all held-out problems where there are fewer than ``evaluation.problems``.
    """

    model: Path = Path("model")
    template: str = ""
    seed: int = 0
    workers: int = 1
    precision: Precision = "auto"
    problems: Problems = Problems()
    rl: Learning = Learning()
    knobs: Knobs = Knobs()
    reward: Shaped = Shaped()
    adapter: Adapter = Adapter()
    evaluation: EvaluationSettings = EvaluationSettings(problems=100, samples=4, max_tokens=512)

    def __post_init__(self) -> None:
        clips = {"clip_low", "clip_high", "dual_clip", "cap", "tau"}
        if self.rl.updates == 1 and (given := sorted(k for k in clips if getattr(self.knobs, k) is not None)):
            raise SettingsError(
                f"knobs.{given[0]} changes nothing with rl.updates=1: the policy is still the one that sampled, every "
                "ratio is 1 and nothing is clipped"
            )


def r1_zero(settings: R1ZeroSettings, run: Run) -> Checkpoint:
    """Measure a model on your problems, train it by reinforcement alone, measure it again."""
    base = base_of(settings)
    task = task_of(settings)
    engine = EngineSettings(precision=settings.precision)
    look = Evaluate(task, ENGLISH, within(task, settings.evaluation), engine, workers=settings.workers)
    run.do("before", replace(look, title="before"), base)
    trained = run.do("rl", reinforcement(settings, task), base)
    run.do("after", replace(look, title="after"), trained)
    return trained


def within(task: Task, asked: EvaluationSettings) -> EvaluationSettings:
    """The evaluation as asked, of all problems of the split where files hold fewer (but two, for an interval)."""
    held = task.size(asked.split) if isinstance(task, FileTask) else asked.problems
    return replace(asked, problems=held) if 2 <= held < asked.problems else asked


def base_of(settings: R1ZeroSettings) -> Checkpoint:
    """The model to start from. Raises CheckpointError when there is no such folder."""
    return model_in(settings.model, settings.template)


def model_in(folder: Path, template: str) -> Checkpoint:
    """The model of a folder, spoken to with a prompt template, if one is named. Raises CheckpointError when there is no
    such folder."""
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no model folder {folder}: give one in Hugging Face layout, model=FOLDER; a model of the "
            "hub is downloaded before, for example by `hf download NAME --local-dir FOLDER`"
        )
    return Checkpoint(folder, template_of(template))


def template_of(name: str) -> Template | None:
    """A prompt template by name; None for the folder's own. Raises SettingsError when there is none."""
    if not name:
        return None
    known = {template.name: template for template in TEMPLATES}
    if name not in known:
        raise SettingsError(f"there is no prompt template {name!r}; choose one of {', '.join(known)}")
    return known[name]


def task_of(settings: R1ZeroSettings) -> Task:
    """The problems; files are read and checked whole. Generators keep the form and the grading of their own."""
    given = settings.problems
    reading = Reading(
        Fields.parse(given.fields),
        test_share=given.test_share,
        bad=given.bad,
        seed=settings.seed,
        instruction=given.instruction,
    )
    grading = Grading(verifier_of(given.verifier), given.form, given.format_weight, given.strict)

    def read(file: str) -> Task:
        if given.test is None or file != str(given.file):
            return FileTask.read(file, grading=grading, reading=reading)
        return FileTask.read(train=(file,), test=(given.test,), grading=grading, reading=reading)

    if given.test is not None and given.file is None:
        raise SettingsError("problems.test changes nothing without problems.file, whose held-out problems it holds")
    return mixture((*([str(given.file)] if given.file else []), *given.mix), read, settings.seed, given.format_weight)


def verifier_of(name: str) -> Verifier:
    """A shipped verifier by name, or a function of a file. Raises SettingsError when there is none."""
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ".py" in name:
        return Function.from_file(name)
    raise SettingsError(
        f"there is no verifier {name!r}; choose {', '.join(VERIFIERS)}, or a function as mine.py:verify"
    )


def reinforcement(settings: R1ZeroSettings, task: Task) -> RL:
    """The RL stage: the task, the algorithm, and their budgets."""
    rl, adapter = settings.rl, settings.adapter
    usual = 1e-5 if adapter.rank else 1e-6
    longest = max([rl.max_tokens, *(tokens for _, tokens in rl.longer)])
    schedule = Schedule(warmup=rl.warmup, decay=1.0 if rl.final < 1 else 0.0, final=rl.final if rl.final < 1 else 0.0)
    return RL(
        task=task,
        method=method(rl.method, settings.knobs, rl.max_tokens, summands(settings.reward, longest)),
        steps=rl.steps,
        prompts=rl.prompts,
        samples=rl.samples,
        updates=rl.updates,
        max_tokens=rl.max_tokens,
        longer=rl.longer,
        temperature=rl.temperature,
        seed=settings.seed,
        reference_every=rl.reference_every,
        adapter=LoRA(adapter.rank, adapter.alpha) if adapter.rank else None,
        workers=settings.workers,
        gap_limit=rl.gap_limit,
        learner=LearnerSettings(rl.micro_tokens, precision=settings.precision),
        engine=EngineSettings(precision=settings.precision),
        optimizer=AdamW(lr=usual if rl.lr is None else rl.lr, schedule=schedule),
    )
