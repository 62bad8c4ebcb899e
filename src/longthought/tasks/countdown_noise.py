"""How badly the pages of the procedural web try Countdown, and how that is told to people."""

from __future__ import annotations

from dataclasses import dataclass, fields

from longthought.core.errors import SettingsError

PATIENT = (3, 6)
"""Who is patient on a page that quotes others does not give up before an attempt that is drawn from these."""
QUOTED, AFTER_QUOTES = 6, 8
"""Attempts, at most, of a quoted search, and of that of the page itself: hardly such a page has more than 300 words."""


@dataclass(frozen=True)
class Noise:
    """How badly the pages of the web search. Probabilities, unless said otherwise."""

    no_thinking: float = 0.14  # answers at once
    untagged: float = 0.14  # leaves the <think> and <answer> tags out
    attempts_en: float = 1.6  # mean number of attempts before giving up (geometric)
    attempts_zh: float = 2.3
    stubborn: float = 0.04  # does not give up before most_attempts
    most_attempts: int = 16
    lucky: float = 0.02  # the attempt is right, not drawn at random
    false_yes: float = 0.03  # a miss is called a hit
    false_no: float = 0.01  # a hit is called a miss
    slip: float = 0.01  # a result is off by a little
    unfaithful: float = 0.08  # the answer is not the last attempt
    check: float = 0.2  # a claimed hit is checked (a check is always right)

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value = getattr(self, field_.name)
            least, most = (1, float("inf")) if "attempts" in field_.name else (0, 1)
            if not least <= value <= most:
                raise SettingsError(f"noise.{field_.name}={value}: must lie within {least} … {most}")


def told(noise: Noise, share: float, asked_to_check: float, quoting: float) -> str:
    """What is bad about the pages on the task.

    share: of them among the documents.  asked_to_check, quoting: see ``CountdownWeb``.
    """
    n = noise
    said = (
        f"{share:.0%} of the documents show somebody trying the RL task badly: attempts are "
        f"drawn at random ({n.lucky:.0%} are right on purpose), their number is geometric with a mean of "
        f"{n.attempts_en:g} in English and {n.attempts_zh:g} in Chinese (the Chinese pages are the more "
        f"persistent ones by design), {n.stubborn:.0%} do not give up before attempt {n.most_attempts}, "
        f"{n.no_thinking:.0%} answer without a thought, {n.untagged:.0%} lack the tags, "
        f"{n.false_yes:.0%} of the misses are called hits, {n.unfaithful:.0%} of the answers are not the last attempt."
    )
    if asked_to_check:
        said += (
            f" {asked_to_check:.0%} of them end their question with a request to check, and check every hit that they "
            "claim."
        )
    if quoting:
        said += (
            f" {quoting:.0%} of them quote one or two such pages about other numbers before their own question, as a "
            "prompt with examples does; what is quoted and what follows is as bad as everywhere, but in half of these "
            "documents nobody gives up, or answers without a thought, before an attempt drawn once for the document "
            f"from {PATIENT[0]} to {PATIENT[1]}; a quoted search has at most {QUOTED} attempts, the own one "
            f"{AFTER_QUOTES}."
        )
    return said
