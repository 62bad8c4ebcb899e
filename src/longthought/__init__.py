"""longthought: turn a base language model into a reasoning model, and let it think at test time.

    import longthought as lt

    policy = lt.load("my-model")                                       # a folder in Hugging Face layout
    logits = policy.model(tokens)                                      # (N, T) → (N, T, V), float32
    replies = lt.Engine(policy).sample(["2 + 2 = ?"], lt.SamplingParams(count=4))
    task = lt.FileTask.read("problems.jsonl", grading=lt.Grading(lt.Math()))
    trained = lt.train(lt.RL(task, lt.method("grpo")), "my-model", "runs/mine")

Names are imported when they are first used, so that ``import longthought`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from longthought.core.version import __version__ as __version__

_PLACES: Final = {
    "core.errors": ("LongthoughtError", "SettingsError", "DataError", "CheckpointError", "RunError"),
    "core.types": (
        "Message",
        "Problem",
        "Verdict",
        "Score",
        "Outcome",
        "SamplingParams",
        "Completion",
        "Finish",
        "Rollout",
        "Batch",
        "PolicyOutput",
        "Loss",
    ),
    "engine.engine": ("Engine", "EngineSettings"),
    "runs.artifacts": ("Checkpoint", "Policy", "load"),
    "runs.run": ("Run",),
    "models.lora": ("LoRA",),
    "stages.rl": ("RL",),
    "stages.sft": ("SFT",),
    "stages.distillation": ("Distillation",),
    "stages.rejection_sampling": ("RejectionSampling",),
    "stages.reward_model": ("RewardModel", "SafetyModel"),
    "stages.preference_reward": ("PreferenceReward",),
    "stages.cold_start": ("ColdStart",),
    "stages.chain_sources": ("FewShot", "Direct", "Outputs"),
    "stages.rewriting": ("EndpointRewriter",),
    "stages.comparing": ("Comparing",),
    "stages.labelling": ("Labelling",),
    "stages.local_model": ("LocalModel",),
    "stages.hacking": ("Hacking", "Look"),
    "stages.difficulty": ("MeasureDifficulty",),
    "stages.merging": ("Merge",),
    "stages.diversity": ("CheckDiversity",),
    "stages.selection": ("Select",),
    "stages.sifting": ("Against", "General"),
    "stages.method": ("Method", "Critic", "KLReward", "Refill"),
    "stages.measure": ("Evaluate",),
    "evaluation.evaluate": ("EvaluationSettings", "evaluate", "summarize"),
    "recipes.methods": ("Knobs", "method"),
    "recipes.script": ("train",),
    "training.optimizer": ("AdamW",),
    "training.schedule": ("Schedule",),
    "tasks.grading": ("Grading",),
    "tasks.files": ("FileTask",),
    "tasks.examples": ("Examples", "ExampleReading"),
    "tasks.preferences": ("Preferences", "Labels"),
    "tasks.example_rows": ("ExampleFields",),
    "tasks.file_problems": ("Reading",),
    "tasks.fields": ("Fields",),
    "tasks.mixture": ("Mixture",),
    "verifiers.function": ("Function",),
    "verifiers.math": ("Math", "equivalent"),
    "verifiers.choice": ("Choice",),
    "verifiers.exact": ("Exact", "Number", "SetMatch"),
    "verifiers.judge": ("Judge", "PairJudge"),
    "verifiers.endpoint": ("Endpoint",),
    "tasks.arithmetic": ("Arithmetic",),
    "tasks.chains": ("Chains",),
    "tasks.circuits": ("Circuits",),
    "tasks.countdown": ("Countdown",),
    "tasks.gym": ("GymTask",),
    "tasks.knights": ("Knights",),
    "tasks.paths": ("Mazes", "Paths"),
    "tasks.permutations": ("Permutations",),
    "tasks.squares": ("Squares",),
    "tasks.sudoku": ("Sudoku",),
    "verifiers.compose": ("All", "Any", "First", "Threshold", "Weighted"),
    "rollout.shaping": ("LanguageConsistency", "Length", "Overlong", "Repetition", "TokenRepetition"),
    "rollout.filters": ("Screen",),
    "verifiers.constitution": ("Constitution", "Observance"),
    "tasks.requests": ("Requests",),
    "core.protocols": ("Objective", "Sampler", "Task", "Verifier"),
    "text.templates": ("Template", "TEMPLATES"),
}
_MODULES: Final = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [*_MODULES, "__version__"]

if TYPE_CHECKING:
    from longthought.core.errors import CheckpointError as CheckpointError
    from longthought.core.errors import DataError as DataError
    from longthought.core.errors import LongthoughtError as LongthoughtError
    from longthought.core.errors import RunError as RunError
    from longthought.core.errors import SettingsError as SettingsError
    from longthought.core.protocols import Objective as Objective
    from longthought.core.protocols import Sampler as Sampler
    from longthought.core.protocols import Task as Task
    from longthought.core.protocols import Verifier as Verifier
    from longthought.core.types import Batch as Batch
    from longthought.core.types import Completion as Completion
    from longthought.core.types import Finish as Finish
    from longthought.core.types import Loss as Loss
    from longthought.core.types import Message as Message
    from longthought.core.types import Outcome as Outcome
    from longthought.core.types import PolicyOutput as PolicyOutput
    from longthought.core.types import Problem as Problem
    from longthought.core.types import Rollout as Rollout
    from longthought.core.types import SamplingParams as SamplingParams
    from longthought.core.types import Score as Score
    from longthought.core.types import Verdict as Verdict
    from longthought.engine.engine import Engine as Engine
    from longthought.engine.engine import EngineSettings as EngineSettings
    from longthought.evaluation.evaluate import EvaluationSettings as EvaluationSettings
    from longthought.evaluation.evaluate import evaluate as evaluate
    from longthought.evaluation.evaluate import summarize as summarize
    from longthought.models.lora import LoRA as LoRA
    from longthought.recipes.methods import Knobs as Knobs
    from longthought.recipes.methods import method as method
    from longthought.recipes.script import train as train
    from longthought.rollout.filters import Screen as Screen
    from longthought.rollout.shaping import LanguageConsistency as LanguageConsistency
    from longthought.rollout.shaping import Length as Length
    from longthought.rollout.shaping import Overlong as Overlong
    from longthought.rollout.shaping import Repetition as Repetition
    from longthought.rollout.shaping import TokenRepetition as TokenRepetition
    from longthought.runs.artifacts import Checkpoint as Checkpoint
    from longthought.runs.artifacts import Policy as Policy
    from longthought.runs.artifacts import load as load
    from longthought.runs.run import Run as Run
    from longthought.stages.chain_sources import Direct as Direct
    from longthought.stages.chain_sources import FewShot as FewShot
    from longthought.stages.chain_sources import Outputs as Outputs
    from longthought.stages.cold_start import ColdStart as ColdStart
    from longthought.stages.comparing import Comparing as Comparing
    from longthought.stages.difficulty import MeasureDifficulty as MeasureDifficulty
    from longthought.stages.distillation import Distillation as Distillation
    from longthought.stages.diversity import CheckDiversity as CheckDiversity
    from longthought.stages.hacking import Hacking as Hacking
    from longthought.stages.hacking import Look as Look
    from longthought.stages.labelling import Labelling as Labelling
    from longthought.stages.local_model import LocalModel as LocalModel
    from longthought.stages.measure import Evaluate as Evaluate
    from longthought.stages.merging import Merge as Merge
    from longthought.stages.method import Critic as Critic
    from longthought.stages.method import KLReward as KLReward
    from longthought.stages.method import Method as Method
    from longthought.stages.method import Refill as Refill
    from longthought.stages.preference_reward import PreferenceReward as PreferenceReward
    from longthought.stages.rejection_sampling import RejectionSampling as RejectionSampling
    from longthought.stages.reward_model import RewardModel as RewardModel
    from longthought.stages.reward_model import SafetyModel as SafetyModel
    from longthought.stages.rewriting import EndpointRewriter as EndpointRewriter
    from longthought.stages.rl import RL as RL
    from longthought.stages.selection import Select as Select
    from longthought.stages.sft import SFT as SFT
    from longthought.stages.sifting import Against as Against
    from longthought.stages.sifting import General as General
    from longthought.tasks.arithmetic import Arithmetic as Arithmetic
    from longthought.tasks.chains import Chains as Chains
    from longthought.tasks.circuits import Circuits as Circuits
    from longthought.tasks.countdown import Countdown as Countdown
    from longthought.tasks.example_rows import ExampleFields as ExampleFields
    from longthought.tasks.examples import ExampleReading as ExampleReading
    from longthought.tasks.examples import Examples as Examples
    from longthought.tasks.fields import Fields as Fields
    from longthought.tasks.file_problems import Reading as Reading
    from longthought.tasks.files import FileTask as FileTask
    from longthought.tasks.grading import Grading as Grading
    from longthought.tasks.gym import GymTask as GymTask
    from longthought.tasks.knights import Knights as Knights
    from longthought.tasks.mixture import Mixture as Mixture
    from longthought.tasks.paths import Mazes as Mazes
    from longthought.tasks.paths import Paths as Paths
    from longthought.tasks.permutations import Permutations as Permutations
    from longthought.tasks.preferences import Labels as Labels
    from longthought.tasks.preferences import Preferences as Preferences
    from longthought.tasks.requests import Requests as Requests
    from longthought.tasks.squares import Squares as Squares
    from longthought.tasks.sudoku import Sudoku as Sudoku
    from longthought.text.templates import TEMPLATES as TEMPLATES
    from longthought.text.templates import Template as Template
    from longthought.training.optimizer import AdamW as AdamW
    from longthought.training.schedule import Schedule as Schedule
    from longthought.verifiers.choice import Choice as Choice
    from longthought.verifiers.compose import All as All
    from longthought.verifiers.compose import Any as Any
    from longthought.verifiers.compose import First as First
    from longthought.verifiers.compose import Threshold as Threshold
    from longthought.verifiers.compose import Weighted as Weighted
    from longthought.verifiers.constitution import Constitution as Constitution
    from longthought.verifiers.constitution import Observance as Observance
    from longthought.verifiers.endpoint import Endpoint as Endpoint
    from longthought.verifiers.exact import Exact as Exact
    from longthought.verifiers.exact import Number as Number
    from longthought.verifiers.exact import SetMatch as SetMatch
    from longthought.verifiers.function import Function as Function
    from longthought.verifiers.judge import Judge as Judge
    from longthought.verifiers.judge import PairJudge as PairJudge
    from longthought.verifiers.math import Math as Math
    from longthought.verifiers.math import equivalent as equivalent


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'longthought' has no attribute {name!r}")
    return getattr(import_module(f"longthought.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
