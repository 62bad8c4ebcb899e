"""R1 with a model of one's own: a tiny Qwen2 in Hugging Face layout goes the whole road, and every part of it."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from longthought.cli.main import main
from longthought.cli.rehearsal import rehearse
from longthought.cli.settings_table import table
from longthought.core.errors import CheckpointError, DataError, SettingsError
from longthought.core.types import Message
from longthought.recipes import r1, r1_model
from longthought.recipes.catalogue import Recipe
from longthought.recipes.r1_model_boxes import Boxes
from longthought.recipes.r1_model_settings import R1ModelSettings
from longthought.runs.artifacts import Checkpoint
from longthought.runs.place import Place
from longthought.runs.run import Run
from longthought.runs.settings import override
from longthought.stages.method import Method
from longthought.stages.sft import SFT
from longthought.tasks.examples import Examples
from longthought.tasks.mixture import Mixture
from longthought.text.templates import R1_ZERO

RECIPE = Recipe("r1_model", r1_model.r1_model, R1ModelSettings())
ANSWER = "7"
REPLY = f"<think> it is so </think> <answer> {ANSWER} </answer>"
OTHERS = ("<think> it is so </think> <answer> 8 </answer>", "it is 7")
DEPENDS_ON_THE_CLOCK = {"run.json", "timings.jsonl", "lock"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 that says 7 in the right form more often than not, a random one, and files of every kind."""
    folder = tmp_path_factory.mktemp("world")
    questions = [f"What is {i}?" for i in range(240)]
    asked = [f"Tell me of {i}." for i in range(60)]
    _write(folder / "problems.jsonl", [{"question": one, "answer": ANSWER} for one in questions])
    _write(folder / "prompts.jsonl", [{"prompt": one} for one in asked])
    _write(folder / "general.jsonl", [{"prompt": f"Say {i}.", "response": "it is so"} for i in range(40)])
    _write(folder / "shown.jsonl", [{"prompt": f"Is {i}?", "response": REPLY} for i in range(4)])
    good, bad = REPLY, "<think> it </think> 8"
    longer = "<think> it </think> <answer> it is 8 and so it is </answer>"
    pairs = [{"prompt": f"What of {i}?", "chosen": good, "rejected": (bad, longer)[i % 2]} for i in range(60)]
    _write(folder / "pairs.jsonl", pairs)
    labels = [{"prompt": f"What of {i}?", "reply": (good, bad)[i % 2], "safe": i % 2 == 0} for i in range(60)]
    _write(folder / "labels.jsonl", labels)
    for name, width in (("raw", 32), ("student", 16)):
        _raw(folder / name, width, [*questions[:4], R1_ZERO.text, REPLY])
    examples = [(Message("user", one), _said(text)) for one in questions[:30] for text in (REPLY, REPLY, *OTHERS)]
    stage = SFT(Examples.of(examples), epochs=16, lr=2e-2, examples_per_step=16, quiet=True)
    with Place(folder / "learned") as place:
        stage.run(Checkpoint(folder / "raw", R1_ZERO), place)
    return folder


def _said(text: str) -> Message:
    thought, _, content = text.removeprefix("<think>").rpartition("</think>")
    return Message("assistant", content.strip(), thought.strip())


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def _raw(folder: Path, width: int, texts: list[str]) -> None:
    """A random Qwen2 without a chat template, as transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts * 8, trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=500,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=400,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=0)
    model.save_pretrained(folder)


def words(world: Path, *more: str) -> list[str]:
    """The words of a command, with as little work as there can be."""
    found = [f"model={world}/learned/model", f"problems.file={world}/problems.jsonl", "problems.verifier=exact"]
    found += ["precision=float32", "max_tokens=24", "evaluation.max_tokens=24", "evaluation.problems=4"]
    found += ["chains.prompts=8", "chains.samples=4", "traces.prompts=8", "traces.samples=4"]
    found += ["sft.examples_per_step=8", "sft.lr=1e-3", "rewards.lr=1e-2", "rewards.batch=16", "rewards.every=1"]
    found += ["rl.warmup=0", "distil.examples_per_step=8", "problems.test_share=0.2"]
    for name in ("zero", "reasoning", "ruled", "final"):
        found += [f"{name}.steps={1 + (name == 'final')}", f"{name}.prompts=4", f"{name}.samples=4", f"{name}.lr=1e-4"]
    given = {word.partition("=")[0] for word in more}
    return [word for word in found if word.partition("=")[0] not in given] + list(more)


def settings(world: Path, *more: str) -> R1ModelSettings:
    return override(R1ModelSettings(), words(world, *more))


def all_of(world: Path) -> list[str]:
    """All files and a student."""
    found = [f"general.file={world}/general.jsonl", f"chains.demonstrations={world}/shown.jsonl"]
    found += [f"chains.edited={world}/shown.jsonl", f"prompts.file={world}/prompts.jsonl"]
    found += [f"preferences.file={world}/pairs.jsonl", f"labels.file={world}/labels.jsonl"]
    return [*found, "chains.shots=1", f"student={world}/student", "distil.logits=true"]


class Killed(Exception):
    """In the place of a kill."""


class Halting(Run):
    """A run that ends before a stage."""

    halt = ""

    def do(self, name: str, stage: Any, given: Any) -> Any:
        if name == self.halt:
            raise Killed
        return super().do(name, stage, given)


def go(path: Path, asked: R1ModelSettings, halt: str = "") -> Checkpoint:
    with Halting.open(path, recipe="r1_model", settings=asked, command="test", threads=1) as run:
        run.halt = halt
        return r1_model.r1_model(asked, run)


def names(path: Path) -> list[str]:
    return [stage.name for stage in Run.read(path).stages()]


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in DEPENDS_ON_THE_CLOCK)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def told(path: Path) -> dict[str, str]:
    """Why parts are left out, by name."""
    parts = json.loads((path / "01-parts" / "parts" / "parts.json").read_text(encoding="utf-8"))
    return {part["name"]: part["left_out"] for part in parts}


def called(function: object) -> list[str]:
    """The names of the stages that a recipe's module asks for, in order."""
    tree = ast.parse(inspect.getsource(function))  # type: ignore[arg-type]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    asked = [node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr in ("do", "model")]
    asked.sort(key=lambda node: (node.lineno, node.col_offset))
    return [re.sub(r"\{.*?\}", "N", ast.unparse(node.args[0]).strip("f'")) for node in asked if node.args]


def test_it_is_the_road_of_r1() -> None:
    laptop, own = called(r1), called(r1_model)
    own = [name for name in own if name not in ("parts", "N_N")]  # the latter: what is given is measured, too
    assert [name for name in laptop if name in own] == [name for name in own if name in laptop]
    assert set(laptop) - set(own) == {"base", "ready", "small"}  # which is made there, and given here
    assert set(own) - set(laptop) == set()


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all parts that need no server."""
    path = tmp_path_factory.mktemp("whole") / "run"
    made = go(path, settings(world, *all_of(world)))
    assert made.path.parent.name.endswith("-r1")
    return path


@pytest.mark.slow
def test_every_part_runs(whole: Path) -> None:
    found = names(whole)
    order = ["zero", "chains", "cold_start", "reasoner", "traces", "taught", "helpful", "safe", "ruled", "r1"]
    assert [name for name in found if name in order] == order
    assert found[-8:] == [
        "r1_problems",
        "small_problems",
        *("distilled", "distilled_problems", "distilled_logits", "distilled_logits_problems"),
        *("small_rl_1x", "small_rl_1x_problems"),
    ]
    assert {name for name, why in told(whole).items() if why} == {"chains: rewriting", "traces: judge"}
    (looks,) = (whole).glob("*-r1/hacking.json")
    assert "problems" in looks.read_text(encoding="utf-8")
    logged = (looks.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert "shaping/helpful/prompts" in logged
    assert "accuracy/problems" in logged
    examples = next((whole).glob("*-traces/examples/report.json")).read_text(encoding="utf-8")
    assert json.loads(examples)["kept"]["general"] > 0


@pytest.mark.slow
def test_a_run_that_ends_between_stages_goes_on_with_the_same_bits(
    world: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = settings(world, *all_of(world))
    for halt in ("zero_problems", "cold_start", "helpful", "r1", "distilled"):
        with pytest.raises(Killed):
            go(tmp_path / "run", asked, halt)
        assert "LEFT OUT: rewriter.url is not given" in capsys.readouterr().err
    go(tmp_path / "run", asked)
    assert contents(tmp_path / "run") == contents(whole)


@pytest.mark.slow
def test_what_is_not_given_is_left_out_by_name(world: Path, tmp_path: Path) -> None:
    words_ = ["run", f"{inspect.getfile(r1_model)}:r1_model", "--out", str(tmp_path / "run"), *words(world)]
    assert main(words_) == 0
    assert (tmp_path / "run" / "report.html").exists()
    found = names(tmp_path / "run")
    assert found[-1] == "ruled_problems"
    assert not {"pairs", "helpful", "labels", "safe", "r1", "small_problems"} & set(found)
    why = {name: why for name, why in told(tmp_path / "run").items() if why}
    assert set(why) == {
        *("chains: few-shot", "chains: edited", "chains: rewriting", "traces: general", "traces: judge"),
        *("helpful", "safe", "r1", "r1: watch", "distilled", "distilled_logits", "small_rl"),
    }
    assert "prompts.file is not given" in why["helpful"]
    assert why["distilled"] == why["small_rl"] == "student is not given"


@contextmanager
def server(answer: Callable[[str], str]) -> Iterator[str]:
    """A model on this machine that says ``answer`` to what it is asked; its address."""

    class Asked(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = {"message": {"content": answer(body["messages"][0]["content"])}, "finish_reason": "stop"}
            raw = json.dumps({"choices": [said]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: object) -> None: ...

    made = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/v1"
    made.shutdown()
    made.server_close()


def judged(question: str) -> str:
    """Seven is better, an odd number of letters is safe; what is rewritten says seven."""
    texts = dict(re.findall(r"<<<(\w+) \w+>>>\n(.*?)\n<<<END", question, re.DOTALL))
    if "REASONING" in texts:
        return f"<reasoning>it is so</reasoning><summary>So it is <answer>{ANSWER}</answer></summary>"
    if "FIRST" in texts:
        better = [ANSWER in texts[name] for name in ("FIRST", "SECOND")]
        return "[[A=B]]" if better[0] == better[1] else "[[A>>B]]" if better[0] else "[[B>>A]]"
    return "[[KEPT]]" if len(texts.get("REPLY", "")) % 2 else "[[BROKEN]]"


@pytest.mark.slow
def test_a_judge_stands_in_for_files_of_judgements(world: Path, tmp_path: Path) -> None:
    with server(judged) as url:
        more = [
            f"judge.url={url}",
            "judge.model=j",
            "judge.key=",
            "judge.principles=It is seven.",
            "prompts.test_share=0.3",
        ]
        more += [f"rewriter.url={url}", "rewriter.model=r", "rewriter.key=", f"prompts.file={world}/prompts.jsonl"]
        asked = settings(world, *more, "judge.samples=6", "judge.pairs=8", "rewards.length_balance=none")
        with pytest.raises(Killed):
            go(tmp_path / "run", asked, "ruled")
    assert {"pairs", "helpful", "labels", "safe"} < set(names(tmp_path / "run"))
    (kept,) = (tmp_path / "run").glob("*-chains/examples/examples.jsonl")
    assert "So it is <answer>7</answer>" in kept.read_text(encoding="utf-8")


def boxes(world: Path, *more: str) -> Boxes:
    return Boxes(settings(world, *more))


def test_the_defaults_are_those_of_the_paper(world: Path) -> None:
    at = Boxes(
        override(
            R1ModelSettings(),
            [
                f"model={world}/learned/model",
                f"problems.file={world}/problems.jsonl",
                "max_tokens=24",
                "evaluation.max_tokens=24",
            ],
        )
    )
    zero, reasoning, ruled = at.zero(), at.reasoning_rl(), at.rule_rl()
    assert [one.optimizer.lr for one in (zero, reasoning, ruled)] == [3e-6] * 3  # type: ignore[union-attr]
    assert zero.prompts * zero.samples // zero.updates == 512
    assert zero.reference_every * zero.updates == 400
    assert (zero.samples, zero.temperature, reasoning.temperature, ruled.temperature) == (16, 1.0, 1.0, 0.7)
    assert isinstance(zero.method, Method)
    assert zero.method.objective.beta == 0.001  # type: ignore[attr-defined]
    assert [one.name for one in zero.method.shaping] == []
    assert [(one.name, one.weight) for one in reasoning.method.shaping] == [("language", 1.0)]  # type: ignore[attr-defined]
    final = at.settings.final
    assert final.steps / (final.steps + ruled.steps) == pytest.approx(400 / 1700, abs=1e-3)
    assert (at.settings.sft.final, at.settings.general.share) == (0.1, 0.25)


def test_forms_fit_together(world: Path) -> None:
    at = boxes(world, *all_of(world))
    assert at.zero().task.grading.form == "think_answer"  # type: ignore[attr-defined]
    for stage in (at.cold_start(), at.reasoning_rl(), at.rejection_sampling(), at.rule_rl(), at.looks[0]):
        assert stage.task.grading.form == "summary"  # type: ignore[attr-defined]
    plain = boxes(world, "template=", "form=think")
    assert plain.zero().task.grading.form == "think"  # type: ignore[attr-defined]


def test_settings_reach_the_stages(world: Path) -> None:
    low = boxes(world, *all_of(world), "adapter.rank=4", "zero.lr=none", "zero.longer=2:30", "zero.steps=4")
    zero = low.zero()
    assert zero.optimizer.lr == pytest.approx(3e-5)  # type: ignore[union-attr]
    assert (zero.reference_every, zero.longer) == (0, ((2, 30),))
    assert low._student_rate() == pytest.approx(1e-3)
    dropping = boxes(world, *all_of(world), "rl.method=dapo")._scenarios(watch=True)
    assert isinstance(dropping.task, Mixture)
    assert dropping.task.names == ("problems", "prompts")
    assert dropping.hacking is not None
    assert boxes(world, "rl.method=dapo").zero().reference_every == 0


@pytest.mark.parametrize(("size", "rate"), [(1.5e9, 1e-4), (7.6e9, 8e-5), (14.8e9, 7e-5), (32.8e9, 6e-5), (7e10, 2e-5)])
def test_the_rate_of_a_student_goes_by_its_size(size: float, rate: float) -> None:
    from longthought.recipes.r1_model_boxes import _RATES

    assert next(value for most, value in _RATES if size < most) == rate


def test_the_table_explains_every_setting() -> None:
    shown = table(RECIPE, RECIPE.settings).splitlines()[2:]
    assert [line for line in shown if len(line.split("  ")) < 3] == []


def without(given: list[str], *names_: str) -> list[str]:
    return [word for word in given if word.partition("=")[0] not in names_]


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (["model=nothing"], CheckpointError, "no model folder nothing"),
        (["student=nothing"], CheckpointError, "no model folder nothing"),
        (["template=r2"], SettingsError, "no prompt template 'r2'"),
        (["form=free"], SettingsError, "form"),
        (["form=think"], SettingsError, "asks for <answer> tags"),
        (["problems.file=absent.jsonl"], DataError, r"no file of problems absent\.jsonl"),
        (["problems.mix=knights:1"], SettingsError, "form=think_answer"),
        (["problems.test_share=0"], SettingsError, "held out"),
        (["prompts.file=absent.jsonl"], DataError, r"no file of prompts absent\.jsonl"),
        (["general.file=absent.jsonl"], DataError, r"no file of conversations absent\.jsonl"),
        (["general.share=1"], SettingsError, "between 0 and 1"),
        (["preferences.file=absent.jsonl"], DataError, "absent"),
        (["labels.file=absent.jsonl"], DataError, "absent"),
        (["max_tokens=4000"], SettingsError, "context of 400 tokens"),
        (["evaluation.max_tokens=400"], SettingsError, "context of 400 tokens"),
        (["sft.context=500"], SettingsError, "sft.context=500"),
        (["zero.longer=twice"], SettingsError, "write STEP:TOKENS"),
        (["zero.longer=2:10"], SettingsError, "tokens from max_tokens=24"),
        (["final.steps=1"], SettingsError, "fewer looks in 1 steps"),
        (["ruled.lr=0"], SettingsError, "must be positive"),
        (["reasoning.samples=1"], SettingsError, "at least 2 replies"),
        (["knobs.tau=1"], SettingsError, "tau"),
        (["rl.reference_every=2", "knobs.beta=0"], SettingsError, "no KL term"),
        (["distil.against=0"], SettingsError, "from 1 on"),
        (["rewards.helpful=0"], SettingsError, "helpful"),
        (["judge.model=j"], SettingsError, "without url"),
        (["judge.principles=Be kind."], SettingsError, "principles"),
        (["judge.url=http://127.0.0.1:1/v1"], SettingsError, "model is empty"),
        (["judge.url=nowhere", "judge.model=j"], SettingsError, "nowhere"),
        (["chains.shots=9"], SettingsError, "shots=9"),
        (["evaluation.split=train"], SettingsError, "must not be train"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    world: Path, wrong: list[str], error: type[Exception], says: str
) -> None:
    given = without(all_of(world), *(word.partition("=")[0] for word in wrong))
    with pytest.raises(error, match=says):
        rehearse(RECIPE, settings(world, *given, *wrong))


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (("prompts.file",), "preferences.file changes nothing without prompts.file"),
        (("prompts.file", "preferences.file"), "labels.file changes nothing without prompts.file"),
        (("preferences.file", "labels.file"), "prompts.file changes nothing without a reward"),
    ],
)
def test_judgements_and_prompts_need_each_other(world: Path, missing: tuple[str, ...], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        settings(world, *without(all_of(world), *missing))


def test_conversations_that_a_template_cannot_write_are_refused_or_counted(world: Path, tmp_path: Path) -> None:
    turns = [{"role": role, "content": "it"} for role in ("user", "assistant") * 2]
    _write(tmp_path / "two.jsonl", [{"messages": turns}, {"messages": turns[:2]}])
    with pytest.raises(DataError, match=r"general: 1 of 2 conversations.*two\.jsonl:1"):
        boxes(world, f"general.file={tmp_path}/two.jsonl")
    at = boxes(world, f"general.file={tmp_path}/two.jsonl", "general.bad=skip")
    assert at.written is not None
    assert at.written.size("train") == 1


def test_a_key_that_is_not_set_is_told_before_anything_is_computed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    asked = settings(world, "rewriter.url=https://example.org/v1", "rewriter.model=r", "rewriter.key=SOME_KEY")
    with pytest.raises(SettingsError, match="SOME_KEY is not set"):
        go(tmp_path / "run", asked)
