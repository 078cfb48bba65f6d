"""The allocator of large CPU tensors that comes with the native ops, and what it counts.

PyTorch returns large temporaries to the system at once, and pays for their page faults again. Ours keeps freed memory
and reuses it, in huge pages; csrc/arena.h tells where blocks go and when memory is returned. It is installed when the
native CPU ops are loaded; tensors below 1 MiB, or all of them where it cannot be installed, stay with PyTorch's own.
`NEXT3D_ALLOCATOR` chooses:

    auto    ours where it can be had (default)
    system  PyTorch's own
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
from pathlib import Path

from dnnlib import UserError

MODES = ('auto', 'system')

_library: ctypes.CDLL | None = None
_reason = "PyTorch's allocator, because the native CPU ops are not loaded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
    """Bytes of tensors of at least 1 MiB, and of the memory kept for them; zeros where PyTorch's allocator serves."""

    live: int = 0
    resident: int = 0  # live and kept for reuse
    peak: int = 0  # of live, since the start or reset_peak()
    peak_resident: int = 0

    @property
    def cached(self) -> int:
        """Bytes kept for reuse."""
        return self.resident - self.live


def mode() -> str:
    """The value of NEXT3D_ALLOCATOR; UserError when it is none of MODES."""
    value = os.environ.get('NEXT3D_ALLOCATOR') or 'auto'
    if value not in MODES:
        raise UserError(f'NEXT3D_ALLOCATOR: expected one of {", ".join(MODES)}, got {value!r}')
    return value


def install(library: Path) -> None:
    """Serve large tensors from now on, unless NEXT3D_ALLOCATOR or the system forbids it; `library`: the CPU ops.

    Tensors that exist already stay valid. It stays installed until the process ends.
    """
    global _library, _reason
    if mode() == 'system':
        _reason = "PyTorch's allocator, as NEXT3D_ALLOCATOR demands"
        return
    loaded = ctypes.CDLL(str(library))
    loaded.next3d_allocator_install.restype = ctypes.c_char_p
    refusal = loaded.next3d_allocator_install()
    _library, _reason = loaded, f"PyTorch's allocator, because {refusal.decode()}" if refusal else ''


def active() -> bool:
    """Whether new large tensors come from this allocator."""
    return _library is not None and bool(_library.next3d_allocator_active())


def reason() -> str:
    """Which other allocator serves and why, in a few words; empty where this one is active."""
    return '' if active() else _reason or 'another allocator was installed since'


def stats() -> Stats:
    """What the allocator holds now, and its peaks."""
    values = (ctypes.c_int64 * 4)()
    if _library is not None:
        _library.next3d_allocator_stats(values)
    live, resident, peak, peak_resident = values
    return Stats(live=live, resident=resident, peak=peak, peak_resident=peak_resident)


def reset_peak() -> None:
    """Let both peaks start again from what is held now."""
    if _library is not None:
        _library.next3d_allocator_reset_peaks()
