"""A procedural web: the pretraining corpus of the laptop recipe, in English and Chinese.

It holds arithmetic, comparisons, searches for an unknown, and – unless it is ``pure`` – pages on which somebody tries
Countdown badly: attempts are drawn at random, most pages give up and answer with a wrong attempt, some claim a success
that is none. The base model thus knows the words of a search and no way to search well, as a web-trained base has seen
mathematics of every quality. No page holds a number set of the dev or test split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from random import Random
from typing import Literal, NamedTuple

from longthought.core.errors import SettingsError
from longthought.tasks.corpus import Document, Probe
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_noise import AFTER_QUOTES, PATIENT, QUOTED, Noise, told


@dataclass(frozen=True)
class Words:
    """The words of a search in one language."""

    use: str
    make: str
    attempt: str
    retry: str
    low: str
    high: str
    yes: str
    check: str
    find: str
    value: str


WORDS = {
    "en": Words("use", "make", "try", "wait", "low", "high", "yes", "check", "find", "value"),
    "zh": Words("用", "得", "试", "等", "小", "大", "对", "查", "找", "求"),
}
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SIGNS = ("+", "-", "*", "/", "(", ")", "=", ".", "x")


def vocabulary(task: Countdown) -> list[str]:
    """Every word of the corpus and of the task's prompts and replies."""
    numbers = range(max(task.intermediate, task.target, task.largest) + 1)
    return [*map(str, numbers), *SIGNS, *TAGS, *(w for words in WORDS.values() for w in vars(words).values())]


class Attempt(NamedTuple):
    """( a first b ) second c, with both results."""

    a: int
    first: str
    b: int
    middle: int
    second: str
    c: int
    result: int

    @property
    def trace(self) -> str:
        return f"{self.a} {self.first} {self.b} = {self.middle} {self.second} {self.c} = {self.result}"

    @property
    def expression(self) -> str:
        return f"( {self.a} {self.first} {self.b} ) {self.second} {self.c}"


@dataclass(frozen=True)
class CountdownWeb:
    """``document(index)`` is a pure function of (seed, index): a stream without end or repetition.

    ``kind="pure"`` replaces the pages about the task by more of the others: then no document holds three numbers to
    be combined to a target.
    asked_to_check: share of the pages about the task whose question ends in the word "check": they think, and check
    every hit that they claim.
    quoting: share of the pages about the task whose question first quotes one or two such pages about other numbers,
    as a prompt with examples does. Who quotes is patient half of the time: no search on the page, the quoted ones
    and its own, gives up before a third to sixth attempt. What is tried is as bad as everywhere.
    """

    task: Countdown
    kind: Literal["web", "pure"] = "web"
    seed: int = 0
    noise: Noise = field(default_factory=Noise)
    asked_to_check: float = 0.0
    quoting: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("web", "pure"):
            raise SettingsError(f"corpus={self.kind}: known are web and pure")
        if not 0 <= self.asked_to_check <= 1:
            raise SettingsError(f"corpus: asked_to_check={self.asked_to_check}; it is a share, 0 … 1")
        if self.asked_to_check and self.kind == "pure":
            raise SettingsError("corpus=pure has no page that could be asked to check; leave asked_to_check at 0")
        if not 0 <= self.quoting <= 1:
            raise SettingsError(f"corpus: quoting={self.quoting}; it is a share, 0 … 1")
        if self.quoting and self.kind == "pure":
            raise SettingsError("corpus=pure has no page that could quote others; leave quoting at 0")
        if self.task.count != 3:
            raise SettingsError(f"the corpus speaks of three numbers, the task of {self.task.count}")
        if not set(self.task.operations) <= set("+-*"):
            raise SettingsError(f"the corpus knows + - *, the task {self.task.operations!r}")
        if not {"+", "-"} <= set(self.task.operations) or 2 * self.task.largest > self.task.intermediate + 1:
            within = (self.task.intermediate + 1) // 2
            raise SettingsError(f"the corpus needs the operations + and -, and numbers (largest) of at most {within}")
        sets = combinations(range(1, self.task.largest + 1), 3)
        if self.quoting and len(list(islice((one for one in sets if self.task.split_of(one) == "train"), 3))) < 3:
            raise SettingsError(
                "a page that quotes two others needs three number sets; raise the task's largest number"
            )

    @property
    def shares(self) -> dict[str, float]:
        """Share of documents of each kind."""
        if self.kind == "web":
            return {
                "facts": 0.27,
                "value": 0.04,
                "compare": 0.08,
                "orders": 0.05,
                "pairs": 0.06,
                "unknown": 0.06,
                "countdown": 0.44,
            }
        return {
            "facts": 0.30,
            "value": 0.12,
            "compare": 0.12,
            "orders": 0.10,
            "pairs": 0.18,
            "unknown": 0.18,
        }

    @property
    def description(self) -> str:
        """What a base that read this has seen of the task, and what it has not."""
        common = (
            "A procedural corpus in English and Chinese, generated as it is read; no document is read twice. It holds "
            "arithmetic facts, values of expressions, comparisons of a number with a target, searches for an unknown, "
            "and Countdown with two numbers, all written with the words of a search (try, low, high, wait, yes). "
        )
        if self.kind == "pure":
            return (
                common + "No document combines three numbers to a target: the base has never seen the task of the RL."
            )
        tried = told(self.noise, self.shares["countdown"], self.asked_to_check, self.quoting)
        return common + (
            f"{tried} This is pretraining on noisy text about the task, not fine-tuning on solutions. "
            "No number set of the dev and test splits occurs in any of these documents."
        )

    def document(self, index: int) -> Document:
        rng = Random(f"{self.seed}/{self.kind}/{index}")
        shares = self.shares
        kind = rng.choices(list(shares), list(shares.values()))[0]
        language = "en" if rng.random() < 0.55 else "zh"
        makers: dict[str, Callable[[Random, str], Document]] = {
            "facts": self._facts,
            "value": self._value,
            "compare": self._compare,
            "orders": self._orders,
            "pairs": self._pairs,
            "unknown": self._unknown,
            "countdown": self._countdown,
        }
        return makers[kind](rng, language)

    def _facts(self, rng: Random, _: str) -> Document:
        lines = []
        for _number in range(_length(rng, 6, 20)):
            a, b = rng.randint(0, self.task.intermediate), rng.randint(1, self.task.largest)
            if rng.random() < 0.35:
                a = rng.randint(1, self.task.largest)
            sign, result = self._step(rng, a, b)
            lines.append(f"{a} {sign} {b} = {result} .")
        return Document("facts", None, " ".join(lines))

    def _value(self, rng: Random, language: str) -> Document:
        attempt = self.random_attempt(rng, self._draw(rng))
        steps = f"{attempt.a} {attempt.first} {attempt.b} = {attempt.middle} {attempt.second} {attempt.c}"
        return Document("value", f"{WORDS[language].value} {attempt.expression}", f"{steps} = {attempt.result}")

    def _compare(self, rng: Random, language: str) -> Document:
        words, target = WORDS[language], rng.randint(1, self.task.target)
        lines = []
        for _ in range(_length(rng, 6, 40)):
            value = target if rng.random() < 0.3 else self._near(rng, target)
            lines.append(f"= {value} {_verdict(words, value, target)}")
            if rng.random() < 0.15:
                lines.append(f"{words.check} {value} {words.make} {target} {_verdict(words, value, target)}")
        return Document("compare", f"{words.make} {target}", " ".join(lines))

    def _orders(self, rng: Random, language: str) -> Document:
        """Three numbers, written down in many orders."""
        numbers = self._draw(rng)
        user = " ".join([WORDS[language].use, *map(str, numbers)])
        orders = (" ".join(map(str, rng.sample(numbers, 3))) for _ in range(_length(rng, 4, 40)))
        return Document("orders", user, " . ".join(orders))

    def _near(self, rng: Random, target: int) -> int:
        """A value to compare with: close to the target half of the time, where a comparison is hard."""
        if rng.random() < 0.5:
            return max(0, min(self.task.intermediate, target + rng.choice((-3, -2, -1, 1, 2, 3))))
        return rng.randint(0, self.task.intermediate)

    def _pairs(self, rng: Random, language: str) -> Document:
        """Countdown with two numbers."""
        words = WORDS[language]
        a, b = rng.sample(range(1, self.task.largest + 1), 2)
        target = self._step(rng, a, b)[1] or 1
        lines, opening = [], words.attempt
        for _ in range(4):
            sign, value = self._step(rng, *((a, b) if rng.random() < 0.5 else (b, a)), ordered=True)
            x, y = (a, b) if self._apply(a, sign, b) == value else (b, a)
            lines.append(f"{opening} {x} {sign} {y} = {value} {_verdict(words, value, target)}")
            opening = words.retry
            if value == target:
                break
        return self._page("pairs", f"{words.use} {a} {b} {words.make} {target}", lines, f"{x} {sign} {y}", rng)

    def _unknown(self, rng: Random, language: str) -> Document:
        """find x * b + c = target, by trying."""
        words = WORDS[language]
        x = rng.randint(1, self.task.largest)
        b, c = rng.randint(1, self.task.largest), rng.randint(1, self.task.largest)
        first, middle = self._step(rng, x, b)
        second, target = self._step(rng, middle, c)
        lines, opening = [], words.attempt
        for _ in range(5):
            guess = x if rng.random() < 0.25 else rng.randint(1, self.task.largest)
            half = self._apply(guess, first, b)
            value = None if half is None else self._apply(half, second, c)
            if half is None or value is None:
                continue
            lines.append(
                f"{opening} {guess} {first} {b} = {half} {second} {c} = {value} {_verdict(words, value, target)}"
            )
            opening = words.retry
            if value == target:
                break
        else:
            guess = x
        user = f"{words.find} x {first} {b} {second} {c} = {target}"
        return self._page("unknown", user, lines, str(guess), rng)

    def _countdown(self, rng: Random, language: str) -> Document:
        if self.quoting and rng.random() < self.quoting:
            return self._quoting(rng, language)
        return self._searched(rng, language, self._draw(rng), self.noise.most_attempts)

    def _quoting(self, rng: Random, language: str) -> Document:
        """A page that quotes others before its question, written as a few-shot prompt that is one question is."""
        least = rng.randint(*PATIENT) if rng.random() < 0.5 else 1
        mosts = [QUOTED] * rng.choice((1, 2)) + [AFTER_QUOTES]
        sets: list[list[int]] = []
        while len(sets) < len(mosts):
            numbers = self._draw(rng)
            if sorted(numbers) not in map(sorted, sets):
                sets.append(numbers)
        *quoted, own = (self._searched(rng, language, *one, least) for one in zip(sets, mosts))
        texts = [text for page in quoted for text in (page.user or "", page.text)]
        user = "\n\n".join((*texts, own.user or ""))
        return Document("countdown", user, own.text)

    def _searched(self, rng: Random, language: str, numbers: Sequence[int], most: int, least: int = 1) -> Document:
        """Somebody tries the task badly.

        most: attempts after which everybody gives up.
        least: attempts before anybody does; where they are more than 1, everybody thinks.
        """
        noise, words = self.noise, WORDS[language]
        solution = self.random_attempt(rng, numbers)
        while not 1 <= solution.result <= self.task.target:
            solution = self.random_attempt(rng, numbers)
        target = solution.result
        user = " ".join([words.use, *map(str, numbers), words.make, str(target)])
        check = noise.check
        if self.asked_to_check and rng.random() < self.asked_to_check:
            user, check = f"{user} {words.check}", 1.0
        elif least == 1 and rng.random() < noise.no_thinking:
            return self._page("countdown", user, [], self.random_attempt(rng, numbers).expression, rng, 0.5)
        mean = noise.attempts_en if language == "en" else noise.attempts_zh
        if rng.random() < noise.stubborn:
            mean = float("inf")
        lines: list[str] = []
        attempt = solution
        for number in range(min(most, noise.most_attempts)):
            attempt = solution if rng.random() < noise.lucky else self.random_attempt(rng, numbers)
            opening = words.retry if number else words.attempt
            claimed, line = self._try(rng, words, attempt, target, check)
            lines.append(f"{opening} {line}")
            if claimed or (number + 1 >= least and rng.random() < 1 / mean):
                break
        if rng.random() < noise.unfaithful:
            attempt = self.random_attempt(rng, numbers)
        return self._page("countdown", user, lines, attempt.expression, rng)

    def _try(self, rng: Random, words: Words, attempt: Attempt, target: int, check: float) -> tuple[bool, str]:
        """One attempt with its verdict, and whether the writer believes it is a hit.

        check: how likely a claimed hit is checked.
        """
        noise = self.noise
        value = attempt.result
        if rng.random() < noise.slip:
            value = max(0, min(self.task.intermediate, value + rng.choice((-10, -2, -1, 1, 2, 10))))
            attempt = attempt._replace(result=value)
        verdict = _verdict(words, value, target)
        if value != target and rng.random() < noise.false_yes:
            verdict = words.yes
        elif value == target and rng.random() < noise.false_no:
            verdict = rng.choice((words.low, words.high))
        line = f"{attempt.trace} {verdict}"
        if verdict == words.yes and rng.random() < check:
            verdict = _verdict(words, value, target)
            line += f" {words.check} {value} {words.make} {target} {verdict}"
        return verdict == words.yes, line

    def _page(
        self, kind: str, user: str, lines: Sequence[str], answer: str, rng: Random, untagged: float | None = None
    ) -> Document:
        if rng.random() < (self.noise.untagged if untagged is None else untagged):
            return Document(kind, user, " ".join([*lines, answer]))
        return Document(kind, user, " ".join(["<think>", *lines, "</think>", "<answer>", answer, "</answer>"]))

    def _draw(self, rng: Random) -> list[int]:
        """Three numbers in random order whose set belongs to the training split."""
        while True:
            numbers = rng.sample(range(1, self.task.largest + 1), 3)
            if self.task.split_of(numbers) == "train":
                return numbers

    def random_attempt(self, rng: Random, numbers: Sequence[int]) -> Attempt:
        """A chain of the numbers whose results are in range, all such draws equally likely."""
        while True:
            a, b, c = rng.sample(numbers, 3)
            first, second = rng.choice(self.task.operations), rng.choice(self.task.operations)
            middle = self._apply(a, first, b)
            result = None if middle is None else self._apply(middle, second, c)
            if middle is not None and result is not None:
                return Attempt(a, first, b, middle, second, c, result)

    def _step(self, rng: Random, a: int, b: int, ordered: bool = False) -> tuple[str, int]:
        """A sign that keeps the result in range, and the result. (+ or − always does, for one order.)"""
        signs = list(self.task.operations)
        rng.shuffle(signs)
        for sign in signs:
            for x, y in ((a, b),) if not ordered else ((a, b), (b, a)):
                result = self._apply(x, sign, y)
                if result is not None:
                    return sign, result
        raise SettingsError(f"no operation of {self.task.operations!r} combines {a} and {b} within range")

    def _apply(self, a: int, sign: str, b: int) -> int | None:
        result = {"+": a + b, "-": a - b, "*": a * b}.get(sign)
        return result if result is not None and 0 <= result <= self.task.intermediate else None


@dataclass(frozen=True)
class CountdownProbes:
    """Does the base tell a hit from a miss, and does it know its arithmetic? On ``count`` problems of the dev split.

    ``fact``: the result of the second step; ``hit``/``miss``: "yes" after an attempt that reaches the target or not.
    """

    task: Countdown
    count: int = 200

    def __iter__(self) -> Iterator[Probe]:
        web = CountdownWeb(self.task, seed=-1)
        for index in range(self.count):
            problem = self.task.problem("dev", index)
            words, rng = WORDS[problem.info["language"]], Random(f"probe/{index}")
            numbers, target = [int(n) for n in problem.info["numbers"].split()], int(problem.info["target"])
            attempts = [web.random_attempt(rng, numbers) for _ in range(400)]
            user = problem.messages[0].content
            for check, fits in (("hit", True), ("miss", False)):
                found = next((a for a in attempts if (a.result == target) == fits), None)
                if found is not None:
                    yield Probe(check, user, f"<think> {words.attempt} {found.trace}", words.yes)
                    known, _, result = found.trace.rpartition(" ")
                    yield Probe("fact", user, f"<think> {words.attempt} {known}", result)


def _length(rng: Random, least: int, most: int) -> int:
    """Mostly short, sometimes long: long pages teach a model to look far back."""
    return least + int((most - least) * rng.random() ** 3)


def _verdict(words: Words, value: int, target: int) -> str:
    if value == target:
        return words.yes
    return words.low if value < target else words.high
