"""Is every number of the method connected to something? Each is turned, and the step must come out differently."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from hashlib import sha256
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from longthought.algorithms.objective import ValueLoss
from longthought.algorithms.weighting import positive_mean, token_mean
from longthought.core.errors import LongthoughtError
from longthought.core.types import CUT, Batch, Group, PolicyOutput
from longthought.diagnosis import made_up
from longthought.diagnosis.finding import Finding, listed
from longthought.diagnosis.patient import Patient
from longthought.diagnosis.proposals import proposals
from longthought.stages.earning import corrected, credit, penalties, rewards_of
from longthought.stages.method import Method
from longthought.training.batching import lay_out, weighted

_NAME = "knobs are live"
_GROUPS, _REPLIES, _LONGEST = 6, 8, 2048
_LOOP = ("critic.optimizer", "critic.pretrain", "refill")  # they steer the loop, not the equations of a step


class Knob(NamedTuple):
    """A number, flag or choice inside a method: its path, type and value, and the method with another one."""

    path: str
    kind: Any
    value: object
    turned: Callable[[object], Any]


def knobs_are_live(patient: Patient) -> list[Finding]:
    """Turn every field of objective, advantage, weighting and shaping on a made-up, strongly off-policy step."""
    step = _Step(patient)
    before = step.outcome(patient.stage.method)
    inert, turned = [], 0
    for knob in knobs(patient.stage.method):
        if knob.path.startswith(_LOOP):
            continue
        seen = _turn(knob, step, before)
        turned += seen is not None
        if seen is False:
            inert.append(f"{knob.path}={knob.value}")
    if inert:
        what = f"{len(inert)} of {turned} knobs of the method change neither rewards, advantages, loss nor gradient: "
        why = "the code does not read them, or reads another one: whatever you set there, the run is the same"
        return [Finding(_NAME, "fail", what + listed(inert), why)]
    note = "" if patient.stage.updates > 1 else "; with updates=1 every ratio is 1 and nothing is ever clipped"
    return [Finding(_NAME, "ok", f"{turned} knobs of the method were turned, each changed the step{note}")]


def knobs(value: object, path: str = "") -> Iterator[Knob]:
    """Every knob in a tree of dataclasses, partials and tuples."""
    for name, kind, one, rebuilt in _parts(value):
        here = f"{path}{name}" if name.startswith("[") else f"{path}.{name}".lstrip(".")
        if _is_plain(kind):
            yield Knob(here, kind, one, rebuilt)
            continue
        for knob in knobs(one, here):
            yield knob._replace(turned=functools.partial(_through, rebuilt, knob.turned))


def _parts(value: object) -> Iterator[tuple[str, Any, object, Callable[[object], Any]]]:
    """What a value is made of: name, type, part, and the value with another part."""
    if isinstance(value, functools.partial):
        for name, one in value.keywords.items():
            yield name, type(one), one, functools.partial(_other_keyword, value, name)
    elif isinstance(value, tuple):
        for place, one in enumerate(value):
            yield f"[{place}]", type(one), one, functools.partial(_other_member, value, place)
    elif is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        for field in fields(value):
            if field.init:
                one = getattr(value, field.name)
                kind = hints.get(field.name, type(one))
                yield field.name, kind, one, functools.partial(_other_field, value, field.name)


def _other_keyword(value: functools.partial[Any], name: str, new: object) -> Any:
    return functools.partial(value.func, *value.args, **{**value.keywords, name: new})


def _other_member(value: tuple[Any, ...], place: int, new: object) -> Any:
    return (*value[:place], new, *value[place + 1 :])


def _other_field(value: Any, name: str, new: object) -> Any:
    return replace(value, **{name: new})


def _through(outer: Callable[[object], Any], inner: Callable[[object], Any], new: object) -> Any:
    return outer(inner(new))


def _is_plain(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return True
    parts = get_args(kind)
    if parts:
        return get_origin(kind) is not tuple and all(part is type(None) or _is_plain(part) for part in parts)
    return kind in (bool, int, float)


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except Exception:  # names that only a type checker knows
        return {}


def _turn(knob: Knob, step: _Step, before: str) -> bool | None:
    """Whether some other value changes the outcome; None where every other value is refused."""
    accepted = None
    for other in proposals(knob.kind, knob.value):
        try:
            method = knob.turned(other)
        except (LongthoughtError, ValueError):
            continue
        try:
            if step.outcome(method) != before:
                return True
        except LongthoughtError:
            return True  # whoever refuses it reads it
        accepted = False
    return accepted


class _Step:
    """A made-up step in which every bound binds somewhere: log-ratios from 1e-5 to 3, both signs, cuts, all lengths."""

    def __init__(self, patient: Patient) -> None:
        longest = min(patient.stage.max_tokens, _LONGEST)
        self.groups: list[Group] = made_up.groups(_GROUPS, _REPLIES, longest, patient.problems)
        self.greedy: list[Group] = made_up.groups(_GROUPS, 1, longest, patient.problems)
        self.rollouts = [rollout for group in self.groups for rollout in group]
        self.laid = lay_out(self.rollouts)
        self.cut = torch.tensor([rollout.completion.finish in CUT for rollout in self.rollouts])
        rows, width = self.laid.tokens.shape
        row, place = torch.arange(rows)[:, None], torch.arange(width)[None]
        self.wave = torch.sin(0.7 * place + 1.1 * row)
        sign = (1 - 2 * (row % 2)).float()
        self.both_signs = torch.where(self.laid.mask, (1 - 2 * (row // 2 % 2)) * (1 + 0.2 * self.wave), 0.0)
        self.gap = sign * 10 ** (-5 + 5.5 * (row // 2) / (rows // 2 - 1)) * (1 + 0.2 * self.wave)

    def outcome(self, method: Method) -> str:
        """A digest of all that a step makes of these rollouts under a method."""
        rewards = rewards_of(self.groups, method, self.greedy if method.greedy_baseline else ())
        levels = made_up.rewards(_GROUPS, _REPLIES)
        rewards = replace(rewards, total=rewards.total + levels)
        mask, old = self.laid.mask, self.laid.logp_old
        assert old is not None
        reference = torch.where(mask, old + 0.4 * self.wave, 0.0)
        values = (torch.where(mask, 0.5 * self.wave, 0.0), 0.1 * self.wave[:, 0])
        spent = penalties(method, self.laid, reference)
        made = credit(method, self.groups, rewards, self.laid, spent, values if method.needs_values else None)
        trained = ~(self.cut & torch.tensor(method.filter_truncated))
        batch = weighted(self.laid, torch.arange(len(mask)), method.weighting, trained)
        right = torch.tensor([rollout.score.correct for rollout in self.rollouts])
        batch = replace(
            batch,
            advantage=made.advantages,
            logp_ref=reference,
            imitation=positive_mean(mask, right & trained),
        )
        now = old + self.gap
        if method.correction is not None:
            batch, _ = corrected(method, batch, now)
            now = now + self.gap.flip(0)
        told = [rewards.total, spent, made.advantages, batch.weight, batch.advantage, *_pull(method, batch, now)]
        told += _pull(method, replace(batch, advantage=self.both_signs), now)
        if method.critic is not None and made.returns is not None:
            told += self._critic(method, made.returns, values[0])
        return _digest([*told, _entropies(method)])

    def _critic(self, method: Method, returns: Tensor, before: Tensor) -> list[Tensor]:
        assert method.critic is not None
        mask = self.laid.mask
        batch = weighted(self.laid, torch.arange(len(mask)), token_mean, torch.ones(len(mask), dtype=torch.bool))
        batch = replace(batch, returns=returns, value_old=before)
        blank = torch.zeros(mask.shape)
        said = (before + 3 * self.gap).requires_grad_()
        loss = ValueLoss(method.critic.clip)(PolicyOutput(blank, blank, said), batch).value
        return [returns, loss.detach(), *torch.autograd.grad(loss, said)]


def _pull(method: Method, batch: Batch, now: Tensor) -> list[Tensor]:
    """Loss, and its gradient by log-probs and entropies."""
    logp = torch.where(batch.mask, now, 0.0).requires_grad_()
    entropy = torch.where(batch.mask, 1.0, 0.0).requires_grad_()
    loss = method.objective(PolicyOutput(logp, entropy, ahead=logp.unsqueeze(-1)), batch).value
    pulled = torch.autograd.grad(loss, (logp, entropy), allow_unused=True)
    return [loss.detach(), *(torch.zeros(()) if part is None else part for part in pulled)]


def _entropies(method: Method) -> Tensor:
    """What the control of the entropy decides over some steps."""
    if method.entropy is None:
        return torch.zeros(0)
    bonus, told = 0.0, []
    target = method.entropy.target
    for measured in [0.2 * target] * 300 + [0.9 * target, 1.1 * target, 3.0 * target, 0.05, 0.1, 0.3, 1.0, 2.0]:
        told.append(method.entropy.bonus(bonus, measured))
        bonus = method.entropy(bonus, measured)
    return torch.tensor([*told, bonus])


def _digest(parts: list[Tensor | None]) -> str:
    found = sha256()
    for part in parts:
        found.update(b"" if part is None else part.detach().contiguous().numpy().tobytes())
    return found.hexdigest()
