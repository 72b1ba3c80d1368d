"""A bounded queue between a producer that must not wait and a consumer that may be slow."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestQueue(Generic[T]):
    """Holds the newest items: a full queue drops its oldest item and counts it.

    Args:
        size: Items held at most.
        lossless: Whether `put` waits for room instead of dropping.
    """

    def __init__(self, size: int, *, lossless: bool = False) -> None:
        self.dropped = 0
        self._size, self._lossless = size, lossless
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> bool:
        """Add an item; returns whether the queue is still open."""
        with self._changed:
            while self._lossless and len(self._items) >= self._size and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            if len(self._items) >= self._size:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, timeout: float) -> T | None:
        """Return the oldest item, or None after ``timeout`` seconds or at the end."""
        with self._changed:
            if not self._items and not self._closed:
                self._changed.wait(timeout)
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Take nothing more; what is held can still be got."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def finished(self) -> bool:
        """Whether it is closed and empty."""
        with self._changed:
            return self._closed and not self._items
