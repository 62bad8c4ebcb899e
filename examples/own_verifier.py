"""A task of your own with a verifier of your own: words that rhyme with what is asked.

    python examples/own_verifier.py my-model runs/rhymes

The function runs in processes of its own: it may raise, hang or print without harming the run; such replies are
marked, counted, and shown by ``longthought traces``.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import longthought as lt

WORDS = ("cat", "light", "stone", "sing", "day", "fire", "moon", "tree", "rain", "gold")


def rhymes(content: str, answer: str) -> bool:
    """Whether the reply is one other word with the same ending."""
    word = content.strip().lower()
    return word.isalpha() and word != answer and word[-2:] == answer[-2:]


@dataclass(frozen=True)
class Rhymes:
    """The last two of the words are held out."""

    grading: lt.Grading = field(default_factory=lambda: lt.Grading(lt.Function(rhymes), form="free", format_weight=0.0))
    name: str = "rhymes"

    def problem(self, split: str, index: int) -> lt.Problem:
        words = WORDS[:-2] if split == "train" else WORDS[-2:]
        word = words[index % len(words)]
        return lt.Problem(f"rhymes/{word}", (lt.Message("user", f"One word that rhymes with {word}:"),), word)

    def grade(self, problem: lt.Problem, replies: Sequence[str]) -> list[lt.Score]:
        return self.grading(problem, replies)


def main(model: str, out: str, steps: int = 20) -> lt.Checkpoint:
    rl = lt.RL(Rhymes(), lt.method("rloo"), steps=steps, prompts=8, samples=8, max_tokens=8, updates=1)
    return lt.train(rl, model, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
