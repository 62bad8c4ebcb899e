"""The recipe that users copy from: it loads, its settings can be set, and it runs."""

from pathlib import Path

from longthought.recipes.catalogue import find
from longthought.runs.run import Run
from longthought.runs.settings import override

FILE = Path(__file__).parents[2] / "examples" / "two_legs.py"
SMALL = """
    tiny.workers=1 tiny.base.width=32 tiny.base.steps=10 tiny.base.tokens_per_step=256
    tiny.rl.steps=2 tiny.rl.prompts=2 tiny.rl.samples=3 tiny.rl.max_tokens=16 steps=2
    tiny.evaluation.problems=3 tiny.evaluation.samples=2 tiny.evaluation.max_tokens=16
    tiny.gate.fact=0 tiny.gate.hit=0 tiny.gate.miss=1 tiny.gate.pass_at_8=0 tiny.gate.pass_at_1=[0,1]
"""


def test_it_runs_both_legs(tmp_path: Path) -> None:
    recipe = find(str(FILE))
    settings = override(recipe.settings, SMALL.split())
    with Run.open(tmp_path / "run", recipe=recipe.name, settings=settings, command="test", threads=1) as run:
        made = recipe.function(settings, run)
    assert made.path == tmp_path / "run" / "06-consistent" / "model"
    assert [stage.name for stage in run.record.stages()][-2:] == ["consistent", "consistent_after"]
    assert len((tmp_path / "run/06-consistent/metrics.jsonl").read_text().splitlines()) == 2
