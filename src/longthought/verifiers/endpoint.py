"""A language model behind an OpenAI-compatible HTTP address: one conversation in, one text or one named failure out.

Connections go straight to the address: proxies of the environment are not used and redirects are not followed, so that
key and content reach that host alone. The key stands in an environment variable and nowhere else: not in settings, not
in evidence, not in errors, even where a server echoes it.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from math import isfinite
from random import random
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import SplitResult, urlsplit

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Outcome

MAX_REPLY: Final = 4 << 20
"""Longest reply of a server, in bytes."""

_REMEMBERED = 16_384  # replies
_LONGEST_PAUSE = 60.0  # seconds before a retry
_EXCERPT = 200  # characters of a server's error that are shown
_SHORTEST_SECRET = 8  # a shorter key is a placeholder such as EMPTY
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Answered:
    """What the model said, its thinking left out. ``cut``: it was stopped by ``max_tokens``."""

    text: str
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no reply: TIMED_OUT or CRASHED, and why."""

    outcome: Outcome
    reason: str


Reply: TypeAlias = Answered | Failed


class Respondent(Protocol):
    """What answers a judge's questions: a model behind an address, or one in this process. ``name``: for evidence."""

    @property
    def name(self) -> str: ...

    def ask_many(self, conversations: Sequence[Sequence[Message]], json_object: bool = False) -> list[Reply]:
        """A reply for every conversation, in order. ``json_object``: it is to be a JSON object, where that can be
        enforced."""
        ...


class _Memory:
    """Replies by content, so that nothing is asked twice, not even at the same time; failures are forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Future[Reply]] = OrderedDict()

    def __reduce__(self) -> tuple[type[_Memory], tuple[()]]:
        return _Memory, ()

    def once(self, key: bytes, make: Callable[[], Reply]) -> Reply:
        with self._lock:
            known = self._kept.get(key)
            if known is None:
                mine = self._kept[key] = Future()
                if len(self._kept) > _REMEMBERED:
                    self._kept.popitem(last=False)
        if known is not None:
            return known.result()
        try:
            reply = make()
        except BaseException as error:
            self._forget(key)
            mine.set_exception(error)
            raise
        if isinstance(reply, Failed):
            self._forget(key)
        mine.set_result(reply)
        return reply

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._kept.pop(key, None)


@dataclass(frozen=True)
class Endpoint:
    """A model to ask.

    base_url: up to and including ``/v1``.
    model: its name there.
    api_key_env: the environment variable that holds the key; empty: no key is sent. The default one is sent over https
    or to this machine only; over plain http to another machine goes what you name yourself.
    timeout: seconds for one attempt, from connecting (each address of a host anew) to the last byte.
    retries: further attempts after 429, 5xx and timeouts; other failures are final.
    concurrency: conversations that ``ask_many`` has under way.
    max_tokens, temperature: of the reply; thinking counts.
    backoff: seconds before the first retry, doubled for each further one; a server's ``Retry-After`` counts if longer.

    The same conversation is asked once per process and endpoint. Raises ``SettingsError`` on a setting out of range.
    """

    base_url: str
    model: str
    api_key_env: str = field(default="OPENAI_API_KEY", compare=False)
    timeout: float = field(default=60.0, compare=False)
    retries: int = field(default=3, compare=False)
    concurrency: int = field(default=8, compare=False)
    max_tokens: int = 2048
    temperature: float = 0.0
    backoff: float = field(default=0.5, compare=False)
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        url = _address(self.base_url)
        if self.api_key_env == "OPENAI_API_KEY" and url.scheme == "http" and url.hostname not in _LOOPBACK:
            raise SettingsError(
                f"endpoint: OPENAI_API_KEY would go to {url.hostname} over plain http; use https, set api_key_env= to "
                "send no key, or name the variable with that server's own key"
            )
        if not self.model:
            raise SettingsError("endpoint: model is empty; name the model as the server knows it")
        if not (self.timeout > 0 and isfinite(self.timeout)):
            raise SettingsError(f"endpoint: timeout is {self.timeout}; it must be a positive number of seconds")
        if self.retries < 0 or self.concurrency < 1 or self.max_tokens < 1:
            raise SettingsError("endpoint: retries must be 0 or more, concurrency and max_tokens at least 1")
        if not (0 <= self.temperature < float("inf") and 0 <= self.backoff < float("inf")):
            raise SettingsError("endpoint: temperature and backoff must be finite and not negative")

    @property
    def name(self) -> str:
        return self.model

    def ask(self, conversation: Sequence[Message], json_object: bool = False) -> Reply:
        """The model's reply. Never raises. ``json_object``: the server is told to return a JSON object."""
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in conversation],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        if json_object:
            asked["response_format"] = {"type": "json_object"}
        body = json.dumps(asked).encode()
        return self._memory.once(blake2b(body, digest_size=16).digest(), lambda: self._ask(body))

    def ask_many(self, conversations: Sequence[Sequence[Message]], json_object: bool = False) -> list[Reply]:
        """As ``ask`` for every conversation, in order, several at a time."""
        if not conversations:
            return []
        with ThreadPoolExecutor(min(self.concurrency, len(conversations)), "endpoint") as pool:
            return list(pool.map(lambda conversation: self.ask(conversation, json_object), conversations))

    def _ask(self, body: bytes) -> Reply:
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if self.api_key_env and not key:
            advice = "set it, or api_key_env= for a server without a key"
            return Failed(Outcome.CRASHED, f"the environment variable {self.api_key_env} is not set: {advice}")
        if not key.isascii() or not key.isprintable() or " " in key:
            return Failed(Outcome.CRASHED, f"what {self.api_key_env} holds is no key: it has spaces or odd characters")
        for attempt in range(self.retries + 1):
            reply, pause = self._attempt(body, key)
            if pause is None or attempt == self.retries:
                break
            time.sleep(min(_LONGEST_PAUSE, max(pause, self.backoff * 2**attempt * (1 + random()))))
        if isinstance(reply, Failed):
            return Failed(reply.outcome, _concealed(reply.reason, key))
        return Answered(_concealed(reply.text, key), reply.cut)

    def _attempt(self, body: bytes, key: str) -> tuple[Reply, float | None]:
        """A reply, and the least pause in seconds after which to try again; None: it is final."""
        url = _address(self.base_url)
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            received = _post(url, body, headers, self.timeout)
        except TimeoutError:
            return Failed(Outcome.TIMED_OUT, f"{url.netloc} did not answer within {self.timeout:g} s"), 0.0
        except (OSError, HTTPException, ValueError) as error:
            return Failed(Outcome.CRASHED, f"{url.netloc}: {type(error).__name__}: {error}"), None
        if received.status == 200:
            return _reply(received), None
        excerpt = _excerpt(received.text, key)
        failed = Failed(Outcome.CRASHED, f"{url.netloc} answered {received.status}: {excerpt}")
        if received.status == 429 or received.status >= 500:
            return failed, received.retry_after
        if 300 <= received.status < 400:
            advice = "redirects are not followed; set base_url to where the server is"
            return Failed(Outcome.CRASHED, f"{url.netloc} answered {received.status}: {advice}"), None
        return failed, None


@dataclass(frozen=True, slots=True)
class _Received:
    """What a server sent. ``retry_after``: seconds that it asks to wait, 0 where it does not say."""

    status: int
    kind: str
    text: str
    retry_after: float


def _address(base_url: str) -> SplitResult:
    """The parts of an address. Raises ``SettingsError`` unless it is a plain http or https one."""
    try:
        url = urlsplit(base_url)
        port_fits = url.port is None or url.port > 0
    except ValueError:
        url, port_fits = urlsplit(""), False
    if "@" in url.netloc:  # not shown: what stands there may be a password
        raise SettingsError("endpoint: base_url holds a user or password; a key belongs into an environment variable")
    plain = base_url.isascii() and base_url.isprintable() and " " not in base_url and not url.query + url.fragment
    if url.scheme not in ("http", "https") or not url.hostname or not port_fits or not plain:
        raise SettingsError(f"endpoint: base_url={base_url!r} is no address such as https://api.example.com/v1")
    return url


def _post(url: SplitResult, body: bytes, headers: dict[str, str], timeout: float) -> _Received:
    """Send a request and read the whole reply. Raises ``TimeoutError`` when time is up, else what went wrong."""
    assert url.hostname is not None
    until = time.monotonic() + timeout
    connection: HTTPConnection
    if url.scheme == "https":
        connection = HTTPSConnection(url.hostname, url.port, context=_trust())
    else:
        connection = HTTPConnection(url.hostname, url.port)
    plain = socket.create_connection((url.hostname, connection.port), timeout)
    with _cut_off(plain, until) as expired:
        try:
            secure = url.scheme == "https"
            connection.sock = _trust().wrap_socket(plain, server_hostname=url.hostname) if secure else plain
            connection.request("POST", f"{url.path.rstrip('/')}/chat/completions", body, headers)
            received = _received(connection.getresponse())
        except (OSError, HTTPException, ValueError):
            if expired.is_set():
                raise TimeoutError from None
            raise
        finally:
            connection.close()
            plain.close()
    if expired.is_set():
        raise TimeoutError
    return received


@contextmanager
def _cut_off(connected: socket.socket, until: float) -> Iterator[threading.Event]:
    """Shut a connection down when time is up, however slowly it drips; the event tells that it was.

    Timeouts of sockets bound single reads only.
    """
    expired = threading.Event()
    with connected.dup() as handle:  # also shuts down what TLS makes of the socket

        def cut() -> None:
            expired.set()
            with suppress(OSError):  # the server was faster
                handle.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(max(0.0, until - time.monotonic()), cut)
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()
            timer.join()


def _received(response: HTTPResponse) -> _Received:
    declared = response.length
    raw = b"" if declared is not None and declared > MAX_REPLY else response.read(MAX_REPLY + 1)
    if len(raw) > MAX_REPLY or (declared or 0) > MAX_REPLY:
        raise ValueError(f"the reply is longer than {MAX_REPLY:,} bytes")
    after = response.headers.get("Retry-After", "")
    pause = float(after) if after.isascii() and after.isdigit() and len(after) < 6 else 0.0
    return _Received(response.status, response.headers.get_content_type(), raw.decode(errors="replace"), pause)


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _reply(received: _Received) -> Reply:
    """The text of a chat completion."""
    if received.kind != "application/json":
        return Failed(Outcome.CRASHED, f"the server sent {received.kind} where application/json is needed")
    try:
        choice = json.loads(received.text)["choices"][0]
        content = choice["message"]["content"]
        cut = choice.get("finish_reason") == "length"
    except (ValueError, RecursionError):
        return Failed(Outcome.CRASHED, "the server sent no valid JSON")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Failed(Outcome.CRASHED, "the server sent JSON that is no chat completion")
    if not isinstance(content, str | None):
        return Failed(Outcome.CRASHED, "the server sent a content that is no text")
    return Answered(_without_thinking(content or ""), cut)


def _without_thinking(text: str) -> str:
    """What follows the last ``</think>``; nothing of a text that begins to think and does not end."""
    _, closed, content = text.rpartition("</think>")
    return "" if not closed and text.lstrip().startswith("<think>") else content.strip()


def _excerpt(text: str, key: str) -> str:
    """The beginning of a server's error on one line; concealed before it is cut, lest half a key remain."""
    shown = " ".join(_concealed(text, key).split())
    return "".join(sign for sign in shown[:_EXCERPT] if sign.isprintable()) or "no text"


def _concealed(text: str, key: str) -> str:
    return text.replace(key, "[key]") if len(key) >= _SHORTEST_SECRET else text
