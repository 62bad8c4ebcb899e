"""Are the splits apart, and do prompt and reply fit into the context?"""

from __future__ import annotations

from longthought.core.errors import DataError
from longthought.core.types import Message
from longthought.diagnosis.finding import Finding
from longthought.diagnosis.patient import Patient

_LOOKED_AT = 300
_FEW = 20  # different prompts, below which a task has no room for splits


def splits(patient: Patient) -> list[Finding]:
    """No prompt of train is asked in the test, among the first few hundred of each."""
    name, task = "splits", patient.stage.task
    train = {task.problem("train", index).messages for index in range(_LOOKED_AT)}
    try:
        test = {task.problem("test", index).messages for index in range(_LOOKED_AT)}
    except DataError as error:
        return [
            Finding(
                name, "warn", f"there is no test split: {error}"[:200], "hold some problems out, or nothing is measured"
            )
        ]
    both = train & test
    what = f"{len(both)} of {len(test)} different test prompts occur among {len(train)} of train"
    if both and len(train) < _FEW:
        return [
            Finding(name, "warn", what, f"the task has about {len(train)} different prompts: nothing can be held out")
        ]
    if both:
        why = f"for example {_shown(next(iter(both)))}: the test measures memory; divide problems by their content"
        return [Finding(name, "fail", what, why)]
    return [Finding(name, "ok", what)]


def context(patient: Patient) -> list[Finding]:
    """The longest prompt and the longest reply together, against the context window of the model."""
    name, stage, window = "context", patient.stage, patient.model.config.max_position_embeddings
    render = patient.policy.renderer.prompt
    longest = max(len(render(stage.task.problem("train", index).messages)) for index in range(_LOOKED_AT))
    most = longest + stage.longest
    what = f"longest prompt {longest} + max_tokens {stage.longest} = {most}, context {window} tokens"
    if longest >= window:
        return [Finding(name, "fail", what, "such a prompt leaves no room for a reply: drop long prompts")]
    if most > window:
        return [Finding(name, "warn", what, "some replies are cut by the context before max_tokens: lower max_tokens")]
    return [Finding(name, "ok", what)]


def _shown(messages: tuple[Message, ...]) -> str:
    return repr(messages[-1].content[:80])
