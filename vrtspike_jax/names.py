"""What to say of a name that is not known."""

import difflib
from collections.abc import Collection


def suggestion(wrong: str, known: Collection[str]) -> str:
    """`; did you mean 'x'?`, or the known names where none is near."""
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
