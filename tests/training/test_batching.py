"""Rows, masks and weights by hand, on replies that are short enough to count."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from conftest import tiny_model
from longthought.algorithms.advantage import group_centered, group_normalized, per_group
from longthought.algorithms.objective import GRPO
from longthought.algorithms.weighting import constant, sequence_mean, sequence_sum, token_mean
from longthought.core.types import (
    Batch,
    Completion,
    Finish,
    Message,
    Outcome,
    Problem,
    Rollout,
    Score,
    TokenIds,
    Verdict,
)
from longthought.training.batching import batch_of, documents, informative, with_reference
from longthought.training.learner import PolicyLearner
from longthought.training.optimizer import AdamW

NAN = float("nan")
PROBLEM = Problem("p", (Message("user", "?"),), "")


def rollout(prompt: TokenIds, reply: TokenIds, value: float | None = 0.0) -> Rollout:
    logprobs = tuple(-0.1 * token for token in reply)
    score = Score(value, bool(value), {}, Verdict(value, Outcome.GRADED))
    return Rollout(PROBLEM, prompt, Completion(reply, logprobs, Finish.STOP), "", score)


TWO = [rollout((1, 2), (3, 4, 5)), rollout((6, 7, 8), (9,))]
BOTH = torch.tensor([True, True])


def same(found: torch.Tensor | None, expected: list[list[float]]) -> None:
    assert found is not None
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_two_rollouts_by_hand() -> None:
    batch = batch_of(TWO, torch.tensor([1.0, -2.0]), token_mean, BOTH)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]]
    assert batch.lengths.tolist() == [5, 4]
    assert batch.mask.tolist() == [[False, False, True, True, True], [False, False, False, True, False]]
    same(batch.weight, [[0, 0, 0.25, 0.25, 0.25], [0, 0, 0, 0.25, 0]])
    same(batch.advantage, [[0, 0, 1, 1, 1], [0, 0, 0, -2, 0]])
    same(batch.logp_old, [[0, 0, -0.3, -0.4, -0.5], [0, 0, 0, -0.9, 0]])
    assert batch.logp_ref is None


@pytest.mark.parametrize(
    ("weighting", "first", "second", "alone"),
    [
        (token_mean, 1 / 4, 1 / 4, 1 / 3),
        (sequence_mean, 1 / 6, 1 / 2, 1 / 3),
        (sequence_sum, 1 / 2, 1 / 2, 1),
        (partial(constant, length=10), 1 / 20, 1 / 20, 1 / 10),
    ],
)
def test_an_untrained_reply_leaves_the_denominator(weighting, first: float, second: float, alone: float) -> None:
    """``alone``: the weight of a token of the first reply when the second is not trained."""
    advantages = torch.tensor([1.0, -2.0])
    same(batch_of(TWO, advantages, weighting, BOTH).weight, [[0, 0, first, first, first], [0, 0, 0, second, 0]])
    batch = batch_of(TWO, advantages, weighting, torch.tensor([True, False]))
    same(batch.weight, [[0, 0, alone, alone, alone], [0] * 5])
    assert batch.mask[1].any()  # it was sampled, all the same
    assert informative(batch).tokens.tolist() == [[1, 2, 3, 4, 5]]


def test_an_absent_reward_counts_nowhere() -> None:
    """As a step of RL does it: NaN leaves the baseline, the loss and its denominator."""
    rollouts = [rollout((1,), (2, 3), 1.0), rollout((1,), (4,), None), rollout((1,), (5, 6, 7), 0.0)]
    rewards = torch.tensor([NAN if r.score.value is None else r.score.value for r in rollouts], dtype=torch.float64)
    advantages = per_group(group_centered)(rewards, torch.zeros(3, dtype=torch.int64))
    batch = batch_of(rollouts, advantages, token_mean, ~rewards.isnan())
    same(batch.advantage, [[0, 0.5, 0.5, 0], [0, 0, 0, 0], [0, -0.5, -0.5, -0.5]])
    same(batch.weight, [[0, 0.2, 0.2, 0], [0, 0, 0, 0], [0, 0.2, 0.2, 0.2]])
    assert informative(batch).tokens.tolist() == [[1, 2, 3, 0], [1, 5, 6, 7]]


def test_nothing_trained_weighs_nothing() -> None:
    for weighting in (token_mean, sequence_mean, sequence_sum):
        batch = batch_of(TWO, torch.zeros(2), weighting, ~BOTH)
        assert not batch.weight.any()
        assert len(informative(batch).tokens) == 0


def test_equal_rewards_leave_nothing_to_train() -> None:
    advantages = per_group(group_normalized)(torch.tensor([0.97, 0.97]), torch.zeros(2, dtype=torch.int64))
    assert informative(batch_of(TWO, advantages, token_mean, BOTH)).tokens.shape == (0, 0)


def test_rows_that_cannot_move_the_weights_can_be_dropped() -> None:
    """The gradient does not change, since every weight was decided before."""
    rollouts = [*TWO, rollout((2,), (3, 3, 3, 3)), rollout((4, 5), (6, 6))]
    trained = torch.tensor([True, True, True, False])
    batch = batch_of(rollouts, torch.tensor([1.0, -2.0, 0.0, 3.0]), sequence_mean, trained)
    few = informative(batch)
    assert few.lengths.tolist() == [5, 4]

    def gradient(part: Batch) -> torch.Tensor:
        learner = PolicyLearner(tiny_model().double(), AdamW(), 1)
        learner.accumulate(part, GRPO())
        return torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(few), gradient(batch), rtol=1e-6, atol=1e-9)
    assert gradient(batch).abs().max() > 1e-3


def test_padding_is_trimmed_with_the_rows() -> None:
    batch = with_reference(batch_of(TWO, torch.tensor([0.0, 1.0]), token_mean, BOTH), torch.ones(2, 5))
    (few,) = [informative(batch)]
    assert few.tokens.tolist() == [[6, 7, 8, 9]]
    for column in (few.mask, few.weight, few.advantage, few.logp_old, few.logp_ref):
        assert column is not None
        assert column.shape == (1, 4)


def test_documents_train_everything_but_the_first_token() -> None:
    batch = documents([(1, 2, 3), (4, 5)])
    assert batch.mask.tolist() == [[False, True, True], [False, True, False]]
    same(batch.weight, [[0, 1 / 3, 1 / 3], [0, 1 / 3, 0]])
    assert (batch.advantage, batch.logp_old) == (None, None)


def test_documents_keep_to_their_masks() -> None:
    batch = documents([(1, 2, 3), (4, 5)], [(True, False, True), (False, False)])
    assert batch.mask.tolist() == [[False, False, True], [False, False, False]]
    same(batch.weight, [[0, 0, 1], [0, 0, 0]])
    assert not documents([(1,), (2,)]).weight.any()
