"""Products of permutations: carry a whole arrangement through many steps. Unlimited, seeded, exactly graded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Final, Literal, NamedTuple, TypeAlias

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem, Score, Verdict
from longthought.tasks.grading import grade_reply
from longthought.tasks.settings import check_format_weight, check_languages
from longthought.tasks.splits import problem_random, proposals, split_of
from longthought.verifiers.sequence import integers

Permutation: TypeAlias = tuple[int, ...]

PROMPTS: Final = {
    "en": (
        "permutations of 1 to {size} , where the number at place i is the image of i : {shown} . "
        "take the product {product} , in which the {first} permutation is applied first . {question}"
    ),
    "zh": (
        "下面是 1 到 {size} 的排列，第 i 个数是 i 的像：{shown} 。"
        "取乘积 {product} ，其中最{first}边的排列最先作用。{question}"
    ),
}
QUESTIONS: Final = {
    ("en", "line"): "answer with the images of 1 to {size} under it : {size} numbers separated by spaces .",
    ("zh", "line"): "答案写成 1 到 {size} 在它之下的像：{size} 个数，用空格隔开。",
    ("en", "image"): "what is the image of {element} under it ? answer with one number .",
    ("zh", "image"): "{element} 在它之下的像是多少？答案写成一个数。",
}
FIRST: Final = {("en", True): "leftmost", ("en", False): "rightmost", ("zh", True): "左", ("zh", False): "右"}


class _Product(NamedTuple):
    """Permutations in the order in which they are applied, and how they are shown and asked for."""

    applied: tuple[Permutation, ...]
    left_first: bool
    elements: tuple[int, ...]

    @property
    def images(self) -> list[int]:
        """Images of the elements that are asked for."""
        return [_image(element, self.applied) for element in self.elements]

    @property
    def matters(self) -> bool:
        """Whether the other order gives another answer."""
        return self.images != [_image(element, reversed(self.applied)) for element in self.elements]

    @property
    def canonical(self) -> str:
        """The permutations, applied in order: neither the convention nor the question counts."""
        return " , ".join(map(_line, self.applied))


@dataclass(frozen=True)
class Permutations:
    """Products of ``count`` permutations of 1..``size``, none of them the identity.

    asked: ``line``, all images; ``image``, that of one element (easier to do and to guess).

    Each prompt says which end of the product is applied first; the answer for the other end is always another one.
    Splits are disjoint by the permutations in order of application, whatever the seed, the level and the question.
    Languages alternate with the index. The reward is ``accuracy + format_weight · format``.

    Example: ``Permutations().problem("train", 0).messages[0].content`` is like ``"permutations of 1 to 4 , where …
    : p1 = 2 1 4 3 ; p2 = 3 1 2 4 . take the product p1 p2 , in which the leftmost permutation is applied first . …"``.

    Raises ``SettingsError`` on a setting out of range; ``problem`` raises ``DataError`` on an unknown split or where
    the settings allow too few problems.
    """

    count: int = 2
    size: int = 4
    asked: Literal["line", "image"] = "line"
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0
    format_weight: float = 0.1

    levels: ClassVar[int] = 6

    def __post_init__(self) -> None:
        """Refuse settings under which no problem could be drawn."""
        if not 2 <= self.count <= 100:
            raise SettingsError(f"permutations: count is {self.count}; choose 2 to 100")
        if not 3 <= self.size <= 20:
            raise SettingsError(f"permutations: size is {self.size}; choose 3 to 20")
        if self.asked not in ("line", "image"):
            raise SettingsError(f"permutations: asked is {self.asked!r}; choose line or image")
        check_languages(self.name, self.languages, PROMPTS)
        check_format_weight(self.name, self.format_weight)

    @classmethod
    def level(cls, number: int) -> Permutations:
        """Presets from easy (1) to hard (6): 2 to 16 permutations of 4 to 8 elements; level 2 asks for one image."""
        presets = (cls(2, 4), cls(4, 8, "image"), cls(3, 5), cls(5, 6), cls(8, 8), cls(16, 8))
        if not 1 <= number <= cls.levels:
            raise SettingsError(f"permutations: level is {number}; choose 1 to {cls.levels}")
        return presets[number - 1]

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return "permutations"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        drawn = proposals(split, lambda: self._product(draw), lambda p: split_of(self.name, p.canonical))
        product = next(product for product in drawn if product.matters)
        language = self.languages[index % len(self.languages)]
        order = "left" if product.left_first else "right"
        asked = ".".join(map(str, product.elements))
        return Problem(
            id=f"{self.name}/{product.canonical.replace(' ', '')}/{order}/{asked}/{language}",
            messages=(Message("user", self._prompt(product, language)),),
            answer=" ".join(map(str, product.images)),
            info={"applied": product.canonical, "asked": " ".join(map(str, product.elements)), "language": language},
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply by the exact images. Raises ``DataError`` when the problem is not one of this task."""
        gold = _product_of(problem).images

        def verify(answer: str) -> Verdict:
            return integers(answer, gold)

        return [grade_reply(reply, verify, self.format_weight) for reply in replies]

    def solve(self, problem: Problem) -> str:
        """The images that are asked for. Raises ``DataError`` when the problem is not one of this task."""
        return " ".join(map(str, _product_of(problem).images))

    def _prompt(self, product: _Product, language: str) -> str:
        shown = product.applied if product.left_first else product.applied[::-1]
        names = [f"p{place}" for place in range(1, self.count + 1)]
        question = QUESTIONS[language, self.asked].format(size=self.size, element=product.elements[0])
        return PROMPTS[language].format(
            size=self.size,
            shown=" ; ".join(f"{name} = {_line(permutation)}" for name, permutation in zip(names, shown)),
            product=" ".join(names),
            first=FIRST[language, product.left_first],
            question=question,
        )

    def _product(self, draw: Random) -> _Product:
        applied = tuple(self._permutation(draw) for _ in range(self.count))
        everything = tuple(range(1, self.size + 1))
        elements = everything if self.asked == "line" else (draw.choice(everything),)
        return _Product(applied, draw.random() < 0.5, elements)

    def _permutation(self, draw: Random) -> Permutation:
        identity = list(range(1, self.size + 1))
        while (images := draw.sample(identity, self.size)) == identity:
            pass
        return tuple(images)


def _image(element: int, applied: Iterable[Permutation]) -> int:
    for permutation in applied:
        element = permutation[element - 1]
    return element


def _line(permutation: Permutation) -> str:
    return " ".join(map(str, permutation))


def _product_of(problem: Problem) -> _Product:
    """The product that a problem asks for; its order is that of application."""
    try:
        applied = tuple(tuple(map(int, line.split())) for line in problem.info["applied"].split(" , "))
        product = _Product(applied, True, tuple(map(int, problem.info["asked"].split())))
        if not product.elements or any(sorted(p) != list(range(1, len(applied[0]) + 1)) for p in applied):
            raise ValueError("no permutations")
        if not 1 <= min(product.elements) <= max(product.elements) <= len(applied[0]):
            raise ValueError("no such element")
    except (KeyError, ValueError) as error:
        raise DataError(f"problem {problem.id!r} is no product of permutations") from error
    return product
