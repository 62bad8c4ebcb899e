"""The flywheel: a model writes examples, the good ones teach it, the better model writes the next ones.

Read ``flywheel`` first: it is the whole road. Then ``stages/selection.py`` for when it stops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from longthought.core.errors import SettingsError
from longthought.core.protocols import Task
from longthought.engine.engine import EngineSettings
from longthought.evaluation.behaviours import ENGLISH
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.models.precision import Precision
from longthought.recipes import r1_zero
from longthought.recipes.r1_zero import Adapter, Problems, R1ZeroSettings, model_in, within
from longthought.recipes.sft import SFTSettings, Tuning, fine_tuning
from longthought.rollout.filters import NoMarkup, Screen, Uncut, Unrepeated
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.stages.difficulty import MeasureDifficulty
from longthought.stages.diversity import MEASURES, CheckDiversity
from longthought.stages.example_set import ExampleSet
from longthought.stages.measure import Evaluate
from longthought.stages.merging import Merge
from longthought.stages.rejection_sampling import RejectionSampling
from longthought.stages.selection import BEFORE, BEST, BEST_SCORE, DIVERSITY, NEW, NEW_SCORE, Select
from longthought.stages.sft import SFT
from longthought.stages.sifting import Against
from longthought.tasks.examples import Examples
from longthought.tasks.files import FileTask
from longthought.tasks.prompt_set import Chosen, Later

_POOL: Final = 4  # problems that are measured for each that is asked, of hard ones
_TRIES: Final = 8  # replies by which that is done
_APART: Final = 10_007  # seeds of two rounds


@dataclass(frozen=True)
class Wheel:
    """Rounds, and what ends them.

    rounds: at most so many.
    start: what is fine-tuned in every round: the base, or the best model so far.
    data: what it learns: the examples of all rounds, or of the newest; the original ones always.
    floor: least share of original examples; 0: none need be.
    original: conversations that are the original ones; none: what the base writes in the first round.
    margin: a new model is kept if its share of right replies is more than this above the best one's.
    patience: rounds in a row without a rise, after which it stops; after a fall beyond chance, at once.
    diversity: least share of the first round's diversity; below it nothing is trained, and it stops. 0: any will do.
    """

    rounds: int = 3
    start: Literal["base", "best"] = "base"
    data: Literal["all", "newest"] = "all"
    floor: float = 0.25
    original: Path | None = None
    margin: float = 0.0
    patience: int = 2
    diversity: float = 0.5

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise SettingsError(f"wheel.rounds={self.rounds} must be at least 1")
        if self.original is not None and not self.floor:
            raise SettingsError("wheel.floor=0 asks for no original data: leave out wheel.original, or raise the floor")


@dataclass(frozen=True)
class Harvest:
    """What a round samples, and what of it is kept.

    prompts: problems; a file with fewer is asked whole.
    samples: replies to each.
    keep: of each prompt, at most so many right ones; none: all.
    max_tokens: longest reply, in tokens.
    temperature: of the sampling.
    seeds: fresh: other problems than before; hard: of a pool of those, the ones that are solved, but most seldom.
    pool: problems of the pool; none: 4 for each that is asked.
    tries: replies by which their difficulty is measured; none: 8.
    """

    prompts: int = 256
    samples: int = 8
    keep: int | None = 2
    max_tokens: int = 512
    temperature: float = 1.0
    seeds: Literal["fresh", "hard"] = "fresh"
    pool: int | None = None
    tries: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompts", "samples", "keep", "max_tokens", "pool", "tries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"harvest.{name}={value} must be at least 1")
        if self.seeds == "fresh" and (self.pool, self.tries) != (None, None):
            raise SettingsError("harvest.pool and harvest.tries change nothing with harvest.seeds=fresh")
        if self.pool is not None and self.pool < self.prompts:
            raise SettingsError(f"harvest.pool={self.pool} holds no {self.prompts} problems: raise it, or ask fewer")


@dataclass(frozen=True)
class FlywheelSettings:
    """Everything that a run depends on.

    model: folder of a model in Hugging Face layout.
    template: prompt template of a base model, such as r1_zero; empty: the chat template of the folder.
    seed: of problems, samples and the orders of the examples.
    workers: processes that share every step, one per core.
    precision: of matrix products: float32, bfloat16, or auto, the fastest here; bits repeat on the same kind of CPU.
    dev: how models are compared; not on the test split, which would then say nothing.
    evaluation: before the first round and after the last, on problems that nothing was chosen by.
    """

    model: Path = Path("model")
    template: str = ""
    seed: int = 0
    workers: int = 1
    precision: Precision = "auto"
    problems: Problems = Problems()
    wheel: Wheel = Wheel()
    harvest: Harvest = Harvest()
    sft: Tuning = Tuning()
    adapter: Adapter = Adapter()
    dev: EvaluationSettings = EvaluationSettings(problems=200, samples=8, max_tokens=512, split="dev")
    evaluation: EvaluationSettings = EvaluationSettings(problems=100, samples=4, max_tokens=512)

    def __post_init__(self) -> None:
        if self.dev.split == self.evaluation.split:
            raise SettingsError(
                f"dev.split and evaluation.split are both {self.evaluation.split}: a model that was chosen by some "
                "problems looks better on them than it is; leave dev.split=dev"
            )
        if "train" in (self.dev.split, self.evaluation.split):
            raise SettingsError("dev.split and evaluation.split must not be train: the models learn from it")


def flywheel(settings: FlywheelSettings, run: Run) -> Checkpoint:
    """Sample, keep what is good, teach the base, keep the better model; again from that one, while it helps."""
    base, task = model_in(settings.model, settings.template), task_of(settings)
    merge, guard = merging(settings, task), CheckDiversity(settings.wheel.diversity)
    select = Select(settings.wheel.margin, settings.wheel.patience)
    dev, test = looking(settings, task, settings.dev, "dev"), looking(settings, task, settings.evaluation, "test")
    score = run.do("round_0_score", dev, base)
    run.do("before", test, base)
    best, harvests, given = base, dict[str, ExampleSet](), dict[str, Any]()
    for number in range(1, settings.wheel.rounds + 1):
        name = f"round_{number}"
        source = seeds(settings, task, number, run, best)
        harvests[name] = run.do(f"{name}_traces", sampling(settings, task, source, number), best)
        told = run.do(f"{name}_diversity", guard, compared(harvests))
        given |= {BEST: best, BEST_SCORE: score, DIVERSITY: told}
        if not told.read(MEASURES)["collapsed"]:
            examples = run.do(f"{name}_examples", merge, used(settings.wheel, harvests))
            start = base if settings.wheel.start == "base" else best
            given[NEW] = run.do(f"{name}_sft", tuning(settings, examples, number), start)
            given[NEW_SCORE] = run.do(f"{name}_score", dev, given[NEW])
        decision = run.do(f"{name}_decision", select, given)
        best, score = decision.model(given), given[f"{decision.kept}_score"]
        given = {BEFORE: decision}
        if decision.stops:
            break
    run.do("after", replace(test, title="after"), best)
    return best


def task_of(settings: FlywheelSettings) -> Task:
    """The problems, as ``r1_zero`` reads them."""
    return r1_zero.task_of(R1ZeroSettings(problems=settings.problems, seed=settings.seed))


def looking(settings: FlywheelSettings, task: Task, asked: EvaluationSettings, title: str) -> Evaluate:
    """An evaluation."""
    engine = EngineSettings(precision=settings.precision)
    return Evaluate(task, ENGLISH, within(task, asked), engine, workers=settings.workers, title=title)


def seeds(settings: FlywheelSettings, task: Task, number: int, run: Run, best: Checkpoint) -> Task:
    """The problems of a round: those that come after the ones of earlier rounds, or the hard ones among these."""
    harvest = settings.harvest
    if harvest.seeds == "fresh":
        return Later(task, (number - 1) * _within(task, harvest.prompts))
    pool = _within(task, harvest.pool or _POOL * harvest.prompts)
    stage = MeasureDifficulty(
        Later(task, (number - 1) * pool),
        prompts=pool,
        samples=harvest.tries or _TRIES,
        max_tokens=harvest.max_tokens,
        temperature=harvest.temperature,
        seed=settings.seed + _APART * number + 1,  # not the samples by which they were chosen
        engine=EngineSettings(precision=settings.precision),
        workers=settings.workers,
    )
    prompts = run.do(f"round_{number}_difficulty", stage, best)
    return prompts.task(ends="high", order="hard", seed=settings.seed)


def sampling(settings: FlywheelSettings, task: Task, source: Task, number: int) -> RejectionSampling:
    """Rejection sampling of a round, from ``source``."""
    harvest = settings.harvest
    free = settings.problems.form == "free"
    return RejectionSampling(
        source,
        prompts=min(harvest.prompts, len(source.rated))
        if isinstance(source, Chosen)
        else _within(task, harvest.prompts),
        samples=harvest.samples,
        max_tokens=harvest.max_tokens,
        temperature=harvest.temperature,
        keep_per_prompt=harvest.keep,
        screen=Screen((Uncut(), NoMarkup(), Unrepeated())) if free else Screen(),
        against=held_out(settings, task),
        seed=settings.seed + _APART * number,
        engine=EngineSettings(precision=settings.precision),
        workers=settings.workers,
    )


def held_out(settings: FlywheelSettings, task: Task) -> tuple[Against, ...]:
    """What no example may hold."""
    asked = (settings.dev, settings.evaluation)
    return tuple(Against(task, one.split, None if isinstance(task, FileTask) else one.problems) for one in asked)


def compared(harvests: Mapping[str, ExampleSet]) -> dict[str, ExampleSet]:
    """The newest examples, and the ones that they are compared with."""
    sets = list(harvests.values())
    return {"examples": sets[-1]} | ({"first": sets[0], "before": sets[-2]} if len(sets) > 1 else {})


def used(wheel: Wheel, harvests: Mapping[str, ExampleSet]) -> dict[str, ExampleSet]:
    """The sets that a round learns from."""
    newest = list(harvests)[-1]
    kept = set(harvests) if wheel.data == "all" else {newest, *_original(wheel)}
    return {name: made for name, made in harvests.items() if name in kept}


def merging(settings: FlywheelSettings, task: Task) -> Merge:
    """Original and new examples as one set."""
    wheel = settings.wheel
    given = None if wheel.original is None else Examples.read(wheel.original, held_out=0.0)
    return Merge(_original(wheel), given, wheel.floor, against=held_out(settings, task), seed=settings.seed)


def tuning(settings: FlywheelSettings, made: ExampleSet, number: int) -> SFT:
    """The fine-tuning of a round."""
    asked = SFTSettings(
        seed=settings.seed + _APART * number,
        workers=settings.workers,
        precision=settings.precision,
        sft=settings.sft,
        adapter=settings.adapter,
    )
    return fine_tuning(asked, made.examples())


def _original(wheel: Wheel) -> tuple[str, ...]:
    return ("round_1",) if wheel.original is None and wheel.floor else ()


def _within(task: Task, asked: int) -> int:
    """So many problems, or all that a file has for training."""
    return min(asked, task.size("train")) if isinstance(task, FileTask) else asked
