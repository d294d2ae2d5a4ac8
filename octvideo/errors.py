"""The one exception family that means "the user can fix this": tools print it without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what was given (path, key, checkpoint, count): says what was got, expected, and what to do."""
