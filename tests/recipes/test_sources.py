"""Sources of problems by name."""

from pathlib import Path

import pytest

from longthought.core.errors import SettingsError
from longthought.core.protocols import Task
from longthought.recipes.sources import GENERATORS, mixture
from longthought.tasks.knights import Knights
from longthought.tasks.mixture import Mixture


def never(name: str) -> Task:
    raise AssertionError(name)


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_has_its_levels(name: str) -> None:
    easy, hard = (mixture([f"{name}:{level}"], never, 0, 0.1) for level in (1, 3))
    assert easy.problem("train", 0).messages != hard.problem("train", 0).messages
    assert mixture([name], never, 0, 0.1) == easy


def test_several_are_mixed_by_weight() -> None:
    task = mixture(["knights:2@3", "chains"], never, 5, 0.2)
    assert isinstance(task, Mixture)
    assert [weight for _, weight in task.parts] == [3.0, 1.0]
    knights = task.parts[0][0]
    assert isinstance(knights, Knights)
    assert (knights.people, knights.seed, knights.format_weight) == (Knights.level(2).people, 5, 0.2)
    drawn = [task.problem("train", index).id for index in range(40)]
    assert sum(one.startswith("knights") for one in drawn) == 30


def test_files_are_read(tmp_path: Path) -> None:
    asked: list[str] = []

    def read(name: str) -> Task:
        asked.append(name)
        return Knights.level(1)

    mixture([str(tmp_path / "a@b.jsonl"), "chains"], read, 0, 0.0)
    assert asked == [str(tmp_path / "a@b.jsonl")]


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([], "no problems"),
        (["knighs:2"], "did you mean knights"),
        (["knights:two"], "whole number"),
        (["knights:9"], "level"),
        (["knights@2"], "changes nothing"),
        (["knights@0", "chains"], "positive"),
        (["knights@nan", "chains"], "positive"),
        (["knights", "knights"], "twice"),
    ],
)
def test_refusals(sources: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        mixture(sources, never, 0, 0.1)
