"""The corpus: what it holds, what it must not hold, and what in it must be true."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from math import sqrt

import pytest

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Problem
from longthought.stages.chain_sources import FewShot
from longthought.tasks.corpus import Corpus, Document, describe
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_noise import Noise
from longthought.tasks.countdown_web import TAGS, WORDS, CountdownProbes, CountdownWeb, vocabulary
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer
from longthought.verifiers.countdown import grade

TASK = Countdown(largest=28)
COUNT = 3000
KINDS = ("web", "pure")
SIGNS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}

TASK_PROMPT = re.compile(r"(?:use|用)((?: \d+){3}) (?:make|得) (\d+)")
TRACE = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+) ([-+*]) (\d+) = (\d+)")
EXPRESSION = re.compile(r"\( (\d+) ([-+*]) (\d+) \) ([-+*]) (\d+)")
CHECK = re.compile(r"(?:check|查) (\d+) (?:make|得) (\d+) (\S+)")
TRUTH = {"yes": 0, "对": 0, "low": -1, "小": -1, "high": 1, "大": 1}


def verdict_is_true(value: str, target: str, word: str) -> bool:
    difference = int(value) - int(target)
    return TRUTH[word] == (difference > 0) - (difference < 0)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def documents(kind: str) -> list[Document]:
    web = CountdownWeb(TASK, kind, seed=5)
    return [web.document(index) for index in range(COUNT)]


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    found = [document for document in documents if document.kind in kinds]
    assert found or "countdown" in kinds
    return found


def whole(document: Document) -> str:
    return f"{document.user or ''} {document.text}"


def test_documents_are_a_function_of_seed_and_index(kind: str, documents: list[Document]) -> None:
    again = CountdownWeb(Countdown(largest=28), kind, seed=5)
    assert [again.document(index) for index in reversed(range(300))] == documents[299::-1]
    assert [CountdownWeb(TASK, kind, seed=6).document(index) for index in range(300)] != documents[:300]


def test_documents_hardly_repeat(documents: list[Document]) -> None:
    assert len(set(documents)) > 0.97 * COUNT


def test_no_number_set_of_another_split_occurs(kind: str, documents: list[Document]) -> None:
    seen: set[tuple[int, ...]] = set()
    for document in of_kind(documents, "countdown", "orders"):
        numbers = [int(n) for n in (document.user or "").split()[1:4]]
        assert len(set(numbers)) == 3
        assert TASK.split_of(numbers) == "train", document
        seen.add(tuple(sorted(numbers)))
    for document in of_kind(documents, "value"):
        match = EXPRESSION.search(document.user or "")
        assert match
        assert TASK.split_of([int(match[place]) for place in (1, 3, 5)]) == "train", document
    assert len(seen) > (1000 if kind == "web" else 200)


def test_a_countdown_page_tries_its_own_numbers(documents: list[Document]) -> None:
    for document in of_kind(documents, "countdown"):
        prompt = TASK_PROMPT.fullmatch(document.user or "")
        assert prompt
        numbers = [int(n) for n in prompt[1].split()]
        assert int(prompt[2]) in TASK.reachable(numbers)
        for a, _, b, _, _, c, _ in TRACE.findall(document.text):
            assert sorted(map(int, (a, b, c))) == sorted(numbers)
        answer = EXPRESSION.search(document.text)
        assert answer
        assert "not each of" not in grade(answer[0], numbers, int(prompt[2])).evidence


def test_a_pure_corpus_never_shows_the_task(kind: str, documents: list[Document]) -> None:
    shown = [document for document in documents if TASK_PROMPT.search(whole(document))]
    if kind == "pure":
        assert shown == []
        assert all(EXPRESSION.search(d.text) is None for d in documents if d.kind != "value")
    else:
        assert [d.kind for d in shown] == ["countdown"] * len(of_kind(documents, "countdown"))


def test_every_document_is_made_of_the_vocabulary(documents: list[Document]) -> None:
    renderer = PlainRenderer(Tokenizer.of_words(vocabulary(TASK), (BEGIN, USER, ASSISTANT, END)))
    for document in documents:
        ids = renderer.document(document.user, document.text)
        start = len(ids) - 1 - len(document.text.split())
        assert renderer.text(ids[start:]) == document.text
        assert 3 <= len(ids) <= 512


def test_every_prompt_of_the_task_is_made_of_the_vocabulary() -> None:
    renderer = PlainRenderer(Tokenizer.of_words(vocabulary(TASK), (BEGIN, USER, ASSISTANT, END)))
    for split in ("train", "dev", "test"):
        for index in range(50):
            problem = TASK.problem(split, index)
            solution = TASK.solve([int(n) for n in problem.info["numbers"].split()], int(problem.answer))
            assert renderer.prompt(problem.messages)
            assert renderer.example((*problem.messages, Message("assistant", " ".join((*TAGS[:3], solution or "")))))


def test_facts_and_values_are_true(documents: list[Document]) -> None:
    facts = [line for d in of_kind(documents, "facts") for line in d.text.split(" .") if line]
    assert len(facts) > 1000
    for line in facts:
        a, sign, b, equals, result = line.split()
        assert (equals, SIGNS[sign](int(a), int(b))) == ("=", int(result)), line
    for document in of_kind(documents, "value"):
        trace, asked = TRACE.fullmatch(document.text), EXPRESSION.search(document.user or "")
        assert trace
        assert asked
        a, first, b, middle, second, c, result = trace.groups()
        assert asked.groups() == (a, first, b, second, c)
        assert SIGNS[first](int(a), int(b)) == int(middle)
        assert SIGNS[second](int(middle), int(c)) == int(result)


def comparisons(document: Document) -> Iterator[tuple[str, str]]:
    """(value, verdict) of the comparisons of a page, checks left out."""
    yield from re.findall(r"= (\d+) (\D+?)(?: |$)", CHECK.sub("", document.text))


def test_comparisons_are_true(documents: list[Document]) -> None:
    seen: Counter[int] = Counter()
    for document in of_kind(documents, "compare"):
        target = (document.user or "").split()[1]
        for value, word in comparisons(document):
            assert verdict_is_true(value, target, word), document
            seen[TRUTH[word]] += 1
    assert min(seen.values()) > 100


def test_checks_are_right_even_after_a_false_yes(kind: str) -> None:
    """Web pages err on purpose; a check never does, and it is about the value just found and the page's target."""
    web = CountdownWeb(TASK, kind, seed=1, noise=Noise(false_yes=0.5, slip=0.3, check=0.9))
    corrected = kept = 0
    for document in map(web.document, range(1500)):
        target = (document.user or "none").split()[-1]
        for check in CHECK.finditer(document.text):
            before = document.text[: check.start()].split()
            assert check[2] == target, document
            assert before[-2] == check[1], document
            assert verdict_is_true(*check.groups()), document
            corrected += before[-1] != check[3]
            kept += before[-1] == check[3]
    assert kept > 50
    assert (corrected > 50) == (kind == "web")


def test_pages_of_the_task_err_as_often_as_they_say() -> None:
    noise = Noise(slip=0.0)
    documents = map(CountdownWeb(TASK, noise=noise).document, range(6000))
    misses = claimed = wrong_steps = 0
    for document in (d for d in documents if d.kind == "countdown"):
        target = int((document.user or "").split()[-1])
        for match in TRACE.finditer(document.text):
            a, first, b, middle, second, c, result = match.groups()
            wrong_steps += SIGNS[first](int(a), int(b)) != int(middle) or SIGNS[second](int(middle), int(c)) != int(
                result
            )
            if int(result) != target:
                misses += 1
                claimed += TRUTH[document.text[match.end() :].split()[0]] == 0
    assert wrong_steps == 0
    assert abs(claimed / misses - noise.false_yes) < 4 * sqrt(noise.false_yes / misses)


def test_a_claimed_success_ends_a_page() -> None:
    """Nobody goes on after a yes that was not taken back."""
    for document in map(CountdownWeb(TASK, seed=2).document, range(1500)):
        if document.kind == "countdown":
            attempts = re.split(r"(?:try|wait|试|等) ", document.text)[1:]
            assert all(TRUTH[first.split()[-1]] != 0 for first, _ in pairwise(attempts)), document


def test_shares_are_kept(kind: str, documents: list[Document]) -> None:
    shares = CountdownWeb(TASK, kind).shares
    seen = Counter(document.kind for document in documents)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert seen.keys() == shares.keys()
    for name, share in shares.items():
        assert abs(seen[name] / COUNT - share) < 4.5 * sqrt(share * (1 - share) / COUNT), name


def test_description_shows_every_kind(kind: str) -> None:
    corpus: Corpus = CountdownWeb(TASK, kind)
    told = describe(corpus)
    assert [k["name"] for k in told["kinds"]] == list(corpus.shares)
    assert all(k["example"] for k in told["kinds"])
    assert ("never seen the task" in told["description"]) == (kind == "pure")


@pytest.mark.parametrize(
    ("task", "kind", "named"),
    [
        (TASK, "all", "corpus=all"),
        (Countdown(count=4), "web", "three numbers"),
        (Countdown(largest=60), "web", "at most 50"),
        (Countdown(operations="*"), "pure", r"\+ and -"),
        (Countdown.level(3), "web", "knows"),
    ],
)
def test_settings_without_a_corpus_are_refused_at_once(task: Countdown, kind: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        CountdownWeb(task, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", [Countdown(largest=50), Countdown.level(1)])
def test_the_largest_numbers_have_documents_too(task: Countdown) -> None:
    for kind in KINDS:
        web = CountdownWeb(task, kind)  # type: ignore[arg-type]
        assert all(web.document(index).text for index in range(1000))


def test_probes_are_what_they_claim() -> None:
    asked = Counter()
    for probe in CountdownProbes(TASK, 100):
        prompt, words = TASK_PROMPT.fullmatch(probe.user), WORDS["en" if probe.user.startswith("use") else "zh"]
        assert prompt
        numbers = [int(n) for n in prompt[1].split()]
        assert TASK.split_of(numbers) == "dev"
        text = f"{probe.text} {probe.word}" if probe.check == "fact" else probe.text
        opening, _, attempt = text.partition(f" {words.attempt} ")
        trace = TRACE.fullmatch(attempt)
        assert opening == "<think>"
        assert trace
        a, first, b, _, second, c, result = trace.groups()
        assert sorted(map(int, (a, b, c))) == sorted(numbers)
        assert SIGNS[second](SIGNS[first](int(a), int(b)), int(c)) == int(result)
        if probe.check != "fact":
            assert probe.word == words.yes
            assert (result == prompt[2]) == (probe.check == "hit")
        asked[probe.check] += 1
    assert asked["miss"] == 100
    assert asked["hit"] > 90
    assert asked["fact"] == asked["hit"] + asked["miss"]
    assert list(CountdownProbes(TASK, 20)) == list(CountdownProbes(TASK, 20))


def test_pages_asked_to_check_check_every_hit_that_they_claim() -> None:
    web = CountdownWeb(TASK, seed=3, noise=Noise(check=0.0), asked_to_check=0.4)
    asked = claimed = count = 0
    for document in map(web.document, range(4000)):
        if document.kind != "countdown":
            continue
        count += 1
        words = (document.user or "").split()
        checks = len(CHECK.findall(document.text))
        if words[-1] not in ("check", "查"):
            assert checks == 0, document
            continue
        asked += 1
        assert TASK_PROMPT.fullmatch(" ".join(words[:-1]))
        assert words[-1] == WORDS["en" if words[0] == "use" else "zh"].check
        assert TRACE.search(document.text)
        hits = [m for m in TRACE.finditer(document.text) if TRUTH[document.text[m.end() :].split()[0]] == 0]
        assert checks == len(hits), document
        claimed += checks
    assert abs(asked / count - 0.4) < 4.5 * sqrt(0.24 / count)
    assert claimed > 50
    assert "request to check" in web.description


def test_without_that_option_no_document_changes(kind: str) -> None:
    """The option draws nothing where it is 0: the corpora of published curves stay as they were."""
    web = CountdownWeb(TASK, kind, seed=5)  # type: ignore[arg-type]
    content = repr([tuple(web.document(index)) for index in range(3000)])
    known = {"web": "6456c36967a209cd", "pure": "fbb5443d4abe98a1"}
    assert sha256(content.encode()).hexdigest()[:16] == known[kind]


@pytest.mark.parametrize(("kind", "share"), [("web", 1.5), ("web", -0.1), ("pure", 0.5)])
def test_a_share_of_checks_that_cannot_be_is_refused(kind: str, share: float) -> None:
    with pytest.raises(SettingsError, match="check"):
        CountdownWeb(TASK, kind, asked_to_check=share)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def quoting_pages() -> list[list[str]]:
    """The question and the reply of every page that quotes, question and reply of each quoted one before them."""
    documents = map(CountdownWeb(TASK, seed=4, quoting=1.0).document, range(5000))
    return [[*(d.user or "").split("\n\n"), d.text] for d in documents if d.kind == "countdown"]


def test_a_quoting_page_asks_about_numbers_that_it_does_not_quote(quoting_pages: list[list[str]]) -> None:
    assert Counter(map(len, quoting_pages)).keys() == {4, 6}
    for page in quoting_pages:
        sets = []
        for question, reply in zip(page[::2], page[1::2]):
            asked = TASK_PROMPT.fullmatch(question)
            assert asked
            numbers = sorted(map(int, asked[1].split()))
            assert TASK.split_of(numbers) == "train"
            assert int(asked[2]) in TASK.reachable(numbers)
            for a, _, b, _, _, c, _ in TRACE.findall(reply):
                assert sorted(map(int, (a, b, c))) == numbers
            sets.append(numbers)
        assert len(set(map(tuple, sets))) == len(sets)
        assert len({question.split()[0] for question in page[::2]}) == 1
        assert sum(len(text.split()) for text in page) <= 300


def test_quotes_are_short_in_part_and_long_in_part_and_what_follows_is_like_them(
    quoting_pages: list[list[str]],
) -> None:
    """Who does not give up early on a quoted page does not do so on its own either."""
    lengths = [[len(TRACE.findall(reply)) for reply in page[1::2]] for page in quoting_pages]
    quoted = [length for page in lengths for length in page[:-1]]
    assert max(quoted) == 6
    assert max(own for *_, own in lengths) == 8
    assert sum(length >= 4 for length in quoted) > 0.2 * len(quoted)
    assert sum(length <= 1 for length in quoted) > 0.2 * len(quoted)
    after = {long: [page[-1] for page in lengths if (page[0] >= 4) == long] for long in (False, True)}
    assert sum(after[True]) / len(after[True]) > 1.25 * sum(after[False]) / len(after[False])


def test_who_quotes_hits_no_more_often(quoting_pages: list[list[str]]) -> None:
    """Attempts are drawn the same way with quotes and without; only how many there are differs."""

    def hits(pages: list[list[str]]) -> tuple[int, int]:
        found = [result == page[-2].split()[-1] for page in pages for *_, result in TRACE.findall(page[-1])]
        return sum(found), len(found)

    documents = map(CountdownWeb(TASK, seed=4).document, range(5000))
    plain = [[d.user or "", d.text] for d in documents if d.kind == "countdown"]
    (some, attempts), (others, other_attempts) = hits(quoting_pages), hits(plain)
    share = (some + others) / (attempts + other_attempts)
    error = sqrt(share * (1 - share) * (1 / attempts + 1 / other_attempts))
    assert abs(some / attempts - others / other_attempts) < 4 * error


def test_quotes_stand_as_in_a_few_shot_prompt_that_is_one_question(quoting_pages: list[list[str]]) -> None:
    page = next(page for page in quoting_pages if len(page) == 6)
    *shown, question, reply = page
    source = FewShot(demonstrations=tuple(zip(shown[::2], shown[1::2])), turns=False)
    problem = Problem("own", (Message("user", question),), "")
    (asked,) = source.asked(problem, single=False)
    renderer = PlainRenderer(Tokenizer.of_words(vocabulary(TASK), (BEGIN, USER, ASSISTANT, END)))
    one = {renderer.document("\n\n".join((*order, question)), reply) for order in (shown, [*shown[2:], *shown[:2]])}
    assert any(ids[: len(renderer.prompt((asked,)))] == renderer.prompt((asked,)) for ids in one)


def test_the_share_of_quoting_pages_is_kept_and_told() -> None:
    web = CountdownWeb(TASK, seed=4, quoting=0.3)
    asked = [d.user or "" for d in map(web.document, range(2000)) if d.kind == "countdown"]
    assert abs(sum("\n\n" in user for user in asked) / len(asked) - 0.3) < 4.5 * sqrt(0.21 / len(asked))
    assert "30% of them quote" in web.description
    assert "quote" not in CountdownWeb(TASK).description


@pytest.mark.parametrize(("kind", "share"), [("web", 1.5), ("web", -0.1), ("pure", 0.5)])
def test_a_share_of_quotes_that_cannot_be_is_refused(kind: str, share: float) -> None:
    with pytest.raises(SettingsError, match="quot"):
        CountdownWeb(TASK, kind, quoting=share)  # type: ignore[arg-type]


def test_three_pages_need_three_number_sets() -> None:
    assert CountdownWeb(Countdown(largest=3)).document(0).text
    with pytest.raises(SettingsError, match="three number sets"):
        CountdownWeb(Countdown(largest=3), quoting=0.1)
