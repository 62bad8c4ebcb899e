"""Corpora in one: every part in its share and in its own order, held back documents and epochs as the parts say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from longthought.core.errors import DataError, SettingsError
from longthought.tasks.corpus import Corpus, Document, Finite, HoldsBack, describe, epochs, held_out
from longthought.tasks.corpus_blend import Blend


@dataclass(frozen=True)
class Endless:
    """Documents without end."""

    kind: str

    @property
    def shares(self) -> dict[str, float]:
        return {self.kind: 0.75, "both": 0.25}

    @property
    def description(self) -> str:
        return f"pages about {self.kind}."

    def document(self, index: int) -> Document:
        return Document("both" if index % 4 == 3 else self.kind, None, f"{self.kind} {index}")


@dataclass(frozen=True)
class Ten(Endless):
    """Ten documents, again and again, and one that is held back."""

    def document(self, index: int) -> Document:
        return super().document(index % 10)

    def held_out(self, index: int) -> Document:
        return Document(self.kind, None, f"held {self.kind}")

    def epochs(self, index: int) -> float:
        return index / 10


A, B = Endless("a"), Ten("b")
BLEND = Blend(((A, 3), (B, 1)))


def test_every_part_has_its_share_over_every_stretch_and_comes_in_its_own_order() -> None:
    texts = [BLEND.document(index).text for index in range(400)]
    given: Counter[str] = Counter()
    for number, text in enumerate(texts, 1):
        kind, own = text.split()
        assert int(own) == (given[kind] if kind == "a" else given[kind] % 10)
        given[kind] += 1
        assert abs(given["a"] - 0.75 * number) < 1
    assert given == {"a": 300, "b": 100}
    assert [Blend(((A, 0.3), (B, 0.1))).document(index).text for index in range(400)] == texts


def test_the_seed_breaks_ties_alone() -> None:
    orders = {tuple(Blend(((A, 1), (B, 1)), seed).document(index).text for index in range(6)) for seed in range(8)}
    assert orders == {("a 0", "b 0", "a 1", "b 1", "a 2", "b 2"), ("b 0", "a 0", "b 1", "a 1", "b 2", "a 2")}


def test_shares_and_description_are_those_of_the_parts() -> None:
    corpus: Corpus = BLEND
    assert corpus.shares == pytest.approx({"a": 0.5625, "both": 0.25, "b": 0.1875})
    assert corpus.description == "75.0% of the documents: pages about a. 25.0% of the documents: pages about b."
    assert {kind["name"] for kind in describe(corpus)["kinds"]} == {"a", "b", "both"}
    assert hash(BLEND) == hash(Blend(((Endless("a"), 3), (Ten("b"), 1))))


def test_documents_held_back_are_those_of_the_parts() -> None:
    assert isinstance(BLEND, HoldsBack)
    shown = {BLEND.document(index).text for index in range(1000)}
    held = [held_out(BLEND, index).text for index in range(40)]
    assert held.count("held b") == 10
    assert not set(held) & shown


def test_epochs_are_those_of_the_part_read_most_often() -> None:
    """Three to one: after 80 documents the part of ten was read twice."""
    assert isinstance(BLEND, Finite)
    for index in range(200):
        given = sum(
            BLEND.document(number).kind != "a" and "b" in BLEND.document(number).text for number in range(index)
        )
        assert epochs(BLEND, index) == pytest.approx(given / 10)
    assert epochs(BLEND, 80) == 2.0
    assert epochs(Blend(((A, 1), (Endless("c"), 2))), 10**9) == 0.0


@pytest.mark.parametrize("parts", [(), ((A, 0.0),), ((A, 1.0), (B, float("nan"))), ((A, -1.0),)])
def test_parts_that_make_no_blend_are_refused(parts: tuple[tuple[Corpus, float], ...]) -> None:
    with pytest.raises(SettingsError, match="corpus"):
        Blend(parts)
    with pytest.raises(DataError, match="counted from 0"):
        BLEND.document(-1)
