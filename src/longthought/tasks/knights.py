"""Knights and knaves: who always tells the truth, who always lies? Unlimited, seeded, one solution each, proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from random import Random
from typing import ClassVar, Final, NamedTuple, TypeAlias

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem, Score, Verdict
from longthought.tasks.grading import grade_reply
from longthought.tasks.settings import check_format_weight, check_languages
from longthought.tasks.splits import problem_random, proposals, split_of
from longthought.verifiers.assignment import roles

Statement: TypeAlias = tuple[str, ...]
"""A form and its parts: ``("is", "1-")`` says that person 1 is a knave, ``("implies", "0+", "1-")`` that if person 0 is
a knight, person 1 is a knave, ``("exactly", "2", "+")`` that exactly two of all are knights."""

FORMS: Final = ("is", "and", "or", "xor", "implies", "iff", "exactly", "least")

PROMPTS: Final = {
    "en": (
        "knights always tell the truth and knaves always lie . everybody here is one or the other . "
        "( if p , then q is false only when p is true and q is false . ) {statements} "
        "who is what ? answer for everybody in the form NAME: knight or NAME: knave , separated by commas ."
    ),
    "zh": (
        "骑士总说真话，无赖总说假话，这里每个人不是骑士就是无赖。"
        "（“如果甲，那么乙”只在甲真而乙假时为假。）{statements}"
        "每个人是什么？答案写出每个人，形式为 名字：骑士 或 名字：无赖 ，用逗号隔开。"
    ),
}
NAMES: Final = {
    "en": ("Ann", "Bo", "Cy", "Dan", "Eve", "Flo", "Gus", "Hal", "Ida", "Jo", "Kim", "Lee"),
    "zh": ("小安", "小波", "小春", "小丹", "小娥", "小芳", "小刚", "小海", "小静", "小康", "小兰", "小梅"),
}
ROLES: Final = {"en": {"+": "knight", "-": "knave"}, "zh": {"+": "骑士", "-": "无赖"}}
WORDS: Final = {word: sign for words in ROLES.values() for sign, word in words.items()}

_SAYS: Final = {"en": '{speaker} says : " {statement} . "', "zh": "{speaker}说：“{statement}。”"}
_CLAIMS: Final = {
    ("en", "and"): "{0} and {1}",
    ("en", "or"): "{0} or {1} , or both",
    ("en", "xor"): "either {0} or {1} , but not both",
    ("en", "implies"): "if {0} , then {1}",
    ("en", "iff"): "{0} if and only if {1}",
    ("zh", "and"): "{0}，并且{1}",
    ("zh", "or"): "{0}，或者{1}，或者两者都对",
    ("zh", "xor"): "‘{0}’和‘{1}’恰有一句对",
    ("zh", "implies"): "如果{0}，那么{1}",
    ("zh", "iff"): "{0}，当且仅当{1}",
}
_COUNTS: Final = {
    ("en", "exactly"): "exactly {number} of us {be} {role}",
    ("en", "least"): "at least {number} of us {be} {role}",
    ("zh", "exactly"): "我们当中恰有{number}个{role}",
    ("zh", "least"): "我们当中至少有{number}个{role}",
}


class _Puzzle(NamedTuple):
    """Person i makes statement i. Person i is a knight in an assignment whose bit i is set."""

    statements: tuple[Statement, ...]

    @property
    def solutions(self) -> list[int]:
        """All assignments under which knights, and they alone, tell the truth."""
        size = len(self.statements)
        possible = _tables(size).everything
        for knight, statement in zip(_tables(size).knight, self.statements):
            possible &= ~(knight ^ _truth(statement, size))
        return [assignment for assignment in range(2**size) if possible >> assignment & 1]

    @property
    def canonical(self) -> str:
        """The same for puzzles that differ by names, by order of people or of what is said, alone.

        People are coloured by what they say of people of which colour, again and again. Others may look the same.
        """
        colours = ["" for _ in self.statements]
        for _ in range(3):
            colours = [self._colour(speaker, colours) for speaker in range(len(colours))]
        return " ".join(sorted(colours))

    def _colour(self, speaker: int, colours: Sequence[str]) -> str:
        form, *parts = self.statements[speaker]
        if form not in ("exactly", "least"):
            parts = [("self" if int(p[:-1]) == speaker else colours[int(p[:-1])]) + p[-1] for p in parts]
            parts = parts if form == "implies" else sorted(parts)
        return _digest(" ".join((colours[speaker], form, *parts)))


class _Tables(NamedTuple):
    """Sets of assignments, one bit for each of the 2^people: bit a is set when assignment a belongs to the set."""

    everything: int
    knight: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Knights:
    """Puzzles of ``people`` knights and knaves, each of whom makes one statement of a kind in ``forms``.

    Forms: ``is`` (of somebody else), ``and``, ``or``, ``xor``, ``implies``, ``iff`` (of two people), ``exactly``,
    ``least`` (how many of all). No statement is true, or false, whoever is what. There is exactly one solution, proved
    against all 2^people assignments, and every assignment is the solution about equally often. Splits are disjoint by
    puzzle up to names and order, whatever the seed and the level. Languages alternate with the index. The reward is
    ``accuracy + format_weight · format``.

    Example: ``Knights().problem("train", 0).messages[0].content`` is like ``'… Ann says : " Bo is a knave . " Bo says :
    " Ann is a knight or Cy is a knave , or both . " … who is what ? …'``.

    Raises ``SettingsError`` on a setting out of range; ``problem`` raises ``DataError`` on an unknown split or where
    the settings allow too few problems (``is`` alone: the opposite of a solution is one, too).
    """

    people: int = 3
    forms: tuple[str, ...] = FORMS
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0
    format_weight: float = 0.1

    levels: ClassVar[int] = 6

    def __post_init__(self) -> None:
        """Refuse settings under which no problem could be drawn."""
        if not 2 <= self.people <= 8:
            raise SettingsError(f"knights: people is {self.people}; choose 2 to 8")
        if not self.forms or not set(self.forms) <= set(FORMS):
            raise SettingsError(f"knights: forms is {self.forms}; choose from {', '.join(FORMS)}")
        check_languages(self.name, self.languages, PROMPTS)
        check_format_weight(self.name, self.format_weight)

    @classmethod
    def level(cls, number: int) -> Knights:
        """Presets from easy (1) to hard (6): 2, 3, 4, 5, 6, 8 people; all forms but at level 2."""
        simple = ("is", "and", "or", "exactly")
        presets = (cls(2), cls(3, simple), cls(4), cls(5), cls(6), cls(8))
        if not 1 <= number <= cls.levels:
            raise SettingsError(f"knights: level is {number}; choose 1 to {cls.levels}")
        return presets[number - 1]

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return "knights"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        puzzle = next(proposals(split, lambda: self._puzzle(draw), self._split_of))
        (solution,) = puzzle.solutions
        language = self.languages[index % len(self.languages)]
        names = draw.sample(NAMES[language], self.people)
        statements = " ; ".join(map(" ".join, puzzle.statements))
        return Problem(
            id=f"{self.name}/{_digest(statements + ' '.join(names))}/{language}",
            messages=(Message("user", _prompt(puzzle, names, language)),),
            answer=_told(solution, names, language),
            info={
                "people": " ".join(names),
                "roles": "".join("+-"[not solution >> person & 1] for person in range(self.people)),
                "statements": statements,
                "language": language,
            },
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply by the one solution. Raises ``DataError`` when the problem is not one of this task."""
        gold = _gold(problem)

        def verify(answer: str) -> Verdict:
            return roles(answer, gold, WORDS)

        return [grade_reply(reply, verify, self.format_weight) for reply in replies]

    def solve(self, problem: Problem) -> str:
        """The one solution, from the statements. Raises ``DataError`` where there is none, or more than one."""
        names = list(_gold(problem))
        try:
            statements = tuple(tuple(said.split()) for said in problem.info["statements"].split(" ; "))
            (solution,) = _Puzzle(statements).solutions
        except (KeyError, ValueError, IndexError) as error:
            raise DataError(f"problem {problem.id!r} is no puzzle of knights with one solution") from error
        return _told(solution, names, problem.info["language"])

    def _split_of(self, puzzle: _Puzzle) -> str:
        return split_of(self.name, puzzle.canonical) if len(puzzle.solutions) == 1 else ""

    def _puzzle(self, draw: Random) -> _Puzzle:
        """A puzzle with at least one solution, all assignments drawn equally often."""
        solution = draw.getrandbits(self.people)
        return _Puzzle(tuple(self._statement(draw, person, solution) for person in range(self.people)))

    def _statement(self, draw: Random, speaker: int, solution: int) -> Statement:
        """A statement that is true under the solution when its speaker is a knight, and false when a knave."""
        tables = _tables(self.people)
        form = draw.choice(self.forms)
        while True:
            statement = self._claim(draw, form, speaker)
            truth = _truth(statement, self.people)
            if truth not in (0, tables.everything) and truth >> solution & 1 == solution >> speaker & 1:
                return statement

    def _claim(self, draw: Random, form: str, speaker: int) -> Statement:
        if form in ("exactly", "least"):
            return (form, str(draw.randint(0 if form == "exactly" else 1, self.people)), draw.choice("+-"))
        if form == "is":
            about = [draw.choice([person for person in range(self.people) if person != speaker])]
        else:
            about = draw.sample(range(self.people), 2)
        return (form, *(f"{person}{draw.choice('+-')}" for person in about))


@cache
def _tables(size: int) -> _Tables:
    assignments = range(2**size)
    knight = tuple(sum(1 << a for a in assignments if a >> person & 1) for person in range(size))
    counts = tuple(sum(1 << a for a in assignments if a.bit_count() == count) for count in range(size + 1))
    return _Tables((1 << 2**size) - 1, knight, counts)


def _truth(statement: Statement, size: int) -> int:
    """The assignments under which a statement is true."""
    tables = _tables(size)
    form, *parts = statement
    if form in ("exactly", "least"):
        least = int(parts[0])
        counts = tables.counts if parts[1] == "+" else tables.counts[::-1]
        return counts[least] if form == "exactly" else sum(counts[least:])
    claims = [tables.knight[int(p[:-1])] ^ (0 if p[-1] == "+" else tables.everything) for p in parts]
    return _joined(form, claims, tables.everything)


def _joined(form: str, claims: Sequence[int], everything: int) -> int:
    first, second = claims[0], claims[-1]
    truths: Mapping[str, int] = {
        "is": first,
        "and": first & second,
        "or": first | second,
        "xor": first ^ second,
        "implies": everything ^ first | second,
        "iff": everything ^ first ^ second,
    }
    return truths[form]


def _prompt(puzzle: _Puzzle, names: Sequence[str], language: str) -> str:
    said = [
        _SAYS[language].format(speaker=names[speaker], statement=_text(statement, speaker, names, language))
        for speaker, statement in enumerate(puzzle.statements)
    ]
    return PROMPTS[language].format(statements=(" " if language == "en" else "").join(said))


def _text(statement: Statement, speaker: int, names: Sequence[str], language: str) -> str:
    form, *parts = statement
    if form in ("exactly", "least"):
        number, role = int(parts[0]), ROLES[language][parts[1]]
        if language == "en" and number != 1:
            role = {"knight": "knights", "knave": "knaves"}[role]
        return _COUNTS[language, form].format(number=number, role=role, be="is" if number == 1 else "are")
    claims = [_claim_text(int(p[:-1]), p[-1], speaker, names, language) for p in parts]
    return claims[0] if form == "is" else _CLAIMS[language, form].format(*claims)


def _claim_text(person: int, sign: str, speaker: int, names: Sequence[str], language: str) -> str:
    role = ROLES[language][sign]
    if language == "zh":
        return f"{'我' if person == speaker else names[person]}是{role}"
    return f"I am a {role}" if person == speaker else f"{names[person]} is a {role}"


def _told(solution: int, names: Sequence[str], language: str) -> str:
    """Like ``Ann: knight, Bo: knave``."""
    colon, comma = (": ", ", ") if language == "en" else ("：", "，")
    signs = ("+-"[not solution >> person & 1] for person in range(len(names)))
    return comma.join(f"{name}{colon}{ROLES[language][sign]}" for name, sign in zip(names, signs))


def _gold(problem: Problem) -> dict[str, str]:
    """The role of everybody, ``+`` or ``-``."""
    names, signs = problem.info.get("people", "").split(), problem.info.get("roles", "")
    if not names or len(names) != len(signs) or set(signs) - set("+-") or problem.info.get("language") not in NAMES:
        raise DataError(f"problem {problem.id!r} is no puzzle of knights: it lacks people, roles or language")
    return dict(zip(names, signs))


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()
