"""Settings: every refusal names the key, what is needed and what was given."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from longthought.core.errors import SettingsError
from longthought.runs.settings import fingerprint, flatten, from_dict, from_yaml, override, to_dict


@dataclass(frozen=True)
class Clip:
    low: float = 0.2
    high: float = 0.28

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise SettingsError("low must not exceed high")


@dataclass(frozen=True)
class RL:
    steps: int = 100
    lr: float = 1.5e-3
    clip: Clip = field(default_factory=Clip)
    averaging: Literal["token", "sequence"] = "token"
    cap: int | None = None


@dataclass(frozen=True)
class Recipe:
    seed: int = 0
    fast: bool = False
    name: str = "tiny"
    data: Path | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    ks: tuple[int, ...] = (1, 8)
    tags: tuple[str, ...] = ()
    rl: RL = field(default_factory=RL)


def refusal(*assignments: str) -> str:
    with pytest.raises(SettingsError) as caught:
        override(Recipe(), assignments)
    return str(caught.value)


def test_every_kind_of_leaf_is_read_from_text() -> None:
    words = [
        "seed=7", "fast=TRUE", "name=a=b", "data=x/y", "betas=0.8, 0.9", "ks=[1,2, 4]", "tags=(de,)",
        "rl.steps=1e3", "rl.lr=1e-4", "rl.clip.low=0", "rl.averaging=sequence", "rl.cap=192",
    ]  # fmt: skip
    expected = Recipe(
        7, True, "a=b", Path("x/y"), (0.8, 0.9), (1, 2, 4), ("de",), RL(1000, 1e-4, Clip(0.0), "sequence", 192)
    )
    assert override(Recipe(), words) == expected
    assert override(expected, ["rl.cap=none", "data=null", "tags=", "ks=[]"]).rl.cap is None
    assert override(expected, ["tags=", "ks=[]"]).ks == ()
    assert isinstance(override(Recipe(), ["rl.clip.low=0"]).rl.clip.low, float)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("rl.steps=ten", ["rl.steps=ten: an integer is needed"]),
        ("rl.steps=2.5", ["rl.steps=2.5: an integer is needed"]),
        ("rl.steps=nan", ["rl.steps=nan: an integer is needed"]),
        ("rl.steps=1e999999999", ["rl.steps=1e999999999: an integer of at most 63 bits"]),
        ("rl.steps=true", ["rl.steps=true: an integer is needed"]),
        ("rl.steps=", ["rl.steps=: an integer is needed"]),
        ("rl.lr=nan", ["rl.lr=nan: a finite number"]),
        ("rl.lr=1e999", ["a finite number"]),
        ("rl.lr=fast", ["rl.lr=fast: a number is needed"]),
        ("fast=1", ["fast=1: true or false"]),
        ("rl.averaging=tokn", ["one of token, sequence is needed", "did you mean token?"]),
        ("betas=1", ["betas=1: 2 values are needed, 1 were given"]),
        ("ks=1,x", ["ks=1,x: an integer"]),
        ("ks=[1,", ["ks=[1,: a list"]),
        ("data=", ["data=: a path"]),
        ("rl.stpes=3", ["no setting rl.stpes", "did you mean rl.steps?", "rl.steps, rl.lr, rl.clip, rl.averaging"]),
        ("steps=3", ["no setting steps", "rl.steps", "Valid here: seed, fast"]),
        ("rl.clip.low.x=3", ["rl.clip.low is a single value"]),
        ("rl=3", ["rl is a group", "rl.steps, rl.lr"]),
        ("seed", ["'seed' is no setting", "key=value", "seed=0"]),
        ("=3", ["key=value"]),
        ("rl.clip.low=0.5", ["rl.clip: low must not exceed high"]),
    ],
)
def test_refusals_name_key_need_and_gift(word: str, parts: list[str]) -> None:
    message = refusal(word)
    for part in parts:
        assert part in message


def test_a_key_may_be_set_once() -> None:
    assert "seed is set twice: to 1 and to 1" in refusal("seed=1", "seed=1")


def test_a_section_is_checked_after_all_its_changes() -> None:
    assert override(Recipe(), ["rl.clip.low=0.5", "rl.clip.high=0.6"]).rl.clip == Clip(0.5, 0.6)


def yaml_of(folder: Path, text: str) -> Recipe:
    (folder / "s.yaml").write_text(text)
    return from_yaml(Recipe(), folder / "s.yaml")


def test_yaml_reads_numbers_that_its_parser_leaves_as_text(tmp_path: Path) -> None:
    text = "rl:\n  lr: 1e-4\n  steps: 1e3\n  clip: {low: 0}\nrl.cap: 5\nbetas: [1e-1, 0.5]\ndata: a/b\n"
    assert yaml_of(tmp_path, text) == Recipe(data=Path("a/b"), betas=(0.1, 0.5), rl=RL(1000, 1e-4, Clip(0.0), cap=5))
    assert yaml_of(tmp_path, "") == Recipe()
    assert yaml_of(tmp_path, "rl: {}\nrl.steps: 20.0") == Recipe(rl=RL(20))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("rl: {steps: yes}", "rl.steps=True: an integer is needed"),
        ("rl: {lr: .nan}", "rl.lr=nan: a finite number"),
        ("rl: {lr: .inf}", "rl.lr=inf: a finite number"),
        ("fast: 1", "fast=1: true or false"),
        ("name: 12", "name=12: a text is needed (put it in quotes)"),
        ("seed: {}", "seed={}: an integer"),
        ("seed:", "seed=None: an integer"),
        ("rl:", "rl is a group"),
        ("rl: 3", "rl is a group"),
        ("ks: 3", "ks=3: a list is needed"),
        ("rl: {stpes: 3}", "did you mean rl.steps?"),
        ("rl: {clip: {low: 2}}", "rl.clip: low must not"),
        ("seed: 1\nseed: 2", "seed is set twice"),
        ("rl: {steps: 1}\nrl.steps: 2", "rl.steps is set twice"),
        ("1: 2", "1 is no name"),
        ("- a", "key: value"),
        ("a: [", "no valid YAML"),
        ("a: !!python/object:os.system {}", "no valid YAML"),
    ],
)
def test_yaml_refusals_name_file_and_key(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(SettingsError) as caught:
        yaml_of(tmp_path, text)
    assert part in str(caught.value)
    assert "s.yaml" in str(caught.value)


def test_yaml_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml cannot be read"):
        from_yaml(Recipe(), tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SettingsError, match="cannot be read"):
        from_yaml(Recipe(), tmp_path / "bytes.yaml")


numbers = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-(2**63) + 1, 2**63 - 1)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
recipes = st.builds(
    Recipe,
    seed=integers,
    fast=st.booleans(),
    name=words,
    data=st.none() | words.filter(lambda w: w not in ("", ".")).map(Path),
    betas=st.tuples(numbers, numbers),
    ks=st.lists(integers, max_size=3).map(tuple),
    tags=st.lists(words, max_size=3).map(tuple),
    rl=st.builds(
        RL, steps=integers, lr=numbers, averaging=st.sampled_from(["token", "sequence"]), cap=st.none() | integers
    ),
)


quick = options(max_examples=60, deadline=None)


@given(recipes)
@quick
def test_plain_values_and_back(settings: Recipe) -> None:
    plain = json.loads(json.dumps(to_dict(settings)))
    assert from_dict(Recipe(), plain) == settings
    assert from_dict(Recipe(), flatten(plain)) == settings
    assert fingerprint(from_dict(Recipe(), plain)) == fingerprint(settings)


@given(st.permutations(["seed=3", "rl.steps=5", "rl.lr=0.5", "rl.clip.low=0.1", "betas=0.1,0.2"]), integers, numbers)
@quick
def test_order_of_words_does_not_matter(assignments: list[str], count: int, lr: float) -> None:
    settings = override(Recipe(), assignments)
    assert settings == override(Recipe(), sorted(assignments))
    assert override(settings, [f"rl.steps={count}", f"rl.lr={lr!r}"]).rl == RL(count, lr, Clip(0.1))


@given(st.text(max_size=12), st.text(max_size=12))
@quick
def test_any_words_give_settings_or_a_settings_error(key: str, value: str) -> None:
    for name in (key, "rl.steps", "rl.lr", "ks", "betas", "fast", "rl.averaging", "data", "rl.cap"):
        try:
            settings = override(Recipe(), [f"{name}={value}"])
        except SettingsError:
            continue
        assert from_dict(Recipe(), to_dict(settings)) == settings


def test_fingerprint_is_of_the_values() -> None:
    assert fingerprint(Recipe(rl=RL(lr=1))) == fingerprint(Recipe(rl=RL(lr=1.0)))
    assert fingerprint(Recipe()) != fingerprint(Recipe(seed=1))
    assert fingerprint(Clip()) == hashlib.sha256(b'{"high":0.28,"low":0.2}').hexdigest()
    with pytest.raises(SettingsError, match=r"rl\.steps=0\.5: an integer"):
        to_dict(Recipe(rl=RL(steps=0.5)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Strange:
    either: int | str = 0
    anything: object = None


@pytest.mark.parametrize("word", ["either=1", "anything=1"])
def test_kinds_that_settings_cannot_hold(word: str) -> None:
    with pytest.raises(TypeError, match="cannot hold a field of type"):
        override(Strange(), [word])
