"""Weight files that users bring: what each is, where it comes from, and how it is read without running anything."""

from __future__ import annotations

import dataclasses
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib import UserError

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What a message about a missing file has to say."""

    what: str
    file: str  # its usual name
    page: str  # where to get it
    licence: str
    sha256: str | None = None  # of the published file, where one is stated


DECA = WeightFile(
    what="DECA's encoder",
    file='deca_model.tar',
    page='https://github.com/yfeng95/DECA',
    licence='MPI, research only, and FLAME is under its own licence',
)
EMOCA = WeightFile(
    what="EMOCA's encoder",
    file='the checkpoint of EMOCA_v2_lr_mse_20 or EMOCA',
    page='https://github.com/radekd91/emoca',
    licence='MPI, research only, and FLAME is under its own licence',
)
SMIRK = WeightFile(
    what="SMIRK's encoder",
    file='SMIRK_em1.pt',
    page='https://github.com/georgeretsi/smirk',
    licence='MIT, and FLAME is under its own licence',
)
ARCFACE = WeightFile(
    what='an ArcFace network (IResNet of insightface)',
    file='backbone.pth or w600k_r50.onnx',
    page='https://github.com/deepinsight/insightface',
    licence='the published weights are for research only',
)
CLIP = WeightFile(
    what="CLIP's image encoder (ViT)",
    file='ViT-B-32.pt',
    page='https://github.com/openai/CLIP',
    licence='MIT',
    sha256='40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af',
)
DINO = WeightFile(
    what="DINO's or DINOv2's image encoder (ViT)",
    file='dino_vitbase16_pretrain.pth or dinov2_vitb14_pretrain.pth',
    page='https://github.com/facebookresearch/dinov2',
    licence='Apache 2.0',
)


def find_weights(path: str | os.PathLike[str], card: WeightFile, *, spec: str) -> Path:
    """The file at `path`; UserError saying what to get, where from, and where to put it."""
    source = Path(path)
    if str(path) and source.is_file():
        return source
    known = f', sha256 {card.sha256}' if card.sha256 else ''
    missing = f'{source}: no such file' if str(path) else 'no file given'
    raise UserError(
        f'{spec}: {missing}; needed is {card.what}: get {card.file} from {card.page} (licence: {card.licence}{known}) '
        f'and name it as {spec}:PATH'
    )


def read_tensors(path: Path, card: WeightFile) -> Mapping[str, Any]:
    """The (nested) mapping in a file of torch.save, or the weights of a TorchScript archive; nothing is executed.

    UserError: damaged, not a mapping, or holding more than tensors and plain values.
    """
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except RuntimeError as error:
        content = _script_weights(path)
        if content is None:
            raise UserError(f'{path}: damaged, or not a file of PyTorch; expected {card.file} ({card.page})') from error
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(
            f'{path}: damaged, or holds more than weights, which is not opened for safety; store the weights alone '
            "(torch.save(checkpoint['state_dict'], file) where you trust the file)"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f'{path}: holds {type(content).__name__}, expected the weights of {card.file} ({card.page})')
    return content


def _script_weights(path: Path) -> State | None:
    """The weights of a TorchScript archive, or None if the file is none; its code is never called."""
    try:
        with warnings.catch_warnings():
            # torch advises against TorchScript, but CLIP's files exist in no other form.
            warnings.simplefilter('ignore', DeprecationWarning)
            return dict(torch.jit.load(str(path), map_location='cpu').state_dict())
    except RuntimeError:
        return None


def take_prefix(state: Mapping[str, Any], prefix: str) -> State:
    """The float32 tensors whose names start with `prefix`, without it."""
    start = len(prefix)
    return {
        name[start:]: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if name.startswith(prefix) and isinstance(value, Tensor)
    }


def load_state(module: nn.Module, state: State, *, path: Path, card: WeightFile) -> None:
    """Fill a module, name by name; UserError names the first weight that is missing or of another shape."""
    own = module.state_dict()
    for name, value in own.items():
        if name.endswith('num_batches_tracked'):
            continue
        if name not in state:
            raise UserError(f'{path}: {name} is missing; expected {card.file} ({card.page})')
        if state[name].shape != value.shape:
            raise UserError(
                f'{path}: {name} has shape {list(state[name].shape)}, expected {list(value.shape)}; '
                f'expected {card.file} ({card.page})'
            )
    module.load_state_dict({name: state.get(name, value) for name, value in own.items()})
    module.eval().requires_grad_(False)


def first_shape(state: State, name: str, *, path: Path, card: WeightFile) -> list[int]:
    """Shape of a weight that tells the size of a network; UserError if it is not there."""
    if name not in state:
        raise UserError(f'{path}: {name} is missing; expected {card.file} ({card.page})')
    return list(state[name].shape)


def count_blocks(state: State, prefix: str) -> int:
    """How many numbered parts <prefix>0., <prefix>1., ... there are."""
    numbers = {name[len(prefix) :].split('.')[0] for name in state if name.startswith(prefix)}
    return len([number for number in numbers if number.isdigit()])
