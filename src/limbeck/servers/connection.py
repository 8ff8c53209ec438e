"""JSON over HTTP to one server, with patience: it may go away in the middle of a run and come back."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

from limbeck.errors import LimbeckError, UserError, first_line

log = logging.getLogger(__name__)
# Answers of a gateway whose server is away, or of one that is full. An error inside the server (500) may be for good.
_AWAY = frozenset({408, 425, 429, 502, 503, 504})
_TRIES_OF_500 = 4
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 10.0


class ServerGone(LimbeckError):
    """A server did not answer for as long as it was waited for; what was done before is not lost."""


class ServerRefused(LimbeckError):
    """A server answered that it will not do what it was asked."""


class Misread(ServerRefused):
    """A server reads a text in other tokens than the tokenizer does."""


class Connection:
    """Requests to one server.

    What goes wrong on the way (refused or dropped connections, silence, a torn answer, a full or restarting server) is
    tried again, with growing pauses, for ``patience`` seconds since the request last went wrong for the first time. An
    outage is one line in the log, and its end another.

    Args:
        url: ``http://host:port``; ``/v1`` behind it is understood.
        timeout: seconds of silence after which a request counts as lost.
        patience: seconds; see above.
        concurrency: requests on the way at a time in :meth:`post_all`.
        key: sent as bearer token; it is in no log and no fingerprint.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 120.0,
        patience: float = 300.0,
        concurrency: int = 4,
        key: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError("url", url, "http://host:port or https://...")
        if not timeout > 0 or not patience >= 0:
            raise UserError("timeout, patience", (timeout, patience), "a positive and a non-negative number of seconds")
        if concurrency < 1:
            raise UserError("concurrency", concurrency, "1 or more")
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.timeout, self.patience, self.concurrency, self._key = timeout, patience, concurrency, key
        self._lock, self._away_since = threading.Lock(), 0.0

    def get(self, path: str, *, patience: float | None = None) -> Any:
        """The JSON at ``path``."""
        return self._ask(path, None, patience, threading.Event())

    def post(self, path: str, body: dict[str, Any], *, patience: float | None = None) -> Any:
        """The JSON that ``body`` is answered with."""
        return self._ask(path, body, patience, threading.Event())

    def post_all(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        """Answers in the order of ``bodies``; several are on the way at a time. The first error ends all."""
        stop = threading.Event()
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            asked = [pool.submit(self._ask, path, body, None, stop) for body in bodies]
            try:
                # In the order of the bodies an error would wait for whatever stands before it.
                for one in wait(asked, return_when=FIRST_EXCEPTION).done:
                    one.result()
                return [one.result() for one in asked]
            finally:
                stop.set()
                for one in asked:
                    one.cancel()

    def _ask(self, path: str, body: dict[str, Any] | None, patience: float | None, stop: threading.Event) -> Any:
        patience = self.patience if patience is None else patience
        failed_at, failures, pause = 0.0, 0, _FIRST_WAIT
        while True:
            started = time.monotonic()
            try:
                answer = self._once(path, body)
            except _Lost as lost:
                failed_at, reason, failures = failed_at or started, str(lost), failures + 1
                waited = time.monotonic() - failed_at
                if waited >= patience or (lost.inside and failures >= _TRIES_OF_500):
                    raise ServerGone(self._words(reason, waited, failures)) from lost.__cause__
                self._note_outage(reason, patience)
                if stop.wait(min(pause, max(patience - waited, 0.01))):
                    raise ServerGone(self._words(reason, waited, failures)) from lost.__cause__
                pause = min(2 * pause, _LONGEST_WAIT)
                continue
            self._note_answer()
            return answer

    def _words(self, reason: str, waited: float, failures: int) -> str:
        tried = f"tried {failures} times in {waited:.0f} s" if failures > 1 else "tried once"
        return f"the server at {self.url} gave no answer ({tried}); the last reason: {reason}"

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}: {_message(error)}"
            if error.code in _AWAY or error.code == 500:
                raise _Lost(reason, inside=error.code == 500) from error
            raise ServerRefused(f"the server at {self.url}{path} refused: {reason}") from error
        except urllib.error.URLError as error:
            raise _Lost(
                first_line(error.reason) if isinstance(error.reason, Exception) else str(error.reason)
            ) from error
        except TimeoutError as error:
            raise _Lost(f"no answer within {self.timeout:g} s") from error
        except (http.client.HTTPException, OSError) as error:
            raise _Lost(f"{type(error).__name__}: {first_line(error)}") from error
        try:
            return json.loads(content)
        except ValueError as error:
            raise _Lost(f"an answer that is no JSON ({len(content)} bytes; {first_line(error)})") from error

    def _note_outage(self, reason: str, patience: float) -> None:
        with self._lock:
            if self._away_since:
                return
            self._away_since = time.monotonic()
        log.warning("the server at %s does not answer (%s); trying again for up to %.0f s", self.url, reason, patience)

    def _note_answer(self) -> None:
        with self._lock:
            since, self._away_since = self._away_since, 0.0
        if since:
            log.warning("the server at %s answers again after %.1f s", self.url, time.monotonic() - since)


class _Lost(Exception):
    """A request without an answer that is worth another try; ``inside``: the server itself failed at it."""

    def __init__(self, reason: str, *, inside: bool = False) -> None:
        super().__init__(reason)
        self.inside = inside


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says about an error, in one line."""
    try:
        content = error.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        found = json.loads(content)
        for name in ("error", "message", "detail"):
            found = found.get(name, found) if isinstance(found, dict) else found
        content = found if isinstance(found, str) else json.dumps(found)
    except ValueError:
        pass
    return " ".join(content.split())[:300] or str(error.reason)
