"""Head models: parameters in, mesh and landmarks out. `load_head_model` is the entry."""

from __future__ import annotations

from dnnlib import UserError
from training.head.model import HeadInput, HeadModel, HeadParams, HeadTemplate


def load_head_model(name: str, *, path: str | None = None) -> HeadModel:
    """The head model called `name`: 'makehuman' (embedded), or 'flame...' read from the user's
    files at `path` (the model file, or its folder; see FlameHead).

    Raises UserError for an unknown name, or for FLAME without a path.
    """
    if name == 'makehuman':
        from training.head.makehuman import MakeHumanHead

        return MakeHumanHead(path)
    if name.startswith('flame'):
        if path is None:
            raise UserError(
                f'head model {name!r}: FLAME is not shipped; give your own generic_model.pkl by --head-model'
            )
        from training.head.flame import FlameHead

        return FlameHead(path, name=name)
    raise UserError(f"head model {name!r}: unknown; use 'makehuman' or 'flame' with a path")


__all__ = ['HeadInput', 'HeadModel', 'HeadParams', 'HeadTemplate', 'load_head_model']
