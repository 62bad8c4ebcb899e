"""DeepSeek-R1, all of it (arXiv:2501.12948, sections 2.2 to 2.4), with a base model and data of one's own.

Read ``r1_model`` first: it is the road of ``r1``, with the same names; a part whose data is not given is left out, and
the stage ``parts`` says so. What every box holds stands in ``r1_model_boxes``; the boxes themselves are the stages.
"""

from __future__ import annotations

from longthought.recipes.r1_model_boxes import Boxes
from longthought.recipes.r1_model_settings import R1ModelSettings
from longthought.recipes.road import Road
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.stages.example_set import ExampleSet


def r1_model(settings: R1ModelSettings, run: Run) -> Checkpoint:
    """R1 with your model: R1-Zero, cold start, reasoning RL, rejection sampling, all-scenario RL, distillation."""
    at = Boxes(settings)
    road = Road(run, at.looks)
    run.do("parts", at.parts(), None)

    base = at.base
    look("base", base, at, run)
    zero = road.model("zero", at.zero(), base)  # R1-Zero: reinforcement learning alone

    chains = run.do("chains", at.cold_start(), {"base": base, "zero": zero})
    cold = road.model("cold_start", at.sft(chains, cold=True), base)
    reasoner = road.model("reasoner", at.reasoning_rl(), cold)

    traces = run.do("traces", at.rejection_sampling(), reasoner)
    taught = road.model("taught", at.sft(traces), base)

    helpful = safe = None
    if at.helps:
        pairs = run.do("pairs", at.comparing(), taught) if at.compares else None
        helpful = run.do("helpful", at.helpful(pairs), taught)
    if at.guards:
        labels = run.do("labels", at.labelling(), base) if at.labelling_here else None
        safe = run.do("safe", at.safety(labels), taught)
    final = road.model("ruled", at.rule_rl(), taught)
    if helpful or safe:
        final = road.model("r1", at.scenario_rl(helpful, safe), final)

    if at.student is not None:
        distil(at, run, road, at.student, traces, final)
    return final


def distil(at: Boxes, run: Run, road: Road, small: Checkpoint, traces: ExampleSet, teacher: Checkpoint) -> None:
    """A student learns from the traces; and the comparison with its own RL."""
    look("small", small, at, run)
    distilled = road.model("distilled", at.distillation(traces), small)
    if at.settings.distil.logits:
        road.model("distilled_logits", at.logits(traces, teacher), small)
    for times in at.settings.distil.against:
        road.model(f"small_rl_{times}x", at.student_rl(distilled, traces, times), small)


def look(name: str, model: Checkpoint, at: Boxes, run: Run) -> None:
    """A model that no stage has made is measured like all others."""
    for one in at.looks:
        run.do(f"{name}_{one.title}", one, model)
