"""Will it fit into memory, and does the model come back from disk as it went?"""

from __future__ import annotations

import math
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from longthought.core.types import TokenIds
from longthought.diagnosis.finding import Finding
from longthought.diagnosis.patient import Patient
from longthought.diagnosis.plain import logits_of
from longthought.models import lora
from longthought.runs.artifacts import Checkpoint
from longthought.training.optimizer import AdamW

_FLOAT = 4
_TIGHT = 0.8
_LARGE = 1_000_000_000  # parameters; a larger model is not written for a check
_CLOSE = 1e-4  # logits of two implementations in float32
_ACTIVATIONS = (
    16  # numbers of a token and layer that autograd keeps, in units of the width, beside the feed-forward net
)


def memory(patient: Patient) -> list[Finding]:
    """An estimate of the peak, against what this machine has free."""
    name, parts = "memory", estimate(patient)
    total, free = sum(parts.values()), available(patient.model.lm_head.weight.device)
    if free is None:
        return [Finding(name, "skipped", f"about {_size(total)}; this system does not say how much is free")]
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{part} {_size(size)}" for part, size in largest)
    what = f"about {_size(total)} at the peak ({told}), {_size(free)} free"
    if total > free:
        why = "it will not fit: fewer engine.slots, workers or learner.micro_tokens, an adapter, or a smaller model"
        return [Finding(name, "fail", what, why)]
    if total > _TIGHT * free:
        return [
            Finding(
                name, "warn", what, f"more than {_TIGHT:.0%} of what is free: close other programs or shrink a part"
            )
        ]
    return [Finding(name, "ok", what)]


def estimate(patient: Patient) -> dict[str, float]:
    """Bytes of every part."""
    stage, model = patient.stage, patient.model
    config, method = model.config, stage.method
    numbers = config.parameters()
    width = model.lm_head.weight.element_size()
    trained = numbers
    if stage.adapter is not None:
        per_layer = (
            4 * config.hidden_size + 3 * (config.hidden_size + config.intermediate_size) + 2 * config.hidden_size
        )
        trained = min(numbers, stage.adapter.rank * per_layer * config.num_hidden_layers)
    moments = 2 if isinstance(stage.optimizer, AdamW) else 1.3
    prompt = max((len(prompt) for prompt, _ in patient.played.replies), default=0)
    row = min(config.max_position_embeddings, prompt + stage.longest)
    slots = stage.workers * min(stage.engine.slots, math.ceil(stage.prompts * stage.samples / stage.workers))
    kept = _ACTIVATIONS * config.hidden_size + 4 * config.intermediate_size
    tokens = max(stage.learner.micro_tokens, row)
    parts = {
        "weights": numbers * width,
        "gradients": stage.workers * trained * width,
        "optimizer": moments * trained * _FLOAT,
        "key/value cache": slots * row * config.cache_numbers * width,
        "head": 2 * stage.workers * stage.learner.head_chunk * config.vocab_size * _FLOAT,
        "activations": stage.workers * tokens * config.num_hidden_layers * kept * width,
    }
    if method.needs_reference and stage.adapter is None:
        parts["reference"] = numbers * width
    if method.critic is not None:
        parts["critic"] = numbers * (width * (1 + stage.workers) + 2 * _FLOAT)
    return {name: float(size) for name, size in parts.items()}


def available(device: torch.device) -> float | None:
    """Bytes that are free where the model is; None where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def checkpoint(patient: Patient) -> list[Finding]:
    """Save, load, and compare logits: with our own loader bit by bit, with that of transformers closely."""
    name = "checkpoint"
    if patient.parameters > _LARGE:
        return [Finding(name, "skipped", f"{patient.parameters:,} parameters are too many to write for a check")]
    assert not lora.is_adapted(patient.model)
    rows = [rollout.prompt + rollout.completion.token_ids for rollout in patient.rows[:2]]
    with tempfile.TemporaryDirectory(prefix="longthought-doctor-") as folder:
        saved = Checkpoint.save(Path(folder) / "model", patient.policy, {"stage": "doctor"})
        loaded = saved.load(patient.model.lm_head.weight.dtype)
        if saved.provenance().get("stage") != "doctor" or not saved.fingerprints():
            return [
                Finding(name, "fail", "provenance.json does not tell what was written", "the folder cannot be verified")
            ]
        with torch.no_grad():
            ours = [logits_of(patient.model, row, 1) for row in rows]
            again = [logits_of(loaded.model.to(patient.model.lm_head.weight.device), row, 1) for row in rows]
        if not all(torch.equal(a, b) for a, b in zip(ours, again)):
            gap = max(float((a - b).abs().max()) for a, b in zip(ours, again))
            what = f"logits differ by {gap:.1e} after saving and loading, not by 0"
            return [Finding(name, "fail", what, "a weight is not saved, or not loaded into its place")]
        said = patient.policy.renderer.prompt(patient.problems[0].messages)
        if loaded.renderer.prompt(patient.problems[0].messages) != said:
            return [
                Finding(name, "fail", "a prompt has other tokens after loading", "the tokenizer is not saved whole")
            ]
        return [_elsewhere(name, Path(folder) / "model", rows, ours)]


def _elsewhere(name: str, folder: Path, rows: list[TokenIds], ours: list[Tensor]) -> Finding:
    """The logits of transformers."""
    what = "saved and loaded: logits are equal bit by bit"
    if find_spec("transformers") is None:
        return Finding(name, "ok", f"{what}; transformers is not installed, so it was not asked")
    from transformers import AutoModelForCausalLM  # noqa: PLC0415  seconds of import, for this check alone
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # or it reports what predicts further tokens, which it leaves out
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        theirs = [model(torch.tensor([row])).logits[0, :-1] for row in rows]
    gap = max(float((a.float().cpu() - b.float()).abs().max()) for a, b in zip(ours, theirs))
    what = f"{what}; those of transformers differ by {gap:.1e} (bound {_CLOSE:.0e})"
    if gap < _CLOSE * max(1.0, max(float(a.abs().max()) for a in ours) / 10):
        return Finding(name, "ok", what)
    return Finding(name, "fail", what, "another program would run another model: config.json and weights do not match")


def _size(count: float) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 1024:,.1f} KiB"
