"""The errors a user sees, and how they name what was meant."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake or a fault of their files, said in one sentence: what, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class UnreadableImage(Exception):
    """An image file that cannot be decoded; ``path`` names it. Collected and counted by ``embeddings``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"image {path} cannot be read: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # crosses from a DataLoader worker to its parent
        return type(self), (self.path, self.reason)


def quoted(value: object, most: int = 80) -> str:
    """A value in quotes on one line, cut to ``most`` characters; what cannot be printed is escaped."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 2]}…{text[-1]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: '; did you mean a or b?', or the list of all that is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are: {', '.join(known) or 'none'}"
