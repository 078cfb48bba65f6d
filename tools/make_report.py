"""Make a run's report.html anew, or one page of several runs.

python -m tools.make_report runs/synth64 --compare runs/no_static --out compared.html
"""

from __future__ import annotations

import click

from dnnlib.cli import Command


@click.command(cls=Command)
@click.argument('run')
@click.option('--compare', multiple=True, metavar='RUN', help='Another run, drawn into the same curves; repeatable.')
@click.option('--out', metavar='FILE', help='Where to write.  [default: report.html in RUN]')
def main(run: str, compare: tuple[str, ...], out: str | None) -> None:
    """Write the report of the folder RUN: warnings, metrics, curves, samples, settings, on one page of its own.

    The run may be going on, killed, or made by an older version: what is missing is left out.
    """
    from training.run_report import write_report

    click.echo(write_report(run, compare=list(compare), target=out))


if __name__ == '__main__':
    main()
