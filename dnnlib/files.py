"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dnnlib.errors import UserError


def explain_os_error(error: OSError, path: str | os.PathLike[str]) -> UserError:
    """An OSError at `path` as one line with a remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f'{path}: the disk is full; free some space or choose another folder')
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f'{path}: not writable or not readable ({error.strerror}); check its permissions')
    return UserError(f'{path}: {error.strerror or error}')


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[Any]]:
    """A binary file handle whose content appears at `path` only when the block ends without error.

    Written beside the target, flushed to the disk, renamed; a failure leaves the old file as it was
    and removes the temporary one. Raises UserError for a full disk or an unwritable folder.
    """
    target = Path(path)
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise explain_os_error(error, target) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete what processes of this machine that were killed left of unfinished writes of `path`, file or folder."""
    target = Path(path)
    for left in target.parent.glob(f'.{glob.escape(target.name)}.*.tmp'):
        process = left.name.removesuffix('.tmp').rpartition('.')[2]
        if process.isdecimal() and not _is_alive(int(process)):
            with contextlib.suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's
        return True
    return True


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str], *, wait: float, busy: str) -> Iterator[None]:
    """Hold the advisory lock of the file `path`; the system lets go when the process ends, however it ends.

    UserError `busy` when another process still holds it after `wait` seconds. File systems without locks hold none.
    """
    import fcntl

    deadline = time.monotonic() + wait
    while True:
        with open(path, 'wb') as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = _is_at(handle, path)  # or a failing process held it, and removed the file
            except BlockingIOError:
                held = False
            except OSError:
                held = True
            if held:
                yield
                return
        if time.monotonic() > deadline:
            raise UserError(busy)
        time.sleep(0.1)


def _is_at(handle: IO[Any], path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def make_output_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder (and parents) and prove that it can be written to; UserError otherwise."""
    folder = Path(path)
    probe = folder / f'.write-test.{os.getpid()}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'')
        probe.unlink()
    except OSError as error:
        raise explain_os_error(error, folder) from error
    return folder


@contextlib.contextmanager
def output_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """make_output_folder for a block. If the block fails and left nothing there, folders that this made are removed."""
    made = [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]
    folder = make_output_folder(path)
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):
            for empty in made:
                empty.rmdir()
        raise


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, 'rb') as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
