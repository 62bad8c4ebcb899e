"""What the boxes of recipe ``r1`` hold at laptop scale: Countdown as the reasoning task, small requests as all else."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

from longthought.core.protocols import Shaping, Task
from longthought.core.types import Message
from longthought.engine.engine import EngineSettings
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.recipes.laptop_settings import Collecting, R1Settings, Reinforcement
from longthought.recipes.methods import Knobs, Shaped, method, summands
from longthought.recipes.tiny import LEXICON, RATES
from longthought.runs.artifacts import Checkpoint
from longthought.runs.reward_folder import RewardFolder
from longthought.stages.chain_sources import Direct, FewShot, Outputs
from longthought.stages.cold_start import ColdStart
from longthought.stages.comparing import Comparing
from longthought.stages.distillation import Distillation
from longthought.stages.example_set import ExampleSet
from longthought.stages.hacking import Hacking, Look
from longthought.stages.judgement_set import LabelSet, PreferenceSet
from longthought.stages.labelling import Labelling
from longthought.stages.measure import CheckReadiness, Evaluate
from longthought.stages.preference_reward import PreferenceReward
from longthought.stages.pretrain import Pretrain
from longthought.stages.rejection_sampling import RejectionSampling
from longthought.stages.reward_model import RewardModel, SafetyModel
from longthought.stages.rl import RL
from longthought.stages.sft import SFT
from longthought.stages.sifting import Against, General
from longthought.tasks.corpus_blend import Blend
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_tidy import CountdownTidy, surrendered, worked
from longthought.tasks.countdown_web import CountdownProbes, CountdownWeb
from longthought.tasks.countdown_web import vocabulary as countdown_words
from longthought.tasks.examples import Examples
from longthought.tasks.mixture import Mixture
from longthought.tasks.requests import Requests
from longthought.tasks.requests_people import Crowd, Inspectors
from longthought.tasks.requests_web import RequestsWeb, demonstrations
from longthought.tasks.requests_web import vocabulary as request_words
from longthought.training.learner import LearnerSettings
from longthought.training.optimizer import AdamW, MuonAdamW
from longthought.training.schedule import Schedule

_SHOWN = 64  # worked problems, of which few-shot prompting draws
_MANY = 16  # attempts after which people give up; about as many as a reply has room for


class Laptop:
    """Every box, from the settings."""

    def __init__(self, settings: R1Settings) -> None:
        self.settings = settings
        problems = settings.problems
        self.strict = Countdown(
            largest=problems.largest, target=problems.target, intermediate=problems.target, seed=settings.seed
        )
        self.countdown = replace(self.strict, form="summary")
        self.requests = Requests(seed=settings.seed)
        self.engine = EngineSettings(precision=settings.precision)

    @property
    def looks(self) -> tuple[Evaluate, ...]:
        """What every model is asked: problems and requests that are in no corpus and no prompt."""
        asked = self.settings.evaluation
        general = replace(asked, problems=asked.problems // 2, samples=max(1, asked.samples // 4))
        return (
            self._look("countdown", self.countdown, asked),
            self._look("requests", self.requests, general),
        )

    def pretraining(self, student: bool = False) -> Pretrain:
        """A transformer and the corpus that it reads."""
        s, base = self.settings, self.settings.base
        web = CountdownWeb(self.strict, seed=s.seed, asked_to_check=base.asked_to_check, quoting=base.quoting)
        parts = ((web, 1 - base.requests), (RequestsWeb(self.requests, s.seed), base.requests))
        return Pretrain(
            corpus=Blend(parts, s.seed),
            vocabulary=tuple(dict.fromkeys([*countdown_words(self.strict), *request_words(self.requests)])),
            width=base.student if student else base.width,
            arch=s.arch,
            steps=base.steps,
            tokens_per_step=base.tokens_per_step,
            seed=s.seed,
            workers=s.workers,
            precision=s.precision,
            optimizer=MuonAdamW(RATES[s.arch], 8e-3, schedule=Schedule(warmup=20, decay=0.7)),
        )

    def readiness(self) -> CheckReadiness:
        """The gate before the first RL."""
        probes, workers = CountdownProbes(self.strict), self.settings.workers
        return CheckReadiness(self.strict, LEXICON, probes, self.settings.gate, engine=self.engine, workers=workers)

    def zero(self) -> RL:
        """R1-Zero: accuracy and format alone, in the strict format."""
        return self._rl(self.settings.zero, self.strict)

    def cold_start(self) -> ColdStart:
        """Long chains: worked examples in the prompt, a request to check, and what R1-Zero says; all rewritten."""
        s, chains = self.settings, self.settings.chains
        asked: dict[str, Any] = {"prompts": chains.prompts, "samples": chains.samples, "max_tokens": s.max_tokens}
        return ColdStart(
            self.countdown,
            sources=(
                FewShot(demonstrations=worked(self.strict, _SHOWN, seed=s.seed), shots=1, turns=False, **asked),
                Direct(instruction={"en": "check", "zh": "查"}, **asked),
                Outputs(**asked),
            ),
            rewriter=CountdownTidy(self.countdown, check=False),
            edited=Examples.of(people) if (people := self._surrendered(chains)) else None,
            keep_per_prompt=chains.keep,
            against=self._against(),
            seed=s.seed,
            engine=self.engine,
            workers=s.workers,
        )

    def sft(self, examples: ExampleSet, cold: bool = False) -> SFT:
        """Fine-tuning on the examples of the cold start, or of rejection sampling."""
        s, tuning = self.settings, self.settings.tuning
        return SFT(
            examples.examples(),
            epochs=tuning.cold if cold else tuning.epochs,
            examples_per_step=tuning.examples_per_step,
            lr=tuning.lr,
            learner=LearnerSettings(micro_tokens=4096, precision=s.precision),
            seed=s.seed,
            workers=s.workers,
        )

    def reasoning_rl(self) -> RL:
        """RL after the cold start, with the reward for one language."""
        return self._rl(self.settings.reasoning, self.countdown)

    def rejection_sampling(self) -> RejectionSampling:
        """Three quarters of the examples are right and readable replies of the reasoner, the rest what people wrote."""
        s, traces = self.settings, self.settings.traces
        helped = demonstrations(self.requests, traces.prompts, s.seed).conversations
        written = Examples.of([*(helped[number] for number in range(len(helped))), *self._surrendered(traces)])
        return RejectionSampling(
            self.countdown,
            prompts=traces.prompts,
            samples=traces.samples,
            max_tokens=s.max_tokens,
            keep_per_prompt=traces.keep,
            general=General(written, s.tuning.general),
            against=self._against(),
            seed=s.seed + 1,
            engine=self.engine,
            workers=s.workers,
        )

    def comparing(self) -> Comparing:
        """Pairs of replies to requests, compared by people."""
        s, judging = self.settings, self.settings.judging
        return Comparing(
            self.requests,
            Crowd(self.requests, 100 * s.seed, taste=judging.taste),
            prompts=judging.prompts,
            samples=judging.samples,
            pairs_per_prompt=judging.pairs,
            least_gap=judging.least_gap,
            max_tokens=s.max_tokens,
            seed=s.seed,
            engine=self.engine,
            workers=s.workers,
        )

    def helpful(self, pairs: PreferenceSet) -> RewardModel:
        """The model of helpfulness: it reads the summary."""
        s, judging = self.settings, self.settings.judging
        return RewardModel(
            pairs=pairs.preferences(),
            epochs=judging.epochs,
            batch=judging.batch,
            lr=judging.lr,
            seed=s.seed,
            workers=s.workers,
        )

    def labelling(self) -> Labelling:
        """Replies to requests, called safe or unsafe by people."""
        s, judging = self.settings, self.settings.judging
        return Labelling(
            self.requests,
            Inspectors(self.requests, s.seed),
            prompts=judging.prompts,
            samples=2,
            max_tokens=s.max_tokens,
            seed=s.seed,
            engine=self.engine,
            workers=s.workers,
        )

    def safety(self, labels: LabelSet) -> SafetyModel:
        """The model of harmlessness: it reads reasoning and summary."""
        s, judging = self.settings, self.settings.judging
        return SafetyModel(
            labels=labels.labels(),
            epochs=judging.epochs,
            batch=judging.batch,
            lr=judging.lr,
            seed=s.seed,
            workers=s.workers,
        )

    def rule_rl(self) -> RL:
        """All-scenario RL before the preferences come in."""
        return self._rl(self.settings.ruled, self.countdown)

    def scenario_rl(self, helpful: RewardFolder, safe: RewardFolder) -> RL:
        """All-scenario RL: rules for problems, preferences for requests, and a watch for reward hacking."""
        s, scenarios = self.settings, self.settings.scenarios
        only = (self.requests.name,)
        liked = PreferenceReward(helpful.path, scenarios.helpful, "helpful", only=only)
        harmless = PreferenceReward(safe.path, scenarios.safe, "harmless", only=only)
        return replace(
            self._rl(s.final, self.countdown, liked, harmless, requests=scenarios.requests),
            hacking=Hacking((Look(self.countdown), Look(self.requests, "preference")), scenarios.every),
        )

    def logits(self, examples: ExampleSet, teacher: Checkpoint) -> Distillation:
        """Distillation of the teacher's probabilities, on the same examples."""
        s, tuning = self.settings, self.settings.tuning
        return Distillation(
            teacher,
            examples.examples(),
            epochs=tuning.epochs,
            examples_per_step=tuning.examples_per_step,
            lr=tuning.lr,
            learner=LearnerSettings(micro_tokens=4096, precision=s.precision),
            seed=s.seed,
            workers=s.workers,
        )

    def student_rl(self, distilled: Checkpoint, times: int) -> RL:
        """RL of the student itself, with ``times`` the compute that ``distilled`` cost, or a little more."""
        zero = self.settings.zero
        steps = rl_steps(distilled.provenance()["tokens"], zero, times)
        return self._rl(replace(zero, steps=steps), self.strict)

    def _rl(self, given: Reinforcement, countdown: Countdown, *preferences: Shaping, requests: float = 0.0) -> RL:
        """RL on problems, and on requests as a share of the prompts."""
        s = self.settings
        task: Task = replace(countdown, format_weight=given.format)
        if requests:
            others = replace(self.requests, format_weight=given.format)
            task = Mixture(((task, 1 - requests), (others, requests)), s.seed)
        beside = Shaped(language=given.language, overlong=given.overlong)
        knobs = Knobs(refill=0) if given.method == "dapo" else Knobs()  # a step is the same work for every method
        return RL(
            task=task,
            method=method(given.method, knobs, s.max_tokens, (*summands(beside, s.max_tokens), *preferences)),
            lexicon=LEXICON,
            steps=given.steps,
            prompts=given.prompts,
            samples=given.samples,
            updates=given.updates,
            max_tokens=s.max_tokens,
            temperature=given.temperature,
            seed=s.seed,
            workers=s.workers,
            learner=LearnerSettings(precision=s.precision),
            engine=self.engine,
            optimizer=AdamW(lr=given.lr, schedule=Schedule(warmup=2, decay=1.0, final=given.final)),
        )

    def _look(self, title: str, task: Task, asked: EvaluationSettings) -> Evaluate:
        return Evaluate(task, LEXICON, asked, self.engine, workers=self.settings.workers, title=title)

    def _surrendered(self, given: Collecting) -> tuple[tuple[Message, ...], ...]:
        """Replies of people who found nothing, and say so."""
        return surrendered(self.countdown, round(given.surrendered * given.prompts), _MANY, self.settings.seed)

    def _against(self) -> tuple[Against, ...]:
        """The problems of the evaluations, which no example may hold."""
        asked = self.settings.evaluation
        return (
            Against(self.strict, "test", asked.problems),
            Against(self.requests, "test", asked.problems // 2),
            Against(self.strict, "dev", 50),
        )


_SHORT: Final = 60
"""Tokens of a reply, at least, once RL has begun: what a step of it costs is not estimated too high."""


def rl_steps(tokens: int, rl: Reinforcement, times: int) -> int:
    """Steps of RL that cost ``times`` as much as learning from so many tokens, which is 6 FLOPs a parameter.

    A token of RL is sampled with 2 and learned with 6.
    """
    return math.ceil(times * 6 * tokens / ((2 + 6) * rl.prompts * rl.samples * _SHORT))
