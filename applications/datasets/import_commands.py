"""dataset_tool.py's commands that import other formats."""

from __future__ import annotations

import click

COMMANDS: tuple[click.Command, ...] = ()
