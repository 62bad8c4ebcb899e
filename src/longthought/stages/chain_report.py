"""What became of the replies of a cold start, source by source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longthought.stages.sifting import became


@dataclass
class Tally:
    """What became of the replies of one source."""

    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    kept: int = 0

    def report(self) -> dict[str, Any]:
        """Counts; ``sampled`` is what was kept and all that was dropped."""
        names = ("sampled", "right", "wrong", "ungraded", "judged", "judged_right", "tokens", "rewritten")
        dropped = dict(sorted(self.dropped.items(), key=lambda item: (-item[1], item[0])))
        return {**{name: self.counts[name] for name in names}, "dropped": dropped, "kept": self.kept}


def described(report: Mapping[str, Any]) -> str:
    """The report for a person."""
    lines = []
    for label, told in report["sources"].items():
        first, *others = became(told)
        lines += [f"{label}: {first}", *others, f"  {told['kept']:>9,}  kept"]
    if edited := report["edited"]:
        lines.append(f"edited by a person: {edited['offered']:,} conversations")
        lines += [f"  {number:>9,}  {why}" for why, number in edited["dropped"].items()]
        lines.append(f"  {edited['kept']:>9,}  kept")
    lines.append(
        f"{report['kept']:,} examples; {report['prompts_kept']:,} of {report['prompts']:,} prompts have one that was "
        f"sampled; compared with {report['evaluation_problems']:,} problems of evaluations"
    )
    return "\n".join(lines)
