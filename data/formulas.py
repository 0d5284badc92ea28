"""Texts that a spreadsheet would run: a file may be called "=1+1.jpg", and a table of captions names it."""

_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def guard_formula(cell: str) -> str:
    """The text with a ' in front if a spreadsheet could take it for a formula.

    That is if it begins with one of = + - @, a tab or a line break (OWASP, "CSV Injection"), or with a ' already: so
    `unguard_formula` gives back what was given.
    """
    return f"'{cell}" if cell.startswith(_STARTS) else cell


def unguard_formula(cell: str) -> str:
    """The text that `guard_formula` was given."""
    return cell.removeprefix("'")
