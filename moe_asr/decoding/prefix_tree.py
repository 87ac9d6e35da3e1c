"""Prefixes of token sequences, each with one number."""

from __future__ import annotations


class PrefixTree:
    """A tree whose nodes stand for prefixes; the same prefix has the same number, however often it comes up."""

    ROOT, NONE, DEAD = 0, -1, -2
    """The empty prefix; the parent of none; no prefix at all."""

    def __init__(self) -> None:
        self._parent, self._token = [self.NONE], [self.NONE]
        self._children: dict[tuple[int, int], int] = {}

    def child(self, node: int, token: int) -> int:
        """The number of a prefix with one more token."""
        number = self._children.setdefault((node, token), len(self._parent))
        if number == len(self._parent):
            self._parent.append(node)
            self._token.append(token)
        return number

    def tokens(self, node: int) -> tuple[int, ...]:
        """The tokens of a prefix."""
        tokens = []
        while node != self.ROOT:
            tokens.append(self._token[node])
            node = self._parent[node]
        return tuple(reversed(tokens))
