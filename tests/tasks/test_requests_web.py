"""Pages about requests, and careful replies: what they hold, what they must not hold, and how often they err."""

from __future__ import annotations

from collections import Counter
from math import sqrt
from random import Random

import pytest

from longthought.core.errors import SettingsError
from longthought.tasks.corpus import Corpus, Document, describe
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_web import vocabulary as countdown_vocabulary
from longthought.tasks.requests import Requests, is_safe, read_summary, request_of
from longthought.tasks.requests_web import CAREFUL, Noise, RequestsWeb, demonstrations, vocabulary, written
from longthought.tasks.requests_words import LEXICONS
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

TASK = Requests()
COUNT = 3000
WEB = RequestsWeb(TASK, seed=5)
RENDERER = PlainRenderer(Tokenizer.of_words(vocabulary(TASK), (BEGIN, USER, ASSISTANT, END)))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [WEB.document(index) for index in range(COUNT)]


@pytest.fixture(scope="module")
def held() -> set[str]:
    """Prompts of the dev and test splits."""
    return {TASK.problem(split, index).messages[0].content for split in ("dev", "test") for index in range(500)}


def near(share: float, expected: float, count: int) -> bool:
    return abs(share - expected) < 4.5 * sqrt(expected * (1 - expected) / count)


def test_documents_are_a_function_of_seed_and_index(documents: list[Document]) -> None:
    again = RequestsWeb(Requests(), seed=5)
    assert [again.document(index) for index in reversed(range(200))] == documents[199::-1]
    assert [RequestsWeb(TASK, seed=6).document(index) for index in range(200)] != documents[:200]


def test_no_request_of_another_split_occurs(documents: list[Document], held: set[str]) -> None:
    asked = {document.user for document in documents if document.user}
    assert len(asked) > 500
    assert not asked & held
    for document in documents:
        if document.kind == "lists":
            assert not any(word.isdigit() for word in document.text.split())


def test_everything_is_made_of_the_vocabulary(documents: list[Document]) -> None:
    for document in documents:
        ids = RENDERER.document(document.user, document.text)
        start = len(ids) - 1 - len(document.text.split())
        assert RENDERER.text(ids[start:]) == document.text
        assert len(ids) < 40
    for split in ("train", "dev", "test"):
        for index in range(100):
            problem = TASK.problem(split, index)
            content = problem.messages[0].content
            assert RENDERER.decode(RENDERER.prompt(problem.messages)[2:-1]) == content


def test_the_vocabulary_has_no_word_twice_and_shares_with_countdown_only_numbers_stop_and_tags() -> None:
    words = vocabulary(TASK)
    assert len(set(words)) == len(words)
    shared = set(words) & set(countdown_vocabulary(Countdown()))
    assert shared == {"1", "2", "3", "4", ".", "<think>", "</think>"}


def test_shares_are_kept(documents: list[Document]) -> None:
    seen = Counter(document.kind for document in documents)
    assert seen.keys() == WEB.shares.keys()
    assert sum(WEB.shares.values()) == pytest.approx(1.0)
    assert all(near(seen[kind] / COUNT, share, COUNT) for kind, share in WEB.shares.items())
    languages = Counter("zh" if any(ord(sign) > 999 for sign in document.text) else "en" for document in documents)
    assert near(languages["en"] / COUNT, 0.5, COUNT)


def test_pages_err_as_often_as_they_say(documents: list[Document]) -> None:
    noise = WEB.noise
    asked = [document for document in documents if document.user]
    tagged = sum("<think>" in document.text for document in asked) / len(asked)
    assert near(tagged, 1 - noise.untagged, len(asked))
    assert all(("<think>" in document.text) == ("</think>" in document.text) for document in asked)
    thoughtless = sum("<think> </think>" in document.text for document in asked) / len(asked)
    assert near(thoughtless, (1 - noise.untagged) * noise.no_thinking, len(asked))
    unsafe = [document for document in asked if document.kind == "unsafe"]
    obedient = sum(not refused(document) for document in unsafe) / len(unsafe)
    assert near(obedient, noise.obedient, len(unsafe))


def refused(document: Document) -> bool:
    return any(read_summary(language, document.text).refused for language in LEXICONS)


def test_a_page_of_no_noise_is_right_and_one_of_all_noise_is_not() -> None:
    none = Noise(*[0.0] * 9, courtesy=(1.0,))
    all_ = Noise(*[1.0] * 8, overcareful=0.0, courtesy=(0.0, 0.0, 0.0, 1.0))
    for index in range(500):
        problem = TASK.problem("train", index)
        request = request_of(problem)
        reasoning, summary = written(Random(index), request, none)
        assert TASK.grade(problem, [f"<think> {reasoning} </think> {summary}"])[0].correct
        reasoning, summary = written(Random(index), request, all_)
        score = TASK.grade(problem, [f"<think> {reasoning} </think> {summary}"])[0]
        assert not score.correct
        assert score.parts["courtesy"] == 3.0


def test_description_shows_every_kind() -> None:
    corpus: Corpus = WEB
    told = describe(corpus)
    assert [kind["name"] for kind in told["kinds"]] == list(corpus.shares)
    assert all(kind["example"] for kind in told["kinds"])
    assert "No request of the dev and test splits" in told["description"]


def test_demonstrations_are_well_formed_safe_and_of_the_training_split(held: set[str]) -> None:
    problems = {problem.messages[0].content: problem for problem in (TASK.problem("train", i) for i in range(4000))}
    examples = demonstrations(TASK, 1500, seed=3)
    assert examples.size("train") == 1500
    values, words = [], Counter[int]()
    for index in range(1500):
        prompt, reply = examples.messages("train", index)
        assert prompt.content not in held
        problem = problems[prompt.content]
        text = f"<think> {reply.reasoning} </think> {reply.content}"
        score = TASK.grade(problem, [text])[0]
        assert score.parts["format"] == score.parts["safe"] == 1.0
        assert reply.reasoning
        assert is_safe(text)
        ids, mask = RENDERER.example((prompt, reply))
        assert RENDERER.text([token for token, is_reply in zip(ids, mask) if is_reply]) == text
        assert read_summary(problem.info["language"], reply.content).refused == (problem.info["unsafe"] == "yes")
        values.append(score.parts["preference"])
        words[int(score.parts["courtesy"])] += 1
    assert sorted(words) == [0, 1, 2]
    assert min(words.values()) > 200
    assert 0.9 < sum(values) / len(values) < 1.1  # good, and not the best possible: 1.16


def test_demonstrations_repeat_with_the_seed_and_can_be_held_out() -> None:
    assert demonstrations(TASK, 200, seed=1).conversations == demonstrations(TASK, 200, seed=1).conversations
    assert demonstrations(TASK, 200, seed=1).conversations != demonstrations(TASK, 200, seed=2).conversations
    watched = demonstrations(TASK, 400, held_out=0.2)
    trained = {watched.messages("train", index)[0] for index in range(watched.size("train"))}
    assert not trained & {watched.messages("held_out", index)[0] for index in range(watched.size("held_out"))}
    assert watched.size("train") + watched.size("held_out") == 400
    assert watched.size("held_out") > 40


def test_careful_people_err_in_style_alone() -> None:
    assert (CAREFUL.wrong, CAREFUL.missing, CAREFUL.careless, CAREFUL.obedient, CAREFUL.overcareful) == (0,) * 5


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"wrong": 1.5}, "wrong"),
        ({"obedient": -0.1}, "obedient"),
        ({"courtesy": (0.5,)}, "courtesy"),
        ({"courtesy": ()}, "courtesy"),
        ({"courtesy": (1.0, 0, 0, 0, 0, 0)}, "courtesy"),
        ({"courtesy": (2.0, -1.0)}, "courtesy"),
        ({"surplus": float("nan")}, "surplus"),
    ],
)
def test_noise_out_of_range_is_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        Noise(**wrong)  # type: ignore[arg-type]


def test_more_demonstrations_than_there_are_is_refused() -> None:
    with pytest.raises(SettingsError, match="1 or more"):
        demonstrations(TASK, 0)
