"""A watch for reward hacking: is what the policy is paid for still worth what it was?

A reward model is a proxy, and a policy that is trained for long enough finds what the proxy overrates (Gao, Schulman &
Hilton, Scaling laws for reward model overoptimization, arXiv:2210.10760). DeepSeek-R1 (arXiv:2501.12948v2) paid for
preferences in the last 400 of 1,700 steps only, since longer led to hacking. Here the same held-out prompts are
answered again and again, and what RL pays for the replies is compared with judgements that it does not pay for.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

from longthought.algorithms.statistics import mean_interval
from longthought.core.errors import Alarm, SettingsError
from longthought.core.protocols import Renderer, Sampler, Task
from longthought.core.types import Group, Problem, Rollout, SamplingParams
from longthought.evaluation.evaluate import distinct
from longthought.rollout.collect import collect
from longthought.runs.files import json_bytes, write_atomic
from longthought.stages.earning import rewards_of
from longthought.stages.method import Method

HACKING = "hacking.json"
"""Every look of a stage and the verdict, in the stage's folder."""

CORRECT = "correct"
"""The judgement that is the rule's: whether a reply is right."""

_BEST = "best."
_LEVEL = 0.95
_FEWEST = 10  # problems: with fewer, the normal interval of a mean is too narrow
_NAME = re.compile(r"[^\s/]+")

Judgement: TypeAlias = str | Callable[[Group], Sequence[float]]

_warn = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class Look:
    """Held-out prompts of a task, and a judgement of the replies that RL does not pay for.

    task: the problems' ids should begin as in RL, so that summands of the reward that are for some tasks know theirs.
    judgement: "correct" (the rule calls the reply right), another text (the part of the task's score of that name), or
    what gives one number for every reply of a group, such as a reward model that was trained on other judgements.
    problems: that are asked.  samples: replies to each.
    weight: of the judgement in the score by which the best look is chosen.
    title: in metrics and in ``hacking.json``; empty: the task's name.
    """

    task: Task
    judgement: Judgement = CORRECT
    problems: int = 50
    samples: int = 4
    weight: float = 1.0
    title: str = ""

    @property
    def name(self) -> str:
        """What the look is called."""
        return self.title or self.task.name

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise SettingsError(f"hacking: the name {self.name!r} of a look must be one word without /")
        if self.problems < _FEWEST or self.samples < 1:
            raise SettingsError(
                f"hacking: look {self.name}: problems={self.problems} must be at least {_FEWEST}, samples="
                f"{self.samples} at least 1: what is measured on less tells nothing apart"
            )
        if not 0 < self.weight < math.inf:
            raise SettingsError(f"hacking: look {self.name}: weight={self.weight} must be positive and finite")
        if not (callable(self.judgement) or (isinstance(self.judgement, str) and self.judgement)):
            raise SettingsError(
                f"hacking: look {self.name}: judgement={self.judgement!r}; give {CORRECT!r}, the name of a part of the "
                "task's score, or what gives one number for every reply"
            )

    def judged(self, groups: Sequence[Group]) -> list[float | None]:
        """The mean judgement of the replies to every problem; None where none could be graded.

        Raises SettingsError for a judgement that is not there, is no finite number, or not one for each reply.
        """
        return [_mean_of(self._values(group)) for group in groups]

    def _values(self, group: Group) -> Sequence[float]:
        if isinstance(self.judgement, str):
            return [self._of(rollout) for rollout in group if rollout.score.value is not None]
        values = [float(value) for value in self.judgement(group)]
        if len(values) != len(group) or not all(map(math.isfinite, values)):
            raise SettingsError(
                f"hacking: the judgement of look {self.name} must give {len(group)} finite numbers, not {values}"
            )
        return values

    def _of(self, rollout: Rollout) -> float:
        if self.judgement == CORRECT:
            return float(rollout.score.correct)
        value = rollout.score.parts.get(str(self.judgement), math.nan)
        if not math.isfinite(value):
            parts = ", ".join(rollout.score.parts) or "none"
            raise SettingsError(
                f"hacking: look {self.name}: the score of {rollout.problem.id} has no finite part "
                f"{self.judgement!r}; it has: {parts}"
            )
        return float(value)


@dataclass(frozen=True)
class Hacking:
    """Look before the first step, after every ``every``-th and after the last; where it is hacking, stop and roll back.

    The replies are sampled as in RL, with fixed seeds and RL's last token limit. Every look is compared with the best
    so far: the one with the largest score (weighted mean of the judgements) in which no judgement had fallen. A
    judgement has fallen where it is worse by more than ``tolerance`` (in its own unit), and significantly so, paired by
    problem. It is hacking when a judgement has fallen in ``patience`` looks in a row, while in each the proxy was
    higher than in the best, on these prompts or on average over the looks.

    The 95 % of significance are those of a whole run: the interval is corrected (Bonferroni) for all pairs of looks and
    all judgements until then. The best of many noisy looks was lucky, and is above all that come later; without the
    correction 74 % of runs of 40 looks would end with a false alarm where nothing but noise moves, with it under 3 %.

    proxy: names of the summands of the reward (``Method.shaping``) that are the proxy; empty: all that RL pays for a
    reply, the task's own reward included.
    keep: without hacking, whether the last weights or those of the best look are the result.
    split: of the problems.  seed: of the samples.
    """

    looks: tuple[Look, ...]
    every: int = 10
    patience: int = 2
    tolerance: float = 0.02
    proxy: tuple[str, ...] = ()
    keep: Literal["last", "best"] = "last"
    split: Literal["dev", "test"] = "dev"
    seed: int = 2_000_003

    def __post_init__(self) -> None:
        names = [look.name for look in self.looks]
        if not names or len(set(names)) < len(names):
            raise SettingsError(f"hacking: looks={names}: give at least one, each with a name of its own")
        if self.every < 1 or self.patience < 1:
            raise SettingsError(f"hacking: every={self.every} and patience={self.patience} must be at least 1")
        if not 0 <= self.tolerance < math.inf:
            raise SettingsError(f"hacking: tolerance={self.tolerance} must be 0 or positive, and finite")
        if isinstance(self.proxy, str) or len(set(self.proxy)) < len(self.proxy):
            raise SettingsError(f"hacking: proxy={self.proxy!r} must be a tuple of different names")
        if self.keep not in ("last", "best"):
            raise SettingsError(f"hacking: keep={self.keep!r}; choose last or best")
        if self.split not in ("dev", "test"):
            raise SettingsError(f"hacking: split={self.split!r}: look at problems that are held out: dev or test")

    def check(self, steps: int, method: Method) -> None:
        """Raises SettingsError for what does not fit to an RL stage of so many steps by this method."""
        if math.ceil(steps / self.every) < self.patience:
            raise SettingsError(
                f"hacking: every={self.every} makes fewer looks in {steps} steps than patience={self.patience} asks "
                "for, so nothing could be found: look more often"
            )
        known = [one.name for one in method.shaping]
        if unknown := [name for name in self.proxy if name not in known]:
            raise SettingsError(
                f"hacking: proxy: the method has no summand {unknown[0]!r} of the reward; it has: "
                f"{', '.join(known) or 'none'}"
            )
        for look in self.looks:
            if any(_is_same(look.judgement, one) for one in method.shaping):
                raise SettingsError(
                    f"hacking: the judgement of look {look.name} is a summand of the reward: what is paid for cannot "
                    "tell whether it is hacked; give one that is not paid for"
                )

    def replies(self, steps: int) -> int:
        """How many replies all looks of a stage of so many steps ask for."""
        looks = 1 + math.ceil(steps / self.every)
        return looks * sum(look.problems * look.samples for look in self.looks)


class Seen(NamedTuple):
    """What a look has measured: a judgement of every problem (None: of none of its replies), and the mean proxy."""

    judged: list[float | None]
    proxy: float

    @property
    def mean(self) -> float:
        """The mean judgement."""
        value = _mean_of([one for one in self.judged if one is not None])
        assert value is not None
        return value


@dataclass
class Watching:
    """What a watch remembers.

    step, best, weights: of the best look.  told: what ``hacking.json`` says of every look.  why: it is hacking.
    fallen: by name, looks in a row in which the judgement had fallen and the proxy was higher.
    """

    step: int = 0
    best: dict[str, Seen] = field(default_factory=dict)
    fallen: dict[str, int] = field(default_factory=dict)
    told: list[dict[str, Any]] = field(default_factory=list)
    why: str = ""
    weights: dict[str, Tensor] = field(default_factory=dict)


class HackingWatch:
    """A watch with its memory. params: how replies are sampled; ``count`` and ``seed`` are the watch's own."""

    def __init__(self, hacking: Hacking, method: Method, steps: int, params: SamplingParams) -> None:
        self._hacking, self._method, self._steps, self._params = hacking, method, steps, params
        self._problems: dict[str, list[Problem]] = {}
        self._now = Watching()

    @property
    def caught(self) -> bool:
        """Whether hacking was found, so that training is over."""
        return bool(self._now.why)

    def is_due(self, step: int) -> bool:
        """Whether to look after a step."""
        return step % self._hacking.every == 0 or step == self._steps

    def look(self, step: int, sampler: Sampler, renderer: Renderer, model: nn.Module) -> dict[str, float]:
        """Ask, measure and judge. ``look/<name>/judged``, ``look/<name>/proxy`` and ``look/score``.

        Raises Alarm when none of the replies of a look could be graded.
        """
        seen = {look.name: self._seen(step, look, sampler, renderer) for look in self._hacking.looks}
        return self.read(step, seen, lambda: _weights_of(model))

    def _seen(self, step: int, look: Look, sampler: Sampler, renderer: Renderer) -> Seen:
        own = self._hacking
        if look.name not in self._problems:
            self._problems[look.name] = distinct(look.task, own.split, look.problems)
        params = SamplingParams(look.samples, self._params.max_tokens, self._params.temperature, own.seed)
        groups = collect(look.task, self._problems[look.name], sampler, renderer, params)
        rewards = rewards_of(groups, self._method)
        paid = rewards.total.tolist()
        if own.proxy:
            nested = [rewards.shaping[name] for name in own.proxy]
            paid = [sum(values) for rows in zip(*nested) for values in zip(*rows)]
        known, judged = [value for value in paid if math.isfinite(value)], look.judged(groups)
        if not known or all(value is None for value in judged):
            verdict = groups[0][0].score.verdict
            raise Alarm(
                f"step {step}: none of the replies of look {look.name} has a grade and a reward, so hacking cannot be "
                f"seen. The first: {groups[0][0].problem.id}: {verdict.outcome}, {verdict.evidence[:300]}"
            )
        return Seen(judged, sum(known) / len(known))

    def read(self, step: int, seen: Mapping[str, Seen], weights: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
        """Judge what a look has measured; ``weights`` is called if it is the best. The metrics of the look."""
        now, score = self._now, self._score(seen)
        told: dict[str, Any] = {"step": step, "score": score, "against": now.step if now.best else None, "looks": {}}
        fell = False
        for name, one in seen.items():
            told["looks"][name] = {"judged": one.mean, "proxy": one.proxy}
            if now.best:
                told["looks"][name] |= self._compared(name, seen)
                fell = fell or told["looks"][name]["fallen"]
        now.told.append(told)
        self._judge(step)
        if not now.best or (score > self._score(now.best) and not fell):
            now.step, now.best, now.weights = step, dict(seen), weights()
        metrics = {"look/score": score}
        for name, one in seen.items():
            metrics |= {f"look/{name}/judged": one.mean, f"look/{name}/proxy": one.proxy}
        return metrics

    def _compared(self, name: str, seen: Mapping[str, Seen]) -> dict[str, Any]:
        """A look of one name against the best one; counts how often in a row it had fallen."""
        now, before, after = self._now, self._now.best[name], seen[name]
        looks = len(now.told)  # before this one
        comparisons = looks * (looks + 1) // 2 * len(seen)
        gaps = [[b - a] for a, b in zip(before.judged, after.judged) if a is not None and b is not None]
        change = low = high = 0.0
        if len(gaps) >= _FEWEST:  # else too little was graded to say anything
            change = sum(gap for (gap,) in gaps) / len(gaps)
            low, high = mean_interval(gaps, 1 - (1 - _LEVEL) / comparisons)
        fallen = change < -self._hacking.tolerance and high < 0
        risen = after.proxy > before.proxy or _mean_proxy(seen) > _mean_proxy(now.best)
        now.fallen[name] = now.fallen.get(name, 0) + 1 if fallen and risen else 0
        return {"change": change, "low": low, "high": high, "fallen": fallen, "in_a_row": now.fallen[name]}

    def _judge(self, step: int) -> None:
        now = self._now
        caught = [name for name, count in now.fallen.items() if count >= self._hacking.patience]
        if not caught:
            return
        name = caught[0]
        found, best = now.told[-1]["looks"][name], now.best[name]
        now.why = (
            f"step {step}: reward hacking: since step {now.step} the reward on held-out prompts of {name} went from "
            f"{best.proxy:.3g} to {found['proxy']:.3g}{_elsewhere(best.proxy, found['proxy'])}, and the independent "
            f"judgement of the same replies fell from {best.mean:.3g} to {found['judged']:.3g} (change "
            f"{found['change']:.3g}, interval {found['low']:.3g} to {found['high']:.3g}; {now.fallen[name]} looks in a "
            "row)"
        )

    def _score(self, seen: Mapping[str, Seen]) -> float:
        weights = {look.name: look.weight for look in self._hacking.looks}
        return sum(weights[name] * one.mean for name, one in seen.items()) / sum(weights.values())

    def settle(self, step: int, model: nn.Module, folder: Path) -> dict[str, Any]:
        """At the end, after ``step``: put the weights that are handed on into the model, write ``hacking.json``, tell
        the person what was found. Returns what the provenance of the checkpoint says."""
        now = self._now
        kept = now.step if self.caught or self._hacking.keep == "best" else step
        if kept != step:
            model.load_state_dict(now.weights, strict=False)
        if self.caught:
            _warn(
                f"{now.why}. Training was stopped and the weights of step {kept} are handed on. {folder / HACKING} has "
                "every look; compare traces of these steps with `longthought traces` to see what the reward overrates"
            )
        found = {"hacking": self.caught, "why": now.why, "trained_steps": step, "weights_after_step": kept}
        content = {**found, "best_look": now.step, "keep": self._hacking.keep, "looks": now.told}
        write_atomic(folder / HACKING, json_bytes(content, indent=1) + b"\n")
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers from which ``restore`` continues bit for bit."""
        now = self._now
        best = {name: [seen.judged, seen.proxy] for name, seen in now.best.items()}
        values = {"step": now.step, "best": best, "fallen": now.fallen, "told": now.told, "why": now.why}
        return {_BEST + name: tensor for name, tensor in now.weights.items()}, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        weights = {name.removeprefix(_BEST): t for name, t in tensors.items() if name.startswith(_BEST)}
        best = {name: Seen(judged, proxy) for name, (judged, proxy) in values["best"].items()}
        self._now = Watching(values["step"], best, dict(values["fallen"]), list(values["told"]), values["why"], weights)


def _weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy, on the CPU, of all that training moves."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: t.detach().to("cpu", copy=True) for name, t in model.state_dict().items() if name not in frozen}


def _mean_of(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_proxy(seen: Mapping[str, Seen]) -> float:
    return sum(one.proxy for one in seen.values()) / len(seen)


def _elsewhere(before: float, after: float) -> str:
    return "" if after > before else " (it rose on average over the looks)"


def _is_same(judgement: object, summand: object) -> bool:
    """Whether a judgement is a summand of the reward, or reads the same model."""
    path = getattr(judgement, "path", None)
    return judgement == summand or (path is not None and path == getattr(summand, "path", None))
