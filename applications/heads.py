"""Which head a script draws: an OBJ, parameters, a dataset item, named expressions, or the neutral template."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib import UserError
from dnnlib.files import atomic_write
from training.checkpoint import LoadedGenerator
from training.head import load_head_model
from training.head.model import NUM_LANDMARKS, PARAM_FIELDS, HeadInput, HeadModel, HeadParams, HeadTemplate
from training.head.obj import head_vertices


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """At most one of obj_path, params_path and data (none: neutral, an avatar's own shape); expressions are added."""

    obj_path: str | None = None
    lms_path: str | None = None  # 68 x 3, for obj_path; None: from the template's landmark embedding
    params_path: str | None = None  # .npz of HeadParams
    data: str | None = None  # packed dataset
    index: int = 0  # its item, or the row of params_path
    expressions: tuple[str, ...] = ()  # 'name' or 'name:weight'
    head_model_path: str | None = None  # the user's FLAME file, where the network needs it


def choose_head(choice: HeadChoice, loaded: LoadedGenerator) -> HeadInput:
    """The chosen head [1, ...] in the topology of the network, on the CPU; UserError if it does not fit."""
    sources = [name for name in ('obj_path', 'params_path', 'data') if getattr(choice, name)]
    if len(sources) > 1:
        raise UserError(f'head: {" and ".join(sources)} given; choose one')
    if choice.lms_path and not choice.obj_path:
        raise UserError('--lms_path: belongs to --obj_path, which is not given')
    if choice.obj_path:
        if choice.expressions:
            raise UserError('--expression: cannot be added to --obj_path (a mesh has no parameters)')
        if choice.head_model_path:
            raise UserError('--head-model: is not read with --obj_path (a mesh has no parameters); leave one out')
        return obj_head(choice.obj_path, loaded, lms_path=choice.lms_path)
    person = loaded.avatar is not None and loaded.avatar.identity.shape[1] > 0
    if not sources and not choice.expressions and not person and not choice.head_model_path:
        vertices = cpu_template(loaded).vertices[None]
        return HeadInput(vertices, cpu_template(loaded).landmarks(vertices))
    if choice.data and not choice.expressions:
        return dataset_head(choice.data, choice.index, loaded, head_model_path=choice.head_model_path)
    head = network_head_model(loaded, path=choice.head_model_path)
    return head.forward(choose_params(choice, loaded, head))


def choose_params(choice: HeadChoice, loaded: LoadedGenerator, head: HeadModel) -> HeadParams:
    """The parameters [1, ...] of a choice without obj_path."""
    params = head.neutral().replace(identity=own_identity(loaded, head))
    if choice.params_path:
        params = row(read_params(choice.params_path, head), choice.index, where=choice.params_path)
    elif choice.data:
        params = dataset_params(choice.data, head, indices=(choice.index,))
    return add_expressions(params, choice.expressions, head)


def own_identity(loaded: LoadedGenerator, head: HeadModel) -> Tensor:
    """The shape [1, num_identity] that a checkpoint's heads have unless told otherwise: an avatar's, or the neutral."""
    if loaded.avatar is None or not loaded.avatar.identity.shape[1]:
        return head.neutral().identity
    return loaded.avatar.identity


def cpu_template(loaded: LoadedGenerator) -> HeadTemplate:
    """The network's template with its tensors on the CPU."""
    return HeadTemplate.from_state({name: value.cpu() for name, value in loaded.generator.template.state().items()})


def network_head_model(loaded: LoadedGenerator, *, path: str | None = None) -> HeadModel:
    """The head model that the network was trained with; UserError if it is another or missing."""
    head = load_head_model(loaded.head_model_name, path=path)
    if not loaded.info.head_model_hash:  # an imported network: its topology is all that is known of its head model
        if not torch.equal(head.template.faces, cpu_template(loaded).faces):
            raise UserError(f'head model {head.name}: its faces are not those that the network was trained with')
    elif head.content_hash != loaded.info.head_model_hash:
        raise UserError(
            f'head model {head.name}: its content ({head.content_hash[:12]}) is not that of the training data '
            f'({loaded.info.head_model_hash[:12]}); use the version that the network was trained with'
        )
    return head


def obj_head(path: str, loaded: LoadedGenerator, *, lms_path: str | None = None) -> HeadInput:
    """A mesh of the template's topology from an OBJ file (head frame, metres), with 68 landmarks."""
    template = cpu_template(loaded)
    vertices = head_vertices(path, template, model=loaded.head_model_name)[None]
    landmarks = template.landmarks(vertices) if lms_path is None else read_landmarks(lms_path)[None]
    return HeadInput(vertices, landmarks)


def read_landmarks(path: str | os.PathLike[str]) -> Tensor:
    """68 x 3 numbers (head frame, metres) from a .npy or a text file (the release's kpt2d) -> [68, 3]."""
    return read_numbers(path, what=f'{NUM_LANDMARKS} x 3', count=NUM_LANDMARKS * 3).view(NUM_LANDMARKS, 3)


def read_numbers(path: str | os.PathLike[str], *, what: str, count: int) -> Tensor:
    """`count` finite numbers from a .npy or a text file (between spaces, commas, brackets) -> float32 [count]."""
    try:
        if str(path).endswith('.npy'):
            with open(path, 'rb') as handle:
                values = np.lib.format.read_array(handle, allow_pickle=False)
        else:
            words = re.split(r'[\s,\[\]]+', Path(path).read_text(encoding='utf-8'))
            values = np.array([word for word in words if word], dtype=np.float64)
    except (ValueError, EOFError) as error:
        raise UserError(f'{path}: not a table of {what} numbers ({error})') from error
    if values.dtype.kind not in 'fiu' or values.size != count or not np.isfinite(values).all():
        found = 'others' if values.size == count else f'{values.size} of them'
        raise UserError(f'{path}: expected {what} finite numbers, got {found}')
    return torch.from_numpy(values.reshape(count).astype(np.float32))


def read_params(path: str | os.PathLike[str], head: HeadModel) -> HeadParams:
    """HeadParams [T, ...] from an .npz with one array a field; UserError if they are not of this head model."""
    try:
        if not zipfile.is_zipfile(path) and os.path.exists(path):
            raise zipfile.BadZipFile('it is no zip')
        with np.load(path, allow_pickle=False) as data:
            fields = [name for name in PARAM_FIELDS if name in data.files]  # the file of a track holds more
            params = HeadParams.from_dict({name: torch.from_numpy(np.asarray(data[name])) for name in fields})
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f'{path}: not an .npz file of HeadParams ({error})') from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: {error}; expected an .npz with one array [T, width] a field of HeadParams') from error
    if not len(params):
        raise UserError(f'{path}: holds no rows')
    check_widths(params, head, where=str(path))
    return params


def check_widths(params: HeadParams, head: HeadModel, *, where: str) -> None:
    """UserError unless identity and expression have the widths of the head model."""
    found = (params.identity.shape[1], params.expression.shape[1])
    expected = (head.num_identity, head.num_expression)
    if found != expected:
        raise UserError(
            f'{where}: {found[0]} identity and {found[1]} expression numbers, but head model {head.name} of the '
            f'network takes {expected[0]} and {expected[1]}'
        )


def identity_coefficients(source: str, head: HeadModel) -> Tensor:
    """Identity numbers [1, num_identity] from FILE.npz[:ROW] or DATASET[:ITEM]; row or item 0 by default."""
    path, index = source, 0
    stem, _, tail = source.rpartition(':')
    if stem and tail.isdigit():
        path, index = stem, int(tail)
    if path.endswith('.npz'):
        return row(read_params(path, head), index, where=path).identity
    return dataset_params(path, head, indices=(index,)).identity


def row(params: HeadParams, index: int, *, where: str) -> HeadParams:
    """One row as [1, ...]; UserError names the range."""
    if not 0 <= index < len(params):
        raise UserError(f'{where}: index {index} is out of range; it has {len(params)} (0 to {len(params) - 1})')
    return params[[index]]


def dataset_head(path: str, index: int, loaded: LoadedGenerator, *, head_model_path: str | None) -> HeadInput:
    """The head of one dataset item, from parameters or a stored mesh."""
    from training.dataset import HeadDataset

    given = network_head_model(loaded, path=head_model_path) if head_model_path else None
    dataset = HeadDataset(path, head_model=given)
    _check_range(index, len(dataset), path)
    head = dataset.head_input([index], device=torch.device('cpu'))
    expected = loaded.generator.template.num_vertices
    if head.vertices.shape[1] != expected:
        raise UserError(f'{path}: heads have {head.vertices.shape[1]} vertices, but the network takes {expected}')
    return head


def dataset_params(
    path: str, head: HeadModel, *, indices: tuple[int, ...] | None = None, most: int | None = None
) -> HeadParams:
    """Parameters of dataset items (None: all, but not more than `most`).

    UserError if the dataset has meshes only or belongs to another head model.
    """
    from training.dataset import HeadDataset

    dataset = HeadDataset(path, head_model=head)
    chosen = range(len(dataset) if most is None else min(most, len(dataset))) if indices is None else indices
    for index in chosen:
        _check_range(index, len(dataset), path)
    if dataset.head_params([]) is None:
        raise UserError(f'{path}: has no head parameters (meshes or images only), so it cannot drive an expression')
    if dataset.head_model_name != head.name:
        raise UserError(f'{path}: made for head model {dataset.head_model_name}, but the network takes {head.name}')
    params = dataset.head_params(list(chosen))
    assert params is not None
    check_widths(params, head, where=path)
    return params


def _check_range(index: int, count: int, path: str) -> None:
    if not 0 <= index < count:
        raise UserError(f'{path}: item {index} is out of range; it has {count} (0 to {count - 1})')


def add_expressions(params: HeadParams, expressions: tuple[str, ...], head: HeadModel) -> HeadParams:
    """Named expressions ('jawOpen' or 'jawOpen:0.5') added to the expression and pose of `params`."""
    fields = params.as_dict()
    for text in expressions:
        name, _, weight = text.partition(':')
        if name not in head.expression_names:
            known = ', '.join(head.expression_names) or 'it has no names'
            raise UserError(f'--expression {name!r}: unknown to head model {head.name}; known: {known}')
        try:
            share = float(weight) if weight else 1.0
        except ValueError:
            share = math.nan
        if not math.isfinite(share):
            raise UserError(f'--expression {text!r}: expected NAME or NAME:WEIGHT')
        unit = head.named_expression(name, share)
        fields = {key: value + unit.as_dict()[key].to(value) for key, value in fields.items()}
    return HeadParams(**fields)


def save_params(path: str | Path, params: HeadParams) -> None:
    """Write HeadParams as the .npz that `read_params` reads."""
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in params.as_dict().items()}
    with atomic_write(path) as handle:
        np.savez(handle, **arrays)
