"""Click commands whose user errors are one line and a non-zero exit, never a traceback."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import click

from dnnlib.errors import UserError
from dnnlib.files import explain_os_error


class _OneLineErrors:
    """Mixin: UserError and OSError become click's `Error: ...` with exit status 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)  # type: ignore[misc]
        except UserError as error:
            raise click.ClickException(' '.join(str(error).split())) from error
        except OSError as error:
            raise click.ClickException(str(explain_os_error(error, error.filename or 'file'))) from error


class Command(_OneLineErrors, click.Command):
    """Use as `@click.command(cls=Command)`."""


class Group(_OneLineErrors, click.Group):
    """Use as `@click.group(cls=Group)`; its subcommands inherit the behaviour."""

    command_class = Command


def _set_rasterizer(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value == 'pytorch3d' and importlib.util.find_spec('pytorch3d') is None:
        raise click.UsageError('--rasterizer=pytorch3d: PyTorch3D is not installed; environment.yml installs it')
    if value is not None:
        os.environ['NEXT3D_RASTERIZER'] = value  # an environment variable, so that the ranks of a run inherit it


# Adds --rasterizer to a command; torch_utils/ops/rasterize.py reads the choice.
rasterizer_option = click.option(
    '--rasterizer',
    type=click.Choice(['auto', 'native', 'pytorch3d', 'reference']),
    callback=_set_rasterizer,
    expose_value=False,
    help='Who draws meshes: our native op, PyTorch3D, or the PyTorch twin. Default: auto, or NEXT3D_RASTERIZER.',
)


# Adds --precision to a command, for torch_utils.precision.choose_precision.
precision_option = click.option(
    '--precision',
    type=click.Choice(['auto', 'fp32', 'bf16', 'fp16']),
    default='fp32',
    show_default=True,
    help='Of convolutions. auto: bf16 where the device multiplies it natively, else fp16 on a GPU, else fp32.',
)


def parse_int_list(text: str, *, option: str) -> list[int]:
    """'0,3,5-8' -> [0, 3, 5, 6, 7, 8]; UserError names the option."""
    values: list[int] = []
    for part in text.split(','):
        first, dash, last = part.strip().partition('-')
        try:
            numbers = range(int(first), int(last) + 1) if dash else range(int(first), int(first) + 1)
        except ValueError:
            numbers = range(0)
        if not numbers:
            raise UserError(f'{option}: expected numbers like 0,3,5-8, got {text!r}')
        values += numbers
    return values


def parse_float_list(text: str, *, option: str) -> list[float]:
    """'0.4,0,-0.4' -> [0.4, 0.0, -0.4]; UserError names the option."""
    try:
        return [float(part) for part in text.split(',')]
    except ValueError:
        raise UserError(f'{option}: expected numbers like 0.4,0,-0.4, got {text!r}') from None
