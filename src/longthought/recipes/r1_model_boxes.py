"""What the boxes of recipe ``r1_model`` hold: a model, problems and judgements of one's own, and the paper's values."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

from longthought.core.errors import SettingsError
from longthought.core.protocols import Shaping, Task
from longthought.engine.engine import EngineSettings
from longthought.evaluation.behaviours import ENGLISH
from longthought.models.lora import LoRA
from longthought.recipes.methods import Knobs, Shaped, method, summands
from longthought.recipes.r1_model_files import Server
from longthought.recipes.r1_model_given import Given, askable, check_context, config_of
from longthought.recipes.r1_model_settings import R1ModelSettings, Stretch
from longthought.recipes.r1_zero import within
from longthought.runs.artifacts import Checkpoint
from longthought.runs.reward_folder import RewardFolder
from longthought.stages.chain_sources import Direct, FewShot, Outputs, Source
from longthought.stages.cold_start import ColdStart
from longthought.stages.comparing import Comparing
from longthought.stages.distillation import Distillation
from longthought.stages.example_set import ExampleSet
from longthought.stages.hacking import Hacking, Look
from longthought.stages.judgement_set import LabelSet, PreferenceSet
from longthought.stages.labelling import Labelling
from longthought.stages.measure import Evaluate
from longthought.stages.preference_reward import PreferenceReward
from longthought.stages.rejection_sampling import RejectionSampling
from longthought.stages.reward_model import RewardModel, SafetyModel
from longthought.stages.rewriting import EndpointRewriter
from longthought.stages.rl import RL
from longthought.stages.sft import SFT
from longthought.stages.sifting import General
from longthought.tasks.examples import Examples
from longthought.tasks.grading import ReplyForm
from longthought.tasks.mixture import Mixture
from longthought.training.learner import LearnerSettings
from longthought.training.optimizer import AdamW
from longthought.training.schedule import Schedule
from longthought.verifiers.constitution import Observance
from longthought.verifiers.endpoint import Endpoint
from longthought.verifiers.judge import Judge, PairJudge

_REFERENCE = 200  # steps, each of two optimizer steps
_LORA = 10  # a LoRA's learning rate, in those of all weights
_RATES: Final = ((3e9, 1e-4), (10e9, 8e-5), (20e9, 7e-5), (50e9, 6e-5), (math.inf, 2e-5))
"""Parameters of a student, below, and its learning rate: R1's of 1.5B, 7B, 14B, 32B and 70B."""


class Boxes(Given):
    """Every box, from the settings and what is given."""

    def __init__(self, settings: R1ModelSettings) -> None:
        self.engine = EngineSettings(settings.slots, precision=settings.precision)
        super().__init__(settings)
        self._check()

    @property
    def looks(self) -> tuple[Evaluate, ...]:
        """What every model is asked."""
        s, task = self.settings, self.graded(self.form, 0.1)
        asked = within(task, s.evaluation)
        return (Evaluate(task, ENGLISH, asked, self.engine, workers=s.workers, title="problems"),)

    def zero(self) -> RL:
        """R1-Zero: accuracy and format alone."""
        strict: ReplyForm = "think" if self.form == "think" else "think_answer"
        return self._rl(self.settings.zero, self.graded(strict, self.settings.zero.format))

    def cold_start(self) -> ColdStart:
        """Long chains: worked examples in the prompt, a request to reflect, what R1-Zero says, what people wrote."""
        s, chains, task = self.settings, self.settings.chains, self.graded(self.form, 0.1)
        asked: dict[str, Any] = {
            "prompts": self.within(chains.prompts),
            "samples": chains.samples,
            "max_tokens": s.max_tokens,
        }
        sources: list[Source] = [Direct(**asked), Outputs(**asked)]
        if self.shown is not None:
            sources.insert(0, FewShot(demonstrations=self.shown, shots=chains.shots, **asked))
        return ColdStart(
            task,
            sources=tuple(sources),
            rewriter=EndpointRewriter(_endpoint(s.rewriter)) if s.rewriter.url else None,
            edited=self.edited,
            keep_per_prompt=chains.keep,
            most=chains.most,
            against=self.against(),
            seed=s.seed,
            engine=self.engine,
            workers=s.workers,
        )

    def sft(self, examples: ExampleSet, cold: bool = False) -> SFT:
        """Fine-tuning of the base on the examples of the cold start, or of rejection sampling."""
        tuning = self.settings.sft
        return self._tuned(
            examples.examples(),
            epochs=tuning.cold if cold else tuning.epochs,
            examples_per_step=tuning.examples_per_step,
            lr=self._rate(tuning.lr, 5e-5),
        )

    def reasoning_rl(self) -> RL:
        """RL after the cold start, with the reward for one language."""
        given = self.settings.reasoning
        return self._rl(given, self.graded(self.form, given.format))

    def rejection_sampling(self) -> RejectionSampling:
        """Right and readable replies of the reasoner, and, as a quarter, conversations about other things."""
        s, traces = self.settings, self.settings.traces
        return RejectionSampling(
            self.graded(self.form, 0.1),
            prompts=self.within(traces.prompts),
            samples=traces.samples,
            max_tokens=s.max_tokens,
            temperature=traces.temperature,
            keep_per_prompt=traces.keep,
            judge=Judge(_endpoint(s.judge)) if s.judge.url else None,
            general=None if self.written is None else General(self.written, s.general.share),
            against=self.against(),
            seed=s.seed + 1,
            engine=self.engine,
            workers=s.workers,
        )

    def comparing(self) -> Comparing:
        """Pairs of replies to general prompts, compared by the judge."""
        judge = self.settings.judge
        return Comparing(
            self.opened(0.1),
            PairJudge(_endpoint(judge)),
            samples=judge.samples,
            pairs_per_prompt=judge.pairs,
            votes=judge.votes,
            least_gap=judge.least_gap,
            **self._judged(),
        )

    def helpful(self, pairs: PreferenceSet | None) -> RewardModel:
        """The model of helpfulness: it reads the summary. pairs: those that were compared here, if any."""
        given = self.pairs if pairs is None else pairs.preferences()
        assert given is not None
        return RewardModel(pairs=given, length_balance=self.settings.rewards.length_balance, **self._learned())

    def labelling(self) -> Labelling:
        """Replies to general prompts, called safe or not by the judge, by principles."""
        judge = self.settings.judge
        rater = Observance(_endpoint(judge), judge.principles)
        return Labelling(self.opened(0.1), rater, samples=2, **self._judged())

    def safety(self, labels: LabelSet | None) -> SafetyModel:
        """The model of harmlessness: it reads reasoning and summary. labels: those that were given here, if any."""
        given = self.labels if labels is None else labels.labels()
        assert given is not None
        return SafetyModel(labels=given, **self._learned())

    def rule_rl(self) -> RL:
        """All-scenario RL before the preferences come in."""
        given = self.settings.ruled
        return self._rl(given, self.graded(self.form, given.format))

    def scenario_rl(self, helpful: RewardFolder | None, safe: RewardFolder | None) -> RL:
        """All-scenario RL: rules for problems, preferences for general prompts, and a watch for reward hacking."""
        s, weights = self.settings, self.settings.rewards
        only = self._everything().names[-1:]
        given = (("helpful", helpful, weights.helpful), ("harmless", safe, weights.safe))
        return self._scenarios(
            *(PreferenceReward(one.path, weight, name, only=only) for name, one, weight in given if one is not None),
            watch=s.rewards.every > 0,
        )

    def distillation(self, traces: ExampleSet) -> SFT:
        """The student learns the replies of the teacher."""
        distil = self.settings.distil
        return self._tuned(
            traces.examples(), epochs=distil.epochs, examples_per_step=distil.examples_per_step, lr=self._student_rate()
        )

    def logits(self, traces: ExampleSet, teacher: Checkpoint) -> Distillation:
        """The student learns the teacher's probabilities, on the same examples."""
        s, distil = self.settings, self.settings.distil
        return Distillation(
            teacher,
            traces.examples(),
            epochs=distil.epochs,
            examples_per_step=distil.examples_per_step,
            lr=self._student_rate(),
            final=s.sft.final,
            context=s.sft.context,
            long="skip",
            unfit="skip",
            adapter=self._adapter(),
            learner=LearnerSettings(s.sft.micro_tokens, precision=s.precision),
            seed=s.seed,
            workers=s.workers,
        )

    def student_rl(self, distilled: Checkpoint, traces: ExampleSet, times: int) -> RL:
        """RL of the student itself, with ``times`` the compute that ``distilled`` cost, if its replies are as long as
        the teacher's: a token of RL is sampled with 2 FLOPs a parameter and learned with 6."""
        zero, told = self.settings.zero, traces.report()
        each = zero.prompts * zero.samples * told["tokens"] / told["sampled"]
        steps = math.ceil(times * 6 * distilled.provenance()["tokens"] / ((2 + 6) * each))
        return replace(self.zero(), steps=steps, longer=())

    def _check(self) -> None:
        """Raises SettingsError for what a later stage would refuse, when much were computed already."""
        s = self.settings
        stretches = [self.zero(), self.reasoning_rl(), self.rule_rl()]
        if self.prompts is not None:
            watched = (_Later("helpful"),) if self.helps else (_Later("harmless"),)
            stretches.append(self._scenarios(*watched, watch=s.rewards.every > 0))
        self.cold_start(), self.rejection_sampling(), self.parts()
        if self.compares:
            self.comparing()
        if self.labelling_here:
            self.labelling()
        longest = max(s.evaluation.max_tokens, *(one.longest for one in stretches))
        check_context(self.base, longest, s.sft.context)
        if self.student is not None:
            config = check_context(self.student, max(s.evaluation.max_tokens, s.max_tokens), s.sft.context)
            if s.distil.logits and config.vocab_size != config_of(self.base).vocab_size:
                raise SettingsError(
                    f"distil.logits: the student's embeddings have {config.vocab_size:,} rows, the model's "
                    f"{config_of(self.base).vocab_size:,}: leave it out; the student learns the replies as text"
                )

    def _everything(self) -> Mixture:
        """Problems and general prompts."""
        s = self.settings
        share, weight = s.prompts.share, s.final.format
        return Mixture(((self.graded(self.form, weight), 1 - share), (self.opened(weight), share)), s.seed)

    def _scenarios(self, *preferences: Shaping, watch: bool) -> RL:
        made = self._rl(self.settings.final, self._everything(), *preferences)
        if not (watch and self.looked_at):
            return made
        look = Look(self.graded(self.form, 0.1), problems=self.looked_at, title="problems")
        proxy = tuple(one.name for one in preferences)
        return replace(made, hacking=Hacking((look,), self.settings.rewards.every, proxy=proxy))

    def _rl(self, given: Stretch, task: Task, *preferences: Shaping) -> RL:
        s, rl = self.settings, self.settings.rl
        adapter, limits = self._adapter(), given.limits()
        longest = max([s.max_tokens, *(tokens for _, tokens in limits)])
        beside = Shaped(language=given.language, overlong=rl.overlong)
        off = preferences and rl.method == "dapo" and s.knobs.refill is None  # no rule tells which replies differ
        knobs: Knobs = replace(s.knobs, refill=0) if off else s.knobs
        made = method(rl.method, knobs, s.max_tokens, (*summands(beside, longest), *preferences))
        usual = _REFERENCE if made.needs_reference and adapter is None else 0
        fall = Schedule(rl.warmup, 1.0, rl.final) if rl.final < 1 else Schedule(rl.warmup)
        return RL(
            task=task,
            method=made,
            steps=given.steps,
            prompts=given.prompts,
            samples=given.samples,
            updates=given.updates,
            max_tokens=s.max_tokens,
            longer=limits,
            temperature=given.temperature,
            seed=s.seed,
            reference_every=usual if rl.reference_every is None else rl.reference_every,
            gap_limit=rl.gap_limit,
            save_every=rl.save_every,
            adapter=adapter,
            workers=s.workers,
            learner=LearnerSettings(rl.micro_tokens, precision=s.precision),
            engine=self.engine,
            optimizer=AdamW(lr=self._rate(given.lr, 3e-6), schedule=fall),
        )

    def _tuned(self, examples: Examples, **budget: Any) -> SFT:
        s = self.settings
        return SFT(
            examples,
            final=s.sft.final,
            context=s.sft.context,
            long="skip",
            unfit="skip",
            adapter=self._adapter(),
            learner=LearnerSettings(s.sft.micro_tokens, precision=s.precision),
            seed=s.seed,
            workers=s.workers,
            **budget,
        )

    def _judged(self) -> dict[str, Any]:
        """What both stages share in which the judge is asked about replies."""
        s, asked = self.settings, self.settings.judge.prompts
        return {
            "prompts": askable(self.opened(0.1), asked),
            "max_tokens": s.max_tokens,
            "held_out": s.prompts.test_share,
            "seed": s.seed,
            "engine": self.engine,
            "workers": s.workers,
        }

    def _learned(self) -> dict[str, Any]:
        """What both reward models share."""
        s, rewards = self.settings, self.settings.rewards
        return {
            "epochs": rewards.epochs,
            "batch": rewards.batch,
            "lr": rewards.lr,
            "context": rewards.context,
            "long": "skip",
            "unfit": "skip",
            "seed": s.seed,
            "workers": s.workers,
        }

    def _adapter(self) -> LoRA | None:
        given = self.settings.adapter
        return LoRA(given.rank, given.alpha) if given.rank else None

    def _rate(self, given: float | None, usual: float) -> float:
        return given if given is not None else usual * (_LORA if self.settings.adapter.rank else 1)

    def _student_rate(self) -> float:
        assert self.student is not None
        size = config_of(self.student).parameters()
        return self._rate(self.settings.distil.lr, next(rate for most, rate in _RATES if size < most))


class _Later:
    """In the place of a reward that is trained later, for checks alone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, group: Any, /) -> list[float]:
        return [0.0] * len(group)


def _endpoint(given: Server) -> Endpoint:
    return Endpoint(
        given.url,
        given.model,
        given.key,
        concurrency=given.concurrency,
        max_tokens=given.max_tokens,
        temperature=given.temperature,
        timeout=600.0,
    )
