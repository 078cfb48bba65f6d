"""Project-independent helpers: files, errors, the command line."""

from dnnlib.errors import UserError

__all__ = ['UserError']
