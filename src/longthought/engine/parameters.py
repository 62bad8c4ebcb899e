"""What may be asked of a sampler: every refusal of a prompt or a parameter, in words."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from numbers import Integral, Real

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import SamplingParams, TokenIds
from longthought.engine.stopping import REPLACEMENT

_AT_LEAST = {"count": 1, "max_tokens": 1, "min_tokens": 0, "top_k": 0, "top_logprobs": 0}
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda x: x >= 0, "0 (greedy) or a positive number"),
    "top_p": (lambda x: 0 < x <= 1, "above 0, at most 1 (1 keeps every token)"),
    "min_p": (lambda x: 0 <= x <= 1, "between 0 (keeps every token) and 1"),
    "repetition_penalty": (lambda x: x > 0, "a positive number (1 punishes nothing)"),
}


def check(params: SamplingParams, vocabulary: int, decodes: bool) -> None:
    """Raises SettingsError, with the field and its range, for parameters that mean nothing.

    vocabulary: number of tokens of the model.  decodes: whether the sampler can turn tokens into text.
    """
    _check_numbers(params)
    _check_tokens(params, vocabulary)
    _check_strings(params, decodes)
    if not _is_sequence(params.processors) or not all(map(callable, params.processors)):
        raise SettingsError(f"processors={params.processors!r}: must be a tuple of callables (tokens, logits) → logits")


def checked_prompt(prompt: Sequence[int], vocabulary: int, context: int) -> TokenIds:
    """The prompt as a tuple of integers, whatever sequence of integers it is.

    Raises DataError for one that is empty, leaves no room in the context, has unknown tokens, or is something else.
    """
    try:
        tokens = tuple(map(operator.index, prompt))
    except TypeError as error:
        raise DataError(f"a prompt must be a sequence of token ids, got {prompt!r}: {error}") from error
    if not tokens:
        raise DataError("an empty prompt cannot be continued: it needs at least one token")
    if len(tokens) >= context:
        raise DataError(f"a prompt of {len(tokens)} tokens leaves no room in a context of {context}")
    check_known(tokens, vocabulary)
    return tokens


def check_known(tokens: Sequence[int], vocabulary: int) -> None:
    """Raises DataError for a token that the model does not have."""
    if len(tokens) and not 0 <= min(tokens) <= max(tokens) < vocabulary:
        wrong = next(token for token in tokens if not 0 <= token < vocabulary)
        raise DataError(f"token {wrong} is not in the model's vocabulary of {vocabulary}: was another tokenizer used?")


def _check_numbers(params: SamplingParams) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(params, name)
        if not _is_integer(value) or value < least:
            raise SettingsError(f"{name}={value!r}: must be an integer, at least {least}")
    if not _is_integer(params.seed):
        raise SettingsError(f"seed={params.seed!r}: must be an integer")
    for name, (allowed, words) in _RANGES.items():
        value = getattr(params, name)
        if not _is_finite(value) or not allowed(value):
            raise SettingsError(f"{name}={value!r}: must be {words}")
    if params.min_tokens > params.max_tokens:
        raise SettingsError(f"min_tokens={params.min_tokens}: must be at most max_tokens={params.max_tokens}")


def _check_tokens(params: SamplingParams, vocabulary: int) -> None:
    if params.top_logprobs > vocabulary:
        raise SettingsError(f"top_logprobs={params.top_logprobs}: must be at most the vocabulary of {vocabulary}")
    pairs = params.logit_bias
    if not _is_sequence(pairs) or not all(_is_sequence(p) and len(p) == 2 and _is_finite(p[1]) for p in pairs):
        raise SettingsError(f"logit_bias={pairs!r}: must be a tuple of pairs (token, finite number)")
    biased = [token for token, _ in pairs]
    for name, tokens in (
        ("stop_tokens", params.stop_tokens),
        ("bad_tokens", params.bad_tokens),
        ("logit_bias", biased),
    ):
        if not _is_sequence(tokens) or not all(_is_integer(t) and 0 <= t < vocabulary for t in tokens):
            raise SettingsError(f"{name}={tokens!r}: must be token ids from 0 to {vocabulary - 1}")
    if len(set(biased)) < len(biased):
        raise SettingsError(f"logit_bias={pairs!r}: names a token twice")
    if len(set(params.bad_tokens)) == vocabulary:
        raise SettingsError("bad_tokens: names every token, so that nothing is left to draw")


def _check_strings(params: SamplingParams, decodes: bool) -> None:
    strings = params.stop
    if not _is_sequence(strings) or not all(isinstance(s, str) and s for s in strings):
        raise SettingsError(f"stop={strings!r}: must be a tuple of strings that are not empty")
    for string in strings:
        if REPLACEMENT in string or any("\ud800" <= sign <= "\udfff" for sign in string):
            raise SettingsError(f"stop: {string!r} holds a sign that no text has, so that it would never be found")
    if strings and not decodes:
        raise SettingsError(
            f"stop={strings!r}: this engine cannot decode tokens; make it with Engine(model, settings, decode=...), "
            "or use stop_tokens"
        )


def _is_sequence(value: object) -> bool:
    return isinstance(value, tuple | list)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
