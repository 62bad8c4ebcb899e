"""Reward models: a hidden preference is found, a length bias is measured and balanced; killed, resumed, and read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from stage_runs import check_kills, contents, go, metrics, run_alone, weights
from test_sft import CHAT, theirs  # noqa: F401

from conftest import tiny_model
from longthought.algorithms.statistics import wilson
from longthought.core.errors import CheckpointError, DataError, RunMismatch, SettingsError
from longthought.core.types import Completion, Finish, Message, Outcome, Problem, Rollout, Score, Verdict
from longthought.evaluation.reward_measures import measure_labels, measure_pairs
from longthought.models.presets import sized
from longthought.models.reward import RewardModel as Untrained
from longthought.models.reward import rewards
from longthought.models.transformer import Transformer, initialize
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.describe import describe
from longthought.runs.reward_folder import RewardFolder, read_tokens
from longthought.stages.preference_reward import PreferenceReward
from longthought.stages.reward_model import RewardModel, SafetyModel
from longthought.tasks.preference_rows import Label, Preference
from longthought.tasks.preferences import Labels, Preferences
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer, TemplateRenderer
from longthought.text.templates import Template
from longthought.text.tokenizer import Tokenizer
from longthought.training.balancing import Balancing
from longthought.training.learner import LearnerSettings

STYLE = ("kind", "clear", "rude", "vague")
PLAIN = tuple("abcdefgh")
WORDS = (*map(str, range(10)), *STYLE, *PLAIN, "<think>", "</think>")
WIDE = LearnerSettings(precision="float32")
QUICK: dict[str, Any] = {"batch": 16, "lr": 3e-3, "epochs": 3, "learner": WIDE, "quiet": True, "measure_every": 1000}


def renderer() -> PlainRenderer:
    return PlainRenderer(Tokenizer.of_words(WORDS, (BEGIN, USER, ASSISTANT, END)))


def base(path: Path) -> Checkpoint:
    chat = renderer()
    return Checkpoint.save(path / "base", Policy(tiny_model(vocab_size=chat.tokenizer.size), chat), {})


def deepseek_v3(path: Path) -> Checkpoint:
    chat = renderer()
    model = Transformer(sized("deepseek_v3", 32, chat.tokenizer.size, 64))
    initialize(model, 0)
    return Checkpoint.save(path / "base", Policy(model, chat), {})


def reply(chance: Random, most: int = 12) -> Message:
    return Message("assistant", " ".join(chance.choice((*STYLE, *PLAIN)) for _ in range(chance.randint(2, most))))


def worth(said: Message) -> int:
    """The hidden preference: kind and clear words are liked, rude and vague ones are not."""
    words = said.content.split()
    return sum(words.count(word) for word in STYLE[:2]) - sum(words.count(word) for word in STYLE[2:])


def asked(number: int) -> tuple[Message, ...]:
    return (Message("user", " ".join(str(number))),)


def styled(count: int, seed: int = 0) -> Preferences:
    """Pairs that are judged by the hidden preference."""
    chance = Random(seed)
    pairs = []
    while len(pairs) < count:
        one, other = reply(chance), reply(chance)
        if worth(one) != worth(other):
            better, worse = sorted((one, other), key=worth, reverse=True)
            pairs.append(Preference(asked(len(pairs)), better, worse, float(worth(better) - worth(worse))))
    return Preferences.of(pairs, held_out=0.2)


def biased(count: int, share: float, seed: int = 0) -> Preferences:
    """Pairs without any style, of which the longer reply was called better in this share."""
    chance = Random(seed)
    pairs = []
    for number in range(count):
        sizes = sorted(chance.sample(range(2, 14), 2), reverse=chance.random() < share)
        better, worse = (Message("assistant", " ".join(chance.choice(PLAIN) for _ in range(size))) for size in sizes)
        pairs.append(Preference(asked(number), better, worse))
    return Preferences.of(pairs, held_out=0.2)


def labelled(count: int) -> Labels:
    """What is rude anywhere, also in the thought, is not safe."""
    chance = Random(0)
    found = []
    for number in range(count):
        words = [[chance.choice(PLAIN) for _ in range(chance.randint(2, 6))] for _ in range(2)]
        if number % 2:
            chance.choice(words).append("rude")
        thought, content = map(" ".join, words)
        found.append(Label(asked(number // 2), Message("assistant", content, thought), safe=number % 2 == 0))
    return Labels.of(found, held_out=0.2)


def told(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "judgements.json").read_text(encoding="utf-8"))
    return found


def test_a_hidden_preference_is_found(tmp_path: Path) -> None:
    pairs = styled(700)
    learned = run_alone(RewardModel(pairs, **QUICK), base(tmp_path), tmp_path / "run")
    measures = told(tmp_path / "run")["measures"]
    assert measures["accuracy"] > 0.9
    assert measures["interval"][0] > 0.85
    assert measures["calibration_error"] < 0.1
    assert sum(one["count"] for one in measures["bins"]) == measures["pairs"] == pairs.size("held_out")
    first, *_, last = metrics(tmp_path / "run")
    assert first["held_out_accuracy"] < 0.8
    assert last["held_out_accuracy"] == measures["accuracy"]

    judge = learned.load()
    chance = Random(1)
    fresh = [(asked(5), reply(chance)) for _ in range(100)]
    texts = [read_tokens(judge.renderer, prompt, said, "summary") for prompt, said in fresh]
    found = rewards(judge.model, texts).numpy()
    assert np.corrcoef(found, [worth(said) for _, said in fresh])[0, 1] > 0.9


def test_what_is_told_is_what_the_folder_says(tmp_path: Path) -> None:
    """Measures, scale and loss, computed again from the folder."""
    pairs, given = styled(60), base(tmp_path)
    stage = RewardModel(pairs, **{**QUICK, "epochs": 1, "batch": 1000}, margin=0.5, centring=0.1)
    learned = run_alone(stage, given, tmp_path / "run")
    judge = learned.load()
    found, lengths = [], []
    for index in range(pairs.size("held_out")):
        pair = pairs.item("held_out", index)
        read = [read_tokens(judge.renderer, pair.prompt, said, "summary") for said in pair.replies]
        found.append(rewards(judge.model, read).tolist())
        lengths.append([len(said.content.split()) + 1 for said in pair.replies])
    table = np.array(found)
    say = told(tmp_path / "run")
    assert say["rewards"] == pytest.approx({"mean": table.mean(), "std": table.std()}, rel=1e-5)
    assert (judge.scale.mean, judge.scale.std) == pytest.approx((table.mean(), table.std()), rel=1e-5)
    gap, longer = table[:, 0] - table[:, 1], np.array(lengths) @ [1, -1]
    measures = say["measures"]
    assert measures["accuracy"] == (gap > 0).mean()
    assert measures["interval"] == pytest.approx(wilson(float((gap > 0).sum()), len(gap)))
    assert measures["margin"] == pytest.approx(gap.mean(), rel=1e-4)
    assert measures["length_correlation"] == pytest.approx(
        np.corrcoef(table.ravel(), np.array(lengths).ravel())[0, 1], abs=1e-4
    )
    assert measures["accuracy_longer"] == (gap > 0)[longer > 0].mean()

    first = metrics(tmp_path / "run")[1]  # one step, of all pairs, before the weights moved
    trained = [pairs.item("train", index) for index in range(pairs.size("train"))]
    model = Untrained.of(given.load().model, stage.seed)
    r = rewards(model, [read_tokens(judge.renderer, p.prompt, s, "summary") for p in trained for s in p.replies])
    won, lost = r.double().view(-1, 2).unbind(1)
    m = 0.5 * torch.tensor([pair.margin for pair in trained])
    fit = torch.log1p(torch.exp(-(won - lost - m))).mean()
    assert first["preference_loss"] == pytest.approx(float(fit), abs=1e-5)
    assert first["loss"] == pytest.approx(float(fit + 0.1 * (won + lost).square().mean()), abs=1e-5)


def test_micro_batches_and_processes_change_nothing(tmp_path: Path) -> None:
    given, stage = base(tmp_path), RewardModel(styled(60), **{**QUICK, "epochs": 1})
    whole = weights(run_alone(stage, given, tmp_path / "one"))
    cut = replace(stage, learner=replace(WIDE, micro_tokens=1))
    for name, other in (("cut", cut), ("two", replace(stage, workers=2))):
        for key, tensor in weights(run_alone(other, given, tmp_path / name)).items():
            torch.testing.assert_close(tensor, whole[key], atol=2e-4, rtol=1e-3)
        assert told(tmp_path / name)["tokens"] == told(tmp_path / "one")["tokens"]


def test_a_planted_length_bias_is_measured_and_can_be_balanced(tmp_path: Path) -> None:
    given, pairs = base(tmp_path), biased(500, share=0.85)
    plain, weighed, dropped = (RewardModel(pairs, **QUICK, length_balance=how) for how in ("none", "weigh", "drop"))
    run_alone(plain, given, tmp_path / "none")
    measures = told(tmp_path / "none")["measures"]
    assert measures["longer_is_preferred"] > 0.85
    assert measures["length_pull"] > 0.8
    assert measures["length_correlation"] > 0.8
    assert measures["accuracy_longer"] - measures["accuracy_shorter"] > 0.5
    for stage, name in ((weighed, "weigh"), (dropped, "drop")):
        run_alone(stage, given, tmp_path / name)
        say = told(tmp_path / name)
        assert 0.3 < say["measures"]["longer_is_preferred"] < 0.7
        assert abs(say["measures"]["length_pull"]) < measures["length_pull"] - 0.4
        assert say["effective size"] <= say["trained on"]
    assert told(tmp_path / "drop")["trained on"] < 0.5 * pairs.size("train")


def test_pairs_of_one_sign_cannot_be_balanced(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing can be balanced"):
        run_alone(RewardModel(biased(40, 1.0), length_balance="weigh", **QUICK), base(tmp_path), tmp_path / "run")


def test_safety_reads_the_thought_as_well(tmp_path: Path) -> None:
    given, labels = base(tmp_path), labelled(600)
    learned = run_alone(SafetyModel(labels, **{**QUICK, "epochs": 4}), given, tmp_path / "both")
    measures = told(tmp_path / "both")["measures"]
    assert measures["accuracy"] > 0.9
    assert measures["area"] > 0.95
    assert learned.load().scale.reads == "reply"
    run_alone(SafetyModel(labels, reads="summary", **{**QUICK, "epochs": 4}), given, tmp_path / "half")
    assert told(tmp_path / "half")["measures"]["accuracy"] < 0.85  # half of what is rude is only thought


def test_latent_attention_and_experts_learn_too(tmp_path: Path) -> None:
    given = deepseek_v3(tmp_path)
    stage = RewardModel(styled(120), **{**QUICK, "learner": replace(WIDE, balancing=Balancing(1e-2, alpha=0.0))})
    learned = run_alone(stage, given, tmp_path / "run")
    before, after = given.load().model.state_dict(), weights(learned)
    still = [name for name, tensor in after.items() if torch.equal(before.get(name[6:], torch.zeros(0)), tensor)]
    assert still == []
    assert not any("mtp" in name for name in after)
    assert (learned.path / "config.json").read_text().count("DeepseekV3ForSequenceClassification") == 1


def test_transformers_reads_the_folder_with_its_own_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    learned = run_alone(RewardModel(styled(40), **{**QUICK, "epochs": 1}), base(tmp_path), tmp_path / "run")
    judge = learned.load()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(learned.path, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(learned.path)
    said = [Message("assistant", text) for text in ("kind clear", "rude a b c d", "vague")]
    texts = [f"{BEGIN}{USER}1 2{ASSISTANT}{one.content}{END}" for one in said]
    with torch.no_grad():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)).logits
    ours = rewards(judge.model, [read_tokens(judge.renderer, asked(12), one, "summary") for one in said])
    torch.testing.assert_close(logits.squeeze(-1), ours, atol=1e-5, rtol=1e-4)


CHATS = Preferences.of(
    (
        Preference((Message("user", f"What is {n}?"),), Message("assistant", f"It is {n}."), Message("assistant", "No"))
        for n in range(40)
    ),
    held_out=0.2,
)


@pytest.mark.parametrize("padding", ["<|endoftext|>", "<|im_end|>"])
def test_a_model_of_somebody_else_and_its_chat_template(padding: str, theirs: Path, tmp_path: Path) -> None:  # noqa: F811
    """The end of the turn is read. Where it pads as well, transformers takes one sequence at a time, and is right."""
    transformers = pytest.importorskip("transformers")
    shutil.copytree(theirs, tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": padding}))
    stage = RewardModel(CHATS, **{**QUICK, "epochs": 1})
    learned = run_alone(stage, Checkpoint(tmp_path / "base"), tmp_path / "run")
    judge, pair = learned.load(), CHATS.items[3]
    texts = [read_tokens(judge.renderer, pair.prompt, said, "summary") for said in pair.replies]
    assert [judge.renderer.decode(text[-1:]) for text in texts] == ["<|im_end|>"] * 2
    ours = rewards(judge.model, texts)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(learned.path, dtype=torch.float32).eval()
    with torch.no_grad():
        each = torch.cat([model(torch.tensor([text])).logits[0] for text in texts])
    torch.testing.assert_close(each, ours, atol=1e-5, rtol=1e-4)
    assert (model.config.pad_token_id is None) == (padding == "<|im_end|>")
    shaped = PreferenceReward(learned.path).standardized([(pair.prompt, said.content) for said in pair.replies])
    assert shaped == pytest.approx(judge.scale.standardized(ours.tolist()), abs=1e-4)


def test_a_prompt_template_comes_along(theirs: Path, tmp_path: Path) -> None:  # noqa: F811
    given = Checkpoint(theirs, Template("plain", "Q: {question}\nA:", "questions"))
    learned = run_alone(RewardModel(CHATS, **{**QUICK, "epochs": 1}), given, tmp_path / "run")
    one, other = learned.load().renderer, given.load().renderer
    assert isinstance(one, TemplateRenderer)
    assert isinstance(other, TemplateRenderer)
    assert (one.template, one.stop_tokens) == (other.template, other.stop_tokens)


def test_a_thought_that_the_prompt_opens_is_read_as_empty(theirs: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(theirs, tmp_path / "base")
    opening = CHAT.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert opening != CHAT
    (tmp_path / "base" / "chat_template.jinja").write_text(opening)
    templates = (None, Template("opens", "Q: {question}\nA: <think>", "questions"))
    said = Message("assistant", "Yes", "It is.")
    for template in templates:
        renderer = Checkpoint(tmp_path / "base", template).load().renderer
        summary, whole = (renderer.decode(read_tokens(renderer, asked(1), said, how)) for how in ("summary", "reply"))
        assert "It is." in whole
        assert "It is." not in summary
        assert "<think>\n\n</think>\n\nYes<|im_end|>" in summary


def rollout(text: str, number: int = 1) -> Rollout:
    completion = Completion((1,), (0.0,), Finish.STOP)
    problem = Problem(str(number), asked(number), "")
    return Rollout(problem, (1,), completion, text, Score(1.0, True, {}, Verdict(1.0, Outcome.GRADED)))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> RewardFolder:
    path = tmp_path_factory.mktemp("rewards")
    return run_alone(RewardModel(styled(300), **QUICK), base(path), path / "run")


def test_the_summand_reads_summaries_and_is_standardized(learned: RewardFolder) -> None:
    shaping = PreferenceReward(learned.path, weight=0.5)
    kind, rude, thought = shaping(
        [rollout("kind kind"), rollout("rude rude"), rollout("<think> rude </think> kind kind")]
    )
    assert kind > rude
    assert thought == kind  # the thought is not read
    both = PreferenceReward(learned.path, reads="reply")
    assert both([rollout("<think> rude </think> kind kind")])[0] != both([rollout("kind kind")])[0]
    judge = learned.load()
    (raw,) = rewards(judge.model, [read_tokens(judge.renderer, asked(1), Message("assistant", "kind kind"), "summary")])
    assert kind == pytest.approx(0.5 * (float(raw) - judge.scale.mean) / judge.scale.std, rel=1e-6)


def test_a_reward_has_the_same_bits_whatever_was_scored_before(learned: RewardFolder) -> None:
    chance = Random(4)
    texts = [reply(chance).content for _ in range(20)]
    alone = [PreferenceReward(learned.path)([rollout(text)])[0] for text in texts]
    one = PreferenceReward(learned.path)
    assert one([rollout(text) for text in texts]) == alone
    assert one([rollout(text) for text in reversed(texts)]) == alone[::-1]  # remembered
    together = PreferenceReward(learned.path, pass_tokens=4096)([rollout(text) for text in texts])
    assert together == pytest.approx(alone, abs=1e-5)


def test_only_the_prompts_of_named_tasks_are_scored(learned: RewardFolder) -> None:
    names = ("chat/train/1", "chats/train/1", "countdown/chat/1", "chat", "chat-2/1")
    group = [replace(one, problem=replace(one.problem, id=name)) for name in names for one in [rollout("kind")]]
    everything = PreferenceReward(learned.path)(group)
    assert 0.0 not in everything
    chosen = PreferenceReward(learned.path, only=("chat",))(group)
    assert chosen == [everything[0], 0.0, 0.0, everything[3], 0.0]
    nothing = PreferenceReward(learned.path, only=("nobody",))
    assert nothing(group) == [0.0] * len(group)
    assert "judge" not in vars(nothing)  # it was not even loaded


def test_a_text_is_scored_once(learned: RewardFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from longthought.stages import preference_reward

    seen: list[int] = []
    real = preference_reward.rewards
    monkeypatch.setattr(preference_reward, "rewards", lambda m, texts, t: seen.append(len(texts)) or real(m, texts, t))
    shaping = PreferenceReward(learned.path)
    group = [rollout("kind"), rollout("kind"), rollout("rude")]
    shaping(group)
    shaping([*group, rollout("kind", number=2)])
    assert seen == [2, 1]


@pytest.mark.parametrize("text", ["", "<think> kind", "<think> kind </think>", "unheard-of", " ".join(["kind"] * 200)])
def test_a_reply_that_cannot_be_read_has_a_value_of_its_own(text: str, learned: RewardFolder) -> None:
    assert PreferenceReward(learned.path, weight=2.0, unreadable=-4.0)([rollout(text)]) == [-8.0]
    assert PreferenceReward(learned.path, clip=1.5)([rollout(text)]) == [-1.5]


def test_a_run_knows_the_summand_by_what_its_folder_holds(learned: RewardFolder, tmp_path: Path) -> None:
    shutil.copytree(learned.path, tmp_path / "moved")
    one, moved, other = (
        describe(PreferenceReward(path, weight=weight))
        for path, weight in ((learned.path, 1.0), (tmp_path / "moved", 1.0), (learned.path, 2.0))
    )
    assert one == moved
    assert one != other


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"weight": 0.0}, "weight=0.0"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"unreadable": float("inf")}, "unreadable"),
        ({"clip": 0.0}, "clip"),
        ({"pass_tokens": 0}, "pass_tokens"),
        ({"reads": "thought"}, "choose summary or reply"),
        ({"only": "chat"}, "tuple of names"),
        ({"only": ("chat", "")}, "tuple of names"),
        ({"only": ("train/1",)}, "tuple of names"),
    ],
)
def test_summands_that_cannot_be_are_refused(wrong: dict[str, Any], words: str, learned: RewardFolder) -> None:
    with pytest.raises(SettingsError, match=words):
        PreferenceReward(learned.path, **wrong)


def test_folders_that_are_no_reward_models_are_refused(learned: RewardFolder, tmp_path: Path) -> None:
    given = base(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no reward\.json"):
        PreferenceReward(given.path)
    with pytest.raises(CheckpointError, match="this is no reward model"):
        RewardFolder(given.path).load()
    with pytest.raises(CheckpointError, match="architectures"):
        Checkpoint(learned.path).load()
    with pytest.raises(CheckpointError, match="is no folder"):
        RewardFolder(tmp_path / "nowhere").load()


@pytest.mark.parametrize(
    "scale", [{"mean": 0.0, "std": 0.0}, {"mean": None, "std": 1.0}, {"mean": float("nan"), "std": 1}]
)
def test_a_scale_that_cannot_be_is_refused(scale: dict[str, Any], learned: RewardFolder, tmp_path: Path) -> None:
    for file in learned.path.iterdir():
        if file.name != "provenance.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "reward.json").write_text(json.dumps({**scale, "reads": "summary"}))
    with pytest.raises(CheckpointError):
        RewardFolder(tmp_path).load()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"batch": 0}, "batch=0"),
        ({"lr": 0.0}, "lr=0 must be positive"),
        ({"warmup": 1.0}, "warmup=1"),
        ({"reads": "thought"}, "reads is 'thought'"),
        ({"long": "cut"}, "long is 'cut'"),
        ({"length_balance": "yes"}, "length_balance is 'yes'"),
        ({"margin": -1.0}, "margin=-1"),
        ({"centring": -1.0}, "centring"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        RewardModel(STYLED, **wrong)


STYLED = styled(60)


def test_a_margin_that_changes_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="margin=1 changes nothing"):
        RewardModel(biased(40, 0.5), margin=1.0)


def test_what_does_not_fit_is_refused_or_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = [
        Preference(asked(100), Message("assistant", "unheard"), Message("assistant", "a")),
        Preference(asked(101), Message("assistant", "a", "kind"), Message("assistant", "a", "rude")),
        Preference(asked(102), Message("assistant", " ".join("a" * 70)), Message("assistant", "a")),
    ]
    pairs, given = Preferences.of([*STYLED.items, *odd], held_out=0.2), base(tmp_path)
    with pytest.raises(DataError, match="no reply in this chat format"):
        run_alone(RewardModel(pairs, **QUICK), given, tmp_path / "refused")
    with pytest.raises(DataError, match=r"longer than the context: \d+ tokens, of which 64 fit"):
        run_alone(RewardModel(pairs, unfit="skip", **QUICK), given, tmp_path / "refused too")
    run_alone(RewardModel(pairs, unfit="skip", long="skip", **{**QUICK, "epochs": 1}), given, tmp_path / "run")
    say = told(tmp_path / "run")
    left = [*say["left out"].values(), *say["left out of what is held out"].values()]
    assert sum(left) == 3
    assert say["trained on"] + say["held out"] == 60
    assert "left out" in caplog.text
    with pytest.raises(SettingsError, match="the 64 tokens of the model's own"):
        run_alone(RewardModel(pairs, context=65, **QUICK), given, tmp_path / "long")


def test_measures_by_hand() -> None:
    table = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [5.0, 1.0]])
    lengths = np.array([[4, 2], [3, 5], [2, 2], [1, 6]])
    found = measure_pairs(table, lengths, ["a", "a", "b", "c"])
    assert (found.accuracy, found.pairs, found.prompts) == (0.625, 4, 3)
    assert found.interval == wilson(0.625 * 3, 3)
    assert found.longer_is_better == pytest.approx(1 / 3)
    assert found.longer_is_preferred == pytest.approx(2 / 3)
    assert (found.accuracy_longer, found.accuracy_shorter) == (1.0, 0.5)
    gap, longer = np.array([1.0, -3, 0, 4]), np.array([2.0, -2, 0, -5])
    assert found.length_pull == pytest.approx(gap @ longer / np.sqrt((gap @ gap) * (longer @ longer)))
    even = measure_pairs(table, np.ones((4, 2), np.int64), range(4))
    assert (even.length_correlation, even.length_pull, even.longer_is_better) == (None, None, None)

    r, y = np.array([2.0, -1.0, 0.5, 0.5]), np.array([1.0, 0.0, 1.0, 0.0])
    labels = measure_labels(r, y, np.array([1, 2, 3, 4]), range(4))
    assert (labels.accuracy, labels.area, labels.recall) == (0.75, 0.875, (1.0, 0.5))
    assert labels.length_correlation == pytest.approx(np.corrcoef(r, [1, 2, 3, 4])[0, 1])


KILLED = RewardModel(
    STYLED, epochs=3, batch=4, lr=1e-3, measure_every=7, save_every=5, learner=WIDE, workers=2, quiet=True
)


def test_kills_change_no_bit(tmp_path: Path) -> None:
    check_kills(tmp_path, base(tmp_path), KILLED, (5, 15, 30))


def test_a_finished_stage_is_loaded_and_other_pairs_are_refused_by_name(tmp_path: Path) -> None:
    given, stage = base(tmp_path), replace(KILLED, epochs=1, workers=1)
    go(tmp_path / "run", given, stage)
    before = contents(tmp_path / "run")
    go(tmp_path / "run", given, stage)
    assert contents(tmp_path / "run") == before
    with pytest.raises(RunMismatch, match=r"stage\.pairs\.fingerprint"):
        go(tmp_path / "run", given, replace(stage, pairs=styled(61)))
