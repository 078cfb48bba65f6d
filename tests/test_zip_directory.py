"""The fast reader of zip directories against zipfile's."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from training.zip_directory import Member, read_directory


def by_zipfile(path: Path) -> list[Member]:
    with zipfile.ZipFile(path) as archive:
        return [
            Member(i.filename, i.header_offset, i.compress_size, i.file_size, i.CRC, i.compress_type, i.flag_bits)
            for i in archive.infolist()
            if not i.is_dir()
        ]


def fill(archive: zipfile.ZipFile) -> None:
    archive.writestr('00000/a.png', b'abc' * 100)
    archive.writestr('folder/', b'')
    archive.writestr('naïve/ä.png', b'xyz', compress_type=zipfile.ZIP_DEFLATED)
    archive.writestr('head.npz', b'')


def test_members_are_those_of_zipfile(tmp_path: Path) -> None:
    path = tmp_path / 'a.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        fill(archive)
    assert len(by_zipfile(path)) == 3
    assert read_directory(path) == by_zipfile(path)
    with zipfile.ZipFile(tmp_path / 'empty.zip', 'w'):
        pass
    assert read_directory(tmp_path / 'empty.zip') == []


def test_more_members_than_16_bits_count(tmp_path: Path) -> None:
    path = tmp_path / 'a.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        for i in range(66_000):
            archive.writestr(f'{i}.png', b'')
    members = read_directory(path)
    assert members is not None
    assert members == by_zipfile(path)


def test_numbers_beyond_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a lowered limit, zipfile writes sizes and offsets above it as 64-bit fields."""
    monkeypatch.setattr(zipfile, 'ZIP64_LIMIT', 200)
    path = tmp_path / 'a.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        fill(archive)
    assert b'\xff\xff\xff\xff' in path.read_bytes()
    assert read_directory(path) == by_zipfile(path)


def test_unusual_and_damaged_zips_are_left_to_zipfile(tmp_path: Path) -> None:
    path = tmp_path / 'a.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        fill(archive)
    plain = path.read_bytes()
    middle = plain.index(b'PK\1\2')
    for name, data in {
        'prefix': b'MZ' + plain,
        'cut': plain[:-5],
        'short': plain[:10],
        'text': b'no zip' * 20,
        'directory': plain[:middle] + b'PX' + plain[middle + 2 :],
        'more': plain[:-12] + bytes([9, 0, 9, 0]) + plain[-8:],
    }.items():
        (tmp_path / name).write_bytes(data)
        assert read_directory(tmp_path / name) is None, name
    with zipfile.ZipFile(path, 'a') as archive:
        archive.comment = b'made by hand'
    assert read_directory(path) is None
