"""Every way a packed dataset can be broken ends in one clear line."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cases_dataset import SheetHead, edit_heads, edit_labels, edit_zip, make_dataset, png, user_error
from training.dataset import HeadDataset
from training.dataset_format import HEAD_FILE, decode_image, encode_png
from training.dataset_labels import LABEL_FILE

FIRST, SECOND = '00000/img00000000.png', '00000/img00000001.png'
MODEL = SheetHead()


def opened(path: Path, **options) -> HeadDataset:
    return HeadDataset(path, head_model=MODEL, **options)


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-200])
    return path


def write(data: bytes) -> Callable[[Path], Path]:
    def overwrite(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return overwrite


def flip_byte(path: Path, *, at: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[data.index(at) + 60] ^= 0xFF
    path.write_bytes(data)
    return path


def set_label(value: object) -> Callable[[Path], Path]:
    return lambda path: edit_labels(path, lambda entries: [entries[0], [SECOND, value], *entries[2:]])


def set_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Path]:
    return lambda path: edit_heads(path, lambda arrays: {**arrays, name: change(arrays[name])})


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    'missing': (lambda path: path.with_name('nothing.zip'), 'no such dataset'),
    'cut zip': (cut, 'cut short'),
    'not a zip': (write(b'hello'), 'not a zip'),
    'no labels': (lambda path: edit_zip(path, {LABEL_FILE: None}), 'has no dataset.json'),
    'folder packed': (
        lambda path: edit_zip(path, {LABEL_FILE: None, 'faces/dataset.json': b'{}'}),
        'pack the content of that folder',
    ),
    'labels null': (lambda path: edit_zip(path, {LABEL_FILE: b'{"labels": null}'}), 'no list "labels"'),
    'labels no json': (lambda path: edit_zip(path, {LABEL_FILE: b'\xff\xfe'}), 'not JSON'),
    'label short': (set_label([0.0] * 16), f'{SECOND}: label has 16 numbers instead of 25'),
    'label none': (set_label(None), f'{SECOND}: label is None'),
    'label text': (set_label(['1'] * 25), f'{SECOND}: label holds something that is not a number'),
    'label nan': (set_label([float('nan')] * 25), f'{SECOND}: label holds a number that is not finite'),
    'label huge': (set_label([1e60] * 25), f'{SECOND}: label holds a number that is not finite'),
    'label missing': (lambda path: edit_labels(path, lambda entries: entries[:-2]), '2 of 6 images have no label'),
    'no images': (lambda path: edit_zip(path, {f'00000/img{i:08d}.png': None for i in range(6)}), 'no images'),
    'corrupt first': (lambda path: edit_zip(path, {FIRST: b'\x89PNG nonsense'}), f'{FIRST}: not a readable image'),
    'not square': (lambda path: edit_zip(path, {FIRST: png(16, 8)}), f'{FIRST} is 16 x 8 pixels'),
    'heads rest': (set_array('names', lambda names: names[::-1]), 'head.npz lists 6 images'),
    'heads cut': (lambda path: edit_zip(path, {HEAD_FILE: b'PK\3\4 nonsense'}), 'not a readable .npz'),
    'heads short': (set_array('jaw', lambda jaw: jaw[:-1]), 'jaw has shape [5, 3] instead of [6, 3]'),
    'heads field': (lambda path: edit_heads(path, lambda a: {k: v for k, v in a.items() if k != 'eyes'}), 'lacks eyes'),
    'heads pickle': (set_array('jaw', lambda jaw: jaw.astype(object)), 'not a readable .npz'),
    'other model': (
        set_array('head_model_hash', lambda _: np.array('0123456789')),
        'made for head model sheet (01234567)',
    ),
    'other width': (set_array('identity', lambda values: values[:, :3]), 'identity holds 3 per image'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_broken_dataset_is_one_clear_line(tmp_path: Path, case: str) -> None:
    breaks, expected = BROKEN[case]
    path = breaks(make_dataset(tmp_path / 'a.zip'))
    text = user_error(lambda: opened(path))
    assert expected in text
    assert str(path) in text


@pytest.mark.parametrize('mirror', [False, True])
def test_damaged_image_is_named_when_read(tmp_path: Path, mirror: bool) -> None:
    for data, expected in (
        (b'\x89PNG nonsense', 'not a readable image'),
        (png(16, 16)[:45], 'not a readable image'),
        (png(32, 32), 'is 32 x 32 pixels, the first image 16'),
    ):
        dataset = opened(edit_zip(make_dataset(tmp_path / f'{len(data)}.zip'), {SECOND: data}), mirror=mirror)
        text = user_error(partial(dataset.images, [0, 1, 7] if mirror else [0, 1]))
        assert SECOND in text
        assert expected in text
    path = make_dataset(tmp_path / 'flipped.zip')
    dataset = opened(flip_byte(path, at=SECOND.encode()))
    assert f'{SECOND} is damaged' in user_error(lambda: dataset.image(1))


def test_unknown_head_model_is_named(tmp_path: Path) -> None:
    dataset = HeadDataset(make_dataset(tmp_path / 'a.zip'))
    assert 'sheet' in user_error(lambda: dataset.head_input([0]))


def test_image_modes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for mode in ('L', 'P', '1'):
        buffer = io.BytesIO()
        image = Image.fromarray(pixels).convert(mode)
        image.save(buffer, format='PNG')
        np.testing.assert_array_equal(decode_image(buffer.getvalue(), name='x'), np.asarray(image.convert('RGB')))
    for mode, kind, expected in (
        ('RGBA', 'PNG', 'alpha'),
        ('LA', 'PNG', 'alpha'),
        ('I;16', 'PNG', '16-bit'),
        ('CMYK', 'JPEG', 'CMYK'),
    ):
        buffer = io.BytesIO()
        Image.new(mode, (8, 8)).save(buffer, format=kind)
        text = user_error(partial(decode_image, buffer.getvalue(), name='x.png'))
        assert text.startswith('x.png: ')
        assert expected in text
    header = bytearray(encode_png(np.zeros((8, 8, 3), np.uint8)))
    header[24] = 16  # Pillow would drop the lower bytes without a word
    assert '16-bit' in user_error(lambda: decode_image(bytes(header), name='x.png'))
