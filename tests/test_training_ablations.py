"""Every ablation and training option: it learns, resumes bit by bit, survives a snapshot, and runs from train.py."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_dataset import SheetHead, make_dataset
from cases_training import ROOT, tiny_dataset, tiny_trainer
from click.testing import CliRunner
from torch import nn

import train
from dnnlib import UserError
from torch_utils.rng import stream
from training import loop
from training.checkpoint import Info, Snapshot, load_generator, save_snapshot
from training.conditions import Conditions, ConditionSource, label_width
from training.config import LossConfig, TrainConfig, preset
from training.discriminator import DualDiscriminator
from training.head import load_head_model
from training.loop import warm_start
from training.loss import Schedule
from training.trainer import Trainer

# In pairs that share no code, which halves the time.
RECIPES: dict[str, dict[str, Any]] = {
    'without static planes, fixed augmentation': {
        'G__static_planes': 'none', 'augment': 'fixed', 'augment_p': 0.5, 'augment_camera': True,
    },
    'mouth from static planes, growing raw images': {
        'G__mouth_source': 'static', 'L__render_resolution_initial': 4, 'L__render_fade_kimg': 0.016,
    },
    'mouth from the texture, frozen D': {'G__mouth_source': 'texture', 'freeze_d': 2},
    'expression told to D, not shown': {'D__template': 'none', 'D__label_dim': 27, 'D__label_noise': 1.0},
}  # fmt: skip


def _awake(trainer: Trainer) -> dict[int, float]:
    """Sums of gradient sizes by parameter, filled by the steps to come; zeros at the start hide nothing."""
    seen: dict[int, float] = {}
    for player in (trainer.g, trainer.d):
        for name, parameter in player.network.named_parameters():
            if name.endswith('noise_strength') or (name.endswith('.weight') and not parameter.any()):
                nn.init.constant_(parameter, 0.1)

        def remember(*_: Any, network: nn.Module = player.network) -> None:
            for parameter in network.parameters():
                if parameter.grad is not None:
                    seen[id(parameter)] = seen.get(id(parameter), 0.0) + float(parameter.grad.abs().sum())

        player.optimizer.register_step_pre_hook(remember)
    return seen


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize('recipe', RECIPES)
def test_learns_resumes_and_survives_a_snapshot(recipe: str, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, **RECIPES[recipe])
    seen = _awake(trainer)
    loader = trainer.loader()
    trainer.step(next(loader))
    between = trainer.state()
    trainer.step(next(loader))

    frozen = trainer.discriminator.first_layers(trainer.config.freeze_d)
    for network in (trainer.generator, trainer.discriminator):
        dead = {name for name, parameter in network.named_parameters() if not seen.get(id(parameter))}
        assert dead == (frozen if network is trainer.discriminator else set())
    assert trainer.skipped_in_row == 0
    now = trainer.networks()['D']
    assert {name for name in now if torch.equal(now[name], between['D'][name])} == frozen

    resumed = tiny_trainer(tmp_path, **RECIPES[recipe])
    resumed.load_state(between, where='state')
    assert resumed.average.render_resolution == resumed.schedule().render_resolution
    resumed.step(next(resumed.loader()))
    assert _equal(trainer.state(), resumed.state())
    assert resumed.average.render_resolution == trainer.average.render_resolution

    model = trainer.dataset.head_model
    info = Info(
        images_seen=8,
        head_model='sheet',
        head_model_hash=model.content_hash,
        render_resolution=trainer.average.render_resolution,
    )
    snapshot = Snapshot(config=trainer.config, info=info, template=model.template, networks=trainer.networks())
    save_snapshot(tmp_path / 'a.pkl', snapshot)
    conditions = trainer.source.real([0, 3])
    z = torch.randn(2, trainer.config.generator.z_dim, generator=stream(0))
    with torch.no_grad():
        loaded = load_generator(tmp_path / 'a.pkl').generator(z, conditions.label, conditions.head)
        kept = trainer.average(z, conditions.label, conditions.head)
    assert torch.equal(loaded.image, kept.image)
    assert torch.equal(loaded.image_raw, kept.image_raw)


# What each one changes.


def test_without_static_planes_there_is_no_such_network(tmp_path: Path) -> None:
    generator = tiny_trainer(tmp_path, G__static_planes='none').generator
    assert not [name for name in generator.state_dict() if name.startswith('static.')]
    conditions = ConditionSource(tiny_dataset(tmp_path), label_dim=25, device=torch.device('cpu')).real([1, 2])
    identity = generator.identity(generator.map(torch.randn(2, 16), conditions.label))
    assert identity.static_planes is None
    assert identity[:1].texture.shape[0] == 1
    planes = generator.deform(identity, conditions.head)
    assert (planes.alpha == 1).all()
    corner = planes.features[:, 0, :, 0, 0]  # no mesh there: the texture's centre, corrected by the blending net
    assert corner.abs().min() > 0


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'G.static_planes': 'none', 'G.mouth_source': 'static'}, 'mouth_source: expected teeth or texture'),
        ({'G.static_planes': 'none', 'G.dynamic_planes': 'front'}, 'dynamic_planes: expected all'),
        ({'L.render_resolution_initial': 0}, 'render_resolution_initial: expected above 0, got 0'),
        ({'augment_p': 1.5}, 'augment_p: expected a probability'),
        ({'D.label_dim': -2}, 'label_dim: expected -1'),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset('debug', changes)


def test_networks_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="debug: no networks for this config: image_resolution: superres 'hybrid'"):
        tiny_trainer(tmp_path, G__superres='hybrid')
    with pytest.raises(UserError, match='freeze_d: expected at most 7, the convolutions before the last, got 8'):
        tiny_trainer(tmp_path, freeze_d=8)


def test_render_resolution_is_a_function_of_images_seen() -> None:
    config = LossConfig(render_resolution_initial=64, render_fade_start_kimg=100, render_fade_kimg=1000)

    def at(kimg: float, **changes: Any) -> int | None:
        return Schedule.at(config, images_seen=round(kimg * 1000), render_resolution=128, **changes).render_resolution

    assert [at(kimg) for kimg in (0, 100, 350, 600, 1099, 1100, 9000)] == [64, 64, 80, 96, 128, 128, 128]
    assert at(600, augment_probability=0.7) == 96
    at_once = LossConfig(render_resolution_initial=64, render_fade_kimg=0)
    assert Schedule.at(at_once, images_seen=0, render_resolution=128).render_resolution == 128
    assert Schedule.at(LossConfig(), images_seen=0, render_resolution=128).render_resolution == 128


def test_raw_images_follow_the_render_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real and fake raw images in all phases; pictures and measurements render what the next step trains."""
    trainer = tiny_trainer(tmp_path, L__render_resolution_initial=4, L__render_fade_kimg=0.008, L__r1_interval=1)
    seen: list[int] = []
    forward = DualDiscriminator.forward

    def watched(self: DualDiscriminator, **inputs: Any) -> torch.Tensor:
        seen.append(inputs['image_raw'].shape[-1])
        return forward(self, **inputs)

    monkeypatch.setattr(DualDiscriminator, 'forward', watched)
    assert trainer.average.render_resolution == 4
    loader = trainer.loader()
    for wanted in (4, 6, 8):
        trainer.step(next(loader))
        assert seen == [wanted] * 4  # Gmain, fake and real of Dmain, Dr1
        assert trainer.average.render_resolution == trainer.generator.render_resolution == min(wanted + 2, 8)
        seen.clear()


def test_fixed_augmentation_stays(tmp_path: Path) -> None:
    """Whatever the state says, and after the step in which ADA would have moved it."""
    trainer = tiny_trainer(tmp_path, augment='fixed', augment_p=0.3)
    state = trainer.state()
    state['counters'] |= {'images_seen': 12, 'augment_probability': 0.9}
    trainer.load_state(state, where='state')
    trainer.step(next(trainer.loader()))
    assert trainer.schedule().augment_probability == 0.3


def test_layers_are_counted_from_the_image() -> None:
    """As StyleGAN2-ADA counts; that they stay as they are: test_learns_resumes_and_survives_a_snapshot."""
    discriminator = DualDiscriminator(preset('debug').discriminator)
    names = discriminator.first_layers(3)
    assert names == {
        f'{layer}.{kind}' for layer in ('fromrgb', 'b16.conv0', 'b16.conv1') for kind in ('weight', 'bias')
    }
    assert discriminator.first_layers(4) - names == {'b16.skip.weight'}
    assert discriminator.first_layers(5) - discriminator.first_layers(4) == {'b8.conv0.weight', 'b8.conv0.bias'}
    assert discriminator.first_layers(0) == set()


def test_expressions_of_a_head_reach_the_discriminator(tmp_path: Path) -> None:
    """-1 takes them all (for another head model: test_dry_runs); fewer are the first ones."""
    dataset = tiny_dataset(tmp_path)
    params = dataset.head_params([0, 14])
    assert params is not None
    assert label_width(dataset) == 25 + SheetHead.num_expression
    for width in (1, 2):
        label = ConditionSource(dataset, label_dim=25 + width, device=torch.device('cpu')).real([0, 14])
        assert torch.equal(label.discriminator_label[:, 25:], params.expression[:, :width])


def test_all_expressions_need_parameters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no head parameters, which D.label_dim=-1 needs; use D.label_dim=25'):
        label_width(tiny_dataset(tmp_path, heads='mesh'))


def test_label_noise_is_a_stream_and_leaves_the_label(tmp_path: Path) -> None:
    """In training as in the network's own test: the same step draws the same noise, another step other noise."""
    trainer = tiny_trainer(tmp_path, **RECIPES['expression told to D, not shown'])
    schedule = Schedule(blur_sigma=0.0, swap_probability=0.0)
    conditions = trainer.source.real([0, 1, 2, 3])
    label = conditions.discriminator_label.clone()
    images = torch.randn(4, 3, 16, 16, generator=stream(3))

    def penalty(seen: int, conditions: Conditions = conditions) -> torch.Tensor:
        trainer.images_seen = seen
        rng = trainer._pixels('Dr1', 0)
        return trainer.loss.discriminator_r1(images, conditions, schedule=schedule, rng=rng).penalty

    first = penalty(0)
    assert torch.equal(first, penalty(0))
    assert not torch.equal(first, penalty(4))
    assert torch.equal(conditions.discriminator_label, label)


@pytest.mark.parametrize('second', ['shown', 'told'])
def test_both_ways_to_tell_the_expression_start_from_one_discriminator(second: str, tmp_path: Path) -> None:
    """The paper's Fig. 9: the same weights go on with the template rendering, or with coefficients in the label."""
    first = tiny_trainer(tmp_path, D__template='none')
    model = first.dataset.head_model
    info = Info(images_seen=0, head_model='sheet', head_model_hash=model.content_hash)
    save_snapshot(
        tmp_path / 'a.pkl',
        Snapshot(config=first.config, info=info, template=model.template, networks=first.networks()),
    )
    changes = {} if second == 'shown' else RECIPES['expression told to D, not shown']
    trainer = tiny_trainer(tmp_path, resume=str(tmp_path / 'a.pkl'), **changes)
    lines = warm_start(trainer, trainer.config)
    assert any('are new and start at 0' in line for line in lines)
    logits = []
    for player in (first, trainer):
        pair = player.loss._real(torch.zeros(2, 3, 16, 16), player.source.real([1, 2]), player.schedule())
        conditions = player.source.real([1, 2])
        inputs = {'image': pair.image, 'image_raw': pair.image_raw, 'template': pair.template}
        logits.append(player.discriminator(label=conditions.discriminator_label, **inputs))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-4)


# From the command line.


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(
        tmp_path_factory.mktemp('data') / 'heads.zip', count=6, resolution=16, model=load_head_model('makehuman')
    )


def test_dry_run_of_everything_at_once(data: Path, tmp_path: Path) -> None:
    arguments = [f'--outdir={tmp_path / "run"}', '--cfg=debug', f'--data={data}', '--dry-run', '--device=cpu']
    options = [
        *('--set', 'G.static_planes=none', '--mouth=texture'),
        *('--disc-template=none', '--set', 'D.label_dim=-1', '--set', 'D.label_noise=1', '--freezed=2'),
        *('--aug=fixed', '--p=0.5', '--set', 'augment_camera=true'),
        *('--neural_rendering_resolution_initial=4', '--neural_rendering_resolution_final=8'),
        '--neural_rendering_resolution_fade_kimg=1',
    ]
    result = CliRunner().invoke(train.main, [*arguments, *options])
    assert result.exit_code == 0, result.output
    assert 'dry run: one step of 4 images' in result.output
    config = json.loads(result.output[: result.output.index('dry run')])
    assert config['discriminator']['label_dim'] == 25 + load_head_model('makehuman').num_expression
    assert (config['loss']['render_resolution_initial'], config['loss']['render_fade_kimg']) == (4, 1.0)
    assert (config['generator']['render_resolution'], config['augment_p']) == (8, 0.5)


def test_recipes_of_the_documentation_are_configs() -> None:
    """Every train.py line of the section is understood; its options reach the config."""
    text = (ROOT / 'docs' / 'training.md').read_text()
    section = text[text.index('## Ablations and options') : text.index('## Frames of clips')]
    recipes = re.findall(r'`(--[^`]+)`', section)
    assert len(recipes) >= 10
    seen: list[TrainConfig] = []

    def stop(config: TrainConfig, *, head_model: str | None) -> None:
        seen.append(config)
        raise UserError('enough')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'prepare', stop)
        for recipe in recipes:
            arguments = [word for word in shlex.split(recipe) if not word.startswith('--resume')]
            result = CliRunner().invoke(train.main, ['--outdir=x', '--cfg=ffhq512', '--data=x', *arguments])
            assert 'enough' in result.output, (recipe, result.output)
    plain = dataclasses.replace(preset('ffhq512'), data='x', batch_gpu=32)
    assert [recipe for recipe, config in zip(recipes, seen, strict=True) if config == plain] == []
