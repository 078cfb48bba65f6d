"""The embedded dataset: heads rendered with exact labels (camera, HeadParams, identity).

Deterministic by (seed, index, resolution): neither the number of images nor that of worker processes
matters. Images 4 k to 4 k + 3 show identity k. What is drawn: synthetic_params.py; how: synthetic_studio.py.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

from dnnlib import UserError
from torch_utils.ops import library
from torch_utils.workers import start_worker, usable_cores
from training import synthetic_params as params
from training.dataset_format import encode_png
from training.dataset_writer import DatasetWriter
from training.head import load_head_model
from training.head.makehuman import MakeHumanHead
from training.head.model import HeadParams
from training.synthetic_studio import Studio

HEAD_MODEL = 'makehuman'
MIN_RESOLUTION, MAX_RESOLUTION = 32, 512
CHUNK = 4 * params.IMAGES_PER_IDENTITY  # images a task: whole identities
_THREAD_VARIABLES = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One rendered image with its labels."""

    index: int
    image: np.ndarray  # uint8 [3, R, R]
    label: np.ndarray  # [25] float32
    head: HeadParams  # one row
    identity_id: int


@functools.lru_cache(maxsize=2)
def _studio(resolution: int) -> Studio:
    model = load_head_model(HEAD_MODEL)
    assert isinstance(model, MakeHumanHead)
    return Studio(model, resolution=resolution)


def check_options(*, num: int, resolution: int, workers: int) -> None:
    """UserError for counts and sizes that make no dataset."""
    if num < 1:
        raise UserError(f'num: expected at least 1, got {num}')
    if resolution & (resolution - 1) or not MIN_RESOLUTION <= resolution <= MAX_RESOLUTION:
        raise UserError(
            f'resolution: expected a power of two from {MIN_RESOLUTION} to {MAX_RESOLUTION}, got {resolution}'
        )
    if workers < 0:
        raise UserError(f'workers: expected 0 (this process) or more, got {workers}')


def render_index(seed: int, index: int, *, resolution: int, identity: int | None = None) -> Item:
    """Render image `index` of the dataset with this seed; the same result in any process.

    With `identity`, person `identity` takes the place of the image's own (index // 4) and everything else stays:
    camera, expression, jaw, gaze, neck, light, background. So a person can be seen in any number of scenes, and
    a scene with any number of people.
    """
    check_options(num=index + 1, resolution=resolution, workers=0)
    studio = _studio(resolution)
    identity = params.identity_of(index) if identity is None else identity
    scene = studio.scene(seed, index, identity=identity)
    image = studio.draw(studio.dress(seed, identity), scene)
    return Item(
        index=index,
        image=np.ascontiguousarray(image.transpose(2, 0, 1)),
        label=scene.label,
        head=scene.head,
        identity_id=identity,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Packed:
    """An item as it travels between processes: plain bytes and arrays."""

    png: bytes
    label: np.ndarray
    head: dict[str, np.ndarray]
    identity_id: int


def _render_chunk(seed: int, indices: range, resolution: int) -> list[_Packed]:
    packed = []
    for index in indices:
        item = render_index(seed, index, resolution=resolution)
        head = {name: value.numpy() for name, value in item.head.as_dict().items()}
        png = encode_png(np.ascontiguousarray(item.image.transpose(1, 2, 0)))
        packed.append(_Packed(png=png, label=item.label, head=head, identity_id=item.identity_id))
    return packed


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started in this block use one thread for linear algebra: the parallelism is that of the images."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, '1'))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _chunks(num: int, *, resolution: int, seed: int, workers: int) -> Iterator[list[_Packed]]:
    """Rendered chunks in the order of their indices, with a bounded number under way."""
    ranges = [range(start, min(start + CHUNK, num)) for start in range(0, num, CHUNK)]
    if workers == 0:
        for indices in ranges:
            yield _render_chunk(seed, indices, resolution)
        return
    library.use_native(torch.device('cpu'))  # builds the rasterizer once, before there are several processes
    context = multiprocessing.get_context('spawn')
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    with _one_thread_each(), pool:
        pending: deque[concurrent.futures.Future[list[_Packed]]] = deque()
        try:
            for indices in ranges:
                pending.append(pool.submit(_render_chunk, seed, indices, resolution))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError('a rendering process died (out of memory?); try fewer --workers') from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def generate(
    path: str | os.PathLike[str],
    *,
    num: int,
    resolution: int,
    seed: int = 0,
    workers: int | None = None,  # processes; 0 = this one, None = one a core
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Render `num` images into a packed dataset (zip or folder) at `path`.

    Raises UserError for options out of range, a taken or unwritable path, a full disk, a lost worker.
    """
    workers = min(usable_cores(), -(-num // CHUNK)) if workers is None else workers
    check_options(num=num, resolution=resolution, workers=workers)
    model = load_head_model(HEAD_MODEL)
    writer = DatasetWriter(
        path, resolution=resolution, head_model=model.name, head_model_hash=model.content_hash, overwrite=overwrite
    )
    with writer, tqdm(total=num, desc=f'rendering {resolution} px', unit='img', disable=not progress) as bar:
        for chunk in _chunks(num, resolution=resolution, seed=seed, workers=workers):
            for item in chunk:
                head = HeadParams.from_dict({name: torch.from_numpy(value) for name, value in item.head.items()})
                writer.add(item.png, label=item.label, head=head, identity_id=item.identity_id)
            bar.update(len(chunk))
