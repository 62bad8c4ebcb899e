"""Tokens of a rollout: ratios and clipping by hand, texts that join to the reply."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from longthought.core.errors import RunError
from longthought.evaluation.trace_source import Clipping, clipping, source
from longthought.evaluation.trace_tokens import decoded, spell, tokens_of
from longthought.runs.record import Record
from longthought.text.tokenizer import Tokenizer
from made_traces import run_of, write

GRPO = Clipping("GRPO", 0.8, 1.28)


def row(**changes: Any) -> dict[str, Any]:
    """A rollout of three tokens, sampled with probabilities 1/2, 1/4 and 1."""
    return {
        "tokens": [5, 6, 7],
        "logprobs": [math.log(0.5), math.log(0.25), 0.0],
        "logprobs_new": [math.log(0.75), math.log(0.125), 0.0],
        "advantage": 1.0,
        "advantages": None,
        "entropies": None,
        "left_out": "",
        **changes,
    }


def states(clip: Clipping | None = GRPO, **changes: Any) -> list[str]:
    return [token.state for token in tokens_of(row(**changes), None, clip)]


def test_probabilities_and_ratios_by_hand() -> None:
    tokens = tokens_of(row(entropies=[0.1, None, math.nan]), None, GRPO)
    assert [token.sampled for token in tokens] == pytest.approx([0.5, 0.25, 1.0])
    assert [token.learned for token in tokens] == pytest.approx([0.75, 0.125, 1.0])
    assert [token.ratio for token in tokens] == pytest.approx([1.5, 0.5, 1.0])
    assert [token.entropy for token in tokens] == [0.1, None, None]
    assert [token.text for token in tokens] == ["[5]", "[6]", "[7]"]


def test_a_clipped_token_is_one_whose_gradient_stops() -> None:
    assert states() == ["clipped, ρ > 1.28", "", ""]
    assert states(advantage=-1.0) == ["", "clipped, ρ < 0.8", ""]
    assert states(advantage=0.0) == ["", "", ""]
    assert states(advantages=[-1.0, -1.0, -1.0]) == ["", "clipped, ρ < 0.8", ""]
    assert states(Clipping("CISPO", cap=1.2), advantage=-1.0) == ["capped at ρ = 1.2", "", ""]
    assert states(None) == ["", "", ""]


def test_the_ratio_of_a_reply_is_the_geometric_mean_of_its_tokens() -> None:
    tokens = tokens_of(row(), None, Clipping("GSPO", 1 - 3e-4, 1 + 4e-4, per_reply=True))
    assert [token.ratio for token in tokens] == pytest.approx([0.75 ** (1 / 3)] * 3)
    assert states(Clipping("GSPO", 0.99, 1.01, per_reply=True), advantage=-1.0) == ["clipped, ρ < 0.99"] * 3


def test_why_a_token_was_not_trained_on() -> None:
    assert states(left_out="no reward", logprobs_new=None) == ["no reward"] * 3
    assert states(logprobs_new=[None, math.log(0.25), None]) == ["not trained on", "", "not trained on"]
    unknown = {"left_out": None, "logprobs_new": None}
    assert states(**unknown) == ["would clip at ρ > 1.28"] * 3
    assert states(**unknown, advantage=-1.0) == ["would clip at ρ < 0.8"] * 3
    assert states(**unknown, advantage=None) == states(None, **unknown) == [""] * 3


def test_numbers_that_are_none_are_survived() -> None:
    tokens = tokens_of(row(logprobs=[math.nan, -math.inf], logprobs_new=[-1.0, -1.0, None]), None, GRPO)
    assert [(token.sampled, token.ratio is None) for token in tokens] == [(None, True), (0.0, False), (None, True)]
    assert all(token.ratio is None or math.isfinite(token.ratio) for token in tokens)


def bytes_tokenizer() -> Tokenizer:
    """One token for each byte, so that most characters take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({sign: number for number, sign in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, ())


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12))
def test_the_texts_of_bytes_join_to_the_reply(text: str) -> None:
    tokenizer = bytes_tokenizer()
    ids = tokenizer.encode(text)
    texts = spell(ids, tokenizer)
    assert "".join(texts) == text
    assert [one for one in texts if one] == list(text)


def test_ids_without_a_word_are_shown_as_numbers() -> None:
    tokenizer = Tokenizer.of_words(("try",), ())
    assert spell([2, 99, -1], tokenizer) == ["try", "[99]", "[-1]"]
    assert decoded([2, -1], None) == "[2] [-1]"
    assert decoded([2, 2], tokenizer) == "try try"


@pytest.mark.parametrize(
    ("objective", "found"),
    [
        ({"is": "GRPO", "clip_low": 0.2, "clip_high": 0.28}, Clipping("GRPO", 0.8, 1.28)),
        ({"is": "GSPO", "clip_low": 0.25, "clip_high": 0.5}, Clipping("GSPO", 0.75, 1.5, per_reply=True)),
        ({"is": "PPO", "policy": [{"is": "GRPO", "clip_low": 0.5, "clip_high": 1}]}, None),
        ({"is": "PPO", "policy": {"is": "GRPO", "clip_low": 0.5, "clip_high": 1}}, Clipping("GRPO", 0.5, 2.0)),
        ({"is": "CISPO", "cap": 5.0}, Clipping("CISPO", cap=5.0)),
        ({"is": "MirrorDescent", "tau": 0.1}, None),
        ({"is": "GRPO", "clip_low": True, "clip_high": "x"}, None),
    ],
)
def test_the_rule_is_read_from_the_stage(tmp_path: Path, objective: object, found: Clipping | None) -> None:
    file = tmp_path / "stage.json"
    file.write_text(json.dumps({"stage": {"is": "RL", "method": {"objective": objective}}}), encoding="utf-8")
    assert clipping(file) == found


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"stage": 3}', b"\xff"])
def test_a_stage_that_cannot_be_read_has_no_rule(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "stage.json").write_bytes(data)
    assert clipping(tmp_path / "stage.json") is None


def test_the_stage_that_trained_is_taken_and_others_when_asked(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 1)
    write(run / "03-after" / "evaluation", 0, [])
    record = Record.read(run)
    found = source(record)
    assert (found.stage, found.folder, found.notes) == ("rl", run / "02-rl" / "traces", ())
    assert found.clipping == GRPO
    assert found.tokenizer is not None
    assert source(record, "after").folder == run / "03-after" / "evaluation"
    with pytest.raises(RunError, match=r"the stage base of .* has no traces; stages with traces: rl, after"):
        source(record, "base")
    with pytest.raises(RunError, match="no stage rll"):
        source(record, "rll")


def test_a_run_without_traces_or_tokenizer_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 0)
    with pytest.raises(RunError, match="has no traces yet; stages with traces: none"):
        source(Record.read(run))
    write(run / "02-rl" / "traces", 1, [])
    (run / "01-base/model/tokenizer.json").write_text("{", encoding="utf-8")
    found = source(Record.read(run))
    assert found.tokenizer is None
    assert "cannot be read" in found.notes[0]
    assert "tokens are shown as numbers" in found.notes[1]
