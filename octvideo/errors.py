"""The one exception family that means "the user can fix this": tools print it without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what was given (path, key, checkpoint, count): says what was got, expected, and what to do."""

    exit_code = 2


class NotFinite(UserError):  # noqa: N818 (it is no mistake, but what training or a network has come to)
    """NaN or infinity where there should be a number, as in training that has diverged; says what to do."""

    exit_code = 1
