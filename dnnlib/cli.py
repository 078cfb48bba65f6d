"""Click commands whose user errors are one line and a non-zero exit, never a traceback."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from dnnlib.errors import UserError
from dnnlib.files import explain_os_error

MAX_LISTED = 1_000_000  # numbers in a list like 0-7


class _OneLineErrors:
    """Mixin: UserError and OSError become click's `Error: ...` with exit status 1; nan and inf are refused, which
    click's own ranges let pass."""

    def invoke(self, context: click.Context) -> Any:
        for parameter in self.get_params(context):  # type: ignore[attr-defined]
            value = context.params.get(parameter.name or '')
            if isinstance(value, float) and not math.isfinite(value):
                raise click.BadParameter(f'{value} is not a finite number.', ctx=context, param=parameter)
        try:
            return super().invoke(context)  # type: ignore[misc]
        except UserError as error:
            raise click.ClickException(' '.join(str(error).split())) from error
        except OSError as error:
            raise click.ClickException(str(explain_os_error(error, error.filename or 'file'))) from error


class Command(_OneLineErrors, click.Command):
    """Use as `@click.command(cls=Command)`."""


class SectionedCommand(Command):
    """A Command with many options, whose help lists them under headings: heading -> names of parameters."""

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Parameters that no section names come last."""
        records = {parameter.name: parameter.get_help_record(ctx) for parameter in self.get_params(ctx)}
        listed = [name for names in self.sections.values() for name in names]
        rest = [str(name) for name in records if name not in listed]
        for heading, names in {**self.sections, 'Other': rest}.items():
            with formatter.section(heading):
                formatter.write_dl([record for name in names if (record := records[name]) is not None])


class Group(_OneLineErrors, click.Group):
    """Use as `@click.group(cls=Group)`; its subcommands inherit the behaviour."""

    command_class = Command


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several option decorators as one; help lists them in this order."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def network_option(*, required: bool = True) -> Callable[[Any], Any]:
    """--network, for training.checkpoint.load_generator."""
    text = "Snapshot (network-snapshot-*.pkl), or the public release's pickle."
    return click.option('--network', required=required, metavar='PKL', help=text)


# --topology and --eye-mask, for training.checkpoint.ReleaseAssets.
release_options = options(
    click.option('--topology', metavar='OBJ', help="For the release's pickle: head_template.obj. Default: looked for."),
    click.option('--eye-mask', metavar='PNG', help="For the release's pickle: its mask over uv. Default: looked for."),
)

truncation_options = options(
    click.option('--trunc', default=1.0, show_default=True, help='Truncation psi.'),
    click.option('--trunc-cutoff', type=click.IntRange(min=0), help='Number of ws to truncate. Default: all.'),
)

# --device, for torch_utils.devices.choose_device.
device_option = click.option('--device', default='auto', show_default=True, help='auto, cpu, or a torch device name.')

_HEAD_MODEL_HELP = "The user's FLAME file, for networks trained on FLAME."
head_model_option = click.option('--head-model', metavar='FILE', help=_HEAD_MODEL_HELP)

# For applications.directions.direction_shift.
direction_option = click.option(
    '--direction',
    'directions',
    multiple=True,
    metavar='FILE:INDEX[:STRENGTH]',
    help='Move latents along a direction of latents.py; may be repeated.',
)

# Which head is drawn: the fields of applications.heads.HeadChoice.
head_options = options(
    click.option('--obj_path', '--obj-path', help='Head from an OBJ of the same topology (head frame, metres).'),
    click.option(
        '--lms_path', '--lms-path', help='Its 68 x 3 landmarks (.npy or text). Default: computed from the mesh.'
    ),
    click.option('--head', 'params_path', help='Head from an .npz of HeadParams (row --index).'),
    click.option('--data', help='Head from a packed dataset (item --index).'),
    click.option(
        '--index', type=click.IntRange(min=0), default=0, show_default=True, help='Item of --data or row of --head.'
    ),
    click.option('--expression', 'expressions', multiple=True, help='NAME or NAME:WEIGHT, added; may be repeated.'),
    click.option('--head-model', 'head_model_path', metavar='FILE', help=_HEAD_MODEL_HELP),
)


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
    """'0,3,5-8,10-16/3' -> [0, 3, 5, 6, 7, 8, 10, 13, 16], all below 2^32; UserError names the option."""
    values: list[int] = []
    for part in text.split(','):
        ends, slash, step = part.strip().partition('/')
        first, dash, last = ends.partition('-')
        try:
            numbers = range(int(first), int(last if dash else first) + 1, int(step) if slash else 1)
        except ValueError:
            numbers = range(0)
        if not numbers or numbers.step < 0 or numbers[-1] >= 2**32:
            raise UserError(f'{option}: expected numbers like 0,3,5-8,10-90/2, below 2^32, got {text!r}')
        if len(values) + len(numbers) > MAX_LISTED:
            raise UserError(f'{option}: expected at most {MAX_LISTED} numbers, got {text!r}')
        values += numbers
    return values


def parse_float_list(text: str, *, option: str) -> list[float]:
    """'0.4,0,-0.4' -> [0.4, 0.0, -0.4], all finite; UserError names the option."""
    try:
        values = [float(part) for part in text.split(',')]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise UserError(f'{option}: expected numbers like 0.4,0,-0.4, got {text!r}')
    return values
