"""Snapshots (networks, for use) and states (everything, for resuming): plain tensors and JSON, never classes.

A file is a dict of 'format', 'format_version', 'config' (TrainConfig as JSON), 'info' (JSON) and
tensors. `torch.load(weights_only=True)` reads it, so loading runs no code of the file. Both kinds
are whole or absent (dnnlib.files.atomic_write), and equal content gives equal bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, explain_os_error
from torch_utils.precision import Precision, choose_precision, lay_out
from training.avatar import Avatar
from training.config import TrainConfig, from_dict, to_dict
from training.generator import Generator
from training.head.model import HeadTemplate
from training.manifest import verify

SNAPSHOT_FORMAT = 'next3d-snapshot'
STATE_FORMAT = 'next3d-training-state'
FORMAT_VERSION = 1
Announce = Callable[[Path, str], None]  # path, sha256: called when the file is whole and about to appear
NETWORKS = ('G_ema', 'G', 'D')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """What a snapshot says about itself besides its config."""

    images_seen: int
    head_model: str  # name of the dataset's head model, and the hash of its data
    head_model_hash: str
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    render_resolution: int | None = None  # side of the volume rendering that was trained last; None: the config's
    framing: str = ''  # cameras.framing_of the training data; '' where it is neither, or an older file
    stylization: dict[str, Any] = dataclasses.field(default_factory=dict)  # how another network became this one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A snapshot's content."""

    config: TrainConfig
    info: Info
    template: HeadTemplate
    networks: Mapping[str, dict[str, Tensor]]  # G_ema, G, D: state dicts
    avatar: Avatar | None = None  # the one person whom the network was tuned to


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedGenerator:
    """A snapshot's G_ema, ready to use (eval mode, no gradients)."""

    generator: Generator
    config: TrainConfig
    head_model_name: str
    info: Info
    avatar: Avatar | None = None


def snapshot_name(images_seen: int) -> str:
    """network-snapshot-000042.pkl after 42,000 images."""
    return f'network-snapshot-{images_seen // 1000:06d}.pkl'


def state_name(images_seen: int) -> str:
    """training-state-000042000.pt after 42,000 images."""
    return f'training-state-{images_seen:09d}.pt'


def save_snapshot(path: str | os.PathLike[str], snapshot: Snapshot, *, announce: Announce | None = None) -> None:
    """Write a snapshot; UserError if the disk is full or the folder unwritable (an older file survives)."""
    assert set(snapshot.networks) == set(NETWORKS)
    info = json.dumps(dataclasses.asdict(snapshot.info))
    payload = {'template': snapshot.template.state(), **snapshot.networks}
    if snapshot.avatar is not None:
        payload['avatar'] = snapshot.avatar.state()
    _save(path, SNAPSHOT_FORMAT, config=snapshot.config, info=info, payload=payload, announce=announce)


def load_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """Read a snapshot to the CPU; UserError in one line for a missing, corrupt or foreign file."""
    content = _load(path, SNAPSHOT_FORMAT)
    try:
        return Snapshot(
            config=from_dict(TrainConfig, json.loads(content['config'])),
            info=Info(**json.loads(content['info'])),
            template=HeadTemplate.from_state(content['template']),
            networks={name: content[name] for name in NETWORKS},
            avatar=Avatar.from_state(content['avatar']) if 'avatar' in content else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f'{path}: not a usable snapshot of this version ({type(error).__name__}: {error})') from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleaseAssets:
    """Files that belong to a pickle of the public release; None: looked for inside it and next to it."""

    topology: str | None = None  # OBJ with uv coordinates
    eye_mask: str | None = None  # PNG over uv, white keeps


def load_generator(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = 'cpu',
    assets: ReleaseAssets | None = None,
    precision: Precision | None = None,
) -> LoadedGenerator:
    """The averaged generator of a snapshot, rebuilt from its own config and template, or of the public release's
    pickle (told apart by content), which `assets` are for. It runs in `precision` (None: fp32).
    UserError as load_snapshot.
    """
    if is_pickle(path):
        from training.legacy_files import read_release

        snapshot = read_release(path, assets=assets or ReleaseAssets(), only=('G_ema',))
    else:
        snapshot = load_snapshot(path)
        if assets is not None and (assets.topology or assets.eye_mask):
            raise UserError(f'{path}: a snapshot holds its topology; leave out --topology and --eye-mask')
    return open_generator(snapshot, where=str(path), device=device, precision=precision)


def open_generator(
    snapshot: Snapshot, *, where: str, device: torch.device | str = 'cpu', precision: Precision | None = None
) -> LoadedGenerator:
    """A snapshot's G_ema, rebuilt; `where` names the snapshot in a UserError about keys or shapes that do not fit."""
    generator = Generator(snapshot.config.generator, snapshot.template)
    load_state(generator, snapshot.networks['G_ema'], where=f'{where}: G_ema')
    generator.render_resolution = snapshot.info.render_resolution or generator.render_resolution
    generator = generator.eval().requires_grad_(False).to(device)
    generator.precision = precision or choose_precision('fp32', torch.device(device))
    lay_out(generator, generator.precision)
    avatar = snapshot.avatar
    if avatar is not None and avatar.ws.shape[1:] != (generator.num_ws, generator.config.w_dim):
        raise UserError(f'{where}: damaged: its avatar has a latent {list(avatar.ws.shape)} of another network')
    return LoadedGenerator(
        generator=generator,
        config=snapshot.config,
        head_model_name=snapshot.info.head_model,
        info=snapshot.info,
        avatar=avatar,
    )


def save_training_state(
    path: str | os.PathLike[str],
    *,
    config: TrainConfig,
    info: dict[str, Any],
    payload: dict[str, Any],
    announce: Announce | None = None,
) -> None:
    """Write everything that resuming needs; `info` is JSON-able, `payload` nests plain tensors and numbers."""
    _save(path, STATE_FORMAT, config=config, info=json.dumps(info), payload=payload, announce=announce)


def load_training_state(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(config as a dict, info, payload) of a state file; UserError as load_snapshot."""
    content = _load(path, STATE_FORMAT)
    try:
        config, info = json.loads(content.pop('config')), json.loads(content.pop('info'))
        if not isinstance(config, dict) or not isinstance(info, dict):
            raise ValueError('config and info must be objects')
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: not a usable state of this version ({type(error).__name__}: {error})') from error
    return config, info, content


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict as CPU tensors of their own; contiguous, so that equal states give equal files."""
    return {
        name: value.detach().to('cpu', copy=True, memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Strict load_state_dict; UserError names the first keys that do not fit."""
    own = module.state_dict()
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f'{where}: expected tensors by name; it was made by another program')
    missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    for problem, names in (('lacks', missing), ('has unknown', unknown), ('has other shapes for', shapes)):
        if names:
            more = f' and {len(names) - 3} more' if len(names) > 3 else ''
            raise UserError(f'{where}: {problem} {", ".join(names[:3])}{more}; was it made by another version?')
    module.load_state_dict(dict(state))


class _Writer:
    """A file handle that hashes, and remembers why writing failed, since torch.save reports every failure alike."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        if self.error is None:
            try:
                return self.handle.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        if self.error is None:
            self.handle.flush()


def _save(
    path: str | os.PathLike[str],
    kind: str,
    *,
    config: TrainConfig,
    info: str,
    payload: Mapping[str, Any],
    announce: Announce | None,
) -> None:
    content = {
        'format': kind,
        'format_version': FORMAT_VERSION,
        'config': json.dumps(to_dict(config)),
        'info': info,
        **payload,
    }
    with atomic_write(path) as handle:
        writer = _Writer(handle)
        torch.save(content, writer)  # type: ignore[arg-type]
        if writer.error is not None:
            raise writer.error
        if announce is not None:
            announce(Path(path), writer.digest.hexdigest())


def _load(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    target = Path(path)
    try:
        _check_zip(target)
        verify(target)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # a foreign file may make torch talk about it
            content = torch.load(target, map_location='cpu', weights_only=True)
    except OSError as error:
        raise explain_os_error(error, target) from error
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f'{target}: needs more memory than there is; free some or use another machine') from error
    except Exception as error:  # a crafted file may fail anywhere in the unpickler
        raise UserError(
            f'{target}: not a file of this project, or it holds more than plain tensors; refused'
        ) from error
    found = content.get('format') if isinstance(content, dict) else None
    if found != kind:
        raise UserError(f'{target}: expected a {kind} file, got {found or "something else"}')
    version = content.get('format_version')
    if version != FORMAT_VERSION:
        raise UserError(f'{target}: format version {version}, but this program reads {FORMAT_VERSION}; update it')
    del content['format'], content['format_version']
    if not all(isinstance(name, str) for name in content):
        raise UserError(f'{target}: not a file of this project (a key is not a name); refused')
    return content


def is_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a bare pickle (EG3D's and the public release's), not one of ours; UserError if unreadable."""
    try:
        with open(path, 'rb') as handle:
            return handle.read(1) == b'\x80'  # the opcode of protocol 2 and later
    except OSError as error:
        raise explain_os_error(error, path) from error


def _check_zip(path: Path) -> None:
    """UserError unless the file is a zip whose checksums hold (torch itself does not check them)."""
    with open(path, 'rb') as handle:
        magic = handle.read(4)
    if magic[:2] != b'PK':
        raise UserError(f'{path}: not a snapshot or state of this project, nor a pickle of EG3D or Next3D')
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
            if packed:  # ours never are, and a small file could unpack to any size
                raise UserError(f'{path}: holds compressed {packed[0]}, so it is not a file of this project; refused')
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, struct.error) as error:
        raise UserError(f'{path}: damaged or cut short ({error}); use another snapshot') from error
    if damaged is not None:
        raise UserError(f'{path}: damaged at {damaged} (checksum); use another snapshot')
