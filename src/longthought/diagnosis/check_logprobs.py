"""Sampler, learner and the policy written out must say the same of every token: temperature, alignment, gap."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from longthought.core.types import Rollout, TokenIds
from longthought.diagnosis.finding import Finding
from longthought.diagnosis.loop import Watched, watch, with_lr
from longthought.diagnosis.patient import STEPS, Patient, updates_of
from longthought.diagnosis.plain import logits_of, logprobs_of, said
from longthought.stages.updates import gap_limit
from longthought.training.batching import lay_out

_HEATS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.25, 1.5, 1.75, 2.0, 3.0)
_NOISE = 1e-4  # nats: what float32 may do to a log-prob, amply
_LOGITS = 1e7  # numbers of logits that are held at a time
_MOST = 24  # replies whose log-probs are written out
_LR = 3e-3  # of the one update after which the sampler must have the new weights
_Z, _INFORMATION = 6.0, 4.0


class _Spoken(NamedTuple):
    """What somebody said of a reply: log-probs of its tokens, (n,)."""

    rollout: Rollout
    logprobs: Tensor


class Speech:
    """Everything that was said, computed once for the three checks."""

    def __init__(self, patient: Patient) -> None:
        self.patient = patient
        self._logits: dict[TokenIds, Tensor] = {}
        self._plain: dict[tuple[TokenIds, float], Tensor] = {}
        self.limit = gap_limit(patient.stage, patient.model)
        self.bound = max(self.limit, _NOISE) if math.isfinite(self.limit) else _NOISE

    @cached_property
    def still(self) -> Watched:
        """The loop at learning rate 0."""
        return self._watched(0.0, STEPS)

    @cached_property
    def moved(self) -> Watched:
        """The loop with one update of some size, and the step after it."""
        return self._watched(_LR, 2)

    def _watched(self, lr: float, steps: int) -> Watched:
        stage = self.patient.small
        return watch(self.patient, replace(stage, optimizer=with_lr(stage.optimizer, lr)), steps)

    @cached_property
    def sampled(self) -> list[Rollout]:
        """Replies of the stage's engine."""
        pairs = [(p, *one) for p, one in zip(self.patient.played.problems, self.patient.played.replies)]
        most = max(len(completions) for _, _, completions in pairs)
        ungraded = self.patient.rows[0].score
        every = [
            Rollout(problem, prompt, completions[n], "", ungraded)
            for n in range(most)
            for problem, prompt, completions in pairs
            if n < len(completions) and completions[n].token_ids
        ]
        return self._affordable(every)

    def _affordable(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The first ones, at least one, whose logits can be held."""
        room = _LOGITS / self.patient.model.config.vocab_size
        sizes = accumulate(len(rollout.completion.token_ids) for rollout in rollouts[:_MOST])
        count = sum(size <= room for size in sizes)
        return list(rollouts[: max(count, 1)])

    def logits(self, rollout: Rollout) -> Tensor:
        """The plain logits of a reply, (n, V)."""
        row = rollout.prompt + rollout.completion.token_ids
        with torch.no_grad():
            if row not in self._logits:
                self._logits[row] = logits_of(self.patient.model, row, len(rollout.prompt))
            return self._logits[row]

    def plain(self, rollout: Rollout, heat: float) -> Tensor:
        """The policy written out: log-probs of the tokens of a reply, (n,), at a temperature."""
        key = (rollout.prompt + rollout.completion.token_ids, heat)
        if key not in self._plain:
            self._plain[key] = logprobs_of(self.logits(rollout), rollout.completion.token_ids, heat)
        return self._plain[key]

    @cached_property
    def learner(self) -> list[_Spoken]:
        """What the learner says of the sampled replies before any update."""
        batch = lay_out(self.sampled)
        with updates_of(self.patient.small, copy.deepcopy(self.patient.model)) as updates:
            logp = updates.learner.logprobs(batch)
        return [
            _Spoken(r, logp[i, len(r.prompt) : len(r.prompt) + len(r.completion.token_ids)])
            for i, r in enumerate(self.sampled)
        ]

    @cached_property
    def sampler(self) -> list[_Spoken]:
        """What the engine said when it drew them."""
        return [_Spoken(r, torch.tensor(r.completion.logprobs)) for r in self.sampled]

    def in_the_loop(self) -> tuple[list[_Spoken], list[_Spoken]]:
        """Sampler and learner, inside the stage's own loop."""
        pairs = self.still.pairs()
        pairs = pairs[: len(self._affordable([rollout for rollout, _ in pairs]))]
        spoken = [_Spoken(r, torch.tensor(r.completion.logprobs)) for r, _ in pairs]
        return spoken, [_Spoken(r, torch.tensor([float(x or 0.0) for x in t.logprobs or ()])) for r, t in pairs]

    def everybody(self) -> dict[str, list[_Spoken]]:
        """All of them, by name."""
        first, second = self.in_the_loop()
        named = {"the sampler": self.sampler, "the learner": self.learner}
        return named | {"the sampler in the loop": first, "the learner in the loop": second}


def temperature(patient: Patient, speech: Speech) -> list[Finding]:
    """The temperature that the log-probs and draws really have."""
    name, heat = "temperature", patient.stage.temperature
    findings = _evaluated(patient)
    if not speech.sampled:
        return [*findings, Finding(name, "skipped", "no reply has a token")]
    other = 2 * heat
    contrast = _mean([(speech.plain(r, other) - speech.plain(r, heat)).abs() for r in speech.sampled])
    if contrast < 10 * speech.bound:
        what = f"log-probs at T={heat:g} and T={other:g} differ by {contrast:.1e} only: the temperature cannot be told"
        return [*findings, Finding(name, "skipped", what)]
    worst = 0.0
    for who, spoken in speech.everybody().items():
        gaps = {t: _gap(speech, spoken, t) for t in {*_HEATS, heat}}
        best = min(gaps, key=lambda t: (gaps[t], t != heat))
        worst = max(worst, gaps[heat])
        if best != heat and gaps[heat] > speech.bound and gaps[best] < gaps[heat] / 2:
            what = (
                f"{who} works at T={best:g} (gap {gaps[best]:.1e} nats), the stage says T={heat:g} ({gaps[heat]:.1e})"
            )
            why = "train on log_softmax(logits / T) of the temperature that sampled; otherwise every ratio is wrong"
            return [*findings, Finding(name, "fail", what, why)]
    if trouble := _drawn(speech, heat):
        return [
            *findings,
            Finding(name, "fail", trouble, "the reported log-probs are not those of what was drawn from"),
        ]
    what = f"gap to the policy written out at T={heat:g} at most {worst:.1e} nats (at T={other:g}: {contrast:.1e})"
    return [*findings, Finding(name, "ok", what)]


def alignment(patient: Patient, speech: Speech) -> list[Finding]:
    """Log-prob t belongs to token t."""
    name, heat = "alignment", patient.stage.temperature
    for rollout in speech.sampled:
        tokens, numbers = len(rollout.completion.token_ids), len(rollout.completion.logprobs)
        if tokens != numbers:
            return [Finding(name, "fail", f"a reply has {tokens} tokens and {numbers} log-probs", "mend the sampler")]
    laid = lay_out(speech.sampled)
    assert laid.logp_old is not None
    kept = [_Spoken(r, laid.logp_old[i][laid.mask[i]]) for i, r in enumerate(speech.sampled)]
    worst, told = 0.0, False
    for who, spoken in {**speech.everybody(), "the batch (logp_old)": kept}.items():
        gaps = {shift: _gap(speech, spoken, heat, shift) for shift in (0, -1, 1)}
        told = told or min(gaps[-1], gaps[1]) > 10 * speech.bound
        worst = max(worst, gaps[0])
        best = min(gaps, key=lambda shift: gaps[shift])
        if best and gaps[0] > speech.bound:
            what = f"{who}: log-prob t fits token t{best:+d} (gap {gaps[best]:.1e} nats) better than t ({gaps[0]:.1e})"
            return [Finding(name, "fail", what, "the state at t − 1 predicts token t: some index is off by one")]
    if not told:
        return [Finding(name, "skipped", "the policy says the same of neighbouring tokens: a shift cannot be told")]
    if worst > speech.bound:
        what = f"log-probs fit no shift: mean gap {worst:.1e} nats (bound {speech.bound:.0e})"
        return [Finding(name, "fail", what, "compare sampler and learner with the policy written out, token by token")]
    return [Finding(name, "ok", f"log-prob t fits token t (mean gap {worst:.1e} nats), in sampler, batch and learner")]


def gap(patient: Patient, speech: Speech) -> list[Finding]:
    """Sampler against learner: now, over steps at learning rate 0, and after an update."""
    name, limit = "sampler and learner", speech.limit
    gaps = torch.cat([(s.logprobs - t.logprobs).abs() for s, t in zip(speech.sampler, speech.learner)])
    mean, largest = float(gaps.mean()), float(gaps.max())
    steps = [float(metrics["logprob_gap"]) for metrics in speech.still.metrics if "logprob_gap" in metrics]
    after = [float(metrics["logprob_gap"]) for metrics in speech.moved.metrics if "logprob_gap" in metrics]
    what = f"mean |Δ log-prob| {mean:.1e} nats (limit {limit:.0e}), largest {largest:.1e}"
    what += f"; at lr=0: {', '.join(f'{g:.1e}' for g in steps)}; after an update: {after[-1]:.1e}" if after else ""
    if not mean <= limit or not all(g <= limit for g in steps[:1]):
        why = "the sampler does not compute the learner's policy: other weights, precision, temperature or masking"
        return [Finding(name, "fail", what, why)]
    if not (steps and after):
        return [Finding(name, "warn", what, "the loop made no update, so that drift could not be measured")]
    if max(steps) > max(3 * steps[0], limit / 10, _NOISE):
        why = "the gap grows although no weight moves: sampler and learner drift apart (a stale cache or copy)"
        return [Finding(name, "fail", what, why)]
    if after[-1] > limit:
        return [
            Finding(name, "fail", what, "after an update the sampler still runs the old weights: they are not synced")
        ]
    return [Finding(name, "ok", what)]


def _gap(speech: Speech, spoken: Sequence[_Spoken], heat: float, shift: int = 0) -> float:
    """Mean |said − written out|, the latter ``shift`` tokens later."""
    gaps = []
    for rollout, logprobs in spoken:
        plain = speech.plain(rollout, heat)
        places = torch.arange(len(logprobs)) + shift
        inside = (places >= 0) & (places < len(plain))
        gaps.append((logprobs[inside] - plain[places[inside]]).abs())
    return _mean(gaps)


def _mean(gaps: Sequence[Tensor]) -> float:
    every = torch.cat([gap.double().flatten() for gap in gaps]) if gaps else torch.zeros(0)
    value = float(every.mean()) if len(every) else 0.0
    return value if math.isfinite(value) else math.inf


def _drawn(speech: Speech, heat: float) -> str:
    """Whether what was drawn is too likely or too unlikely for its distribution; empty if it is neither."""
    surplus = variance = 0.0
    for rollout in speech.sampled:
        one = said(speech.logits(rollout), rollout.completion.token_ids, heat)
        surplus += float((one.logp.exp() - one.likely).double().sum())
        variance += float(one.spread.double().sum())
    z = surplus / math.sqrt(variance) if variance >= _INFORMATION else 0.0
    if abs(z) <= _Z:
        return ""
    how = "likelier" if z > 0 else "less likely"
    return f"drawn tokens are {how} than T={heat:g} lets expect: {abs(z):.1f} standard deviations (bound {_Z:g})"


def _evaluated(patient: Patient) -> list[Finding]:
    heats = sorted({e.temperature for e in patient.evaluations} - {patient.stage.temperature})
    if not heats:
        return []
    what = f"evaluation samples at T={', '.join(f'{t:g}' for t in heats)}, training at T={patient.stage.temperature:g}"
    why = "the two accuracies are not comparable; set both alike unless you mean it"
    return [Finding("evaluation temperature", "warn", what, why)]
