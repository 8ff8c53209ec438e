"""Why a cache is refused. Every message names the folder, the reason and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from limbeck.errors import UserError


class CacheError(UserError):
    """A teacher cache that cannot be used as it is.

    Attributes:
        folder: the cache.
        reason: one sentence that says what is wrong.
    """

    kind = "unusable"

    def __init__(self, folder: str | Path, reason: str, hint: str = "") -> None:
        self.folder, self.reason = folder if "://" in str(folder) else Path(folder), reason
        super().__init__("cache", str(folder), hint=f"{self.kind}: {reason}" + (f"; {hint}" if hint else ""))


class StaleCache(CacheError):
    """Written with another teacher, preprocessing, tokenizer or data; ``differs`` names which."""

    kind = "stale"

    def __init__(self, folder: str | Path, reason: str, hint: str = "", differs: Iterable[str] = ()) -> None:
        self.differs = tuple(differs)
        super().__init__(folder, reason, hint)


class TornCache(CacheError):
    """A shard is missing, cut short, or its bytes are not those that were written."""

    kind = "torn"


class ForeignCache(CacheError):
    """Not a Limbeck cache, or one of another format version."""

    kind = "foreign"


class EmptyCache(CacheError):
    """A cache without a sample."""

    kind = "empty"


class LockedCache(CacheError):
    """Another writer is at work in the folder."""

    kind = "locked"


class DiskFull(CacheError):
    """The disk, or a quota or file size limit, is full; what was complete is kept."""

    kind = "disk full"


class MissingSamples(CacheError):
    """Samples that the cache does not hold; ``ids`` lists them."""

    kind = "incomplete"

    def __init__(self, folder: str | Path, reason: str, hint: str = "", ids: Iterable[int] = ()) -> None:
        self.ids = tuple(ids)
        super().__init__(folder, reason, hint)


class BadSignals(CacheError):
    """Signals that must not be stored (NaN, infinite, out of the codec's range), of the samples ``ids``."""

    kind = "refused signals"

    def __init__(self, folder: str | Path, reason: str, hint: str = "", ids: Iterable[int] = ()) -> None:
        self.ids = tuple(ids)
        super().__init__(folder, reason, hint)
