"""Config: presets round-trip, unknown keys and wrong types are named."""

from __future__ import annotations

import dataclasses

import pytest

from training import config


@pytest.mark.parametrize('name', config.PRESETS)
def test_presets_survive_json(name: str) -> None:
    original = config.preset(name)
    assert config.from_dict(config.TrainConfig, config.to_dict(original)) == original


@pytest.mark.parametrize('name', config.PRESETS)
def test_generator_and_discriminator_agree_on_the_image(name: str) -> None:
    train = config.preset(name)
    assert train.generator.image_resolution == train.discriminator.image_resolution


def test_overrides_skip_none() -> None:
    changed = config.preset('debug', {'L.r1_gamma': 7, 'batch': None, 'seed': 3})
    assert changed.loss.r1_gamma == 7.0
    assert changed.seed == 3
    assert changed.batch == config.preset('debug').batch


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'bacth': 4}, 'unknown key'),
        ({'generator': {'z_dimm': 4}}, r'generator\.: unknown key'),
        ({'batch': 'four'}, 'batch: expected int'),
        ({'batch': True}, 'batch: expected int'),
        ({'generator': {'plane_layout': 'other'}}, 'plane_layout: expected one of consistent, release'),
        ({'generator': 3}, 'generator: expected an object'),
    ],
)
def test_bad_values_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.from_dict(config.TrainConfig, change)


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match='ffhq512'):
        config.preset('ffhq1024')


def test_every_field_has_a_reader() -> None:
    """A config field that no other module names is an option without effect."""
    from pathlib import Path

    root = Path(config.__file__).resolve().parent.parent
    files = [
        *root.glob('*.py'),
        *(path for folder in ('training', 'torch_utils') for path in (root / folder).rglob('*.py')),
    ]
    text = '\n'.join(path.read_text() for path in files if path.name != 'config.py')
    unread = [
        f'{cls.__name__}.{field.name}'
        for cls in (config.GeneratorConfig, config.DiscriminatorConfig, config.LossConfig, config.TrainConfig)
        for field in dataclasses.fields(cls)
        if f'.{field.name}' not in text
    ]
    assert not unread, unread
