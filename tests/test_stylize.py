"""stylize.py: the layer rule, both ways from options to files, the checks of survival, and mistakes."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from cases_clip import random_clip, write_clip
from cases_dataset import SheetHead, png
from cases_outputs import tiny_generator, write_avatar, write_dataset, write_snapshot
from cases_training import tiny_trainer
from click.testing import CliRunner, Result
from PIL import Image

import stylize
from applications.clip.model import FileClip
from applications.samples import CameraRig
from applications.stylization import result
from applications.stylization.by_clip import ClipOptions, ClipStylizer
from applications.stylization.guidance import Guidance
from applications.stylization.scenes import DatasetScenes, RandomScenes
from applications.stylization.survival import correlation, measure_survival
from dnnlib import UserError
from torch_utils.rng import stream
from training.checkpoint import Info, Snapshot, load_generator, load_snapshot, plain_state, save_snapshot
from training.dataset import HeadDataset
from training.discriminator import DualDiscriminator
from training.freezing import frozen_generator_parameters, last_output_layers
from training.head.makehuman import embedded_head
from training.layer_rows import modulated_layers


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny snapshot of the scripts' tests, with a discriminator."""
    path = write_snapshot(tmp_path_factory.mktemp('network') / 'net.pkl')
    snapshot = load_snapshot(path)
    torch.manual_seed(1)
    critic = plain_state(DualDiscriminator(snapshot.config.discriminator))
    state = snapshot.networks['G_ema']
    other = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    networks = {'G_ema': state, 'G': other, 'D': critic}  # G is not what is stylized
    config = dataclasses.replace(snapshot.config, mirror=False)  # matching mirrored vertices takes seconds
    save_snapshot(path, dataclasses.replace(snapshot, networks=networks, config=config))
    return path


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp('data') / 'faces.zip', count=6)


@pytest.fixture(scope='module')
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp('clip'))


@pytest.fixture(autouse=True)
def little_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, 'SCENES', 4)
    monkeypatch.setattr(result, 'SHEET_SEEDS', (0,))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(stylize.main, [*map(str, arguments), '--device=cpu'])


def refused(done: Result, *messages: str) -> None:
    """One line that begins with Error, exit status 1 or click's 2, no traceback."""
    assert done.exit_code in (1, 2), done.output
    line = done.output.splitlines()[-1]
    assert line.startswith('Error: '), done.output
    for message in messages:
        assert message in line


def random_guidance(seed: int = 0) -> Guidance:
    rng = torch.Generator().manual_seed(seed)
    targets = torch.nn.functional.normalize(torch.randn(2, 16, generator=rng), dim=1)
    return Guidance(
        clip=FileClip(random_clip(), None, name='random', content_hash=''),
        direction=torch.nn.functional.normalize(targets[0] - targets[1], dim=0),
        targets=targets[:1],
        direction_weight=1.0,
        global_weight=0.2,
    )


def scenes() -> RandomScenes:
    return RandomScenes(embedded_head(), CameraRig())


# The rule.


def test_the_rule_is_the_papers() -> None:
    generator = tiny_generator()
    frozen = frozen_generator_parameters(generator, 'stylization')
    names = {name for name, _ in generator.named_parameters()}
    assert frozen < names
    outputs = {name for name in names if '.torgb.' in name}
    last = {name for name in outputs if name.startswith(('texture.synthesis.b16.', 'static.synthesis.b16.'))}
    last |= {name for name in outputs if name.startswith('teeth.unet.b16.')}
    assert len(last) == 3 * 4
    assert {name for name in outputs if name not in frozen} == last
    stages = {name.partition('.')[0] for name in frozen if name not in outputs}
    assert stages == {'mapping', 'decoder', 'rasterizer'}
    assert {name for name in names if name.startswith(('decoder.', 'mapping.', 'rasterizer.'))} < frozen
    assert frozen_generator_parameters(generator, 'none') == set()
    with pytest.raises(ValueError, match='rule'):
        frozen_generator_parameters(generator, 'some')


def test_training_leaves_frozen_parameters_bit_identical(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, freeze_g='stylization', L__density_interval=1)
    before = {name: value.clone() for name, value in trainer.generator.named_parameters()}
    loader = trainer.loader()
    trainer.step(next(loader))
    frozen = frozen_generator_parameters(trainer.generator, 'stylization')
    after = dict(trainer.generator.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    average = dict(trainer.average.named_parameters())
    assert all(torch.equal(before[name], average[name]) for name in frozen)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(moved) > 0.9 * (len(before) - len(frozen))
    assert any(name.startswith('texture.synthesis.b16.torgb.') for name in moved)


def test_training_holds_on_to_the_density_of_its_start(tmp_path: Path) -> None:
    """The same steps with and without an anchor."""
    first = tiny_trainer(tmp_path)
    model = SheetHead()
    info = Info(images_seen=0, head_model=model.name, head_model_hash=model.content_hash)
    snapshot = Snapshot(config=first.config, info=info, template=model.template, networks=first.networks())
    save_snapshot(tmp_path / 'source.pkl', snapshot)
    points = torch.rand(1, 500, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    distances = []
    for anchor in (0.0, 100.0):
        trainer = tiny_trainer(
            tmp_path, resume=str(tmp_path / 'source.pkl'), freeze_g='stylization', g_lr=0.01,
            L__density_interval=1, L__density_weight=0.0, L__density_anchor=anchor,
        )  # fmt: skip
        source = load_generator(tmp_path / 'source.pkl').generator
        trainer.generator.load_state_dict(source.state_dict())
        assert (trainer.loss.anchor is None) == (anchor == 0)
        loader = trainer.loader()
        for _ in range(8):
            trainer.step(next(loader))
        heads = trainer.source.real([0]).head
        ws = source.map(torch.zeros(1, source.config.z_dim), trainer.source.real([0]).label)
        densities = [
            network.density(network.deform(network.identity(ws), heads), points)
            for network in (source, trainer.generator.eval())
        ]
        distances.append(float((densities[0] - densities[1]).square().mean()))
    assert distances[1] < 0.5 * distances[0], distances
    with pytest.raises(UserError, match='density_anchor: .*--resume'):
        tiny_trainer(tmp_path, L__density_anchor=1.0)


# By CLIP.


def test_steps_lower_the_loss_and_keep_what_is_frozen() -> None:
    source = tiny_generator()
    stylizer = ClipStylizer(source, random_guidance(), scenes(), ClipOptions(batch=2, lr=0.01))
    before = {name: value.clone() for name, value in source.named_parameters()}
    losses = [float(stylizer.step(number).directional) for number in range(6)]
    assert losses[0] == pytest.approx(1, abs=1e-3)  # nothing has changed yet
    assert losses[4] + losses[5] < losses[1] + losses[2] < 1.8  # also after the first step
    frozen = frozen_generator_parameters(source, 'stylization')
    after = dict(stylizer.generator.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before['texture.synthesis.b16.torgb.weight'], after['texture.synthesis.b16.torgb.weight'])
    assert all(torch.equal(before[name], value) for name, value in source.named_parameters())


def test_the_first_gradient_is_of_the_size_of_later_ones() -> None:
    """Equal images have no direction of change; an unbounded gradient there would stall Adam ever after."""
    guidance = random_guidance()
    rng = torch.Generator().manual_seed(0)
    source = torch.rand(2, 3, 16, 16, generator=rng) * 2 - 1
    norms = []
    for change in (0.0, 0.5):
        image = (source + change * torch.randn(source.shape, generator=rng)).requires_grad_(True)
        guidance(source, image).directional.backward()
        assert image.grad is not None
        norms.append(float(image.grad.norm()))
    assert 0 < norms[0] < 100 * norms[1], norms


def test_both_networks_see_the_same_scene() -> None:
    """Before the first step the two images are equal, fresh noise included; the next step has another scene."""
    stylizer = ClipStylizer(tiny_generator(), random_guidance(), scenes(), ClipOptions(batch=2))
    source, stylized = stylizer.pair(0, 2)
    torch.testing.assert_close(source, stylized.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(source, stylizer.pair(1, 2)[0], atol=0.01)
    assert torch.equal(source, stylizer.pair(0, 2)[0])


def test_a_chosen_layer_alone_learns() -> None:
    stylizer = ClipStylizer(tiny_generator(), random_guidance(), scenes(), ClipOptions(batch=1, auto_layers=2))
    before = {name: value.clone() for name, value in stylizer.generator.named_parameters()}
    chosen = stylizer.chosen(0)
    stylizer.step(0)
    moved = {name for name, value in stylizer.generator.named_parameters() if not torch.equal(value, before[name])}
    assert moved <= chosen
    last = last_output_layers(stylizer.generator)
    rows = {stylizer.layers[prefix] for prefix in stylizer.layers for name in chosen if name.startswith(prefix)}
    assert 1 <= len(rows) <= 2
    assert {name for name in stylizer.trained if name.startswith(last)} < chosen


@torch.no_grad()
def test_rows_of_layers_are_the_rows_they_read() -> None:
    """Changing one row of ws changes the styles of exactly the layers listed for it."""
    generator = tiny_generator()
    layers = modulated_layers(generator)
    ws = torch.randn(1, generator.num_ws, generator.config.w_dim, generator=torch.Generator().manual_seed(0))
    head = scenes().draw(1, rng=stream(0)).head
    label = CameraRig().front()
    seen: dict[str, torch.Tensor] = {}
    for prefix in layers:
        module = generator.get_submodule(f'{prefix}affine')
        module.register_forward_hook(lambda _, inputs, __, prefix=prefix: seen.__setitem__(prefix, inputs[0]))
    generator.render(generator.deform(generator.identity(ws), head), label)
    assert seen.keys() == layers.keys()
    for prefix, row in layers.items():
        assert torch.equal(seen[prefix], ws[:, row]), prefix


def test_a_text_from_end_to_end(network: Path, clip: Path, tmp_path: Path) -> None:
    options = (f'--network={network}', '--text=a statue', '--source-text=photo', f'--clip={clip}', '--steps=2')
    done = run(*options, '--batch=1', f'--outdir={tmp_path}', '--clip-quickgelu=true')
    assert done.exit_code == 0, done.output
    assert 'depth: correlation with the source' in done.output
    assert 'mouth response:' in done.output
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {
        'preview00000.png',
        'preview00001.png',
        'sheet.png',
        'stats.jsonl',
        'stylization.json',
        'stylized.pkl',
    }
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert sheet.size == (7 * 16, 2 * 16)
    stats = [json.loads(line) for line in (tmp_path / 'stats.jsonl').read_text().splitlines()]
    assert [record['step'] for record in stats] == [0, 1]
    snapshot = load_snapshot(tmp_path / 'stylized.pkl')
    record = json.loads((tmp_path / 'stylization.json').read_text())
    assert snapshot.info.stylization == record
    assert (record['method'], record['text'], record['steps']) == ('clip', 'a statue', 2)
    assert record['depth_correlation'] > 0.5
    before = load_snapshot(network)
    assert snapshot.networks['D'].keys() == before.networks['D'].keys()
    frozen = frozen_generator_parameters(load_generator(tmp_path / 'stylized.pkl').generator, 'stylization')
    for name in frozen:
        assert torch.equal(snapshot.networks['G_ema'][name], before.networks['G_ema'][name])


def test_pictures_from_end_to_end(network: Path, clip: Path, data: Path, tmp_path: Path) -> None:
    """On an avatar, who stays one."""
    avatar = write_avatar(tmp_path / 'avatar.pkl', network)
    pictures = tmp_path / 'drawings'
    pictures.mkdir()
    (pictures / 'a.png').write_bytes(png(40, 30))
    Image.new('RGB', (20, 24), (200, 40, 10)).save(pictures / 'b.jpg')
    out = tmp_path / 'out'
    options = (f'--network={avatar}', f'--images={pictures}', f'--clip={clip}', f'--data={data}', '--auto-layers=1')
    done = run(*options, '--steps=1', '--batch=1', f'--outdir={out}')
    assert done.exit_code == 0, done.output
    before, after = load_snapshot(avatar), load_snapshot(out / 'stylized.pkl')
    assert after.info.stylization['folder'] == str(pictures)
    assert before.avatar is not None
    assert after.avatar is not None
    assert torch.equal(after.avatar.ws, before.avatar.ws)


def test_a_dataset_from_end_to_end(network: Path, data: Path, tmp_path: Path) -> None:
    options = (f'--network={network}', f'--images={data}', '--kimg=0.004', f'--outdir={tmp_path}')
    done = run(*options)
    assert done.exit_code == 0, done.output
    log = (tmp_path / 'log.txt').read_text()
    assert f'D: {len(load_snapshot(network).networks["D"])} copied, 0 adapted, 0 left' in log
    before, after = load_snapshot(network), load_snapshot(tmp_path / 'stylized.pkl')
    frozen = frozen_generator_parameters(load_generator(network).generator, 'stylization')
    for part in ('G_ema', 'G'):
        for name in frozen:
            assert torch.equal(after.networks[part][name], before.networks['G_ema'][name]), name
    assert (after.config.augment, after.config.freeze_g, after.config.resume) == ('ada', 'stylization', str(network))
    assert after.info.stylization['method'] == 'dataset'
    assert after.info.images_seen == 4000 + 4
    assert (tmp_path / 'sheet.png').exists()
    first = (tmp_path / 'stylized.pkl').read_bytes()
    (tmp_path / 'stylized.pkl').unlink()
    again = run(*options)  # a run that was interrupted after training
    assert 'this run is complete' in again.output
    assert (tmp_path / 'stylized.pkl').read_bytes() == first
    refused(run(*options, '--gamma=3'), 'r1_gamma')


# Survival.


@torch.no_grad()
def test_survival_tells_harm_from_harmless() -> None:
    source = tiny_generator()
    same = measure_survival(source, source, scenes(), seed=0, count=4)
    assert same.survives
    assert same.depth_correlation == pytest.approx(1, abs=1e-4)
    assert same.mouth_response_after == same.mouth_response_before > 0
    flat = copy.deepcopy(source)
    flat.decoder.out.weight[0] *= -1  # another geometry
    assert not measure_survival(source, flat, scenes(), seed=0, count=4).survives
    deaf = copy.deepcopy(source)

    def ignore(identity, head, *, rng=None, deform=deaf.deform):  # type: ignore[no-untyped-def]
        vertices = deaf.template.vertices[None].expand(len(head), -1, -1)
        return deform(identity, type(head)(vertices, deaf.template.landmarks(vertices)), rng=rng)

    deaf.deform = ignore  # type: ignore[method-assign]
    lost = measure_survival(source, deaf, scenes(), seed=0, count=4)
    assert lost.mouth_response_after == 0
    assert not lost.survives
    assert 'LOST' in lost.lines()[-1]


def test_correlation_is_pearsons() -> None:
    rng = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 5, 5, generator=rng), torch.randn(2, 1, 5, 5, generator=rng)
    where = torch.rand(2, 1, 5, 5, generator=rng) > 0.3
    found = correlation(first, second, where)
    for index in range(2):
        rows = torch.stack([first[index][where[index]], second[index][where[index]]])
        assert float(found[index]) == pytest.approx(float(torch.corrcoef(rows)[0, 1]), abs=1e-5)
    assert correlation(first, torch.ones_like(first), where).tolist() == [0, 0]


def test_scenes_are_valid_and_follow_their_stream(data: Path) -> None:
    for source in (scenes(), DatasetScenes(HeadDataset(data))):
        scene = source.draw(3, rng=stream(0))
        assert scene.label.shape == (3, 25)
        assert torch.isfinite(scene.head.vertices).all()
        assert not torch.allclose(scene.head.vertices, scene.relaxed.vertices, atol=1e-4)
        again = source.draw(3, rng=stream(0))
        assert torch.equal(scene.head.vertices, again.head.vertices)
        assert not torch.equal(scene.label, source.draw(3, rng=stream(1)).label)


# Mistakes.


def test_mistakes_are_one_line(
    network: Path, clip: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('NEXT3D_CACHE_DIR', str(tmp_path / 'cache'))
    out = f'--outdir={tmp_path / "out"}'
    net, text, weights = f'--network={network}', '--text=a statue', f'--clip={clip}'
    empty, broken = tmp_path / 'empty', tmp_path / 'broken'
    empty.mkdir()
    broken.mkdir()
    (broken / 'a.png').write_bytes(png(8, 8)[:40])
    refused(run(net, out), 'either by --text or by --images')
    refused(run(net, out, text, f'--images={data}'), 'either by --text or by --images')
    refused(run(net, out, f'--images={data}', '--source-text=photo'), '--source-text')
    refused(run(net, out, text), 'ViT-B-32.pt', 'github.com/openai/CLIP (MIT)', str(tmp_path / 'cache' / 'clip'))
    refused(run(net, out, f'--images={broken.parent / "empty"}', weights), 'empty: holds no picture')
    refused(run(net, out, f'--images={broken}', weights), 'a.png')
    (broken / 'a.png').write_bytes(png(8, 8))
    refused(run(net, out, f'--images={broken}'), 'no such file', 'from-photos')
    refused(run(net, out, f'--images={tmp_path / "none"}'), 'none: no such dataset')
    large = write_dataset(tmp_path / 'large.zip', count=2, resolution=32)
    refused(run(net, out, f'--images={large}'), 'holds 32 px images, but the network makes 16 px ones')
    refused(run(net, out, text, weights, '--kimg=1'), '--kimg')
    refused(run(net, out, f'--images={data}', '--steps=3'), '--steps')
    refused(run(f'--network={clip}', out, text, weights), 'clip.pt')
    refused(run(f'--network={tmp_path / "no.pkl"}', out, text, weights), 'no.pkl')
    refused(run(net, out, '--text=photo', '--source-text=photo', weights), 'look the same')
    refused(run(net, out, text, weights, '--lr=0'), '--lr')
    assert not (tmp_path / 'out' / 'stylized.pkl').exists()
