"""dataset_tool.py: what users see."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import dataset_tool
from applications.overlay import draw_head
from applications.preprocessing.validate import Report, draw_sheet, validate
from dnnlib import UserError
from tests.cases_dataset import SheetHead, edit_heads, edit_labels, edit_zip, make_dataset, png
from training import cameras
from training.dataset_labels import LABEL_FILE
from training.dataset_source import open_source
from training.head import load_head_model

ROOT = Path(__file__).resolve().parent.parent
FIRST, SECOND = '00000/img00000000.png', '00000/img00000001.png'
MODEL = SheetHead()


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(dataset_tool.main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def found(path: Path) -> Report:
    return validate(path, head_model=MODEL)


# The command line.


def test_help_is_quick_and_teaches() -> None:
    code = "import sys, dataset_tool; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
    assert 'dataset.json' in run('--help').output
    for command in dataset_tool.main.commands:
        output = run(command, '--help').output
        assert f'python dataset_tool.py {command}' in output  # an example


def test_synth_makes_a_valid_dataset(tmp_path: Path) -> None:
    options = ['--num=2', '--resolution=32', '--workers=0', '--seed=3']
    for name in ('a.zip', 'b.zip'):
        result = run('synth', f'--out={tmp_path / name}', *options)
        assert result.exit_code == 0, result.output
    assert (tmp_path / 'a.zip').read_bytes() == (tmp_path / 'b.zip').read_bytes()
    sheet = tmp_path / 'sheet.png'
    result = run('validate', str(tmp_path / 'a.zip'), f'--overlay={sheet}', '--count=2')
    assert result.exit_code == 0, result.output
    assert '2 images of 32 x 32, 2 labels, head parameters (makehuman); 0 error(s), 0 warning(s)' in result.output
    with Image.open(sheet) as picture:
        assert picture.size == (640, 320)
    assert 'already exists' in run('synth', f'--out={tmp_path / "a.zip"}', *options).output


@pytest.mark.parametrize(
    'arguments',
    [
        ('validate', '{tmp}/nothing.zip'),
        ('synth', '--out={tmp}/a.zip', '--resolution=48'),
        ('synth', '--out={tmp}/a.zip', '--num=0'),
        ('from-photos', '--source={tmp}/nothing', '--out={tmp}/a.zip'),
        ('from-photos', '--source={tmp}', '--out={tmp}/a.zip'),
        ('validate', '{tmp}/nothing.zip', '--head-model={tmp}/nothing.pkl'),
    ],
)
def test_user_errors_are_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 1
    assert result.output.startswith('Error: ')
    assert result.output.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


# validate.


def set_labels(change: Callable[[np.ndarray], object]) -> Callable[[Path], Path]:
    """Apply `change` to the second image's 25 numbers."""

    def edit(entries: list) -> list:
        values = np.array(entries[1][1])
        change(values)
        return [entries[0], [SECOND, values.tolist()], *entries[2:]]

    return lambda path: edit_labels(path, edit)


def set_row(name: str, value: float) -> Callable[[Path], Path]:
    def edit(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays[name][1] = value
        return arrays

    return lambda path: edit_heads(path, edit)


def scale_rotation(values: np.ndarray) -> None:
    values.reshape(-1)[[0, 1, 2]] *= 1.01


def reflect(values: np.ndarray) -> None:
    values.reshape(-1)[[0, 4, 8]] *= -1


FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    'missing label': (lambda p: edit_labels(p, lambda entries: [entries[0], *entries[2:]]), SECOND),
    'label without image': (lambda p: edit_zip(p, {SECOND: None}), SECOND),
    'duplicate label': (lambda p: edit_labels(p, lambda entries: [*entries, entries[1]]), SECOND),
    'bad label': (lambda p: edit_labels(p, lambda e: [e[0], [SECOND, [1.0] * 24], *e[2:]]), SECOND),
    'labels': (lambda p: edit_zip(p, {LABEL_FILE: None}), 'a.zip'),
    'not a rotation': (set_labels(scale_rotation), SECOND),
    'mirrored rotation': (set_labels(reflect), SECOND),
    'last row': (set_labels(lambda v: v.__setitem__(12, 0.5)), SECOND),
    'focal length': (set_labels(lambda v: v.__setitem__(16, 2183.0)), SECOND),
    'intrinsics': (set_labels(lambda v: v.__setitem__(18, 256.0)), SECOND),
    'constant labels': (lambda p: edit_labels(p, lambda e: [[n, e[0][1]] for n, _ in e]), LABEL_FILE),
    'image': (lambda p: edit_zip(p, {SECOND: b'\x89PNG nonsense'}), SECOND),
    'not RGB': (lambda p: edit_zip(p, {SECOND: png(16, 16, mode='L')}), SECOND),
    'not square': (lambda p: edit_zip(p, {SECOND: png(16, 8)}), SECOND),
    'other size': (lambda p: edit_zip(p, {SECOND: png(32, 32)}), SECOND),
    'resolution': (lambda p: edit_zip(p, {f'00000/img{i:08d}.png': png(24, 24) for i in range(6)}), 'images'),
    'missing head': (lambda p: edit_heads(p, lambda a: {**a, **{k: a[k][1:] for k in a if a[k].ndim}}), FIRST),
    'head order': (lambda p: edit_heads(p, lambda a: {**a, 'names': a['names'][::-1]}), 'head.npz'),
    'head not finite': (set_row('jaw', np.nan), SECOND),
    'head model': (lambda p: edit_heads(p, lambda a: {**a, 'head_model_hash': np.array('0')}), 'head.npz'),
    'heads': (lambda p: edit_zip(p, {'head.npz': b'nonsense'}), 'a.zip'),
    'outside': (set_row('translation', 0.5), SECOND),
    'behind camera': (set_row('translation', 2.0), SECOND),
    'no images': (lambda p: edit_zip(p, {f'00000/img{i:08d}.png': None for i in range(6)}), 'a.zip'),
}


@pytest.mark.parametrize('kind', FAULTS)
def test_each_fault_is_found_and_named(tmp_path: Path, kind: str) -> None:
    breaks, item = FAULTS[kind]
    report = found(breaks(make_dataset(tmp_path / 'a.zip')))
    hits = [finding for finding in report.findings if finding.kind == kind]
    assert item in [finding.item for finding in hits], report.findings
    for finding in report.findings:
        line = finding.line()
        assert line.count('\n') == 0
        assert finding.problem
        assert finding.remedy, line
    assert report.count('error') or kind in ('constant labels', 'not RGB')


@pytest.mark.parametrize('name', ['a.zip', 'a'])
@pytest.mark.parametrize('heads', ['params', 'mesh', 'none'])
def test_sound_dataset_has_no_findings(tmp_path: Path, name: str, heads: str) -> None:
    report = found(make_dataset(tmp_path / name, heads=heads))
    assert report.findings == ()
    assert (report.images, report.labels, report.resolution, report.heads) == (6, 6, 16, heads)


def test_pixels_damaged_in_place(tmp_path: Path) -> None:
    """A flipped bit that still decodes is found by the PNG's own checksum, or the zip's."""
    folder = make_dataset(tmp_path / 'a')
    data = bytearray((folder / SECOND).read_bytes())
    data[-20] ^= 1
    (folder / SECOND).write_bytes(data)
    assert [finding.item for finding in found(folder).findings] == [SECOND]


def test_duplicate_file_in_zip(tmp_path: Path) -> None:
    path = make_dataset(tmp_path / 'a.zip')
    with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(SECOND, png(16, 16))
    assert 'duplicate file' in {finding.kind for finding in found(path).findings}


def test_many_findings_are_summarized(tmp_path: Path) -> None:
    path = edit_labels(make_dataset(tmp_path / 'a.zip', count=12), lambda _: [])
    report = found(path)
    assert report.count('error') == 12
    assert len(report.lines()) == 6
    assert '... and 7 more' in report.lines()[-1]
    assert len(report.lines(limit=None)) == 12


def test_cli_lists_findings_and_fails(tmp_path: Path) -> None:
    path = edit_zip(make_dataset(tmp_path / 'a.zip', heads='none'), {SECOND: png(32, 32)})
    result = run('validate', str(path))
    assert result.exit_code == 1
    assert f'error   {SECOND}: is 32 x 32 pixels, most are 16 x 16; resize it' in result.output
    assert '1 error(s), 0 warning(s)' in result.output


# Overlays.


def test_overlay_lies_on_the_projection() -> None:
    """Red landmark dots are where the camera projects the landmarks."""
    model = load_head_model('makehuman')
    head = model.forward(model.neutral())
    label = cameras.orbit_camera(torch.tensor([0.2]), torch.tensor([-0.1]))
    drawn = draw_head(np.full((64, 64, 3), 255, np.uint8), head=head, label=label[0], model=model)
    points, _ = cameras.project(cameras.head_to_world(head.landmarks), label)
    assert drawn.shape == (320, 320, 3)
    for column, row in (points[0].numpy() * 320).astype(int):
        red, green, blue = drawn[row, column].astype(int)
        assert red > 150
        assert green < 120
        assert blue < 120


def test_sheet_puts_suspects_first_and_skips_the_unreadable(tmp_path: Path) -> None:
    path = edit_zip(set_row('translation', 0.3)(make_dataset(tmp_path / 'a.zip')), {FIRST: b'nonsense'})
    report = found(path)
    assert SECOND in {finding.item for finding in report.findings}
    assert draw_sheet(path, report, head_model=MODEL, count=8).shape == (640, 1280, 3)
    assert draw_sheet(path, report, head_model=MODEL, count=1).shape == (320, 320, 3)
    changes: dict[str, bytes | None] = {name: b'nonsense' for name in open_source(path).image_names()}
    report = found(edit_zip(path, changes))
    with pytest.raises(UserError, match='no readable image'):
        draw_sheet(path, report, head_model=MODEL)


def test_sheet_without_heads_shows_the_neutral_head(tmp_path: Path) -> None:
    path = make_dataset(tmp_path / 'a.zip', heads='none')
    assert draw_sheet(path, found(path), count=2).shape == (320, 640, 3)
