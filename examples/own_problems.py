"""Your own problems, your own model: from a JSON Lines file and a Hugging Face folder to a trained checkpoint.

    python examples/own_problems.py my-model problems.jsonl runs/mine

The same from the command line, with a report: ``longthought run r1_zero model=my-model problems.file=problems.jsonl``.
"""

import sys

import longthought as lt


def main(model: str, problems: str, out: str, steps: int = 20) -> lt.Checkpoint:
    grading = lt.Grading(lt.Math(), form="free", format_weight=0.0)
    task = lt.FileTask.read(problems, grading=grading)
    print(task.describe())
    rl = lt.RL(task, lt.method("grpo"), steps=steps, prompts=8, samples=8, max_tokens=256, updates=1)
    trained = lt.train(rl, model, out)
    print(f"{trained.path} loads in transformers; longthought traces {out} shows every rollout")
    return trained


if __name__ == "__main__":
    main(*sys.argv[1:])
