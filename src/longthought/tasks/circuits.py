"""Boolean circuits in layers: the values of the last gates. Unlimited, seeded, exactly graded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import ClassVar, Final, NamedTuple, TypeAlias

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem, Score, Verdict
from longthought.tasks.grading import grade_reply
from longthought.tasks.settings import check_format_weight, check_languages
from longthought.tasks.splits import problem_random, proposals, split_of
from longthought.verifiers.sequence import bits

Bits: TypeAlias = tuple[int, ...]

PROMPTS: Final = {
    "en": (
        "a circuit of bits , where a xor b is 1 when exactly one of them is 1 , and a nand b is not ( a and b ) . "
        "inputs : {inputs} . gates : {gates} . what are {outputs} ? "
        "answer with their {count} bits in this order , without spaces ."
    ),
    "zh": (
        "一个逻辑电路，a 异或 b 在恰有一个是 1 时为 1 ，a 与非 b 是 非 ( a 与 b ) 。"
        "输入：{inputs} 。门：{gates} 。{outputs} 是多少？"
        "答案按此顺序写成 {count} 位 0 或 1 ，不加空格。"
    ),
}
WORDS: Final = {
    "en": {"and": "and", "or": "or", "xor": "xor", "nand": "nand", "not": "not"},
    "zh": {"and": "与", "or": "或", "xor": "异或", "nand": "与非", "not": "非"},
}

_KINDS: Final = ("and", "or", "xor", "nand", "not")
_FUNCTIONS: Final[Mapping[str, Callable[..., int]]] = {
    "and": lambda ones, a, b: a & b,
    "or": lambda ones, a, b: a | b,
    "xor": lambda ones, a, b: a ^ b,
    "nand": lambda ones, a, b: ones ^ (a & b),
    "not": lambda ones, a: ones ^ a,
}
"""Bit by bit, of numbers whose bits are all set in ``ones``."""

_TRIES: Final = 100


class _Gate(NamedTuple):
    """A gate that reads places of the layer before, or of the inputs."""

    kind: str
    sources: tuple[int, ...]

    def value(self, before: Sequence[int], ones: int = 1) -> int:
        return _FUNCTIONS[self.kind](ones, *(before[source] for source in self.sources))


class _Circuit(NamedTuple):
    inputs: Bits
    layers: tuple[tuple[_Gate, ...], ...]

    @property
    def outputs(self) -> Bits:
        """Values of the last layer."""
        values = self.inputs
        for layer in self.layers:
            values = tuple(gate.value(values) for gate in layer)
        return values

    @property
    def canonical(self) -> str:
        """The same for circuits that differ by order of inputs, sources, gates or outputs alone."""
        forms = [str(bit) for bit in self.inputs]
        for number, layer in enumerate(self.layers):
            forms = [f"{gate.kind}({','.join(sorted(forms[source] for source in gate.sources))})" for gate in layer]
            forms = [f"{number}.{_digest(form)}" for form in forms]
        return " ".join(sorted(forms))


@dataclass(frozen=True)
class Circuits:
    """Circuits of ``depth`` layers of ``width`` gates; a gate reads one or two bits of the layer before.

    The answer is the ``width`` bits of the last layer, each 0 or 1 equally often whatever its gate, so that a guess is
    right once in 2^width. Every gate changes when some one of the inputs does: no layer can be left out. Splits are
    disjoint by circuit and inputs up to order, whatever the seed and the level. Languages alternate with the index. The
    reward is ``accuracy + format_weight · format``.

    Example: ``Circuits().problem("train", 0).messages[0].content`` is like ``"… inputs : x1 = 0 ; x2 = 1 ; … gates :
    g1 = x1 and x2 ; g2 = not x3 ; …"``.

    Raises ``SettingsError`` on a setting out of range; ``problem`` raises ``DataError`` on an unknown split or where
    the settings allow too few problems.
    """

    width: int = 4
    depth: int = 2
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0
    format_weight: float = 0.1

    levels: ClassVar[int] = 6

    def __post_init__(self) -> None:
        """Refuse settings under which no problem could be drawn."""
        if not 4 <= self.width <= 16:
            raise SettingsError(f"circuits: width is {self.width}; choose 4 to 16")
        if not 1 <= self.depth <= 64:
            raise SettingsError(f"circuits: depth is {self.depth}; choose 1 to 64")
        check_languages(self.name, self.languages, PROMPTS)
        check_format_weight(self.name, self.format_weight)

    @classmethod
    def level(cls, number: int) -> Circuits:
        """Presets from easy (1) to hard (6): 1 to 12 layers of 4 to 10 gates."""
        presets = ((4, 1), (4, 2), (5, 3), (6, 5), (8, 8), (10, 12))
        if not 1 <= number <= cls.levels:
            raise SettingsError(f"circuits: level is {number}; choose 1 to {cls.levels}")
        return cls(*presets[number - 1])

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return "circuits"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        drawn = proposals(split, lambda: self._circuit(draw), lambda c: split_of(self.name, c.canonical))
        circuit = next(drawn)
        language = self.languages[index % len(self.languages)]
        info = {"inputs": _joined(circuit.inputs), "gates": " ; ".join(_lines(circuit, "en")), "language": language}
        return Problem(
            id=f"{self.name}/{_digest(info['inputs'] + info['gates'])}/{language}",
            messages=(Message("user", self._prompt(circuit, language)),),
            answer=_joined(circuit.outputs),
            info=info,
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply by the exact bits. Raises ``DataError`` when the problem's answer is no string of bits."""
        if not problem.answer or set(problem.answer) - set("01"):
            raise DataError(f"problem {problem.id!r}: its answer {problem.answer!r} is no string of bits")

        def verify(answer: str) -> Verdict:
            return bits(answer, problem.answer)

        return [grade_reply(reply, verify, self.format_weight) for reply in replies]

    def solve(self, problem: Problem) -> str:
        """The outputs, from the gates. Raises ``DataError`` when the problem is not one of this task."""
        try:
            values = {f"x{place}": int(bit) for place, bit in enumerate(problem.info["inputs"], 1)}
            lines = [line.split(" = ") for line in problem.info["gates"].split(" ; ")]
            for name, formula in lines:
                words = formula.split()
                kind = next(word for word in words if word in _FUNCTIONS)
                values[name] = _FUNCTIONS[kind](1, *(values[word] for word in words if word != kind))
            return "".join(str(values[name]) for name, _ in lines[-len(problem.answer) :])
        except (KeyError, ValueError, StopIteration, TypeError) as error:
            raise DataError(f"problem {problem.id!r} is no circuit") from error

    def _prompt(self, circuit: _Circuit, language: str) -> str:
        first_output = self.width * (self.depth - 1)
        return PROMPTS[language].format(
            inputs=" ; ".join(f"x{place} = {bit}" for place, bit in enumerate(circuit.inputs, 1)),
            gates=" ; ".join(_lines(circuit, language)),
            outputs=" ".join(f"g{first_output + place}" for place in range(1, self.width + 1)),
            count=self.width,
        )

    def _circuit(self, draw: Random) -> _Circuit:
        """Every value travels with those that it would have if one input were another: bit 0 is the value itself."""
        inputs = self._mixed(draw)
        ones = (1 << self.width + 1) - 1
        worlds = [bit * ones ^ 1 << place for place, bit in enumerate(inputs, 1)]
        layers = []
        for number in range(self.depth):
            is_last = number == self.depth - 1
            wanted = tuple(draw.getrandbits(1) for _ in range(self.width)) if is_last else self._mixed(draw)
            layers.append(tuple(_gate(draw, worlds, bit, ones) for bit in wanted))
            worlds = [gate.value(worlds, ones) for gate in layers[-1]]
        return _Circuit(inputs, tuple(layers))

    def _mixed(self, draw: Random) -> Bits:
        """Random bits, at least two of each: then a gate of any kind and any value can read them."""
        while True:
            values = tuple(draw.getrandbits(1) for _ in range(self.width))
            if 2 <= sum(values) <= self.width - 2:
                return values


def _gate(draw: Random, worlds: Sequence[int], bit: int, ones: int) -> _Gate:
    """A gate of value ``bit`` that some input can change. Its kind is drawn first, so that it does not tell the bit."""
    while True:
        kind = draw.choice(_KINDS)
        for _ in range(_TRIES):
            gate = _Gate(kind, tuple(draw.sample(range(len(worlds)), 1 if kind == "not" else 2)))
            value = gate.value(worlds, ones)
            if value & 1 == bit and value not in (0, ones):
                return gate


def _lines(circuit: _Circuit, language: str) -> Iterator[str]:
    """Like ``g5 = g1 xor g4``, gate by gate."""
    words, before, number = WORDS[language], [f"x{place}" for place in range(1, len(circuit.inputs) + 1)], 0
    for layer in circuit.layers:
        names = [f"g{number + place}" for place in range(1, len(layer) + 1)]
        for name, gate in zip(names, layer):
            first, *rest = (before[source] for source in gate.sources)
            yield f"{name} = " + (f"{first} {words[gate.kind]} {rest[0]}" if rest else f"{words['not']} {first}")
        before, number = names, number + len(layer)


def _joined(values: Bits) -> str:
    return "".join(map(str, values))


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()
