"""A corpus of files: what is read, in which order, and what is refused."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.runs.describe import describe as describe_stage
from longthought.tasks import corpus_scan
from longthought.tasks.corpus import describe, epochs, held_out
from longthought.tasks.corpus_files import FileCorpus
from longthought.tasks.corpus_mix import CorpusMix, Part
from longthought.tasks.corpus_scan import CorpusReading
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_web import CountdownWeb

LINES = CorpusReading(documents="line")


def rows(path: Path, texts: Sequence[object], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": 1, field: text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return path


def parquet(path: Path, texts: Sequence[object], group: int = 7, kind: pa.DataType | None = None) -> Path:
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": pa.array(texts, kind)}), path, row_group_size=group)
    return path


def texts_of(corpus: FileCorpus, first: int = 0, count: int | None = None) -> list[str]:
    return [corpus.document(first + index).text for index in range(corpus.size if count is None else count)]


def test_three_formats_and_three_divisions(tmp_path: Path) -> None:
    texts = [f"document {number}\nof two lines – ä 中" for number in range(40)]
    for made in (rows(tmp_path / "a.jsonl", texts), parquet(tmp_path / "a.parquet", texts)):
        corpus = FileCorpus.read(made)
        assert sorted(texts_of(corpus)) == sorted(texts)
        assert texts_of(corpus) != texts  # shuffled
    text = tmp_path / "a.txt"
    text.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n  \nthree\nfour")
    assert texts_of(FileCorpus.read(text)) == ["one\r\ntwo\r\n\r\n  \nthree\nfour"]
    assert sorted(texts_of(FileCorpus.read(text, reading=LINES))) == ["four", "one", "three", "two"]
    paragraphs = FileCorpus.read(text, reading=CorpusReading(documents="paragraph"))
    assert sorted(texts_of(paragraphs)) == ["one\r\ntwo", "three\nfour"]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()])
def test_kinds_of_text_in_parquet(kind: pa.DataType, tmp_path: Path) -> None:
    made = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["a", "b", "c"]).cast(kind)}), made)
    assert sorted(texts_of(FileCorpus.read(made))) == ["a", "b", "c"]


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20), max_size=30
    ),
    seed=st.integers(0, 5),
)
def test_an_epoch_reads_every_document_once(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    rows(folder / "a.jsonl", documents[:10])
    rows(folder / "b.jsonl", documents[10:20])
    parquet(folder / "c.parquet", documents[20:] or ["one"], group=2)
    wanted = {text for text in [*documents[:20], *(documents[20:] or ["one"])] if text.strip()}
    corpus = FileCorpus.read(folder, reading=CorpusReading(seed=seed))
    for epoch in range(3):
        assert Counter(texts_of(corpus, epoch * corpus.size)) == Counter(wanted)
    assert epochs(corpus, 2 * corpus.size) == 2.0


def test_parquet_is_read_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = parquet(tmp_path / "a.parquet", [f"text {number}" for number in range(600)], group=10)
    corpus = FileCorpus.read(made)
    corpus_scan._row_group.cache_clear()
    read = texts_of(corpus)
    assert corpus_scan._row_group.cache_info().misses == 60  # every group once, of which a few are kept
    numbers = [int(text.split()[1]) // 10 for text in read]
    assert all(len(set(numbers[start : start + 40])) <= 4 for start in range(0, 600, 40))
    assert numbers[:40] != sorted(numbers[:40])
    assert texts_of(corpus, 600) != read


def test_the_order_follows_from_the_seed(tmp_path: Path) -> None:
    made = rows(tmp_path / "a.jsonl", [f"text {number}" for number in range(50)])
    first, again, other = (FileCorpus.read(made, reading=CorpusReading(seed=seed)) for seed in (1, 1, 2))
    assert texts_of(first) == texts_of(again) != texts_of(other)
    assert texts_of(first, 50) != texts_of(first)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_held_out_by_the_text_alone(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(400)]
    one = FileCorpus.read(rows(tmp_path / "a.jsonl", texts), reading=CorpusReading(held_out=0.2, seed=1))
    two = FileCorpus.read(
        rows(tmp_path / "b.jsonl", texts[::-1]),
        parquet(tmp_path / "b.parquet", texts),
        reading=CorpusReading(held_out=0.2),
    )
    held = {one.held_out(number).text for number in range(len(one.held))}
    assert held == {two.held_out(number).text for number in range(len(two.held))}
    assert held.isdisjoint(texts_of(one))
    assert held | set(texts_of(one)) == set(texts)
    assert len(held) == pytest.approx(80, abs=25)
    assert one.held_out(len(held)) == one.held_out(0)
    with pytest.raises(SettingsError, match="held_out"):
        FileCorpus.read(tmp_path / "a.jsonl").held_out(0)


def test_a_text_that_comes_again_is_one_document(tmp_path: Path) -> None:
    corpus = FileCorpus.read(
        rows(tmp_path / "a.jsonl", ["a", "b", "a"]), parquet(tmp_path / "b.parquet", ["b", "c", ""])
    )
    assert sorted(texts_of(corpus)) == ["a", "b", "c"]
    assert corpus.repeated == 2
    assert "2 left out, whose text has come before; 1 without text left out" in corpus.description


def test_damaged_rows_are_listed_or_counted(tmp_path: Path) -> None:
    made = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "good"}',
        b'{"text": 7}',
        b"{'text': 'no'}",
        b'{"text": "caf\xe9"}',
        b'["text"]',
        b'{"txt": "other"}',
        b'{"text": null}',
        b'{"text": "nul\\u0000"}',
        b'{"text": "half \\ud800"}',
        b"[" * 100_000,
        b"",
        b'{"text": "good, too"}',
    ]
    made.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as caught:
        FileCorpus.read(made)
    message = str(caught.value)
    assert "9 documents cannot be read" in message
    for place, reason in ((2, "'text' is no text: int"), (3, "not JSON"), (4, "not UTF-8"), (5, "not an object")):
        assert f"{made}:{place}: {reason}" in message
    assert f"{made}:6: no 'text': it has 'txt'" in message
    assert "corpus.bad=skip" in message
    corpus = FileCorpus.read(made, reading=CorpusReading(bad="skip"))
    assert sorted(texts_of(corpus)) == ["good", "good, too"]
    assert "9 damaged ones skipped" in corpus.description


def test_damaged_text_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\xfe\nnul\x00\n")
    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8[^\n]*\n[^\n]*a\.txt:3: not text"):
        FileCorpus.read(tmp_path / "a.txt", reading=LINES)
    raw = pa.array([b"good", b"caf\xe9", None], pa.binary())
    broken = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    pq.write_table(pa.table({"text": broken}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet:2: not UTF-8[^\n]*\n[^\n]*b\.parquet:3: 'text' is no text"):
        FileCorpus.read(tmp_path / "b.parquet")


def test_too_long_documents_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_scan, "LONGEST", 10)
    (tmp_path / "a.txt").write_text("short\nthis one is too long\nlast\n\nnext\n\n0123456789\nab\n\nend")
    with pytest.raises(DataError, match=r"a\.txt:1: too long: .*documents=line or paragraph"):
        FileCorpus.read(tmp_path / "a.txt")
    skip = {"bad": "skip"}
    lines = FileCorpus.read(tmp_path / "a.txt", reading=CorpusReading(documents="line", **skip))  # type: ignore[arg-type]
    assert sorted(texts_of(lines)) == ["0123456789", "ab", "end", "last", "next", "short"]
    paragraphs = FileCorpus.read(tmp_path / "a.txt", reading=CorpusReading(documents="paragraph", **skip))  # type: ignore[arg-type]
    assert sorted(texts_of(paragraphs)) == ["end", "next"]
    assert "2 damaged ones skipped (too long: 2)" in paragraphs.description


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: folder / "missing.txt", "there is no file or folder"),
        (lambda folder: folder / "*.md", "no file matches"),
        (lambda folder: folder, "there are no files to read"),
        (lambda folder: _file(folder / "a.json", b"{}"), "one JSON object per line is called .jsonl"),
        (lambda folder: _file(folder / "a.txt.gz", b""), "unpack it"),
        (lambda folder: _file(folder / "a.txt", b"\xff\xfea\x00"), "UTF-16; save it as UTF-8"),
        (lambda folder: _file(folder / "a.txt", b" \n \n"), "no document to train on"),
        (lambda folder: _file(folder / "a.parquet", b"nothing"), "cannot be read"),
        (lambda folder: parquet(folder / "a.parquet", [1, 2], kind=pa.int64()), "holds int64, no text"),
    ],
)
def test_what_is_no_corpus(make, told: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=told):
        FileCorpus.read(make(tmp_path))


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'body', which corpus.field asks for; it has id, text"):
        FileCorpus.read(parquet(tmp_path / "a.parquet", ["a"]), reading=CorpusReading(field="body"))


def test_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("a.md", "deep/er/b.txt", "deep/c.py", ".hidden/d.md", "deep/.e.txt", "f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    whole = FileCorpus.read(tmp_path)
    assert sorted(texts_of(whole)) == ["a.md", "deep/er/b.txt"]
    assert "left out by their endings: .png: 1, .py: 1" in whole.description
    both = FileCorpus.read(tmp_path, tmp_path / "**/*.py", tmp_path / "a.md")
    assert sorted(texts_of(both)) == ["a.md", "deep/c.py", "deep/er/b.txt"]


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    made = rows(tmp_path / "a.jsonl", ["aaaa", "bbbb"])
    corpus = FileCorpus.read(made)
    made.write_text(made.read_text().replace("aaaa", "cccc"))
    with pytest.raises(DataError, match=r"a\.jsonl:1 is not the document any more"):
        texts_of(corpus)
    made.unlink()
    with pytest.raises(DataError, match="not the document any more"):
        texts_of(corpus)


def test_a_run_knows_the_corpus_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here, there = (FileCorpus.read(rows(folder / "a.jsonl", ["a", "b"])) for folder in (tmp_path, tmp_path / "other"))
    assert describe_stage(here) == describe_stage(there)
    assert describe_stage(FileCorpus.read(rows(tmp_path / "b.jsonl", ["a", "c"]))) != describe_stage(here)


def test_what_a_report_tells(tmp_path: Path) -> None:
    told = describe(FileCorpus.read(rows(tmp_path / "novels.jsonl", ["x" * 10_000])))
    assert told["kinds"] == [{"name": "novels", "share": 1.0, "example": "x" * 2000 + " …"}]


def test_a_mixture_keeps_its_shares(tmp_path: Path) -> None:
    short = FileCorpus.read(rows(tmp_path / "short.jsonl", [f"s{number:04}" for number in range(300)]))
    web = CountdownWeb(Countdown())
    mix = CorpusMix((Part("short", short, 3.0), Part("web", web, 1.0)), seed=4)
    pages = [mix.document(index) for index in range(400)]
    assert sum(page.kind == "short" for page in pages) == 300
    assert sorted(page.text for page in pages if page.kind == "short") == sorted(texts_of(short))
    assert [page.text for page in pages if page.kind != "short"] == [web.document(index).text for index in range(100)]
    assert {page.kind for page in pages} <= set(mix.shares)
    assert sum(mix.shares.values()) == pytest.approx(1)
    for count in (0, 1, 57, 400, 1000):
        drawn = sum(mix.document(index).kind == "short" for index in range(count))
        assert mix.epochs(count) == drawn / 300


def test_weights_by_characters(tmp_path: Path) -> None:
    short, long = (
        FileCorpus.read(rows(tmp_path / f"{size}.jsonl", [f"{number:0{size}}" for number in range(300)]))
        for size in (10, 90)
    )
    mix = CorpusMix((Part("short", short, 1.0), Part("long", long, 1.0)), by="characters")
    assert mix.shares == pytest.approx({"short": 0.9, "long": 0.1}, abs=1e-3)
    size = Counter[str]()
    for index in range(1000):
        page = mix.document(index)
        size[page.kind] += len(page.text)
    assert size["short"] == pytest.approx(size["long"], rel=0.02)


def test_held_out_of_a_mixture(tmp_path: Path) -> None:
    part = FileCorpus.read(
        rows(tmp_path / "a.jsonl", [f"t{n}" for n in range(99)]), reading=CorpusReading(held_out=0.3)
    )
    mix = CorpusMix((Part("files", part, 1.0), Part("web", CountdownWeb(Countdown()), 1.0)))
    held = [held_out(mix, number) for number in range(40)]
    trained = {mix.document(number).text for number in range(400)}
    assert {page.text for page in held if page.kind == "files"}.isdisjoint(texts_of(part))
    assert sum(page.text in trained for page in held) == 0


@pytest.mark.parametrize("parts", [(), (("a", 1.0), ("a", 1.0)), (("a", 0.0),), (("a", float("nan")),), (("a", -1.0),)])
def test_mixtures_that_are_refused(parts: tuple[tuple[str, float], ...]) -> None:
    web = CountdownWeb(Countdown())
    with pytest.raises(SettingsError, match="corpus"):
        CorpusMix(tuple(Part(name, web, weight) for name, weight in parts))
