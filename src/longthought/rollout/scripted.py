"""A sampler without a model: it says what a script tells it to. For tests of whatever plays a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Completion, Finish, SamplingParams, TokenIds


@dataclass(frozen=True)
class ScriptedSampler:
    """Replies to every prompt from its own list, in order and over again; a later call goes on where the last ended.

    It ends replies as an engine does: after the first of ``params.stop_tokens`` (STOP), else after the first token at
    which the decoded reply holds one of the strings ``params.stop`` (STOP_STRING), else after ``max_tokens`` (LENGTH).
    A script that gives out before all of them stands for a full context window (BUDGET). What would change the
    distribution changes nothing. Every token has the log-prob ``logprob``; ``calls`` holds the arguments of all calls.

    Raises DataError for a prompt without replies, SettingsError for stop strings without ``decode``.

    Example: ``ScriptedSampler({(1, 2): [(7, 8, 0), (9, 0)]}).sample([(1, 2)], SamplingParams(2, stop_tokens=(0,)))``
    """

    replies: Mapping[TokenIds, Sequence[TokenIds]]
    logprob: float = -1.0
    version: int = 0
    decode: Callable[[Sequence[int]], str] | None = None
    calls: list[tuple[list[TokenIds], SamplingParams]] = field(default_factory=list, compare=False)
    _given: Counter[TokenIds] = field(default_factory=Counter, init=False, repr=False, compare=False)

    def sample(self, prompts: Sequence[TokenIds], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` replies to every prompt, in order."""
        self.calls.append((list(prompts), params))
        return [[self._next(prompt, params) for _ in range(params.count)] for prompt in prompts]

    def _next(self, prompt: TokenIds, params: SamplingParams) -> Completion:
        script = self.replies.get(prompt, ())
        if not script:
            raise DataError(f"the script has no reply to the prompt {prompt}")
        reply = script[self._given[prompt] % len(script)]
        self._given[prompt] += 1
        said, finish = reply[: params.max_tokens], Finish.BUDGET
        ends = ((place, self._end(said[:place], params)) for place in range(1, len(said) + 1))
        place, end = next(((place, end) for place, end in ends if end is not None), (len(said), None))
        if end is not None:
            said, finish = said[:place], end
        elif len(said) == params.max_tokens:
            finish = Finish.LENGTH
        return Completion(said, (self.logprob,) * len(said), finish, self.version)

    def _end(self, said: TokenIds, params: SamplingParams) -> Finish | None:
        """What ends a reply with the last token of ``said``, if anything does."""
        if said[-1] in params.stop_tokens:
            return Finish.STOP
        if not params.stop:
            return None
        if self.decode is None:
            raise SettingsError(f"stop={params.stop!r}: a script needs decode=... to find stop strings")
        text = self.decode(said)
        return Finish.STOP_STRING if any(string in text for string in params.stop) else None
