"""dataset_tool.py's commands that turn datasets into other datasets, or into pictures."""

from __future__ import annotations

import click

COMMANDS: tuple[click.Command, ...] = ()
