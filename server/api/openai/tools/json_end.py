"""Where a JSON object or array ends in a text that comes bit by bit."""

from __future__ import annotations

import re

_OUTSIDE, _INSIDE = re.compile(r'["{}\[\]]'), re.compile(r'["\\]')


class JsonEnd:
    """Follows brackets and strings, from the first bracket on; the rest of JSON is not judged."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int | None:
        """Take more text; return where in it the value ends, None if it does not yet."""
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            found = (_INSIDE if self._in_string else _OUTSIDE).search(text, at)
            if found is None:
                return None
            sign, at = found[0], found.end()
            if sign == '"':
                self._in_string = not self._in_string
            elif sign == "\\":
                self._escaped = True
            else:
                self._depth += 1 if sign in "{[" else -1
                if not self._depth:
                    return at
        return None
