"""What may be set in recipe ``r1_model``. What DeepSeek-R1 (arXiv:2501.12948v2) published stands behind the value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longthought.core.errors import SettingsError
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.models.precision import Precision
from longthought.recipes.methods import Knobs, MethodName
from longthought.recipes.r1_model_files import GeneralFile, JudgementFile, Judging, ProblemFiles, PromptFile, Server
from longthought.recipes.r1_zero import Adapter
from longthought.stages.reward_loop import LengthBalance


@dataclass(frozen=True)
class Reinforcing:
    """What all stretches of RL have in common.

    method: an algorithm of recipes/methods.py; R1: grpo, with a KL coefficient of 0.001.
    warmup: steps over which the learning rate rises.
    final: what it falls to at the end, as a share; R1 tells of no fall.
    reference_every: the reference becomes the policy every so many steps; 0: never; none: 200, where there is one that
    can change. R1: every 400 optimizer steps.
    overlong: width in tokens of DAPO's soft punishment before the cut; 0: none.
    micro_tokens: tokens of one forward pass; memory, not mathematics.
    gap_limit: largest mean gap of log-probs, in nats, between sampler and learner; none: what the precision explains.
    save_every: steps between two states from which a killed run goes on; a state is as large as weights and optimizer.
    """

    method: MethodName = "grpo"
    warmup: int = 5
    final: float = 1.0
    reference_every: int | None = None
    overlong: int = 0
    micro_tokens: int = 8192
    gap_limit: float | None = None
    save_every: int = 10

    def __post_init__(self) -> None:
        if self.warmup < 0 or not 0 <= self.final <= 1 or self.overlong < 0:
            raise SettingsError(
                f"warmup={self.warmup}, overlong={self.overlong}, final={self.final:g}: at least 0, and from 0 to 1"
            )


@dataclass(frozen=True)
class Stretch:
    """One stretch of RL.

    steps: rollout batches.
    prompts: of one step; R1: 512 to a rollout batch.
    samples: replies to each; R1: 16.
    updates: optimizer steps on each batch, on disjoint parts of it; R1: 16, of 512 replies each.
    temperature: of the rollouts; R1: 1, and 0.7 in the all-scenario RL.
    lr: learning rate; none: 3e-6 as R1 for all weights, 3e-5 for a LoRA.
    format: reward of the form alone; R1: as much as for the answer.
    language: weight of the share of words in the prompt's language; R1: simply added.
    longer: further token limits, each STEP:TOKENS: from that step on replies may be so long. R1-Zero doubled it.
    """

    steps: int = 200
    prompts: int = 64
    samples: int = 16
    updates: int = 2
    temperature: float = 1.0
    lr: float | None = None
    format: float = 1.0
    language: float = 0.0
    longer: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise SettingsError(f"lr={self.lr:g} must be positive")
        if not (self.format >= 0 and self.language >= 0):
            raise SettingsError(f"format={self.format:g} and language={self.language:g} must be at least 0")
        self.limits()

    def limits(self) -> tuple[tuple[int, int], ...]:
        """``longer`` as numbers."""
        found = [entry.partition(":") for entry in self.longer]
        if not all(step.strip().isdecimal() and tokens.strip().isdecimal() for step, _, tokens in found):
            raise SettingsError(f"longer={','.join(self.longer)}: write STEP:TOKENS, separated by commas, as 200:8192")
        return tuple((int(step), int(tokens)) for step, _, tokens in found)


@dataclass(frozen=True)
class Chains:
    """The cold start: long chains of thought.

    prompts: problems that each source is asked.
    samples: replies to each.
    keep: examples of one problem, at most.
    most: examples in all that were sampled; R1: thousands.
    demonstrations: file of worked problems with long thoughts, for few-shot prompting; none: no such source.
    shots: of them in front of each problem.
    edited: file of conversations that a person has edited; taken whole.
    """

    prompts: int = 2000
    samples: int = 8
    keep: int = 2
    most: int | None = 5000
    demonstrations: Path | None = None
    shots: int = 2
    edited: Path | None = None


@dataclass(frozen=True)
class Sampling:
    """Rejection sampling from the model of the reasoning RL.

    prompts: problems that are asked; a file with fewer is asked whole.
    samples: replies to each.
    keep: examples of one problem, at most; R1: 600,000 in all.
    temperature: of the sampling.
    """

    prompts: int = 20_000
    samples: int = 8
    keep: int = 4
    temperature: float = 1.0


@dataclass(frozen=True)
class Tuning:
    """Supervised fine-tuning of the base, along a cosine.

    cold: times that every example of the cold start is learned; R1: 2 to 3.
    epochs: times that every example of rejection sampling is learned; R1: 2 to 3.
    examples_per_step: of an optimizer step; R1: 128.
    lr: learning rate; none: 5e-5 as R1 for all weights, 5e-4 for a LoRA.
    final: what it falls to, as a share; R1: a tenth.
    context: longest example, in tokens; none: the model's own. R1: 32,768. What is longer is left out and counted.
    micro_tokens: tokens of one forward pass; memory, not mathematics.
    """

    cold: int = 2
    epochs: int = 2
    examples_per_step: int = 128
    lr: float | None = None
    final: float = 0.1
    context: int | None = None
    micro_tokens: int = 8192

    def __post_init__(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise SettingsError(f"lr={self.lr:g} must be positive")


@dataclass(frozen=True)
class RewardModels:
    """The models of helpfulness and harmlessness, and how the RL uses them.

    epochs: times that every judgement is learned; R1: 1.
    batch: judgements of one step; R1: 256.
    lr: learning rate; R1: 6e-6.
    context: longest reply with its prompt, in tokens; none: the model's own. R1: 8,192.
    length_balance: pairs whose better reply is the longer count as much as the others (weigh), some of those that are
    too many are left out (drop), or neither. R1's pairs are balanced.
    helpful: weight of the helpfulness of the summary, in standard deviations of its model.
    safe: weight of the harmlessness of reasoning and summary.
    every: steps between two looks for reward hacking; 0: nobody looks.
    """

    epochs: int = 1
    batch: int = 256
    lr: float = 6e-6
    context: int | None = None
    length_balance: LengthBalance = "weigh"
    helpful: float = 1.0
    safe: float = 1.0
    every: int = 10

    def __post_init__(self) -> None:
        if self.every < 0:
            raise SettingsError(f"every={self.every} must be at least 0; 0 looks for nothing")
        if not (0 < self.helpful < math.inf and 0 < self.safe < math.inf):
            raise SettingsError(f"helpful={self.helpful:g} and safe={self.safe:g} must be positive and finite")


@dataclass(frozen=True)
class Distilling:
    """What a student learns from the traces.

    epochs: times that every example is learned; R1: 2 to 3.
    examples_per_step: of an optimizer step; R1: 64.
    lr: learning rate; none: by the student's size as R1, from 1e-4 (1.5B) to 2e-5 (70B); for a LoRA ten times that.
    logits: another student learns the teacher's probabilities; needs the same vocabulary.
    against: the student's own RL, with so many times the compute of its distillation; empty: no such comparison.
    """

    epochs: int = 2
    examples_per_step: int = 64
    lr: float | None = None
    logits: bool = False
    against: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if any(times < 1 for times in self.against) or len(set(self.against)) < len(self.against):
            raise SettingsError(f"against={self.against}: whole numbers from 1 on, each once")


@dataclass(frozen=True)
class R1ModelSettings:
    """Everything that a run depends on.

    model: folder of a base model in Hugging Face layout.
    student: folder of a smaller one; none: nothing is distilled.
    template: prompt template of base models; empty: the chat templates of the folders.
    form: of a reply from the cold start on: summary, think_answer, or think, which no template of base models asks for.
    seed: of problems, samples and the orders of the examples.
    workers: processes that share every step, one per core.
    precision: of matrix products: float32, bfloat16, or auto, the fastest here; bits repeat on the same kind of CPU.
    max_tokens: longest reply in training, in tokens. R1: 32,768.
    slots: replies that are sampled together, in each process; memory of their keys and values, not mathematics.
    problems: for every stage.
    chains: the cold start.
    rewriter: makes the chains of the cold start readable; without one they stay as they are.
    zero: R1-Zero.
    reasoning: RL after the cold start.
    ruled: all-scenario RL, its first part: rewards by rule alone. R1: 1,300 optimizer steps.
    final: all-scenario RL, its last part: all prompts, and rewards by preference. R1: 400 optimizer steps.
    adapter: of all that is trained but the reward models.
    evaluation: of every model; R1: at 0.6 and top-p 0.95.
    """

    model: Path = Path("model")
    student: Path | None = None
    template: str = "r1_zero"
    form: Literal["summary", "think_answer", "think"] = "summary"
    seed: int = 0
    workers: int = 1
    precision: Precision = "auto"
    max_tokens: int = 4096
    slots: int = 256
    problems: ProblemFiles = ProblemFiles()
    rl: Reinforcing = Reinforcing()
    knobs: Knobs = Knobs()
    adapter: Adapter = Adapter()
    zero: Stretch = Stretch()
    chains: Chains = Chains()
    rewriter: Server = Server()
    reasoning: Stretch = Stretch(language=1.0)
    traces: Sampling = Sampling()
    general: GeneralFile = GeneralFile()
    sft: Tuning = Tuning()
    prompts: PromptFile = PromptFile()
    preferences: JudgementFile = JudgementFile()
    labels: JudgementFile = JudgementFile()
    judge: Judging = Judging()
    rewards: RewardModels = RewardModels()
    ruled: Stretch = Stretch(steps=130, temperature=0.7, language=1.0)
    final: Stretch = Stretch(steps=40, temperature=0.7, language=1.0)
    distil: Distilling = Distilling()
    evaluation: EvaluationSettings = EvaluationSettings(
        problems=500, samples=8, max_tokens=4096, temperature=0.6, top_p=0.95
    )

    def __post_init__(self) -> None:
        if self.template and self.form == "think":
            raise SettingsError(f"form=think: the template {self.template} asks for <answer> tags; choose summary")
        self._check_general_prompts()
        clips = {"clip_low", "clip_high", "dual_clip", "cap", "tau"}
        once = all(one.updates == 1 for one in (self.zero, self.reasoning, self.ruled, self.final))
        if once and (given := sorted(name for name in clips if getattr(self.knobs, name) is not None)):
            raise SettingsError(
                f"knobs.{given[0]} changes nothing where every stretch has updates=1: the policy is still the one that "
                "sampled, every ratio is 1 and nothing is clipped"
            )
        if self.judge.principles and self.labels.file is not None:
            raise SettingsError("labels.file and judge.principles both say what is safe: leave one of them out")
        if self.evaluation.split == "train":
            raise SettingsError("evaluation.split must not be train: the models learn from it")

    def _check_general_prompts(self) -> None:
        """Judgements without prompts to use them on, or prompts without judgements, are a mistake of the command."""
        given = [name for name in ("preferences", "labels") if getattr(self, name).file is not None]
        if self.prompts.file is None and given:
            raise SettingsError(
                f"{given[0]}.file changes nothing without prompts.file: rewards by preference are paid for replies to "
                "general prompts alone"
            )
        if self.prompts.file is not None and not given and not self.judge.url:
            raise SettingsError(
                "prompts.file changes nothing without a reward for the replies: give preferences.file, labels.file, or "
                "a judge (judge.url=… judge.model=…)"
            )
        if self.judge.principles and not self.judge.url:
            raise SettingsError("judge.principles changes nothing without judge.url")
        if self.judge.principles and self.prompts.file is None:
            raise SettingsError(
                "judge.principles changes nothing without prompts.file: it is replies to these it judges"
            )
