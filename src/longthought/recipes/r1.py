"""DeepSeek-R1, all of it (arXiv:2501.12948, sections 2.2 to 2.4), on a laptop: from nothing to a reasoning model.

Read ``r1`` first: it is the whole road. What every box holds at laptop scale stands in ``laptop``; the boxes themselves
are the stages.
"""

from __future__ import annotations

from longthought.recipes.laptop import Laptop
from longthought.recipes.laptop_settings import R1Settings
from longthought.recipes.road import Road
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run


def r1(settings: R1Settings, run: Run) -> Checkpoint:
    """R1-Zero, cold start, reasoning RL, rejection sampling, all-scenario RL, distillation; each model is measured."""
    at = Laptop(settings)
    road = Road(run, at.looks)

    base = road.model("base", at.pretraining(), None)
    run.do("ready", at.readiness(), base)
    zero = road.model("zero", at.zero(), base)  # R1-Zero: reinforcement learning alone

    chains = run.do("chains", at.cold_start(), {"base": base, "zero": zero})
    cold = road.model("cold_start", at.sft(chains, cold=True), base)
    reasoner = road.model("reasoner", at.reasoning_rl(), cold)

    traces = run.do("traces", at.rejection_sampling(), reasoner)
    taught = road.model("taught", at.sft(traces), base)

    pairs = run.do("pairs", at.comparing(), taught)
    helpful = run.do("helpful", at.helpful(pairs), taught)
    labels = run.do("labels", at.labelling(), base)
    safe = run.do("safe", at.safety(labels), taught)
    ruled = road.model("ruled", at.rule_rl(), taught)
    final = road.model("r1", at.scenario_rl(helpful, safe), ruled)

    small = road.model("small", at.pretraining(student=True), None)
    distilled = road.model("distilled", at.sft(traces), small)
    road.model("distilled_logits", at.logits(traces, final), small)
    for times in (1, 5):  # the student's own RL, with as much compute as its distillation took, and five times as much
        road.model(f"small_rl_{times}x", at.student_rl(distilled, times), small)
    return final
