"""What recipe ``r1_model`` is given: models, files, servers; which parts of the road they are enough for."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from longthought.core.errors import DataError, SettingsError
from longthought.core.files import read_json
from longthought.core.protocols import Task
from longthought.models.config import ModelConfig
from longthought.recipes.r1_model_files import JudgementFile
from longthought.recipes.r1_model_settings import R1ModelSettings
from longthought.recipes.r1_zero import Problems, R1ZeroSettings, model_in, task_of
from longthought.runs.artifacts import CONFIG, Checkpoint
from longthought.stages.parts import Part, Parts
from longthought.stages.sifting import Against
from longthought.tasks.examples import ExampleReading, Examples
from longthought.tasks.files import FileTask
from longthought.tasks.grading import ReplyForm
from longthought.tasks.mixture import Mixture
from longthought.tasks.open_prompts import OpenPrompts, PromptReading
from longthought.tasks.preferences import Labels, Preferences

LOOKED_AT = 50
"""Problems of a look for reward hacking."""

_FEWEST = 10  # of them


class Given:
    """All of it, read and checked whole when it is made."""

    def __init__(self, settings: R1ModelSettings) -> None:
        s = self.settings = settings
        self.base = model_in(s.model, s.template)
        self.student = None if s.student is None else model_in(s.student, s.template)
        self.problems = self._problems()
        self.prompts = self._prompts()
        self.written = self._conversations("general", s.general.file, s.general.bad)
        self.shown = self._conversations("chains.demonstrations", s.chains.demonstrations)
        self.edited = self._conversations("chains.edited", s.chains.edited)
        pairs, labels = s.preferences, s.labels
        self.pairs = None if pairs.file is None else Preferences.read(pairs.file, **_reading(pairs))
        self.labels = None if labels.file is None else Labels.read(labels.file, **_reading(labels))

    @property
    def compares(self) -> bool:
        """Whether pairs of replies are judged here."""
        return self.prompts is not None and self.pairs is None and bool(self.settings.judge.url)

    @property
    def labelling_here(self) -> bool:
        """Whether replies are called safe or not here."""
        return self.prompts is not None and self.labels is None and bool(self.settings.judge.principles)

    @property
    def helps(self) -> bool:
        """Whether there is a model of helpfulness."""
        return self.pairs is not None or self.compares

    @property
    def guards(self) -> bool:
        """Whether there is a model of harmlessness."""
        return self.labels is not None or self.labelling_here

    def parts(self) -> Parts:
        """Which parts there are, and why others are left out."""
        s = self.settings
        always = {
            "zero": f"R1-Zero, {s.zero.steps:,} steps",
            "chains": "direct prompting with reflection, outputs of R1-Zero",
            "reasoner": f"reasoning RL, {s.reasoning.steps:,} steps",
            "traces": f"{self.within(s.traces.prompts):,} problems × {s.traces.samples:,} samples",
            "ruled": f"all-scenario RL by rule, {s.ruled.steps:,} steps",
        }
        found = [Part(name, made_of) for name, made_of in always.items()]
        found += [Part(name, of, "" if there else why) for name, of, there, why in self._optional()]
        keys = {one.key for one in (s.judge, s.rewriter) if one.url and one.key}
        return Parts(tuple(found), tuple(sorted(keys)))

    def _optional(self) -> list[tuple[str, str, object, str]]:
        """Parts by name, what they are made of, what is false if they are left out, and why they are."""
        s, judge, paid = self.settings, self.settings.judge, self.helps or self.guards
        prompts = "prompts.file is not given, and rewards by preference are for general prompts alone"
        pairs = "neither preferences.file nor judge.url is given" if self.prompts is not None else prompts
        labels = "neither labels.file nor judge.principles is given" if self.prompts is not None else prompts
        watch = f"fewer than {_FEWEST} problems are in the split dev" if s.rewards.every else "rewards.every=0"
        student, distil = "student is not given", s.distil
        logits, against = "distil.logits=false", "distil.against is empty"
        return [
            ("chains: few-shot", str(s.chains.demonstrations), self.shown, "chains.demonstrations is not given"),
            ("chains: edited", str(s.chains.edited), self.edited, "chains.edited is not given"),
            ("chains: rewriting", s.rewriter.model, s.rewriter.url, "rewriter.url is not given"),
            ("traces: general", _counted(self.written), self.written, "general.file is not given"),
            ("traces: judge", judge.model, judge.url, "judge.url is not given, so rules alone say what is right"),
            ("helpful", judge.model if self.compares else str(s.preferences.file), self.helps, pairs),
            ("safe", judge.model if self.labelling_here else str(s.labels.file), self.guards, labels),
            ("r1", f"all-scenario RL with preferences, {s.final.steps:,} steps", paid, "no rewards by preference"),
            ("r1: watch", f"{self.looked_at} problems", self.looked_at, watch if paid else "no rewards by preference"),
            ("distilled", str(s.student), self.student, student),
            ("distilled_logits", str(s.student), self.student and distil.logits, logits if self.student else student),
            ("small_rl", str(s.student), self.student and distil.against, against if self.student else student),
        ]

    def _problems(self) -> Task:
        """The problems, in R1-Zero's form."""
        s = self.settings
        task = task_of(R1ZeroSettings(problems=Problems(**asdict(s.problems)), seed=s.seed))
        for part in _parts(task):
            if not isinstance(part, FileTask) and self.form != "think_answer":
                raise SettingsError(
                    f"form={self.form}: {part.name} wants <think> … </think> <answer> … </answer> in every stage, so "
                    "that a reply with a summary would be wrong there: set form=think_answer, or use files alone"
                )
            if isinstance(part, FileTask) and part.size("test") < 2:
                raise SettingsError(
                    f"{part.name}: {part.size('test')} problems are held out, and models are measured on at least 2: "
                    "raise problems.test_share, or give problems.test"
                )
        return task

    @property
    def form(self) -> ReplyForm:
        """Of a reply, from the cold start on."""
        return self.settings.form

    def _prompts(self) -> OpenPrompts | None:
        s, given = self.settings, self.settings.prompts
        if given.file is None:
            return None
        reading = PromptReading(given.column, given.bad, single=bool(s.template))
        return OpenPrompts.read(given.file, reading=reading, test_share=given.test_share, seed=s.seed)

    def _conversations(self, name: str, file: Path | None, bad: Any = "refuse") -> Examples | None:
        """Conversations of a file that the model's format has a place for."""
        if file is None:
            return None
        found = Examples.read(file, reading=ExampleReading(bad=bad), held_out=0.0)
        kept = found.conversations
        if not self.settings.template or name == "chains.demonstrations":
            return found
        turns = [tuple(one.role for one in kept[number]) for number in range(len(kept))]
        unfit = [number for number, roles in enumerate(turns) if roles != ("user", "assistant")]
        if not unfit:
            return found
        if bad == "refuse" or len(unfit) == len(turns):
            place, line = kept.where(unfit[0])
            raise DataError(
                f"{name}: {len(unfit):,} of {len(turns):,} conversations are not one question and one reply, as the "
                f"template {self.settings.template} asks for; the first: {place}:{line}. Mend them, or leave them out "
                "(general.bad=skip)"
            )
        left = set(unfit)
        return Examples.of([kept[number] for number in range(len(kept)) if number not in left])

    def graded(self, form: ReplyForm, weight: float) -> Task:
        """The problems, graded in a form, whose reward is ``weight``."""
        return _graded(self.problems, form, weight)

    def opened(self, weight: float) -> OpenPrompts:
        """The general prompts, of which the form earns ``weight``."""
        assert self.prompts is not None
        return replace(self.prompts, format_weight=weight)

    @cached_property
    def looked_at(self) -> int:
        """Problems of a look for reward hacking; 0: there are too few, or nobody looks, or for nothing."""
        sizes = [part.size("dev") for part in _parts(self.problems) if isinstance(part, FileTask)]
        held = min([LOOKED_AT, *sizes])
        return held if held >= _FEWEST and self.settings.rewards.every and (self.helps or self.guards) else 0

    def within(self, asked: int) -> int:
        """So many problems, or all that files have for training."""
        parts = _parts(self.problems)
        sizes = [part.size("train") for part in parts if isinstance(part, FileTask)]
        return min(asked, sum(sizes)) if len(sizes) == len(parts) else asked

    def against(self) -> tuple[Against, ...]:
        """The problems of the evaluations and looks, which no example may hold."""
        held = {"test": self.settings.evaluation.problems, "dev": LOOKED_AT}
        return tuple(
            Against(part, split, None if isinstance(part, FileTask) else count)  # type: ignore[arg-type]
            for part in _parts(self.problems)
            for split, count in held.items()
        )


def _parts(task: Task) -> tuple[Task, ...]:
    return tuple(part for part, _ in task.parts) if isinstance(task, Mixture) else (task,)


def _graded(task: Task, form: ReplyForm, weight: float) -> Task:
    if isinstance(task, Mixture):
        return replace(task, parts=tuple((_graded(part, form, weight), share) for part, share in task.parts))
    if isinstance(task, FileTask):
        return replace(task, grading=replace(task.grading, form=form, format_weight=weight))
    generator: Any = task
    made: Task = replace(generator, format_weight=weight)
    return made


def _counted(examples: Examples | None) -> str:
    return "" if examples is None else f"{examples.size('train'):,} conversations"


def config_of(model: Checkpoint) -> ModelConfig:
    """Of a folder. Raises CheckpointError."""
    return ModelConfig.from_hf(read_json(model.path, CONFIG), model.path / CONFIG)


def _reading(given: JudgementFile) -> dict[str, Any]:
    return {"held_out": given.held_out, "bad": given.bad}


def askable(prompts: OpenPrompts, asked: int) -> int:
    """So many prompts, or as many as there are when a share is held out. Raises SettingsError below 4."""
    share, train, test = prompts.test_share, prompts.size("train"), prompts.size("test")
    for count in range(min(asked, train + test), 3, -1):
        held = min(max(2, round(count * share)), count - 2)
        if held <= test and count - held <= train:
            return count
    raise SettingsError(
        f"{prompts.name}: {train} prompts to train on and {test} held out are too few to have replies judged: at least "
        "2 of either are needed; give more of them, or raise prompts.test_share"
    )


def check_context(model: Checkpoint, reply: int, example: int | None) -> ModelConfig:
    """The config of a model whose context has room for both, in tokens. Raises SettingsError."""
    config = config_of(model)
    context = config.max_position_embeddings
    if reply >= context or (example or 0) > context:
        raise SettingsError(
            f"{model.path} has a context of {context:,} tokens, too short for replies of {reply:,} with their prompts, "
            f"or for sft.context={example}: lower max_tokens, evaluation.max_tokens, longer, or sft.context"
        )
    return config
