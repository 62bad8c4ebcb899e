"""Is every number of the stage itself connected? Each is turned, and three steps of the loop must differ."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from longthought.core.errors import LongthoughtError
from longthought.core.types import CUT
from longthought.diagnosis.check_knobs import Knob, knobs
from longthought.diagnosis.finding import Finding, listed
from longthought.diagnosis.loop import Watched, watch, with_lr
from longthought.diagnosis.patient import STEPS, Patient
from longthought.diagnosis.proposals import proposals
from longthought.stages.rl import RL

_NAME = "the loop is live"
_SECONDS = 12.0
_LR = 1e-3  # so that an update shows in float32, whatever the stage's own rate is
_TURNED = (
    "prompts",
    "samples",
    "updates",
    "max_tokens",
    "temperature",
    "seed",
    "learner.max_norm",
    "optimizer",
    "adapter",
    "reference_every",
    "method.filter_truncated",
    "method.critic.optimizer",
    "method.critic.pretrain",
)


def loop_is_live(patient: Patient) -> list[Finding]:
    """Turn batch sizes, temperature, seed, clipping and optimizer; compare rollouts, metrics and log-probs."""
    began = time.process_time()
    optimizer = patient.stage.optimizer
    schedule = replace(optimizer.schedule, warmup=min(optimizer.schedule.warmup, 1))
    stage = replace(patient.small, optimizer=replace(with_lr(optimizer, _LR), schedule=schedule))
    seen_before = watch(patient, stage, STEPS)
    before = _told(seen_before)
    cut = any(r.completion.finish in CUT for groups in seen_before.groups for group in groups for r in group)
    inert, late, count = [], [], 0
    for knob in _chosen(stage):
        if knob.path == "method.filter_truncated" and not cut:
            continue
        if time.process_time() - began > _SECONDS:
            late.append(knob.path)
            continue
        seen = _turn(patient, knob, before)
        count += seen is not None
        if seen is False:
            inert.append(knob.path)
    if inert:
        what = f"{len(inert)} of {count} settings of the loop change neither rollouts nor updates: {listed(inert)}"
        why = "the code does not read them: whatever you set there, the run is the same"
        return [Finding(_NAME, "fail", what, why)]
    left = f"; no time for {listed(late)}" if late else ""
    return [Finding(_NAME, "ok", f"{count} settings of the loop were turned, each changed {STEPS} short steps{left}")]


def _chosen(stage: RL) -> Iterator[Knob]:
    return (knob for knob in knobs(stage) if knob.path.startswith(_TURNED))


def _turn(patient: Patient, knob: Knob, before: str) -> bool | None:
    """Whether some other value changes the steps; None where all are refused."""
    accepted = None
    for other in filter(partial(_is_affordable, knob.value), proposals(knob.kind, knob.value)):
        try:
            if _outcome(patient, knob.turned(other)) != before:
                return True
        except (LongthoughtError, ValueError):
            continue
        accepted = False
    return accepted


def _is_affordable(value: object, other: object) -> bool:
    """Not a step that is many times larger."""
    return not (type(value) is type(other) is int) or other <= value + 32


def _outcome(patient: Patient, stage: RL) -> str:
    """What some steps did, as text."""
    return _told(watch(patient, stage, STEPS))


def _told(seen: Watched) -> str:
    told = [
        (rollout.completion.token_ids, record.logprobs, record.weight)
        for groups, records in zip(seen.groups, seen.trained)
        for group, row in zip(groups, records)
        for rollout, record in zip(group, row)
        if record is not None
    ]
    return json.dumps([told, seen.metrics], default=str)
