"""Reward models: of pairs of replies which is better (Bradley–Terry), of single replies whether they are safe.

Checkpoint in, reward folder out. The trunk is the policy's, the head is new, and it is read at the end token of the
reply, the last token of the sequence. How the loop goes stands in ``reward_loop``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from longthought.algorithms.preference import Binary, BradleyTerry
from longthought.core.errors import SettingsError
from longthought.runs.artifacts import Checkpoint
from longthought.runs.files import write_atomic
from longthought.runs.place import Place
from longthought.runs.reward_folder import Reads, RewardFolder
from longthought.stages.reward_loop import Aim, Budget, Learning, LengthBalance
from longthought.tasks.preference_rows import check_choice
from longthought.tasks.preferences import Labels, Preferences


@dataclass(frozen=True)
class RewardModel(Budget):
    """− log σ(r_w − r_l − m) over pairs of replies.

    margin: factor of the margins that pairs bring (Llama 2, arXiv:2307.09288); 0: none.
    centring: λ of (r_w + r_l)² (Eisenstein et al.: 0.01); 0: off.
    length_balance: ``weigh``: pairs whose better reply is the longer count as much as those whose better reply is the
    shorter, among pairs whose lengths differ alike; ``drop``: instead, what is too many of one sign is left out. Only
    of what is trained on: what is held out is measured as it is. See ``algorithms.length_balance``.
    """

    pairs: Preferences
    margin: float = 0.0
    centring: float = 0.0
    length_balance: LengthBalance = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reward model", "length_balance", self.length_balance, ("none", "weigh", "drop"))
        if not 0 <= self.margin < math.inf:
            raise SettingsError(f"reward model: margin={self.margin:g} must be at least 0 and finite")
        if self.margin and not self.pairs.has_margins:
            raise SettingsError(
                f"reward model: margin={self.margin:g} changes nothing: no pair brings a margin or scores"
            )
        BradleyTerry(self.centring)  # refuses what is no factor

    def run(self, given: Checkpoint, place: Place) -> RewardFolder:
        aim = Aim(BradleyTerry(self.centring), self.margin, self.length_balance)
        return _learn("reward_model", Learning(self, aim, self.pairs, given.load()), given, place)


@dataclass(frozen=True)
class SafetyModel(Budget):
    """The cross-entropy of σ(r) to labels of single replies; unless told otherwise it reads the reasoning as well."""

    labels: Labels
    reads: Reads = field(default="reply", kw_only=True)

    def run(self, given: Checkpoint, place: Place) -> RewardFolder:
        return _learn("safety_model", Learning(self, Aim(Binary()), self.labels, given.load()), given, place)


def _learn(stage: str, work: Learning, given: Checkpoint, place: Place) -> RewardFolder:
    work.run(place)
    told = work.account()
    write_atomic(place.path / "judgements.json", json.dumps(told, ensure_ascii=False, indent=1).encode() + b"\n")
    provenance = {"stage": stage, "seed": work.stage.seed, "from": given.fingerprints(), **told}
    return RewardFolder.save(place.path / "model", work.judge(), provenance)
