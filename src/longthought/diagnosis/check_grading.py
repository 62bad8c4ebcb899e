"""Does the task pay for right answers, for nothing else, and at all?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from longthought.core.types import CUT, Completion, Finish, Outcome, Rollout, Score
from longthought.diagnosis.finding import Finding, listed
from longthought.diagnosis.patient import Patient
from longthought.diagnosis.replies import FORMS, GARBAGE, Asked, asked, golds, mutated, tricks
from longthought.stages.earning import is_live, rewards_of
from longthought.tasks.grading import Grading
from longthought.verifiers.conformance import Report, conformance

_PROBLEMS = 12
_SHARE = 0.5  # of the gold's reward, which no trick may reach
_NEARLY_ALWAYS = 0.9
_FAILED = (Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.INVALID, Outcome.NO_GOLD)
_SLOW = 0.5  # seconds of grading below which nobody waits
_GUESSED = "the most common answer"


class _Best(NamedTuple):
    """The form in which most gold answers pass, the replies in it, and their scores."""

    form: str
    answers: list[str]
    scores: list[Score]

    @property
    def passed(self) -> int:
        return sum(score.correct for score in self.scores)


class Examined:
    """Problems of train, their gold answers, and how they fare; computed once."""

    def __init__(self, patient: Patient) -> None:
        self.patient = patient

    @cached_property
    def asked(self) -> list[Asked]:
        """Problems that differ."""
        found: dict[object, Asked] = {}
        for index in range(50 * _PROBLEMS):
            one = asked(self.patient.stage.task, "train", index)
            found.setdefault(one.problem.messages, one)
            if len(found) == _PROBLEMS:
                break
        return list(found.values())

    @cached_property
    def best(self) -> _Best:
        """The reply that should be right, in the form and from the source that the task likes best."""
        known = [golds(one) for one in self.asked]
        chosen: _Best | None = None
        for source in range(max(map(len, known))):
            answers = [each[min(source, len(each) - 1)] for each in known]
            for name, form in FORMS.items():
                scores = [grade(one, [form.format(answer)])[0] for one, answer in zip(self.asked, answers)]
                tried = _Best(name, answers, scores)
                if chosen is None or _worth(tried) > _worth(chosen):
                    chosen = tried
                if tried.passed == len(scores) and all((s.value or 0) >= 1 for s in scores):
                    return chosen
        assert chosen is not None
        return chosen


def _worth(tried: _Best) -> tuple[int, float]:
    return tried.passed, sum(score.value or 0.0 for score in tried.scores)


def grade(one: Asked, replies: Sequence[str]) -> list[Score]:
    """The task's scores; as many as there are replies."""
    scores = one.task.grade(one.problem, replies)
    if len(scores) != len(replies):
        raise ValueError(f"the task gave {len(scores)} scores for {len(replies)} replies")
    return scores


def gold_passes(patient: Patient, examined: Examined) -> list[Finding]:
    """The right answer is right, in at least one usual form, on every problem; changed ones are wrong."""
    name, best = "gold passes", examined.best
    total = len(best.scores)
    if best.passed < total:
        place = next(i for i, score in enumerate(best.scores) if not score.correct)
        one, score = examined.asked[place], best.scores[place]
        what = f"the gold answer passes on {best.passed} of {total} problems in its best form, {best.form}"
        why = (
            f"for example {one.problem.id}: {best.answers[place][:60]!r} is graded {score.verdict.outcome} "
            f"({score.verdict.evidence[:120]}). What the model cannot earn it cannot learn: mend answers or verifier"
        )
        return [Finding(name, "fail", what, why)]
    wrong = []
    form = FORMS[best.form]
    for one, answer in zip(examined.asked, best.answers):
        made = mutated(answer)
        scores = grade(one, [form.format(other) for other in made])
        wrong += [(one, other) for other, score in zip(made, scores) if score.correct]
    if wrong:
        one, other = wrong[0]
        what = f"{len(wrong)} changed answers of {total} problems pass, such as {other[:40]!r} at {one.problem.id}"
        return [Finding(name, "fail", what, "the verifier is too lenient: what is nearly right earns the full reward")]
    return [
        Finding(name, "ok", f"the gold answer passes on {total} of {total} problems as {best.form}, changed ones never")
    ]


def verifier(patient: Patient, examined: Examined) -> list[Finding]:
    """Garbage fails, the verifier conforms, and the replies of the model are neither all right nor all wrong."""
    return [_garbage(examined), *_conformance(patient, examined), _signal(patient)]


def _garbage(examined: Examined) -> Finding:
    name, form = "garbage fails", FORMS[examined.best.form]
    passed, total, example = 0, 0, ""
    for one in examined.asked:
        scores = grade(one, [form.format(text) for text in GARBAGE] + ["zz top"])
        total += len(scores)
        passed += sum(score.correct for score in scores)
        example = next((t for t, s in zip((*GARBAGE, "zz top"), scores) if s.correct), example)
    what = f"{passed} of {total} garbage answers pass"
    if not passed:
        return Finding(name, "ok", what)
    always = passed > total / 2
    why = "the verifier says yes to nearly everything" if always else f"for example {example!r}"
    return Finding(name, "fail", what, f"{why}: the policy will learn to say that")


def _conformance(patient: Patient, examined: Examined) -> list[Finding]:
    """Of tasks whose verifier can be asked alone."""
    name, found = "verifier conforms", []
    for task in {id(one.task): one.task for one in examined.asked}.values():
        grading = getattr(task, "grading", None)
        if not isinstance(grading, Grading):
            continue
        problems = [one.problem for one in examined.asked if one.task is task]
        plain = conformance(grading.verifier, problems)
        report = (
            plain if _gold(plain) else conformance(grading.verifier, problems, lambda answer: rf"\boxed{{{answer}}}")
        )
        found.append(_judged(name, report))
    return found


def _gold(report: Report) -> bool:
    return all(check.passed == check.asked for check in report.checks if check.name == "gold")


def _judged(name: str, report: Report) -> Finding:
    bad = [check for check in report.checks if check.passed < check.asked]
    if not bad:
        return Finding(
            name, "ok", f"{sum(check.asked for check in report.checks)} answers with known grades are graded right"
        )
    told = "; ".join(f"{check.name}: {check.asked - check.passed} of {check.asked} wrong" for check in bad)
    example = next((e for check in bad for e in check.examples), None)
    why = (
        ""
        if example is None
        else f"for example {example.reply[:60]!r} at {example.problem.id}: {example.verdict.evidence[:120]}"
    )
    only_space = all(check.name == "gold with white space" for check in bad)
    return Finding(name, "warn" if only_space else "fail", told, why)


def _signal(patient: Patient) -> Finding:
    name = "signal"
    groups, played = patient.graded.groups, patient.played
    rollouts = [rollout for group in groups for rollout in group]
    if not patient.trained:
        return Finding(name, "skipped", "the model is a stand-in that was never trained: its answers say nothing")
    right = sum(rollout.score.correct for rollout in rollouts) / len(rollouts)
    dead = sum(not is_live(group) for group in groups) / len(groups)
    cut = sum(rollout.completion.finish in CUT for rollout in rollouts) / len(rollouts)
    what = f"{right:.0%} of {len(rollouts)} replies of the model are right; {dead:.0%} of {len(groups)} groups are dead"
    if played.limit < patient.stage.max_tokens and cut > 0.5:
        what = f"replies were cut at {played.limit} of {patient.stage.max_tokens} tokens: too short to tell ({what})"
        return Finding(name, "skipped", what)
    if right in (0, 1):
        why = "no group holds a difference, so nothing is learned: take easier or harder problems, or a better base"
        return Finding(name, "warn", what, why)
    return Finding(name, "ok", what)


def tricks_do_not_pay(patient: Patient, examined: Examined) -> list[Finding]:
    """What tricks earn, task and shaping together, as a share of what the right answer earns over an empty one."""
    name, best = "tricks do not pay", examined.best
    if best.passed < len(best.scores):
        return [Finding(name, "skipped", "the gold answer does not pass, so there is no reward to compare with")]
    form = FORMS[best.form]
    earned: dict[str, list[float]] = {}
    texts: dict[str, str] = {}
    for number, (one, answer) in enumerate(zip(examined.asked, best.answers)):
        others = [*best.answers[:number], *best.answers[number + 1 :]]
        replies = {"gold": form.format(answer), **tricks(one._replace(problem=one.problem), form, others)}
        values = _rewards(patient, one, replies)
        for trick, value in values.items():
            earned.setdefault(trick, []).append(value)
        texts |= replies
    means = {trick: _mean(values) for trick, values in earned.items()}
    span = means["gold"] - means["empty"]
    if not span > 0:
        what = f"an empty reply earns {means['empty']:.2f}, the right answer {means['gold']:.2f}"
        return [Finding(name, "fail", what, "the reward does not depend on the answer, or a shaping term outweighs it")]
    shares = {trick: (value - means["empty"]) / span for trick, value in means.items() if trick != "gold"}
    trick = max(shares, key=lambda one: shares[one] if one != _GUESSED else -math.inf)
    guess = shares[_GUESSED]
    what = (
        f"best of {len(shares) - 1} tricks: {trick!r} earns {shares[trick]:.0%} of the right answer's "
        f"{means['gold']:.2f} (bound {_SHARE:.0%}); {_GUESSED}: {guess:.0%}"
    )
    if shares[trick] >= _SHARE or guess >= _NEARLY_ALWAYS:
        shown = trick if shares[trick] >= _SHARE else _GUESSED
        why = f"the policy finds it sooner than the answer; it is the reply {texts[shown][:80]!r}"
        return [Finding(name, "fail", what, why)]
    if guess >= _SHARE:
        return [
            Finding(name, "warn", what, "guessing pays half of what solving does: balance the answers of the problems")
        ]
    return [Finding(name, "ok", what)]


def _rewards(patient: Patient, one: Asked, replies: dict[str, str]) -> dict[str, float]:
    """Task and shaping of the replies to one problem, as one group; NaN counts as nothing."""
    scores = grade(one, list(replies.values()))
    group = tuple(_rollout(one, text, score) for text, score in zip(replies.values(), scores))
    total = rewards_of([group], patient.stage.method).total.tolist()
    return {name: 0.0 if math.isnan(value) else value for name, value in zip(replies, total)}


def _rollout(one: Asked, text: str, score: Score) -> Rollout:
    """A reply that nobody sampled: every word is a token."""
    numbers: dict[str, int] = {}
    ids = (*(1 + numbers.setdefault(word, len(numbers)) for word in text.split()), 0)
    return Rollout(one.problem, (1,), Completion(ids, (-1.0,) * len(ids), Finish.STOP), text, score)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def health(patient: Patient) -> list[Finding]:
    """What became of grading the model's replies, and how long it took beside sampling them."""
    name, graded = "verifier health", patient.graded
    rollouts = [rollout for group in graded.groups for rollout in group]
    counts = Counter(rollout.score.verdict.outcome for rollout in rollouts)
    failed = sum(counts[outcome] for outcome in _FAILED) / len(rollouts)
    each = graded.seconds / len(rollouts)
    outcomes = listed(f"{count} {outcome}" for outcome, count in counts.most_common())
    what = f"{outcomes}; {each * 1e3:.2g} ms a reply, sampling {patient.played.seconds / len(rollouts) * 1e3:.2g} ms"
    limit = patient.stage.monitors.failures
    if failed > limit:
        example = next(r.score.verdict.evidence for r in rollouts if r.score.verdict.outcome in _FAILED)
        return [
            Finding(
                name, "fail", what, f"{failed:.0%} of the replies get no grade (limit {limit:.0%}): {example[:160]}"
            )
        ]
    if failed:
        return [Finding(name, "warn", what, f"{failed:.0%} of the replies get no grade and leave the loss")]
    if graded.seconds > max(_SLOW, patient.played.seconds / 2):
        return [
            Finding(
                name, "warn", what, "grading takes a large part of a step: grade in several processes (verifiers.pool)"
            )
        ]
    return [Finding(name, "ok", what)]
