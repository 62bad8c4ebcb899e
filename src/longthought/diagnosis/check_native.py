"""Does the native core serve?"""

from __future__ import annotations

from longthought.diagnosis.finding import Finding
from longthought.diagnosis.patient import Patient
from longthought.models.kernels import library
from longthought.models.kernels.packed import unsupported
from longthought.models.precision import native_choice

_SLOWER = "the results are right without it, but take longer on a CPU"
_INSTALL = "a C++ compiler (apt install g++, or xcode-select --install), then `pip install -e .` again"
_SAMPLING, _TRAINING = "sampling", "training"


def native(patient: Patient) -> list[Finding]:
    """Which library of the native core samples from this model and trains it here, and in which precision, or why none
    does. Only a CPU needs it."""
    name, device = "native core", patient.model.lm_head.weight.device
    if device.type != "cpu":
        return [Finding(name, "skipped", f"the model is on {device}; the core is for CPUs")]
    found = library.available()
    if found is None:
        if library.wish() == library.OFF:
            return [Finding(name, "skipped", f"{library.why_not()}: PyTorch computes alone")]
        return [Finding(name, "warn", f"does not serve: {library.why_not()}", f"{_SLOWER}: {_INSTALL}")]
    if why := unsupported(patient.model):
        return [Finding(name, "warn", f"cannot compute this model: {why}", f"{_SLOWER}: PyTorch does it")]
    chosen = {
        _SAMPLING: native_choice(patient.model, patient.stage.engine.precision),
        _TRAINING: native_choice(patient.model, patient.stage.learner.precision),
    }
    types = {use: str(pair[1]).removeprefix("torch.") for use, pair in chosen.items() if pair is not None}
    if not types:
        return [
            Finding(name, "ok", f"this CPU has {found.name} code only, which PyTorch's own is faster than: it serves")
        ]
    best = library.supported()[0]
    what = f"serves, with {found.name}: {', '.join(f'{use} in {kind}' for use, kind in types.items())}"
    if found.name == best:
        return [Finding(name, "ok", f"{what}, the best that this CPU has")]
    what = f"{what}; this CPU has {best}, too"
    if library.wish():
        return [Finding(name, "ok", f"{what}, but {library.VARIABLE} says {found.name}")]
    return [Finding(name, "warn", f"{what}: {library.PLACE.missing(best)}", f"{_SLOWER}: a newer compiler")]
