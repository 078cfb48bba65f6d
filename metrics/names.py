"""Metric names: the grammar, and the one place that decides under which name a result is reported.

    name = family [_estimator] [counts] [_full]

    fid50k_full, fid3d50k_full, kid50k_full   N generated against all real images (without _full: against N)
    pr50k3_full         precision and recall of N generated, k nearest neighbours (pr500nn3_full where N is no thousand)
    is50k               N generated
    ppl50k, ppl_z50k    N pairs of neighbouring latents
    aed500x20, ...      identities x images of each; without counts the paper's
    id1000, ...         identities (image pairs)
    flicker100x16       clips x frames

The estimator is a word that `load_features`, `load_head_estimator` or `load_identity_embedder` knows: fid_synth2k_full,
aed_synth50x4. Without it the protocol's is used: the official one unless an option names another.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from dnnlib import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What all metrics of one family share."""

    kind: str | None  # of estimator: 'features', 'classes', 'head', 'identity'; None: needs none
    counts: str  # 'images', 'neighbours', 'identities', 'pairs', 'clips'
    default: tuple[int, ...] = ()  # counts of a name without them; (): it must have them
    full: bool = False  # compared with real images, _full: with all of them
    value: str = ''  # the distance or statistic, recorded in the result
    direction: str = 'lower'  # which is better
    truncation_psi: float | None = None  # what the definition prescribes; None: the protocol's


def _animation(value: str, **options: Any) -> Family:
    return Family(kind='head', counts='identities', default=(500, 20), value=value, **options)


def _identity(value: str, **options: Any) -> Family:
    return Family(kind='identity', counts='pairs', default=(1000,), value=value, direction='higher', **options)


_FRECHET = Family(kind='features', counts='images', full=True, value='squared Frechet distance')
FAMILIES = {
    'fid': _FRECHET,
    'fd': _FRECHET,  # fd_random: the same over random filters, which were never meant to resemble Inception
    'fid3d': _FRECHET,
    'kid': Family(kind='features', counts='images', full=True, value='squared MMD, cubic kernel'),
    'pr': Family(
        kind='features', counts='neighbours', full=True, value='share inside the manifold', direction='higher'
    ),
    'is': Family(kind='classes', counts='images', value='exp of mean KL, 10 splits', direction='higher'),
    'ppl': Family(kind='features', counts='images', value='squared distance of unit features / step^2, w'),
    'ppl_z': Family(kind='features', counts='images', value='squared distance of unit features / step^2, z'),
    'aed': _animation('mean |difference| per coefficient'),
    'aed_l1': _animation('sum of |difference|'),
    'aed_l2': _animation('norm of the difference'),
    'aed_rmse': _animation('root mean square difference'),
    'aed_agora': _animation('root mean square difference', truncation_psi=0.7),
    'apd': _animation('mean |difference| of the rotation vector, radians'),
    'apd_l1': _animation('sum of |difference| of the rotation vector, radians'),
    'apd_l2': _animation('norm of the difference of rotation vectors, radians'),
    'apd_rmse': _animation('root mean square difference of the rotation vector, radians'),
    'apd_no_roll': _animation('mean |difference| of yaw and pitch, radians'),
    'apd_jaw': _animation('mean |difference| of rotation and jaw vectors, radians'),
    'jaw': _animation('mean |difference| of the jaw vector, radians'),
    'gaze': _animation('mean angle between gaze directions, degrees'),
    'expression_response': _animation('slope of re-estimated on driving coefficients', direction='one'),
    'id': _identity('mean cosine; other camera, other head parameters'),
    'id_own_shape': _identity('mean cosine; other camera and expression, the same face shape'),
    'id_agora': _identity('root of the mean cosine', truncation_psi=0.7),
    'id_crossview': _identity('mean cosine; other camera, the same head parameters'),
    'flicker': Family(kind=None, counts='clips', default=(100, 16), value='second over first differences in time'),
}
# Estimators whose results carry a family's bare name. Everything else stands in the name.
OFFICIAL = {
    'features': ('inception-2015-12-05',),
    'classes': ('inception-2015-12-05',),
    'head': ('deca',),
    'identity': ('arcface',),
}
# Words for estimators whose own names say less; others are called by their names.
WORDS = {
    'inception-2015-12-05': 'inception',
    'random-conv-1': 'random',
    'embedded-features': 'synth',
    'embedded-head': 'synth',
    'embedded-identity': 'synth',
}
NEVER_OFFICIAL = ('pr', 'ppl', 'ppl_z', 'fd')  # published ones use VGG features, which are not here

_COUNTS = {
    'images': r'(?P<first>[1-9]\d*)(?P<thousand>k?)',
    'neighbours': r'(?P<first>[1-9]\d*)(?:(?P<thousand>k)|nn)(?P<second>[1-9]\d*)',
    'identities': r'(?P<first>[1-9]\d*)x(?P<second>[1-9]\d*)',
    'pairs': r'(?P<first>[1-9]\d*)(?P<thousand>k?)',
    'clips': r'(?P<first>[1-9]\d*)x(?P<second>[1-9]\d*)',
}
_SHAPES = {
    'images': '<N>[k]',
    'neighbours': '<N>k<neighbours> or <N>nn<neighbours>',
    'identities': '[<identities>x<images>]',
    'pairs': '[<identities>]',
    'clips': '[<clips>x<frames>]',
}
_LEAST = {'images': (2,), 'neighbours': (2, 1), 'identities': (1, 1), 'pairs': (1,), 'clips': (1, 3)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A parsed metric name."""

    name: str
    family: str
    estimator: str | None  # named in it; None: the protocol's
    counts: tuple[int, ...]
    full: bool  # against all real images

    @property
    def rules(self) -> Family:
        return FAMILIES[self.family]

    @property
    def suffix(self) -> str:
        """Counts as a name has them: nothing where they are the family's own."""
        if self.counts == self.rules.default:
            return ''
        first = self.counts[0]
        thousands = first % 1000 == 0 and self.rules.counts in ('images', 'neighbours', 'pairs')
        text = f'{first // 1000}k' if thousands else str(first)
        if self.rules.counts == 'neighbours':
            return f'{text}{"" if thousands else "nn"}{self.counts[1]}'
        return text + ''.join(f'x{count}' for count in self.counts[1:])


def parse_metric(name: str) -> Metric:
    """'aed_synth50x4' -> Metric; UserError names the grammar."""
    family = next((family for family in sorted(FAMILIES, key=len, reverse=True) if _match(family, name)), None)
    match = _match(family, name) if family else None
    if family is None or match is None:
        raise UserError(_explain(name))
    rules, found = FAMILIES[family], match.groupdict()
    counts = rules.default
    if found['first']:
        first = int(found['first']) * (1000 if found.get('thousand') else 1)
        counts = (first, int(found['second'])) if found.get('second') else (first,)
    if any(count < least for count, least in zip(counts, _LEAST[rules.counts], strict=True)):
        least = ' x '.join(str(number) for number in _LEAST[rules.counts])
        raise UserError(f'metric {name!r}: needs at least {least} {rules.counts if len(counts) == 1 else ""}'.rstrip())
    return Metric(name=name, family=family, estimator=found['tag'], counts=counts, full=bool(found.get('full')))


def _match(family: str, name: str) -> re.Match[str] | None:
    rules = FAMILIES[family]
    counts = _COUNTS[rules.counts] if not rules.default else f'(?:{_COUNTS[rules.counts]})?'
    full = '(?P<full>_full)?' if rules.full else ''
    tag = '_(?P<tag>random)' if family == 'fd' else '(?:_(?P<tag>[a-z]+))?'
    return re.fullmatch(f'{family}{tag}{counts}{full}', name)


def _explain(name: str) -> str:
    known = [family for family in FAMILIES if name.startswith(family)]
    if known:
        rules = FAMILIES[max(known, key=len)]
        end = '[_full]' if rules.full else ''
        return f'metric {name!r}: unknown; expected {max(known, key=len)}[_<estimator>]{_SHAPES[rules.counts]}{end}'
    return f'metric {name!r}: unknown; expected one of {", ".join(FAMILIES)} with counts, like fid50k_full or aed50x4'


def reported_name(metric: Metric, estimator: Any | None) -> str:
    """The name that a result carries: the family's own only if `estimator` is the one that defines it.

    A stand-in's word or name stands in it: fid_synth2k_full, aed_smirk, fid_inception-5d40a1f2_2k_full.
    """
    label = ''
    if estimator is not None and not is_official(metric, estimator):
        own = WORDS.get(estimator.name) or re.sub(r'[^a-z0-9-]+', '-', estimator.name.lower())
        label = f'_{metric.estimator or own}'
        label += '_' if metric.suffix and ('-' in label or label[-1].isdigit()) else ''  # a hash may end in a letter
    return f'{metric.family}{label}{metric.suffix}{"_full" if metric.full else ""}'


def is_official(metric: Metric, estimator: Any | None) -> bool:
    """Whether a result may stand beside published numbers of its family."""
    if estimator is None:
        return True
    return metric.family not in NEVER_OFFICIAL and estimator.name in OFFICIAL[metric.rules.kind or '']
