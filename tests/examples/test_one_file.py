"""The one-file R1-Zero: small enough to read, free of dependencies, and right where it is easy to be wrong."""

import ast
import importlib.util
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "r1_zero_in_one_file.py"


@pytest.fixture(scope="module")
def story() -> ModuleType:
    spec = importlib.util.spec_from_file_location("r1_zero_in_one_file", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(story: ModuleType) -> torch.nn.Module:
    """A model whose head is not zero, so that its log-probabilities depend on everything before them."""
    torch.manual_seed(3)
    model = story.Model()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model


def run(*flags: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- the file ----


def test_fits_on_250_lines() -> None:
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 250
    assert max(map(len, lines)) <= 120


def test_imports_only_torch_and_the_standard_library() -> None:
    roots = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add(str(node.module).split(".")[0])
    assert "torch" in roots
    assert roots - {"torch"} <= set(sys.stdlib_module_names)


def test_never_evaluates_what_a_model_wrote() -> None:
    names = {node.id for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__"}


# ---- the story it prints ----


def test_prints_pretraining_exam_curve_exam() -> None:
    output = run("--pretrain-steps", "24", "--rl-steps", "2", "--seed", "5")
    kinds = [line.split()[0] for line in output.splitlines() if re.match(r"(pretrain|base|r1-zero|seed)\b", line)]
    assert kinds == ["pretrain"] * 8 + ["base"] + ["r1-zero"] * 2 + ["r1-zero", "seed"]
    measured = r"pass@1 [01]\.\d{3}  format [01]\.\d{2}  length +\d+\.\d  waits \d+\.\d{2}"
    assert len(re.findall(measured, output)) == 4
    transcripts = re.findall(r"^  (\(\d+, \d+, \d+\) -> \d+)  (?:right|wrong):  ", output, flags=re.MULTILINE)
    assert len(transcripts) == 8
    assert transcripts[:4] == transcripts[4:]  # before and after on the same problems
    assert "seed 5" in output


def test_the_same_seed_gives_the_same_answers(story: ModuleType) -> None:
    def answers() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(4)
        rng, model, sets = random.Random(4), story.Model(), [(9, 4, 3), (1, 2, 10)]
        story.pretrain(model, story.batches(sets, rng), 4)
        prompts, responses, log_probs, _ = story.rollout(model, [(sets[0], 33)], rng, group=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        story.improve(model, optimizer, prompts, responses, log_probs, torch.tensor([1.0, -1.0, 1.0, -1.0]))
        return story.rollout(model, [(sets[0], 33)], rng, group=2)[1:3]

    for first, second in zip(answers(), answers(), strict=True):
        torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_nobody_can_say_pad(story: ModuleType, model: torch.nn.Module) -> None:
    """A <pad> inside an answer would be invisible to the judge and to the loss; a policy learns to hide there."""
    probability = model(story.encode("<bos> use 9 4 3 make 33 <asst>")[None]).softmax(-1)
    assert (probability[..., story.PAD] == 0).all()
    torch.testing.assert_close(probability.sum(-1), torch.ones(1, 8))


# ---- the judge ----


@pytest.mark.parametrize(
    ("expression", "target"),
    [("( 9 * 4 ) - 3", 33), ("9 * 4 - 3", 33), ("4 - 3 + 9", 10), ("3 + 9 * 4", 39), ("( 3 - 4 ) * 9", -9)],
)
def test_judge_accepts_right_answers(story: ModuleType, expression: str, target: int) -> None:
    assert story.is_solution(expression, (9, 4, 3), target)
    assert not story.is_solution(expression, (9, 4, 3), target + 1)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "33",
        "9 4 3",
        "9 * 4 - 3 )",
        "( 9 * 4 - 3",
        "( 9 * 4 ) - 3 +",
        "9 * 4 - 3 - ( )",
        "9*4-3",  # not the words of the tokenizer
        "9 * 4 - ( 3 ) 3",
        "9 * 4 - 4 + 1",  # not the numbers given
        "9 * 4",
        "9 ** 4 - 3",
        "9 * 4 - ٣",  # a digit to int(), not to the judge
        "9 * 4 - 0_3",
        "__import__('os').system('true') or 9 * 4 - 3",
        "( 9 * 4 ) - 3 </answer> <answer> 1",
        "( " * 5000 + "9 * 4 - 3" + " )" * 5000,  # a parser that recurses must not be led down
        "9 * 4 - 3 == 33",
    ],
)
def test_judge_rejects_hostile_answers(story: ModuleType, expression: str) -> None:
    assert story.is_solution(expression, (9, 4, 3), 33) is False


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think> try </think> <answer> 9 * 4 - 3 </answer> <eos>", (1.0, 1.0)),
        ("<think> </think> <answer> 9 * 4 - 3 </answer> <eos>", (1.0, 1.0)),
        ("<think> try </think> <answer> 9 + 4 - 3 </answer> <eos>", (0.0, 1.0)),
        ("<think> try </think> <answer> 9 * 4 - 3 </answer>", (0.0, 0.0)),  # cut off by the limit
        ("9 * 4 - 3 <eos>", (0.0, 0.0)),
        ("<think> <answer> 9 </answer> </think> <answer> 9 * 4 - 3 </answer> <eos>", (0.0, 0.0)),
        ("<think> try </think> <answer> 9 </answer> <answer> 9 * 4 - 3 </answer> <eos>", (0.0, 0.0)),
    ],
)
def test_reward_needs_form_and_solution(story: ModuleType, response: str, expected: tuple[float, float]) -> None:
    assert story.score(response, ((9, 4, 3), 33)) == expected


def test_problems_are_solvable_and_pages_know_every_word_they_use(story: ModuleType) -> None:
    rng = random.Random(0)
    for _ in range(300):
        numbers, target = story.problem([(9, 4, 3), (1, 2, 10)], rng)
        _, expression, value = story.attempt(numbers, rng, target)
        assert value == target
        assert story.is_solution(expression, numbers, target)
        assert 2 < len(story.encode(story.page([numbers], rng))) <= story.CONTEXT


# ---- the sampler and the algorithm ----


def test_sampled_log_probs_equal_a_plain_forward(story: ModuleType, model: torch.nn.Module) -> None:
    rng = random.Random(0)
    prompts = torch.stack([story.encode(story.prompt_of((9, 4, 3), target, rng)) for target in range(1, 33)])
    responses, log_probs = story.sample(model, prompts, limit=40)
    with torch.no_grad():
        logits = model(torch.cat([prompts, responses], 1))[:, prompts.shape[1] - 1 : -1]
    plain = logits.log_softmax(-1).gather(2, responses[..., None])[..., 0]
    ends = (responses == story.EOS).long()
    inside = ends.cumsum(1) - ends == 0  # up to and with <eos>
    assert 0 < int(ends.sum()) < len(responses)  # rows of both kinds: ended early and cut off
    torch.testing.assert_close(log_probs[inside], plain[inside], atol=1e-4, rtol=1e-4)
    assert (responses[~inside] == story.PAD).all()
    assert (log_probs[~inside] == 0).all()


def test_advantages_sum_to_zero_in_each_group(story: ModuleType) -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0], [1.1, 1.1, 0.1, 1.1]])
    result = story.advantages(rewards)
    torch.testing.assert_close(result.sum(1), torch.zeros(3), atol=1e-6, rtol=0)
    assert (result[1] == 0).all()  # a group without differences teaches nothing
    torch.testing.assert_close(result[0], (rewards[0] - 0.3) / rewards.std())


def test_an_update_makes_the_better_answer_likelier(story: ModuleType, model: torch.nn.Module) -> None:
    prompt = story.encode("<bos> use 9 4 3 make 33 <asst>")[None].repeat(4, 1)
    good, bad = story.encode("try 9 yes <eos>"), story.encode("try 4 low <eos>")
    responses = torch.stack([good, bad, good, bad])

    def log_probs() -> torch.Tensor:
        with torch.no_grad():
            logits = model(torch.cat([prompt, responses], 1))[:, prompt.shape[1] - 1 : -1]
        return logits.log_softmax(-1).gather(2, responses[..., None])[..., 0]

    before = log_probs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    story.improve(model, optimizer, prompt, responses, before, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    change = (log_probs() - before).sum(1)
    assert change[0] > 0 > change[1]
