"""Pages on which people answer small requests badly, for pretraining, and careful replies to imitate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from random import Random
from typing import Final

from longthought.core.errors import SettingsError
from longthought.core.types import Message
from longthought.tasks.corpus import Document
from longthought.tasks.examples import Examples
from longthought.tasks.requests import UNSAFE_SHARE, Request, Requests, request_of
from longthought.tasks.requests_words import LEXICONS

TAGS: Final = ("<think>", "</think>")
_DRAWS = 50  # per demonstration, before the requests count as exhausted


@dataclass(frozen=True)
class Noise:
    """How badly requests are answered. Probabilities; the defaults are those of the web."""

    no_thinking: float = 0.15  # answers at once
    untagged: float = 0.15  # leaves the tags out
    wrong: float = 0.2  # an item is of another category, forbidden, or said before
    surplus: float = 0.25  # an item more than asked for
    missing: float = 0.15  # an item less
    careless: float = 0.5  # the style asked for is not heeded
    unkind: float = 0.5  # no heed is paid to "kindly", which otherwise brings a courtesy word at least
    obedient: float = 0.5  # an unsafe request is answered
    overcareful: float = 0.03  # a safe request is refused
    courtesy: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)  # shares of replies with 0, 1, 2 … courtesy words

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value = getattr(self, field_.name)
            for share in value if isinstance(value, tuple) else (value,):
                if not 0 <= share <= 1:
                    raise SettingsError(f"noise.{field_.name}={value}: must lie within 0 … 1")
        most = min(len(lexicon.courtesy) for lexicon in LEXICONS.values())
        if not 1 <= len(self.courtesy) <= most + 1 or not abs(sum(self.courtesy) - 1) < 1e-6:
            raise SettingsError(f"noise.courtesy={self.courtesy}: shares of 0 … {most} words at the most, of sum 1")


CAREFUL: Final = Noise(
    no_thinking=0,
    untagged=0,
    wrong=0,
    surplus=0.1,
    missing=0,
    careless=0,
    unkind=0.4,
    obedient=0,
    overcareful=0,
    courtesy=(0.4, 0.35, 0.25),
)
"""Good replies that are not perfect in style, so that a preference has something to gain."""


def vocabulary(task: Requests) -> list[str]:
    """Every word of the pages, the prompts and the replies, in every language."""
    numbers = map(str, range(1, task.most + 1))
    return [*numbers, ".", *TAGS, *(word for lexicon in LEXICONS.values() for word in lexicon.words)]


@dataclass(frozen=True)
class RequestsWeb:
    """``document(index)`` is a pure function of (seed, index): a stream without end.

    It holds lists of the items of a category, and replies to requests of the training split.
    """

    task: Requests = field(default_factory=Requests)
    seed: int = 0
    noise: Noise = field(default_factory=Noise)

    @property
    def shares(self) -> dict[str, float]:
        """Share of documents of each kind."""
        lists = 0.2
        return {"lists": lists, "safe": (1 - lists) * (1 - UNSAFE_SHARE), "unsafe": (1 - lists) * UNSAFE_SHARE}

    @property
    def description(self) -> str:
        """What a base that read this has seen of the task, and what it has not."""
        n, shares = self.noise, self.shares
        polite = ", ".join(f"{share:.0%}" for share in n.courtesy)
        return (
            "A procedural corpus in English and Chinese, generated as it is read. "
            f"{shares['lists']:.0%} of the documents list items of a category; in the others somebody answers a small "
            f"request, badly: {n.wrong:.0%} of the items are wrong, {n.surplus:.0%} of the replies have an item too "
            f"many and {n.missing:.0%} one too few, {n.careless:.0%} do not heed the style asked for, "
            f"{n.no_thinking:.0%} answer without a thought, {n.untagged:.0%} lack the tags. {shares['unsafe']:.0%} of "
            f"the documents answer unsafe requests, {n.obedient:.0%} of these obediently, the others with a refusal. "
            f"Replies with 0, 1, … words of courtesy: {polite}. "
            "No request of the dev and test splits occurs in any of these documents."
        )

    def document(self, index: int) -> Document:
        rng = Random(f"{self.task.name}/{self.seed}/{index}")
        kind = rng.choices(list(self.shares), list(self.shares.values()))[0]
        language = rng.choice(self.task.languages)
        if kind == "lists":
            return Document(kind, None, _list(rng, language))
        request = self._draw(rng, language, kind == "unsafe")
        reasoning, summary = written(rng, request, self.noise)
        thinks, tagged = rng.random() >= self.noise.no_thinking, rng.random() >= self.noise.untagged
        words = [reasoning] if thinks else []
        if tagged:
            words = [TAGS[0], *words, TAGS[1]]
        return Document(kind, request.prompt, " ".join([*words, summary]))

    def _draw(self, rng: Random, language: str, unsafe: bool) -> Request:
        while True:
            request = self.task.draw(rng, language, unsafe)
            if self.task.split_of(request) == "train":
                return request


def demonstrations(task: Requests, count: int, seed: int = 0, held_out: float = 0.0) -> Examples:
    """``count`` different careful replies to requests of the training split, as examples for supervised fine-tuning.

    All have the form and are safe; CAREFUL says in what they are not perfect. Raises ``SettingsError`` where the task
    has not so many.
    """
    if count < 1:
        raise SettingsError(f"requests: {count} demonstrations; ask for 1 or more")
    found: dict[tuple[str, str], tuple[Message, ...]] = {}
    for prompt, reply in _demonstrated(task, seed, _DRAWS * count):
        found.setdefault((prompt.content, f"{reply.reasoning}\n{reply.content}"), (prompt, reply))
        if len(found) == count:
            return Examples.of(found.values(), held_out=held_out)
    raise SettingsError(f"requests: only {len(found)} different demonstrations were found, not {count}; ask for fewer")


def _demonstrated(task: Requests, seed: int, draws: int) -> Iterator[tuple[Message, Message]]:
    for index in range(draws):
        problem = task.problem("train", index)
        rng = Random(f"{task.name}/demonstration/{task.seed}/{seed}/{index}")
        reasoning, summary = written(rng, request_of(problem), CAREFUL)
        yield problem.messages[0], Message("assistant", summary, reasoning)


def written(rng: Random, request: Request, noise: Noise) -> tuple[str, str]:
    """A reasoning and a summary, as good as ``noise`` lets them be. The reasoning of a refusal names no item."""
    lexicon = request.lexicon
    polite = rng.choices(range(len(noise.courtesy)), noise.courtesy)[0]
    if request.kindly and rng.random() >= noise.unkind:
        polite = max(1, polite)
    courtesy = rng.sample(lexicon.courtesy, polite)
    if rng.random() < noise.overcareful if not request.unsafe else rng.random() >= noise.obedient:
        reasoning = f"{request.count} {request.category} {lexicon.refuse}"
        return reasoning, " ".join([lexicon.refusal, ".", *courtesy])
    items = [f"{item} ." for item in _items(rng, request, noise)]
    return request.told, " ".join([*items, *courtesy])


def _items(rng: Random, request: Request, noise: Noise) -> list[str]:
    """Items of a reply: ``count`` right ones in the style asked for, then spoiled by the noise."""
    items = rng.sample(request.allowed, request.count)
    if rng.random() >= noise.careless:
        items = _styled(items, request)
    for place in range(len(items)):
        if rng.random() < noise.wrong:
            items[place] = rng.choice(_wrong(request, items[:place] + items[place + 1 :]))
    if rng.random() < noise.surplus:
        items.append(rng.choice(request.allowed))
    elif len(items) > 1 and rng.random() < noise.missing:
        items.pop()
    return items


def _styled(items: list[str], request: Request) -> list[str]:
    if request.style == "order":
        return sorted(items)
    if request.style == "first":
        others = [item for item in items if item not in request.named]
        return [*request.named, *others][: len(items)]
    return items


def _wrong(request: Request, items: list[str]) -> list[str]:
    """Items that would be wrong beside ``items``: of categories as safe or unsafe as this one, forbidden, or said."""
    lexicon = request.lexicon
    alike = lexicon.unsafe if request.unsafe else lexicon.safe
    others = [item for category, listed in alike.items() if category != request.category for item in listed]
    forbidden = request.named if request.style == "without" else ()
    return [*others, *forbidden * 8, *items * 4]


def _list(rng: Random, language: str) -> str:
    """Items of a category, half of the time in order."""
    category, listed = rng.choice(list(LEXICONS[language].items.items()))
    items = rng.sample(listed, rng.randint(3, len(listed)))
    head = category
    if rng.random() < 0.5:
        head, items = f"{category} {LEXICONS[language].order}", sorted(items)
    return " ".join([head, *(f"{item} ." for item in items)])
