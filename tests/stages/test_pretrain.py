"""What pretraining reads: a function of the seed, whoever reads it."""

from functools import partial

import pytest

from longthought.recipes.tiny import Base, TinySettings, pretraining
from longthought.stages import pretrain
from longthought.training.team import Team


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_team_reads_the_same_batches(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "_POOL", 40)
    stage = pretraining(TinySettings(seed=5, base=Base(width=32, steps=30, tokens_per_step=256)))
    renderer = stage.renderer()
    with Team(workers, {"documents": partial(stage._documents, renderer)}) as team:
        batches = list(stage.batches(team, 0))
        assert list(stage.batches(team, 17)) == batches[17:]
    assert len(batches) == 30
    assert all(sum(map(len, batch)) <= 256 or len(batch) == 1 for batch in batches)
    first = {renderer.document(page.user, page.text) for page in map(stage.corpus.document, range(40))}
    read = [sequence for batch in batches for sequence in batch]
    assert first <= set(read)  # the first pool, whole
    pages = (stage.corpus.document(index) for index in range(400))
    assert set(read) <= {renderer.document(page.user, page.text) for page in pages}
