"""Files named by a path or an URL, kept in a cache folder and checked by sha256."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, make_output_folder, sha256_file


def default_cache_dir() -> Path:
    """NEXT3D_CACHE_DIR, or `next3d` in the user's cache folder."""
    base = os.environ.get('XDG_CACHE_HOME') or str(Path.home() / '.cache')
    return Path(os.environ.get('NEXT3D_CACHE_DIR') or Path(base) / 'next3d')


def fetch(source: str, *, sha256: str, cache_dir: str | os.PathLike[str] | None = None, timeout: float = 60.0) -> Path:
    """The local path of `source` (a path, or an http(s) URL), whose content has exactly this sha256.

    A URL is downloaded once to `cache_dir`/downloads/<sha256>-<name>; a file that is already there is
    used without network access, so it may also be put there by hand. Raises UserError when the file
    is missing, the download fails, or the content differs (a differing download is not kept).
    """
    if not source.startswith(('http://', 'https://')):
        path = Path(source)
        if not path.is_file():
            raise UserError(f'{path}: no such file (expected one with sha256 {sha256})')
        return _checked(path, sha256)
    folder = Path(cache_dir or default_cache_dir()) / 'downloads'
    path = folder / f'{sha256[:16]}-{source.rsplit("/", 1)[-1] or "file"}'
    if path.is_file():
        return _checked(path, sha256)
    make_output_folder(folder)
    try:
        with urllib.request.urlopen(source, timeout=timeout) as response:
            with atomic_write(path) as handle:
                while chunk := response.read(1 << 20):
                    handle.write(chunk)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise UserError(
            f'{source}: download failed ({getattr(error, "reason", error)}); '
            f'get it elsewhere (sha256 {sha256}) and put it at {path}'
        ) from error
    try:
        return _checked(path, sha256)
    except UserError:
        path.unlink()
        raise


def _checked(path: Path, sha256: str) -> Path:
    found = sha256_file(path)
    if found != sha256.lower():
        raise UserError(f'{path}: sha256 is {found}, expected {sha256}; the file is damaged or another one')
    return path
