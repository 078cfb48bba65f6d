"""Frames of a video file or of a folder of pictures, upright, as uint8 RGB.

ffmpeg (the binary of imageio-ffmpeg) decodes, turns by the file's rotation tag and hands over pictures
that carry their own size, so that odd sizes and turned videos need no arithmetic here. Frames are numbered as
they are shown, from 0, whatever the frame rate.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from applications.preprocessing.align import load_photo
from dnnlib import UserError

FRAME_TYPES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """Which frames are taken."""

    every: int = 1
    start: int = 0  # frame number
    end: int | None = None  # frame number, not taken any more
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f'--every {self.every}: expected 1 (all frames) or more')
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise UserError(f'--start {self.start} --end {self.end}: expected 0 <= start < end, in frames')
        if self.max_frames is not None and self.max_frames < 1:
            raise UserError(f'--max-frames {self.max_frames}: expected 1 or more')

    def select(self, frame: int) -> bool:
        """Whether frame number `frame` is taken."""
        return frame >= self.start and (frame - self.start) % self.every == 0 and not self.is_past(frame)

    def is_past(self, frame: int) -> bool:
        """Whether no later frame is taken either."""
        limit = None if self.max_frames is None else self.start + self.every * self.max_frames
        return any(end is not None and frame >= end for end in (self.end, limit))


@dataclasses.dataclass(frozen=True)
class Frame:
    """One decoded frame."""

    number: int  # in the source
    name: str  # 'frame 12', or the picture's file name
    image: np.ndarray | None  # uint8 [H, W, 3]; None: unreadable
    problem: str = ''  # why


def read_frames(source: str | os.PathLike[str], choice: FrameChoice = FrameChoice()) -> Generator[Frame, None, None]:
    """The chosen frames in order. UserError for a source that has none. Closing it ends the decoder."""
    path = Path(source)
    if path.is_dir():
        yield from _read_folder(path, choice)
    elif not path.is_file():
        raise UserError(f'--source {source}: no such video or folder of frames')
    elif path.stat().st_size == 0:
        raise UserError(f'--source {source}: empty file (0 bytes); give a video or a folder of frames')
    else:
        yield from _read_video(path, choice)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a video file says of itself."""

    fps: float  # frames a second; the mean where it varies
    sound: bool  # whether it has any
    delay: float  # seconds from the beginning of the file to its first frame


def video_facts(source: str | os.PathLike[str]) -> VideoFacts:
    """Rate, sound and beginning of a video file. UserError where no frame can be decoded."""
    import imageio_ffmpeg

    path = Path(source)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), '-nostdin', '-hide_banner', '-i', f'file:{path}', '-map', '0:v:0']
    command += ['-frames:v', '1', '-vf', 'showinfo', '-f', 'null', '-']
    text = subprocess.run(command, capture_output=True, check=False).stderr.decode(errors='replace')
    start = re.search(r'pts_time:\s*(-?[\d.]+)', text)
    if start is None:
        next(read_frames(path))  # says what is wrong with it
        raise UserError(f'{path}: says nothing of its frame rate; convert it to an .mp4')
    stated = re.search(r'Video:.*?([\d.]+)(k?) fps', text)
    exact = re.search(r'frame_rate: (\d+)/(\d+)', text)
    rates = [float(exact[1]) / float(exact[2])] if exact and float(exact[2]) else []
    mean = float(stated[1]) * (1000 if stated[2] else 1) if stated else 0.0
    if mean > 0 and not (rates and abs(rates[0] / mean - 1) < 0.01):
        rates = [mean]  # of a rate that varies
    if not rates:
        raise UserError(f'{path}: says nothing of its frame rate; convert it to an .mp4')
    return VideoFacts(
        fps=rates[0], sound=bool(re.search(r'Stream #\S+.*: Audio:', text)), delay=max(0.0, float(start[1]))
    )


def _read_folder(path: Path, choice: FrameChoice) -> Iterator[Frame]:
    names = sorted(
        entry.name
        for entry in os.scandir(path)
        if entry.is_file() and entry.name.lower().endswith(FRAME_TYPES) and not entry.name.startswith('.')
    )
    if not names:
        raise UserError(f'--source {path}: holds no picture ({", ".join(FRAME_TYPES)}); expected the frames of a video')
    for number, name in enumerate(names):
        if choice.is_past(number):
            return
        if not choice.select(number):
            continue
        try:
            yield Frame(number, name, load_photo(path / name))
        except UserError as error:
            yield Frame(number, name, None, str(error).rpartition(f'{name}: ')[2])


def _read_video(path: Path, choice: FrameChoice) -> Iterator[Frame]:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), '-nostdin', '-loglevel', 'error', '-i', f'file:{path}']
    command += ['-map', '0:v:0', '-an', '-sn', '-fps_mode', 'passthrough', '-f', 'image2pipe', '-c:v', 'ppm', '-']
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        if process.stdout is None:
            raise RuntimeError('ffmpeg has no output pipe')
        number = 0
        try:
            with process.stdout as pipe:
                while not choice.is_past(number) and (image := _read_ppm(pipe)) is not None:
                    if choice.select(number):
                        yield Frame(number, f'frame {number}', image)
                    number += 1
                ended = not choice.is_past(number)
        finally:
            if not _finished(process):
                process.kill()
                process.wait()
        if number == 0 and ended:
            log.seek(0)
            raise UserError(f'--source {path}: {_reason(log.read().decode(errors="replace"))}')


def _finished(process: subprocess.Popen[bytes]) -> bool:
    """Give a process whose output has ended a moment to exit by itself."""
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return False
    return True


def _reason(text: str) -> str:
    if 'matches no streams' in text:
        return 'has no video stream (audio only?); give a file with pictures'
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    detail = f' (ffmpeg: {lines[0][:120]})' if lines else ''
    return f'no frame could be read{detail}; give a video that plays, or a folder of frames'


def _read_ppm(pipe: IO[bytes]) -> np.ndarray | None:
    """The next picture of a stream of binary PPMs (P6, size, maximum, pixels); None at its end, also in mid-picture."""
    fields: list[bytes] = []
    while len(fields) < 4:
        line = pipe.readline()
        if not line:
            return None
        fields += line.split()
    if fields[0] != b'P6' or fields[3] != b'255':
        raise UserError(f'ffmpeg: unexpected picture format {fields}; install imageio-ffmpeg as requirements.txt says')
    width, height = int(fields[1]), int(fields[2])
    data = pipe.read(3 * width * height)
    if len(data) < 3 * width * height:
        return None
    return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
