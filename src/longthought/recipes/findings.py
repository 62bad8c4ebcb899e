"""The papers' findings at laptop scale: recipe ``r1``, and beside it what else must be run to test them.

Each run is one seed; ``longthought findings`` runs several, and ``evaluation/findings.py`` judges what they show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, cast

from longthought.core.protocols import Artifact
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.recipes.laptop import Laptop
from longthought.recipes.laptop_settings import R1Settings
from longthought.recipes.methods import MethodName
from longthought.recipes.r1 import r1
from longthought.recipes.road import Road
from longthought.runs.artifacts import Checkpoint
from longthought.runs.reward_folder import RewardFolder
from longthought.runs.run import Given, Made, Run, Stage
from longthought.stages.forcing import Forcing, Voice
from longthought.tasks.corpus import Corpus
from longthought.tasks.corpus_blend import Blend
from longthought.tasks.countdown_noise import Noise
from longthought.tasks.countdown_web import WORDS, CountdownWeb

VOICES: Final = tuple(
    Voice(language, words.retry, words.yes, (words.low, words.high)) for language, words in WORDS.items()
)


@dataclass(frozen=True)
class Beside:
    """What is run beside the recipe.

    language: weight of the language reward of R1-Zero with one.
    longer: times as many steps as the all-scenario RL has, without a watch.
    times: RL of the distilled student, as a multiple of what its distillation cost.
    cap: tokens between two caps on the thought.
    """

    language: float = 0.3
    longer: int = 4
    times: int = 5
    cap: int = 24


@dataclass(frozen=True)
class FindingsSettings(R1Settings):
    """The settings of recipe r1, with which its stages are shared, and three more.

    arch: dense, or deepseek_v3: latent attention, routed experts, and a module that predicts a further token.
    seed: of weights, corpus, problems and samples; not of the splits.
    workers: processes that share every step, one per core; results repeat bit by bit for the same number.
    precision: of matrix products: float32, bfloat16, or auto, the fastest here; bits repeat on the same kind of CPU.
    max_tokens: longest reply in training, in tokens.
    beside: what is run beside the recipe.
    many: evaluation of base and R1-Zero with many samples, for pass@k at large k.
    forced: evaluation with thoughts that are cut or prolonged; max_tokens is the room for what is forced.
    """

    beside: Beside = Beside()
    many: EvaluationSettings = EvaluationSettings(problems=100, samples=256)
    forced: EvaluationSettings = EvaluationSettings(problems=100, samples=16, max_tokens=384)


class Remembered:
    """A run that remembers what its stages made."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.made: dict[str, Artifact] = {}

    def do(self, name: str, stage: Stage[Given, Made], given: Given) -> Made:
        """As ``Run.do``."""
        made = self._run.do(name, stage, given)
        self.made[name] = made
        return made

    def model(self, name: str) -> Checkpoint:
        """The model that a stage made."""
        return cast(Checkpoint, self.made[name])

    def reward(self, name: str) -> RewardFolder:
        """The reward model that a stage made."""
        return cast(RewardFolder, self.made[name])


def findings(settings: FindingsSettings, run: Run) -> Checkpoint:
    """DeepSeek-R1 and the controls and variants that its findings, and those about it, need; one seed."""
    known = Remembered(run)
    final = r1(settings, cast(Run, known))
    at, small = Laptop(settings), settings.beside
    on_countdown, on_all = Road(run, at.looks[:1]), Road(run, at.looks)
    base, zero = known.model("base"), known.model("zero")

    run.do("base_many", replace(at.looks[0], settings=settings.many, title="many"), base)
    run.do("zero_many", replace(at.looks[0], settings=settings.many, title="many"), zero)
    run.do("base_forcing", forcing(settings, "<answer>"), base)
    run.do("zero_forcing", forcing(settings, "<answer>"), zero)
    run.do("r1_forcing", forcing(settings, ""), final)  # its summary, and then the answer

    # R1-Zero again: paid for one language; by the two sides of the dispute about length
    on_countdown.model("zero_one_language", zero_with(settings, language=small.language), base)
    methods: tuple[MethodName, ...] = ("grpo", "dr_grpo")
    for method in methods:
        on_countdown.model(f"zero_{method}", zero_with(settings, method=method), base)

    # the control: Chinese pages that are no more persistent than the English ones
    even = on_countdown.model("even", replace(at.pretraining(), corpus=evenly_persistent(settings)), None)
    on_countdown.model("even_zero", at.zero(), even)

    distilled = known.model("distilled")
    student = at.student_rl(distilled, small.times)
    summing_up = replace(at.countdown, format_weight=settings.zero.format)  # as it was taught to reply
    on_countdown.model("distilled_rl", replace(student, task=summing_up), distilled)

    longer = replace(settings, final=replace(settings.final, steps=small.longer * settings.final.steps))
    rewarded = Laptop(longer).scenario_rl(known.reward("helpful"), known.reward("safe"))
    on_all.model("kept_on", replace(rewarded, hacking=None), known.model("ruled"))
    return final


def zero_with(settings: R1Settings, **changes: Any) -> Stage[Checkpoint, Checkpoint]:
    """R1-Zero with other settings of its RL."""
    return Laptop(replace(settings, zero=replace(settings.zero, **changes))).zero()


def evenly_persistent(settings: R1Settings) -> Corpus:
    """The corpus of the base, with Chinese pages on which people give up as soon as on English ones."""
    blend = Laptop(settings).pretraining().corpus
    assert isinstance(blend, Blend)
    noise = Noise(attempts_zh=Noise().attempts_en)
    parts = tuple(
        (replace(corpus, noise=noise) if isinstance(corpus, CountdownWeb) else corpus, share)
        for corpus, share in blend.parts
    )
    return replace(blend, parts=parts)


def forcing(settings: FindingsSettings, after: str) -> Forcing:
    """Thoughts cut at growing caps, up to the longest reply of training; and thoughts that may not end."""
    at = Laptop(settings)
    return Forcing(
        at.countdown,
        VOICES,
        caps=tuple(range(0, settings.max_tokens + 1, settings.beside.cap)),
        after=after,
        settings=settings.forced,
        engine=at.engine,
        workers=settings.workers,
    )
