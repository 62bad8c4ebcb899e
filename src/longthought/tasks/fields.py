"""Which columns of a file hold prompt and answer: named by the user, or told from the names that data sets use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

from longthought.core.errors import DataError, SettingsError
from longthought.tasks.gold import after_hashes, last_boxed

Take: TypeAlias = Literal["auto", "whole", "hashes", "boxed"]
Values: TypeAlias = Mapping[str, Any]

NOTHING: Final = "-"

_PROMPTS = ("prompt", "messages", "problem", "question", "query", "input", "instruction", "conversations")
_ANSWERS = (
    "answer",
    "final_answer",
    "ground_truth",
    "expected_answer",
    "reward_model.ground_truth",
    "gold",
    "gold_answer",
    "target",
)
_WORKED_ANSWERS = ("solution", "output")  # looked at where no column holds an answer alone
_IDS = ("id", "unique_id", "problem_id", "question_id", "uuid", "extra_info.index")
_INFO = (
    "solution",
    "level",
    "type",
    "problem_type",
    "question_type",
    "subject",
    "topic",
    "difficulty",
    "source",
    "data_source",
    "year",
)
_TAKEN: dict[Take, tuple[Callable[[str], str | None], str]] = {
    "whole": (lambda text: text, ""),
    "hashes": (after_hashes, "after #### in "),
    "boxed": (last_boxed, r"the last \boxed in "),
}


@dataclass(frozen=True)
class Fields:
    """Names of columns; an empty one is found by itself, ``-`` stands for none. ``a.b`` is the key b inside column a.

    prompt: text, or a list of messages {role, content} (or {from, value}).
    answer: the gold answer, or a worked solution that holds it.
    take: what of it is the gold answer: whole, hashes (after ####), boxed (in the last \\boxed{}), or auto: hashes or
    boxed where most of the rows have them, else whole.
    id: a name of each row, used once.
    split: train, dev or test.
    info: further columns that come along as text, by their names in lower case; the usual ones (solution, level, type,
    source …) come anyway, and so does a worked solution that holds the answer, as ``solution``.
    """

    prompt: str = ""
    answer: str = ""
    take: Take = "auto"
    id: str = ""
    split: str = ""
    info: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.take not in ("auto", *_TAKEN):
            raise SettingsError(f"fields: take is {self.take!r}; choose one of auto, {', '.join(_TAKEN)}")
        if NOTHING in (self.prompt, self.answer):
            raise SettingsError("fields: every problem needs a prompt and an answer; name their columns")

    @classmethod
    def parse(cls, text: str) -> Fields:
        """``"prompt=question,answer=final,info=level+type"``. Raises ``SettingsError`` on anything else."""
        named = named_columns(text, [field.name for field in fields(cls)])
        found: dict[str, Any] = {**named}
        if "info" in named:
            found["info"] = tuple(named["info"].split("+"))
        return cls(**found)


@dataclass(frozen=True)
class Columns:
    """Where everything stands in the rows of one file. ``same_*``: further columns that hold the same in the sample."""

    prompt: str
    answer: str
    take: Take
    id: str
    split: str
    info: tuple[str, ...]
    same_prompt: tuple[str, ...] = ()
    same_answer: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Example: ``prompt ← question, answer ← after #### in answer``."""
        named = {"id": self.id, "split": self.split, "info": ", ".join(self.info)}
        parts = [f"prompt ← {self.prompt}", f"answer ← {_TAKEN[self.take][1]}{self.answer}"]
        return ", ".join([*parts, *(f"{name} ← {column}" for name, column in named.items() if column)])

    def gold(self, text: str) -> str | None:
        """The gold answer in the text of the answer column; None where it is not there."""
        return _TAKEN[self.take][0](text)


@dataclass(frozen=True)
class Named:
    """Columns by what they hold; every field is a name."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """``"prompt=question,reply=worked"``. Raises ``SettingsError`` on anything else."""
        return cls(**named_columns(text, [field.name for field in fields(cls)]))

    def __str__(self) -> str:
        """Example: ``prompt ← question, reply ← solution``."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(f"{name} ← {column}" for name, column in named.items() if isinstance(column, str) and column)


def named_columns(text: str, known: Sequence[str]) -> dict[str, str]:
    """``"prompt=question,answer=final"`` by name. Raises ``SettingsError`` on anything else, and on an unknown name."""
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, sign, column = map(str.strip, part.partition("="))
        if not sign or not column or name not in known or name in found:
            raise SettingsError(
                f"fields: {part!r} in {text!r}: write name=column, separated by commas, each of {', '.join(known)} "
                "at most once"
            )
        found[name] = column
    return found


def value_at(row: Values, path: str) -> Any:
    """The value of a column, or of a key inside one (``reward_model.ground_truth``); None where there is none."""
    if path in row:
        return row[path]
    head, dot, rest = path.partition(".")
    inner = row.get(head)
    return value_at(inner, rest) if dot and isinstance(inner, Mapping) else None


def columns_of(path: Path, sample: Sequence[Values], fields: Fields) -> Columns:
    """The columns of a file, told from some of its rows.

    Raises ``DataError`` where a named column does not exist, where none is recognised, and where two columns may be
    meant that do not hold the same.
    """
    names = list(dict.fromkeys(name for row in sample for name in row))
    refuse_absent(path, sample, (fields.prompt, fields.answer, fields.id, fields.split, *fields.info))
    prompts = [fields.prompt] if fields.prompt else _prompts(sample)
    prompt, *more_prompts = _agreed(path, sample, "prompt", prompts, names)
    answers = [fields.answer] if fields.answer else _answers(path, sample, names, prompt)
    answer, *more_answers = _agreed(path, sample, "answer", answers, names)
    if prompt == answer:
        raise DataError(f"{path}: prompt and answer are the same column, {prompt}")
    usual = [found for name in _INFO for found in existing(sample, name)]
    return Columns(
        prompt,
        answer,
        _taken(sample, answer) if fields.take == "auto" else fields.take,
        _one(sample, fields.id, _IDS),
        _one(sample, fields.split, ("split",)),
        tuple(name for name in dict.fromkeys([*usual, *fields.info]) if name not in (prompt, answer)),
        tuple(more_prompts),
        tuple(more_answers),
    )


def refuse_absent(path: Path, sample: Sequence[Values], columns: Sequence[str]) -> None:
    """Raise DataError for a column that was named and that no row fills."""
    names = list(dict.fromkeys(name for row in sample for name in row))
    for named in columns:
        if named and named != NOTHING and not filled(sample, named):
            near = get_close_matches(named, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise DataError(f"{path}: column {named!r} is absent or empty{hint} Columns: {', '.join(names)}")


def _prompts(sample: Sequence[Values]) -> list[str]:
    """Columns that may be the prompt; a conversation that ends with a reply is one only for want of others."""
    found = [name for candidate in _PROMPTS for name in existing(sample, candidate)]
    return [name for name in found if not ends_with_reply(sample, name)] or found[:1]


def _answers(path: Path, sample: Sequence[Values], names: Sequence[str], prompt: str) -> list[str]:
    for candidates in (_ANSWERS, _WORKED_ANSWERS):
        found = [name for candidate in candidates for name in existing(sample, candidate) if name != prompt]
        if found:
            return found
    if ends_with_reply(sample, prompt):
        raise DataError(
            f"{path}: {prompt} ends with a reply, which is an example to imitate and no answer to grade by; problems "
            f"need an answer column (fields=Fields(answer=…)). Columns: {', '.join(names)}"
        )
    return []


def _agreed(
    path: Path, sample: Sequence[Values], what: str, candidates: Sequence[str], names: Sequence[str]
) -> Sequence[str]:
    """The candidates, where they all hold the same."""
    if not candidates:
        raise DataError(
            f"{path}: no column is known to hold the {what}; name it with problems.fields={what}=… "
            f"(in Python: Fields({what}=…)). Columns: {', '.join(names)}"
        )
    first = candidates[0]
    choose = f"problems.fields={what}={first} (in Python: Fields({what}={first!r}))"
    refuse_difference(path, sample, what, candidates, choose)
    return candidates


def refuse_difference(path: Path, sample: Sequence[Values], what: str, candidates: Sequence[str], choose: str) -> None:
    """Raise DataError, telling how to ``choose``, where columns that may be meant do not hold the same."""
    first, *others = candidates
    for other in others:
        if not all(same(value_at(row, first), value_at(row, other)) for row in sample):
            raise DataError(
                f"{path}: both {first!r} and {other!r} may be the {what}, and they differ; choose one with {choose}"
            )


def same(one: Any, other: Any) -> bool:
    """Whether two cells say the same: equal, the second absent, or a text and the one message that holds it."""
    return other in (None, "") or _plain(one) == _plain(other)


def _plain(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content", value[0].get("value"))
    return str(value).strip()


def existing(sample: Sequence[Values], candidate: str) -> list[str]:
    """Columns of this name, in any case, that are filled somewhere."""
    if "." in candidate:
        return [candidate] if filled(sample, candidate) else []
    names = dict.fromkeys(name for row in sample for name in row if name.lower() == candidate)
    return [name for name in names if filled(sample, name)]


def filled(sample: Sequence[Values], name: str) -> bool:
    """Whether any row has a value there."""
    return any(value_at(row, name) not in (None, "", []) for row in sample)


def _one(sample: Sequence[Values], named: str, candidates: Sequence[str]) -> str:
    """The named column, else the first of the candidates that exists; empty for none."""
    if named:
        return "" if named == NOTHING else named
    return next((name for candidate in candidates for name in existing(sample, candidate)), "")


def ends_with_reply(sample: Sequence[Values], name: str) -> bool:
    """Whether most of the conversations in a column end with a message of the assistant."""
    last = [value[-1] for row in sample if isinstance(value := value_at(row, name), list) and value]
    roles = [turn.get("role", turn.get("from")) for turn in last if isinstance(turn, Mapping)]
    return bool(roles) and sum(role in ("assistant", "gpt") for role in roles) * 2 > len(roles)


def _taken(sample: Sequence[Values], answer: str) -> Take:
    texts = [value for row in sample if isinstance(value := value_at(row, answer), str)]
    if sum("####" in text for text in texts) * 2 > len(texts):
        return "hashes"
    return "boxed" if sum("\\boxed" in text for text in texts) * 2 > len(texts) else "whole"
