"""Identity and expression bases, each component even or odd under left/right mirroring.

A basis built of even and odd components makes mirroring exact: flip the sign of the odd coefficients.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tools.headbake.source import Array, BaseMesh, IntArray, load_targets
from tools.headbake.template import Template

NUM_EVEN, NUM_ODD = 52, 12
NUM_SAMPLES = 3000
LOCAL_STD = 0.27  # of the local targets' weights
EXPRESSION_STD = 0.25  # standard deviation of a target's weight for unit normal coefficients
EYE_MIDPOINT = np.array([0.0, 0.026, 0.026])
MIRROR_SIGN = np.array([-1.0, 1.0, 1.0])
LOCAL_FOLDERS = ('cheek', 'chin', 'ears', 'eyebrows', 'eyes', 'forehead', 'head', 'mouth', 'nose', 'neck', 'asym')
# Targets that move the whole head rather than shape it, or that belong to the body.
SKIPPED = ('head-trans', 'neck-trans', 'head-angle', 'asymm-', 'measure-', 'neck-scale-depth', 'head-age')
AGES = (('baby', 0.0), ('child', 0.1875), ('young', 0.5), ('old', 1.0))
RACES = ('african', 'asian', 'caucasian')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Basis:
    """Components [K, R, 3] scaled to one standard deviation, and their parity (+1 even, -1 odd) [K]."""

    components: Array
    parity: IntArray


def _hats(value: float, anchors: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """Linear interpolation weights of a value between named anchors."""
    positions = np.array([position for _, position in anchors])
    weights = {}
    for i, (name, _) in enumerate(anchors):
        weight = float(np.interp(value, positions, np.eye(len(anchors))[i]))
        if weight > 0:
            weights[name] = weight
    return weights


def _macro_weights(rng: np.random.Generator) -> dict[str, float]:
    """Random weights of the macro targets: age, gender, ancestry, muscle, weight."""
    age = rng.uniform(0.5, 0.95) if rng.random() < 0.85 else rng.uniform(0.25, 0.5)
    gender = rng.beta(0.6, 0.6)
    race = rng.dirichlet([0.45, 0.45, 0.45])
    muscle = float(np.clip(rng.normal(0.5, 0.2), 0, 1))
    mass = float(np.clip(rng.normal(0.5, 0.22), 0, 1))
    ages = _hats(age, AGES)
    genders = {'female': 1 - gender, 'male': gender}
    muscles = _hats(muscle, (('minmuscle', 0.0), ('averagemuscle', 0.5), ('maxmuscle', 1.0)))
    masses = _hats(mass, (('minweight', 0.0), ('averageweight', 0.5), ('maxweight', 1.0)))
    weights = {}
    for age_name, wa in ages.items():
        for sex, wg in genders.items():
            for name, wr in zip(RACES, race, strict=True):
                weights[f'{name}-{sex}-{age_name}'] = wa * wg * wr
            for muscle_name, wm in muscles.items():
                for mass_name, ww in masses.items():
                    weights[f'universal-{sex}-{age_name}-{muscle_name}-{mass_name}'] = wa * wg * wm * ww
    return weights


def _local_weights(names: list[str], rng: np.random.Generator) -> dict[str, float]:
    """Random weights of the local targets; left and right agree but for a little, opposites exclude each other."""
    weights: dict[str, float] = {}
    axes: dict[str, list[str]] = {}
    for name in names:
        stem, _, pole = name.rpartition('-')
        axes.setdefault(stem, []).append(name)
    shared: dict[str, float] = {}
    choice: dict[str, int] = {}
    for stem, members in sorted(axes.items()):
        if stem.startswith('asym'):
            value = rng.normal(0, 0.2)
        elif stem[:2] in ('l-', 'r-'):
            value = shared.setdefault(stem[2:], rng.normal(0, LOCAL_STD)) + rng.normal(0, 0.05)
        elif stem.startswith(('head', 'forehead', 'chin')):
            value = rng.normal(0, 0.17)
        else:
            value = rng.normal(0, LOCAL_STD)
        value = float(np.clip(value, -0.9, 0.9))
        if len(members) == 2:
            weights[members[0] if value < 0 else members[1]] = abs(value)
        else:  # one-sided targets and shape families (round, square, ...): one member at a time
            pick = choice.setdefault(stem.removeprefix('l-').removeprefix('r-'), int(rng.integers(len(members))))
            weights[members[pick]] = abs(value)
    return weights


def _align(rows: Array, reference: Array, template: Template) -> Array:
    """Rotate onto the reference (skull and face only) and put the midpoint of the eyes where it belongs."""
    use = reference[: template.num_skin, 1] > -0.05
    a = rows[: template.num_skin][use]
    b = reference[: template.num_skin][use]
    u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
    rotation = (vt.T @ np.diag([1, 1, np.linalg.det(vt.T @ u.T)]) @ u.T).T
    turned = rows @ rotation
    return turned - turned[-2:].mean(axis=0) + EYE_MIDPOINT


def sample_identities(base: BaseMesh, template: Template, *, seed: int = 0, count: int = NUM_SAMPLES) -> Array:
    """Random heads [count, R, 3] in the head frame (metres), aligned to their mean."""
    rng = np.random.default_rng(seed)
    folder = base.root / 'mpfb2/targets'
    total = len(base.vertices)
    macro = {n: template.rows(t) for n, t in load_targets(folder / 'macrodetails', total).items()}
    local: dict[str, Array] = {}
    for name in LOCAL_FOLDERS:
        found = load_targets(folder / name, total)
        local |= {n: template.rows(t) for n, t in found.items() if not n.startswith(SKIPPED)}
    local = {n: t for n, t in local.items() if np.abs(t).max() > 0}
    names = sorted(local)
    stack = np.stack([macro[n] for n in sorted(macro)] + [local[n] for n in names]).reshape(
        -1, 3 * len(template.mirror)
    )
    order = {n: i for i, n in enumerate(sorted(macro) + names)}
    weights = np.zeros((count, len(order)))
    for row in weights:
        for name, value in (_macro_weights(rng) | _local_weights(names, rng)).items():
            if name in order:
                row[order[name]] = value
    heads = (template.rows(base.vertices).reshape(1, -1) + weights @ stack).reshape(count, -1, 3) * 0.1
    reference = heads.mean(axis=0)
    reference = reference - reference[-2:].mean(axis=0) + EYE_MIDPOINT
    for _ in range(2):
        heads = np.stack([_align(head, reference, template) for head in heads])
        reference = heads.mean(axis=0)
        reference = 0.5 * (reference + reference[template.mirror] * MIRROR_SIGN)
    return heads


def _row_metric(mean: Array, template: Template) -> Array:
    """Square roots of the rows' weights in the identity PCA: area, the face doubled, parts and joints hardly."""
    weight = np.zeros(len(mean))
    corners = mean[template.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    for k in range(3):
        np.add.at(weight, template.faces[:, k], area / 3)
    face = np.exp(-(((mean[:, 2] - 0.03).clip(max=0) / 0.05) ** 2))
    weight *= 0.3 + 2.0 * face
    weight[template.num_template :] = weight[: template.num_skin].mean() * 0.1
    return np.sqrt(weight / weight.sum())


def identity_basis(heads: Array, template: Template) -> tuple[Array, Basis]:
    """Mean head [R, 3] (exactly symmetric) and the even and odd principal components."""
    mirrored = heads[:, template.mirror] * MIRROR_SIGN
    even, odd = 0.5 * (heads + mirrored), 0.5 * (heads - mirrored)
    mean = even.mean(axis=0)
    metric = _row_metric(mean, template)[:, None]
    components, parity = [], []
    for data, count, sign in ((even - mean, NUM_EVEN, 1), (odd, NUM_ODD, -1)):
        flat = (data * metric).reshape(len(data), -1)
        values, vectors = np.linalg.eigh(flat @ flat.T / len(data))
        scores = vectors[:, ::-1][:, :count] * np.sqrt(len(data))  # unit variance over the samples
        shown = values[::-1][:count].sum() / values.sum()
        print(f'identity, {"even" if sign > 0 else "odd"}: {count} components hold {100 * shown:.1f} % of the variance')
        for k in range(count):
            shape = np.tensordot(scores[:, k], data, axes=1) / len(data)
            shape *= np.sign(shape.reshape(-1)[np.abs(shape).argmax()])
            components.append(shape)
            parity.append(sign)
    return mean, Basis(components=np.stack(components), parity=np.array(parity))


def mirrored_name(name: str) -> str:
    """'mouthSmileLeft' -> 'mouthSmileRight' and back; others unchanged."""
    if name.endswith('Left'):
        return name[:-4] + 'Right'
    return name[:-5] + 'Left' if name.endswith('Right') else name


def expression_targets(base: BaseMesh, template: Template) -> tuple[tuple[str, ...], Array]:
    """The 52 named targets [52, R, 3] in metres; left and right made exact mirror images, eyeballs left alone."""
    folder: Path = base.root / 'faceunits01/targets/faceunits'
    raw = {n: template.rows(t) * 0.1 for n, t in load_targets(folder, len(base.vertices)).items()}
    names = tuple(sorted(raw))
    skin, eyes = template.num_skin, template.num_template
    for offsets in raw.values():
        offsets[skin:eyes] = 0
        offsets[-5:] = 0
    targets = [0.5 * (raw[n] + raw[mirrored_name(n)][template.mirror] * MIRROR_SIGN) for n in names]
    return names, np.stack(targets)


def expression_basis(names: tuple[str, ...], targets: Array, template: Template) -> tuple[Array, IntArray]:
    """Orthogonal mixtures of the targets: transform [52, 52] (component k = sum_i T[k, i] target i) and parity.

    Unit normal coefficients give every target's weight the standard deviation EXPRESSION_STD; the transform
    is EXPRESSION_STD times an orthogonal matrix, so it inverts exactly.
    """
    combined, sign = [], []
    for i, name in enumerate(names):
        j = names.index(mirrored_name(name))
        row = np.zeros(len(names))
        if i == j:
            row[i] = 1
        else:
            row[min(i, j)], row[max(i, j)] = np.sqrt(0.5), np.sqrt(0.5) * (1 if i < j else -1)
        combined.append(row)
        sign.append(1 if i <= j else -1)
    rotation, parity = np.stack(combined), np.array(sign)
    metric = np.ones(targets.shape[1])
    metric[template.num_template :] = 0.3
    flat = (targets * metric[None, :, None]).reshape(len(names), -1)
    blocks, signs = [], []
    for s in (1, -1):
        rows = rotation[parity == s]
        _, vectors = np.linalg.eigh((rows @ flat) @ (rows @ flat).T)
        mixed = vectors.T[::-1] @ rows
        mixed *= np.sign(mixed[np.arange(len(mixed)), np.abs(mixed).argmax(axis=1)])[:, None]
        blocks.append(mixed * EXPRESSION_STD)
        signs.append(np.full(len(mixed), s))
    return np.concatenate(blocks), np.concatenate(signs)
