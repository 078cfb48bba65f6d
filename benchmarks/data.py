"""Measures datasets: opening 140,000 images, loading, decoding, and one OBJ text per image beside it."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: import from the root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click
import numpy as np
import torch
from PIL import Image

from dnnlib.cli import Command
from training import cameras
from training.dataset import HeadDataset
from training.dataset_format import encode_png
from training.dataset_writer import DatasetWriter
from training.head import load_head_model
from training.head.model import HeadParams
from training.head.obj import read_obj, write_obj

DECODE_THREADS = 2
BATCH = 64


def picture(resolution: int, seed: int) -> bytes:
    """A PNG that compresses about as a photograph does: smooth shapes and some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((resolution,) * 2, 3)
    noise = rng.integers(-3, 4, (resolution, resolution, 3))
    return encode_png((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


def write(path: Path, *, count: int, resolution: int, different: int = 16) -> None:
    """`count` items with heads of the embedded model; `different` pictures take turns."""
    model, rng = load_head_model('makehuman'), torch.Generator().manual_seed(0)
    pictures = [picture(resolution, seed) for seed in range(different)]
    fields = {k: 0.1 * torch.randn(count, v.shape[1], generator=rng) for k, v in model.neutral().as_dict().items()}
    params = HeadParams(**fields)
    labels = cameras.orbit_camera(*(0.3 * torch.randn(2, count, generator=rng)))
    with DatasetWriter(path, resolution=resolution, head_model=model.name, head_model_hash=model.content_hash) as out:
        for i in range(count):
            out.add(pictures[i % different], label=labels[i], head=params[[i]], identity_id=i // 4)


def resident() -> int:
    """Resident memory of this process in bytes, whose peak nobody else shared."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def _opening(path: str, pipe: Any) -> None:
    before, started = resident(), time.perf_counter()
    dataset = HeadDataset(path)
    seconds = time.perf_counter() - started
    pipe.send({'images': len(dataset), 'seconds': seconds, 'megabytes': (resident() - before) / 1e6})


def opening(path: Path) -> dict[str, float]:
    """Time and growth of memory of opening, in a process of its own."""
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_opening, args=(str(path), sender))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def rate(function: Callable[[np.ndarray], object], *, items: int, total: int) -> float:
    """Items a second of `function(indices)` over random batches; the first batch warms up."""
    order = np.random.default_rng(0).integers(0, items, total + BATCH)
    function(order[:BATCH])
    started = time.perf_counter()
    for start in range(BATCH, len(order), BATCH):
        function(order[start : start + BATCH])
    return total / (time.perf_counter() - started)


def bare_decoding(dataset: HeadDataset, *, total: int) -> float:
    """Items a second of Pillow decoding the same bytes with as many threads as the dataset uses."""
    data = [dataset.image_bytes(i) for i in range(16)]

    def decode(index: int) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data[index % 16])))

    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        return rate(lambda chosen: list(pool.map(decode, chosen.tolist())), items=len(dataset), total=total)


def obj_text(dataset: HeadDataset, folder: Path, *, count: int = 4) -> tuple[float, float]:
    """Seconds and megabytes of one head as OBJ text, the release's way."""
    template = dataset.head_model.template
    paths = [folder / f'{i}.obj' for i in range(count)]
    for path, points in zip(paths, dataset.head_input(range(count)).vertices, strict=True):
        write_obj(path, points, faces=template.faces, uv=template.uv, uv_faces=template.uv_faces)
    started = time.perf_counter()
    for path in paths:
        read_obj(path)
    return (time.perf_counter() - started) / count, paths[0].stat().st_size / 1e6


def measure(folder: Path, *, images: int, total: int) -> dict[str, Any]:
    """All numbers; rates in items a second."""
    result: dict[str, Any] = {'threads': torch.get_num_threads(), 'decode_threads': DECODE_THREADS}
    write(folder / 'big.zip', count=images, resolution=8)
    result['opening'] = opening(folder / 'big.zip')
    for resolution in (64, 512):
        path = folder / f'{resolution}.zip'
        write(path, count=4096 if resolution == 64 else 128, resolution=resolution)
        dataset = HeadDataset(path, cache_bytes=0, decode_threads=DECODE_THREADS)
        count = total if resolution == 64 else max(total // 16, BATCH)
        row = {
            'images, cameras, heads': rate(dataset.batch, items=len(dataset), total=count),
            'images': rate(dataset.images, items=len(dataset), total=count),
            'heads': rate(dataset.head_input, items=len(dataset), total=count),
            'bare decoding': bare_decoding(dataset, total=count),
        }
        row['images against bare decoding'] = row['bare decoding'] / row['images']
        row['all against bare decoding'] = row['bare decoding'] / row['images, cameras, heads']
        result[f'{resolution} px'] = row
    result['OBJ seconds'], result['OBJ megabytes'] = obj_text(dataset, folder)
    return result


@click.command(cls=Command)
@click.option('--images', default=140_000, show_default=True, help='Images of the dataset that is opened.')
@click.option('--total', default=4096, show_default=True, help='Items per rate at 64 px; a sixteenth at 512 px.')
def main(images: int, total: int) -> None:
    """Write datasets to a temporary folder, measure them, and print JSON."""
    with tempfile.TemporaryDirectory() as folder:
        click.echo(json.dumps(measure(Path(folder), images=images, total=total), indent=2))


if __name__ == '__main__':
    main()
