"""Encoding of pictures as H.264 in an mp4, with the sound of another file where there is one."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from dnnlib import UserError
from dnnlib.files import explain_os_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
    """The sound that goes with the pictures."""

    source: str | os.PathLike[str]  # a file whose first sound stream is taken
    delay: float = 0.0  # seconds from the beginning of that file to the first picture
    seconds: float  # how long the pictures last; sound beyond them is cut


def write_mp4(
    path: str | os.PathLike[str],
    pictures: Iterable[np.ndarray],
    *,
    fps: float,
    crf: int = 18,
    sound: Sound | None = None,
) -> int:
    """Encode uint8 pictures [H, W, 3] of one size as H.264 and return how many there were.

    Odd sizes get a black row or column (4:2:0 needs even ones). crf: 0 (lossless) to 51 (worst). The
    file is whole or absent; UserError if it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f'.{target.stem}.{os.getpid()}.tmp.mp4')
    count = 0
    try:
        temporary.touch()  # ffmpeg's own words for an unwritable folder are longer
        pictures = iter(pictures)
        first = next(pictures, None)
        if first is None:
            raise UserError(f'{target}: no frames to write')
        with _encoder(temporary, _even(first), fps=fps, crf=crf, sound=sound, target=target) as pipe:
            for picture in itertools.chain([first], pictures):
                pipe.write(_even(picture).tobytes())
                count += 1
        os.replace(temporary, target)
    except OSError as error:
        raise explain_os_error(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _even(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)))


@contextlib.contextmanager
def _encoder(
    file: Path, first: np.ndarray, *, fps: float, crf: int, sound: Sound | None, target: Path
) -> Iterator[IO[bytes]]:
    """A pipe into ffmpeg for raw RGB frames like `first`; UserError with ffmpeg's first line if it fails."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-loglevel', 'error', '-f', 'rawvideo', '-pix_fmt', 'rgb24']
    command += ['-s', f'{first.shape[1]}x{first.shape[0]}', '-r', f'{fps:.10g}', '-i', '-']
    if sound is None:
        command += ['-an']
    else:
        command += ['-i', f'file:{sound.source}', '-map', '0:v:0', '-map', '1:a:0?', '-c:a', 'aac', '-b:a', '160k']
        command += ['-t', f'{sound.delay + sound.seconds:.6f}', '-vf', f'setpts=PTS+{sound.delay:.6f}/TB']
    command += ['-fps_mode', 'passthrough', '-c:v', 'libx264', '-pix_fmt', 'yuv420p', '-crf', str(crf)]
    command += ['-movflags', '+faststart', str(file)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
        assert process.stdin is not None
        broken = False
        try:
            yield process.stdin
        except BrokenPipeError:
            broken = True
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        if broken or process.returncode:
            log.seek(0)
            reason = (log.read().decode(errors='replace').strip().splitlines() or ['no message'])[-1]
            raise UserError(f'{target}: ffmpeg could not write it: {reason}')
