"""Format text for messages: one line, shortened, without control characters."""

from __future__ import annotations

LONGEST, LONGEST_PATH = 80, 300  # in characters, for a value or key, and for a file path


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return text on one line, cut to `longest` characters, with non-printable characters escaped."""
    cut = text if len(text) <= longest else text[: longest - 3] + "..."
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in cut)
