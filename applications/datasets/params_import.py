"""Rows of an .npz of head parameters -> heads of a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from applications.datasets.importing import Finished, Loaded
from applications.datasets.parameter_files import read_parameters
from applications.heads import check_widths
from dnnlib import UserError
from training.head.model import PARAM_FIELDS, HeadModel, HeadParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamsTable:
    """A HeadReader of rows of HeadParams that are in memory."""

    rows: dict[str, int]
    arrays: dict[str, np.ndarray]

    def __call__(self, name: str, side: int) -> dict[str, np.ndarray]:
        """The fields of HeadParams of one image."""
        if name not in self.rows:
            raise UserError(f'{name}: no row in the parameter file')
        row = {field: self.arrays[field][self.rows[name]] for field in PARAM_FIELDS}
        if not all(np.isfinite(value).all() for value in row.values()):
            raise UserError(f'{name}: head parameters are not finite (NaN or infinity)')
        return row


def read_table(path: str, model: HeadModel, *, names: Sequence[str]) -> ParamsTable:
    """An .npz of HeadParams, by its array `names` or, with as many rows as images, in the images' order."""
    if not path.endswith('.npz'):
        raise UserError(f'{path}: expected an .npz of head parameters')
    arrays = read_parameters(path)
    missing = [field for field in PARAM_FIELDS if field not in arrays]
    if missing:
        raise UserError(f'{path}: lacks {", ".join(missing)}; expected an .npz with one array [N, width] a field')
    listed = _listed_names(path) or list(names)
    fields = {field: arrays[field].astype(np.float32) for field in PARAM_FIELDS}
    try:
        params = HeadParams.from_dict({field: torch.from_numpy(value) for field, value in fields.items()})
    except ValueError as error:
        raise UserError(f'{path}: {error}; expected an .npz of HeadParams') from error
    check_widths(params, model, where=path)
    if len(listed) != len(params):
        raise UserError(
            f'{path}: {len(params)} rows for {len(listed)} images; add an array "names" to say whose they are'
        )
    return ParamsTable(rows={name: row for row, name in enumerate(listed)}, arrays=fields)


def _listed_names(path: str) -> list[str]:
    with np.load(path, allow_pickle=False) as data:
        names = data['names'].tolist() if 'names' in data else []
    return [str(name.decode() if isinstance(name, bytes) else name) for name in names]


class ParamsFinisher:
    """Head parameters as they are."""

    columns: tuple[str, ...] = ()

    def __call__(self, items: list[Loaded]) -> list[Finished]:
        """One Finished for each item."""
        return [
            Finished(
                label=torch.from_numpy(np.asarray(item.label)),
                head=HeadParams.from_dict({key: torch.from_numpy(value)[None] for key, value in item.head.items()}),
            )
            for item in items
        ]

    def notes(self) -> list[str]:
        """Nothing was changed, so there is nothing to say."""
        return []
