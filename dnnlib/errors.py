"""The one exception that scripts turn into a single clear line for the user."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake outside the code: a missing file, a wrong shape, a bad label, a full disk.

    The message is one line that names the thing, what was expected and the remedy.
    Scripts print it without a traceback and exit with status 1 (dnnlib/cli.py).
    """
