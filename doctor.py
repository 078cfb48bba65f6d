"""Tells what this machine can run: versions, devices, native ops and why they are (not) active, a self-test."""

from __future__ import annotations

import click

from dnnlib.cli import Command


@click.command(cls=Command)
def main() -> None:
    """Print versions, devices, compilers, the state of the native ops, and test every op in a few seconds.

    Builds the native ops if they are not built yet. The exit status is 1 if a self-test fails or native ops do not
    build (training still runs then, slower). Send the output along when you report a problem.
    """
    from torch_utils.ops import diagnose

    sound = True
    for line, good in diagnose.report():
        click.echo(line)
        sound &= good
    click.echo('All is well.' if sound else 'There are problems, see above.')
    raise SystemExit(0 if sound else 1)


if __name__ == '__main__':
    main()
