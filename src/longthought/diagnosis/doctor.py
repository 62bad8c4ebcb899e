"""The doctor: everything that can be wrong with a configuration and is cheap to see before a long run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from longthought.diagnosis.check_credit import credit_stays_in_its_group
from longthought.diagnosis.check_data import context, splits
from longthought.diagnosis.check_gradient import micro_batches, padding
from longthought.diagnosis.check_grading import Examined, gold_passes, health, tricks_do_not_pay, verifier
from longthought.diagnosis.check_knobs import knobs_are_live
from longthought.diagnosis.check_logprobs import Speech, alignment, gap, temperature
from longthought.diagnosis.check_machine import checkpoint, memory
from longthought.diagnosis.check_native import native
from longthought.diagnosis.check_parameters import parameters_move
from longthought.diagnosis.check_settings import settings_are_live
from longthought.diagnosis.check_stage import loop_is_live
from longthought.diagnosis.finding import Finding
from longthought.diagnosis.patient import Patient

Check = Callable[[], list[Finding]]


def examine(patient: Patient, only: Collection[str] = ()) -> Iterator[Finding]:
    """All checks, or ``only`` some, one after the other; what one raises is its failure, and the others go on."""
    for name, check in checks(patient).items():
        if only and name not in only:
            continue
        try:
            yield from check()
        except Exception as error:  # code of a user runs here, and may raise anything
            told = " ".join(f"{type(error).__name__}: {error}".split())
            yield Finding(name, "fail", told[:300], "the check could not be made: the run would meet the same error")
    for note in patient.notes:
        yield Finding("model", "warn" if patient.trained else "skipped", note)


def checks(patient: Patient) -> dict[str, Check]:
    """Every check by its name, in the order in which they are made."""
    speech, examined = Speech(patient), Examined(patient)
    return {
        "gold passes": lambda: gold_passes(patient, examined),
        "verifier": lambda: verifier(patient, examined),
        "tricks do not pay": lambda: tricks_do_not_pay(patient, examined),
        "verifier health": lambda: health(patient),
        "splits": lambda: splits(patient),
        "context": lambda: context(patient),
        "memory": lambda: memory(patient),
        "native core": lambda: native(patient),
        "settings are live": lambda: settings_are_live(patient),
        "knobs are live": lambda: knobs_are_live(patient),
        "the loop is live": lambda: loop_is_live(patient),
        "credit": lambda: credit_stays_in_its_group(patient),
        "alignment": lambda: alignment(patient, speech),
        "temperature": lambda: temperature(patient, speech),
        "sampler and learner": lambda: gap(patient, speech),
        "parameters move": lambda: parameters_move(patient),
        "padding": lambda: padding(patient),
        "micro-batches": lambda: micro_batches(patient),
        "checkpoint": lambda: checkpoint(patient),
    }
