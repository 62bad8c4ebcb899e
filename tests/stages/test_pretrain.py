"""What pretraining reads, how a run of it goes on after a kill, and what it makes."""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longthought.core.errors import RunMismatch, SettingsError
from longthought.core.types import Message, rows_of
from longthought.recipes.tiny import Base, TinySettings, pretraining
from longthought.runs.artifacts import Checkpoint
from longthought.runs.place import Place
from longthought.stages import pretrain_reading
from longthought.stages.held_out import HeldOut
from longthought.stages.pretrain import Cooldown, Pretrain
from longthought.stages.pretrain_held_out import Measure
from longthought.stages.pretrain_longer import LongContext
from longthought.stages.pretrain_loop import Experts, learner_of, objective_at, reading
from longthought.stages.pretrain_reading import Pages, cut
from longthought.tasks.corpus_files import FileCorpus
from longthought.tasks.corpus_mix import CorpusMix, Part
from longthought.tasks.corpus_scan import CorpusReading
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_web import CountdownWeb, vocabulary
from longthought.text.fim import FIM_BEGIN, FIM_TOKENS
from longthought.text.tokenizer_training import BytePairs
from longthought.training.optimizer import AdamW
from longthought.training.schedule import Ramp, Switch
from longthought.training.team import Team

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "and", "naps", "42", "–", "中文")


def texts(count: int, longest: int = 60) -> list[str]:
    return [f"{n}: " + " ".join(WORDS[(n * k + k) % 13] for k in range(n % longest + 1)) for n in range(1, count + 1)]


def corpus(folder: Path, count: int = 120, held_out: float = 0.1, seed: int = 0, longest: int = 60) -> FileCorpus:
    made = folder / f"{count}-{longest}.jsonl"
    made.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(count, longest)))
    return FileCorpus.read(made, reading=CorpusReading(held_out=held_out, seed=seed))


def stage(folder: Path, **changes: Any) -> Pretrain:
    plain: dict[str, Any] = {
        "corpus": corpus(folder),
        "vocabulary": BytePairs(size=300, documents=50),
        "width": 32,
        "context": 48,
        "steps": 20,
        "tokens_per_step": 200,
        "save_every": 5,
        "quiet": True,
        "packing": "in_order",
        "optimizer": AdamW(lr=1e-2),
    }
    return Pretrain(**{**plain, **changes})


def run(made: Any, folder: Path, given: Any = None) -> Checkpoint:
    with Place(folder) as place:
        return made.run(given, place)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_team_reads_the_same_batches(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_reading, "_POOL", 40)
    made = pretraining(TinySettings(seed=5, base=Base(width=32, steps=30, tokens_per_step=256)))
    renderer = made.renderer()
    with Team(workers, made.makers()) as team:
        batches = list(made.batches(team, 0))
        assert list(made.batches(team, 17)) == batches[17:]
    assert len(batches) == 30
    assert all(sum(map(len, batch)) <= 256 or len(batch) == 1 for batch in batches)
    first = {renderer.document(page.user, page.text) for page in map(made.corpus.document, range(40))}
    read = [sequence for batch in batches for sequence in batch]
    assert first <= set(read)  # the first pool, whole
    pages = (made.corpus.document(index) for index in range(400))
    assert set(read) <= {renderer.document(page.user, page.text) for page in pages}


@given(length=st.integers(1, 60), context=st.integers(2, 20))
def test_windows_predict_every_token_but_the_first_once(length: int, context: int) -> None:
    windows = cut(tuple(range(length)), context)
    assert [token for window in windows for token in window[1:]] == list(range(1, length))
    assert windows[0][0] == 0
    assert all(len(window) <= context for window in windows)


@pytest.mark.parametrize("workers", [1, 2])
def test_in_order_fills_steps_and_goes_on_from_any_step(workers: int, tmp_path: Path) -> None:
    made = stage(tmp_path, ramp=Ramp(60, 0.5), cooldown=Cooldown(corpus(tmp_path, 31), 0.3), fim=0.3)
    phases = made._phases(made.renderer())
    with Team(workers, made.makers()) as team:
        whole = list(reading(made, team, phases, 0))
        for step in range(1, 20):
            rest = list(reading(made, team, phases, step, json.loads(json.dumps(whole[step - 1].cursor))))
            assert rest == whole[step:], step
    assert len(whole) == 20
    for step, read in enumerate(whole):
        room = round(60 + 140 * min(1, step / 10))
        assert room - 48 < sum(map(len, read.windows)) <= room
    for phase in phases:
        read = Counter(window for step in phase.steps for window in whole[step].windows)
        known = Counter(window for windows in phase.pages.windows(0, range(300)) for window in windows)
        assert read <= known


def test_every_document_is_read_once_in_an_epoch(tmp_path: Path) -> None:
    made = stage(tmp_path, corpus=corpus(tmp_path, 90, held_out=0.0), steps=60)
    with Team(1, made.makers()) as team:
        read = list(reading(made, team, made._phases(made.renderer()), 0))
    tokens = [window for one in read for window in one.windows]
    renderer = made.renderer()
    whole = [renderer.document(None, text) for text in texts(90)]
    starts = Counter(window[:48] for window in tokens if window[0] == renderer.document(None, "")[0])
    counts = [starts[ids[:48]] for ids in whole]
    assert read[-1].epochs > 1
    assert max(counts) - min(counts) <= 2  # the epoch that has begun, and documents that are still open
    assert sum(counts) == sum(starts.values())


def test_conversations_are_never_turned() -> None:
    web = CountdownWeb(Countdown())
    made = Pretrain(web, tuple(vocabulary(Countdown())), fim=1.0, width=32)
    pages, renderer = made._phases(made.renderer())[0].pages, made.renderer()
    begin = renderer.tokenizer.id_of(FIM_BEGIN)
    for number in range(60):
        page = web.document(number)
        assert (begin in pages.tokens(page, number)) == (page.user is None)
    assert not any(map(replace(made, fim=0.0).renderer().tokenizer.knows, FIM_TOKENS))


def test_documents_do_not_see_each_other(tmp_path: Path) -> None:
    made = stage(tmp_path)
    learner = learner_of(made, made.new_policy().model)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    windows = made.sample(6)
    together = learner.logprobs(rows_of(windows))
    for row, window in enumerate(windows):
        alone = learner.logprobs(rows_of([window]))[0]
        torch.testing.assert_close(together[row, : len(window)], alone)


EVERYTHING: dict[str, Any] = {
    "arch": "deepseek_v3",
    "steps": 20,
    "fim": 0.3,
    "ramp": Ramp(64, 0.4),
    "held_out": HeldOut(every=7, documents=6),
    "balancing": Experts(Switch(1e-2, 0.0, 0.5)),
    "mtp_weight": Switch(0.3, 0.1, 0.5),
}


class Killed(BaseException):
    """In the place of a signal."""


@pytest.mark.parametrize("arch", ["dense", "deepseek_v3"])
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_resumed_not_a_bit_differs(
    arch: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix = CorpusMix((Part("files", corpus(tmp_path), 2.0), Part("web", CountdownWeb(Countdown()), 1.0)))
    changes = {**EVERYTHING, "arch": arch, "workers": workers, "cooldown": Cooldown(mix, 0.3)}
    if arch == "dense":
        changes = {name: value for name, value in changes.items() if name not in ("balancing", "mtp_weight")}
    made = stage(tmp_path, **changes)
    run(made, tmp_path / "whole")
    save = Place.save_state
    for kill in (5, 10, 15):

        def dying(place: Place, step: int, tensors: Any, values: Any, kill: int = kill) -> None:
            save(place, step, tensors, values)
            if step == kill:
                raise Killed

        monkeypatch.setattr(Place, "save_state", dying)
        with pytest.raises(Killed):
            run(made, tmp_path / "killed")
    monkeypatch.setattr(Place, "save_state", save)
    run(made, tmp_path / "killed")
    found, expected = (
        {
            file.relative_to(root): file.read_bytes()
            for file in root.rglob("*")
            if file.is_file() and file.name != "timings.jsonl"
        }
        for root in (tmp_path / "killed", tmp_path / "whole")
    )
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_it_learns_and_the_folder_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = stage(tmp_path, held_out=HeldOut(every=10, documents=50), steps=60)
    trained = run(made, tmp_path / "run")
    told = lines(tmp_path / "run")
    assert [line["step"] for line in told] == [10, 20, 30, 40, 50, 60]
    assert told[-1]["held_out_loss"] < 0.7 * told[0]["held_out_loss"]
    assert told[-1]["tokens"] <= 60 * 200
    policy = trained.load()
    theirs = AutoModelForCausalLM.from_pretrained(trained.path)
    tokenizer = AutoTokenizer.from_pretrained(trained.path)
    ids = tokenizer.encode("the quick brown fox", return_tensors="pt")
    torch.testing.assert_close(theirs(ids).logits, policy.model.logits(ids), atol=1e-4, rtol=1e-4)
    seen = json.loads((tmp_path / "run/corpus.json").read_text())
    assert (seen["skipped"], seen["spikes"], seen["tokens"]) == (0, told[-1]["spikes"], told[-1]["tokens"])


def test_held_out_loss_by_hand(tmp_path: Path) -> None:
    made = stage(tmp_path, precision="float32")
    policy = made.new_policy()
    with torch.no_grad():
        policy.model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(3))
    pages = made._phases(made.renderer())[0].pages
    measure = Measure.of(pages, HeldOut(documents=5))
    found = measure(learner_of(made, policy.model))
    held = [made.corpus.held_out(number).text for number in range(5)]  # type: ignore[attr-defined]
    total = count = 0.0
    for text in held:
        for window in cut(made.renderer().document(None, text), 48):
            logp = policy.model.logits(torch.tensor([window]))[0].detach().log_softmax(-1)
            total -= float(logp[:-1].gather(1, torch.tensor(window[1:])[:, None]).sum())
            count += len(window) - 1
    assert found["held_out_loss"] == pytest.approx(total / count, rel=1e-5)
    size = sum(len(text.encode()) for text in held)
    assert found["held_out_bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_experts_and_further_tokens_follow_their_schedules(tmp_path: Path) -> None:
    made = stage(tmp_path, **{**EVERYTHING, "ramp": None})
    config = made.new_policy().model.config
    assert [objective_at(made, config, step).weight for step in (0, 9, 10, 19)] == [0.3, 0.3, 0.1, 0.1]
    usual = replace(made, mtp_weight=None, balancing=None)
    assert [objective_at(usual, config, step).weight for step in (0, 13, 14, 19)] == [0.3, 0.3, 0.1, 0.1]
    run(made, tmp_path / "run")
    told = {line["step"]: line for line in lines(tmp_path / "run")}
    assert told[10]["bias_spread"] > 0.01
    assert told[20]["bias_spread"] == told[10]["bias_spread"]  # the rate is 0 by then
    assert {"mtp_nll_1", "max_violation"} <= told[10].keys()


def test_a_corpus_that_is_worn_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = stage(tmp_path, corpus=corpus(tmp_path, 8), steps=20)
    with caplog.at_level(logging.WARNING):
        run(made, tmp_path / "run")
    [told] = [record.message for record in caplog.records if "times it teaches" in record.message]
    assert re.search(r"the corpus was read [4-9]\.", told)
    assert lines(tmp_path / "run")[-1]["epochs"] > 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 0}, "steps=0"),
        ({"context": 1}, "context=1"),
        ({"tokens_per_step": 40}, "no room for a window of context=48"),
        ({"packing": "by_length", "ramp": Ramp(100, 0.5)}, "needs packing=in_order"),
        ({"ramp": Ramp(40, 0.5)}, "no room for a window"),
        ({"ramp": Ramp(200, 0.5)}, "must grow"),
        ({"packing": "tight"}, "packing='tight'"),
        ({"mtp_weight": Switch(0.3, 0.1, 0.7)}, "mtp_weight changes nothing"),
        ({"balancing": Experts(Switch(1e-3, 0.0, 0.9))}, "balancing changes nothing"),
        ({"ahead": 2}, "ahead=2 changes nothing with arch=dense"),
        ({"arch": "deepseek_v3", "ahead": 0, "mtp_weight": Switch(0.3, 0.1, 0.7)}, "mtp_weight changes nothing"),
        ({"fim": 1.5}, "rate=1.5"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=told):
        stage(tmp_path, **changes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HeldOut(every=0),
        lambda: HeldOut(documents=0),
        lambda: Experts(Switch(1e-3, 0.0, 0.9), alpha=0.0),
        lambda: Cooldown(CountdownWeb(Countdown()), 1.0),
    ],
)
def test_parts_that_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(SettingsError):
        make()


def test_held_out_needs_documents_that_are_held_back(tmp_path: Path) -> None:
    made = stage(tmp_path, corpus=corpus(tmp_path, 20, held_out=0.0), held_out=HeldOut())
    with pytest.raises(SettingsError, match="holds none back"):
        run(made, tmp_path / "run")


def test_another_tokenizer_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(tmp_path)
    run(made, tmp_path / "run")
    monkeypatch.setattr("longthought.stages.pretrain.fingerprint_of", lambda _: "other")
    with pytest.raises(RunMismatch, match="tokenizer"):
        run(made, tmp_path / "run")


def test_a_longer_context(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = run(stage(tmp_path, steps=10), tmp_path / "base")
    more = corpus(tmp_path, 40, longest=200)
    made = LongContext(more, 96, steps=6, tokens_per_step=200, quiet=True, held_out=HeldOut(documents=3))
    long = run(made, tmp_path / "long", base)
    policy = long.load()
    config = policy.model.config
    assert config.max_position_embeddings == 96
    assert config.rope_scaling is not None
    assert (config.rope_scaling.factor, config.rope_scaling.original_max_position_embeddings) == (2.0, 48)  # type: ignore[union-attr]
    ids = torch.arange(96)[None] % config.vocab_size
    theirs = AutoModelForCausalLM.from_pretrained(long.path)
    torch.testing.assert_close(theirs(ids).logits, policy.model.logits(ids), atol=1e-4, rtol=1e-4)
    longer = LongContext(more, 192, factor=5, steps=2, tokens_per_step=200, quiet=True).stretched(policy)
    assert longer.model.config.rope_scaling.original_max_position_embeddings == 48  # type: ignore[union-attr]
    for context, factor, told in ((96, None, "no longer"), (200, 2.0, "does not reach")):
        with pytest.raises(SettingsError, match=told):
            LongContext(more, context, factor, tokens_per_step=200).stretched(policy)
    with pytest.raises(SettingsError, match="no tokens"):
        run(replace(made, context=200, fim=0.1), tmp_path / "none", long)


def test_a_model_that_read_only_text_continues_text(tmp_path: Path) -> None:
    base = run(stage(tmp_path, steps=2), tmp_path / "base")
    long = run(LongContext(corpus(tmp_path), 96, steps=2, tokens_per_step=200, quiet=True), tmp_path / "long", base)
    for made in (base, long):
        renderer = made.load().renderer
        ids = renderer.prompt((Message("user", "the quick <|end|>"),))
        assert renderer.decode(ids) == "<|begin|>the quick <|end|>"
        assert renderer.stop_tokens[0] not in ids
    windows = Pages(corpus(tmp_path), long.load().renderer, 48).windows(0, range(9))
    assert windows == stage(tmp_path)._phases(stage(tmp_path).renderer())[0].pages.windows(0, range(9))
