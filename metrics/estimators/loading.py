"""Estimators by name, for command lines and results: 'embedded', or a kind and a path, 'deca:/path/deca_model.tar'.

Kinds: head parameters 'embedded', 'deca', 'emoca', 'smirk'; identity 'embedded', 'arcface'; image features
'embedded', 'random', 'inception', 'clip', 'dino'. What needs more than this package (a face detector, a fit) is
handed over by the caller in `others`; applications/estimators has such things. Metric names write 'synth' for
'embedded' (fid_synth, aed_synth), and so the loaders know both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from dnnlib import UserError
from metrics.estimators.arcface import ArcFace
from metrics.estimators.base import HeadEstimator, IdentityEmbedder
from metrics.estimators.crops import Locator
from metrics.estimators.embedded import EmbeddedFeatures, EmbeddedHeadEstimator, EmbeddedIdentity
from metrics.estimators.embedded_network import DEFAULT_PATH
from metrics.estimators.flame_trackers import TRACKERS, FlameTracker
from metrics.estimators.inception import load_inception
from metrics.estimators.random_features import RandomFeatures
from metrics.estimators.vit import TransformerFeatures
from metrics.features import FeatureExtractor

EMBEDDED = ('embedded', 'synth')


def load_head_estimator(
    spec: str,
    *,
    locator: Locator | None = None,
    others: Mapping[str, Callable[[str], HeadEstimator]] | None = None,
) -> HeadEstimator:
    """The estimator of head parameters called `spec`, on the CPU.

    `locator` finds the face for those that crop; `others` maps further kinds to functions of the text behind the
    colon. UserError, one line, for an unknown kind and for a missing or damaged file.
    """
    kind, path = _split(spec)
    if others and kind in others:
        return others[kind](path)
    if kind in EMBEDDED:
        return EmbeddedHeadEstimator(path or DEFAULT_PATH)
    if kind in TRACKERS:
        return FlameTracker(kind, path, locator=locator)
    raise _unknown('head estimator', spec, ['embedded', *(f'{name}:PATH' for name in TRACKERS), *(others or {})])


def load_identity_embedder(
    spec: str,
    *,
    locator: Locator | None = None,
    others: Mapping[str, Callable[[str], IdentityEmbedder]] | None = None,
) -> IdentityEmbedder:
    """The identity embedder called `spec`, on the CPU; arguments and errors as in `load_head_estimator`."""
    kind, path = _split(spec)
    if others and kind in others:
        return others[kind](path)
    if kind in EMBEDDED:
        return EmbeddedIdentity(path or DEFAULT_PATH)
    if kind == 'arcface':
        return ArcFace(path, locator=locator)
    raise _unknown('identity embedder', spec, ['embedded', 'arcface:PATH', *(others or {})])


def load_features(
    spec: str,
    *,
    sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    others: Mapping[str, Callable[[str], FeatureExtractor]] | None = None,
) -> FeatureExtractor:
    """The image features called `spec`, on the CPU; errors as in `load_head_estimator`.

    'inception' alone downloads the official file once; 'inception:PATH' or 'inception:URL' reads another place.
    `sha256` is what that file must have (None: the published one), `cache_dir` where it is kept.
    """
    kind, path = _split(spec)
    if others and kind in others:
        return others[kind](path)
    if kind in EMBEDDED:
        return EmbeddedFeatures(path or DEFAULT_PATH)
    if kind == 'random':
        return RandomFeatures()
    if kind == 'inception':
        return load_inception(path or None, sha256=sha256, cache_dir=cache_dir)
    if kind in ('clip', 'dino'):
        return TransformerFeatures(kind, path)
    known = ['embedded', 'random', 'inception', 'inception:PATH', 'clip:PATH', 'dino:PATH', *(others or {})]
    raise _unknown('image features', spec, known)


def _split(spec: str) -> tuple[str, str]:
    kind, _, path = spec.partition(':')
    return kind, path


def _unknown(what: str, spec: str, known: list[str]) -> UserError:
    return UserError(f'{what} {spec!r}: unknown; known: {", ".join(known)}')
