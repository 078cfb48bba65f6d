"""CLIP from the user's file: every layout gives the same features, nothing of a file is run, mistakes are one line."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from cases_clip import CONTEXT, MERGES, VOCABULARY, random_clip, write_clip, write_vocabulary
from cases_dataset import user_error
from torch import Tensor

from applications.clip.model import load_clip, prepare
from applications.clip.network import build_clip
from applications.clip.tokenizer import read_tokenizer
from applications.clip.weights import read_weights

CPU = torch.device('cpu')


def write_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    table, body = {}, b''
    for name, value in state.items():
        data = value.contiguous().numpy().tobytes()
        table[name] = {'dtype': 'F32', 'shape': list(value.shape), 'data_offsets': [len(body), len(body) + len(data)]}
        body += data
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + body)


class Towers(torch.nn.Module):
    """What a scripted CLIP looks like: both towers and a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, 2)
        self.scale = torch.nn.Parameter(torch.arange(4.0).reshape(2, 2).t())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) @ self.scale


def test_all_files_give_the_same_weights(tmp_path: Path) -> None:
    state = random_clip().state_dict()
    torch.save(state, tmp_path / 'plain.pt')
    torch.save({'epoch': 1, 'state_dict': {f'module.{k}': v for k, v in state.items()}}, tmp_path / 'nested.pt')
    write_safetensors(tmp_path / 'clip.safetensors', state)
    for name in ('plain.pt', 'nested.pt', 'clip.safetensors'):
        found, scripted = read_weights(str(tmp_path / name))
        assert not scripted
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_scripted_archive_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Towers().half()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.script(module).save(str(tmp_path / 'scripted.pt'))
    monkeypatch.setattr(torch.jit, 'load', lambda *_, **__: pytest.fail('the archive was executed'))
    found, scripted = read_weights(str(tmp_path / 'scripted.pt'))
    assert scripted
    expected = module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_malicious_archive_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / 'owned',)

    for name, member in (('scripted.pt', 'constants.pkl'), ('plain.pt', 'other')):
        with zipfile.ZipFile(tmp_path / name, 'w') as archive:
            archive.writestr('a/data.pkl', pickle.dumps(Evil()))
            archive.writestr(f'a/{member}', b'')
        assert 'refused' in user_error(lambda name=name: read_weights(str(tmp_path / name)))
    assert not (tmp_path / 'owned').exists()


def test_features_are_unit_and_differentiable(tmp_path: Path) -> None:
    clip = load_clip(str(write_clip(tmp_path)), device=CPU)
    images = (torch.rand(2, 3, 16, 16) * 2 - 1).requires_grad_(True)
    features = clip.image_features(images)
    assert features.shape == (2, 16)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    features[:, 0].sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().amax(dim=(1, 2, 3)).min()) > 0
    texts = clip.text_features(['a statue', 'photo', 'A  Statue'])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    assert torch.equal(texts[0], texts[2])
    assert not torch.allclose(texts[0], texts[1])


def test_kind_of_gelu_is_chosen(tmp_path: Path) -> None:
    path = str(write_clip(tmp_path))
    images = torch.rand(1, 3, 32, 32)
    exact, quick = (load_clip(path, quick=value, device=CPU).image_features(images) for value in (None, True))
    expected = torch.nn.functional.normalize(random_clip(quick=True).visual(prepare(images, 32)), dim=1)
    torch.testing.assert_close(quick, expected)
    assert not torch.allclose(exact, quick, atol=1e-4)


def test_padding_does_not_change_a_text() -> None:
    network = random_clip()
    tokens = torch.zeros(1, CONTEXT, dtype=torch.long)
    tokens[0, :3] = torch.tensor([VOCABULARY - 2, 5, VOCABULARY - 1])
    noisy = tokens.clone()
    noisy[0, 3:] = 7
    torch.testing.assert_close(network.encode_text(tokens), network.encode_text(noisy))


def test_tokenizer_merges_in_order(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / 'vocab.gz')
    tokenizer = read_tokenizer(str(path), vocabulary=VOCABULARY, context=CONTEXT)
    number = {merge.replace(' ', ''): 512 + index for index, merge in enumerate(MERGES)}
    # 'statue': s t a t u e -> st a ..., then st+a; 't a</w>' must not join letters that do not end a word.
    assert tokenizer.encode('Statue')[0] == number['sta']
    assert tokenizer.encode(' photo ') == [number['photo</w>']]
    assert tokenizer.encode('photo photo!') == [number['photo</w>']] * 2 + [256 + 0]  # '!' is the first letter
    assert tokenizer.encode('&amp;') == [256 + ord('&') - ord('!')]
    row = tokenizer(['photo'])[0]
    assert row[:3].tolist() == [VOCABULARY - 2, number['photo</w>'], VOCABULARY - 1]
    assert not row[3:].any()


def test_bytes_outside_ascii_have_tokens(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(str(write_vocabulary(tmp_path / 'v.gz')), vocabulary=VOCABULARY, context=CONTEXT)
    assert len(tokenizer.encode('é')) == 2  # two bytes of UTF-8
    assert len(tokenizer.encode('日本')) == 6


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NEXT3D_CACHE_DIR', str(tmp_path / 'cache'))
    missing = user_error(lambda: load_clip(None, device=CPU))
    assert str(tmp_path / 'cache' / 'clip') in missing
    assert 'github.com/openai/CLIP (MIT)' in missing
    assert 'no such file' in user_error(lambda: load_clip(str(tmp_path / 'none.pt'), device=CPU))
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert 'not installed' in user_error(lambda: load_clip('open_clip:ViT-B-32:openai', device=CPU))
    (tmp_path / 'text.pt').write_text('hello, this is no file of weights')
    assert 'expected CLIP weights' in user_error(lambda: load_clip(str(tmp_path / 'text.pt'), device=CPU))
    torch.save({'a': torch.zeros(2)}, tmp_path / 'other.pt')
    assert 'it lacks visual.conv1.weight' in user_error(lambda: load_clip(str(tmp_path / 'other.pt'), device=CPU))
    torch.save([1, 2], tmp_path / 'list.pt')
    assert 'holds no state dict' in user_error(lambda: load_clip(str(tmp_path / 'list.pt'), device=CPU))
    whole = write_clip(tmp_path).read_bytes()
    (tmp_path / 'cut.pt').write_bytes(whole[: len(whole) // 2])
    assert 'refused' in user_error(lambda: load_clip(str(tmp_path / 'cut.pt'), device=CPU))
    state = random_clip().state_dict()
    del state['transformer.resblocks.1.ln_1.weight']
    assert 'not a whole CLIP' in user_error(lambda: build_clip(state, quick=True, where='x.pt'))
    assert 'ResNet' in user_error(lambda: build_clip({'visual.layer1.0.conv1.weight': whole}, quick=True, where='x'))  # type: ignore[dict-item]


def test_a_missing_or_short_vocabulary_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NEXT3D_CACHE_DIR', str(tmp_path / 'cache'))
    path = write_clip(tmp_path)
    vocabulary = tmp_path / 'bpe_simple_vocab_16e6.txt.gz'
    vocabulary.unlink()
    clip = load_clip(str(path), device=CPU)
    clip.image_features(torch.zeros(1, 3, 32, 32))
    assert '--clip-vocab: missing' in user_error(lambda: clip.text_features(['photo']))
    vocabulary.write_text('#version\na b\n')
    assert '1 usable merges' in user_error(lambda: load_clip(str(path), device=CPU))
    vocabulary.write_bytes(b'\x1f\x8bbroken')
    assert 'bpe_simple_vocab_16e6.txt.gz' in user_error(lambda: load_clip(str(path), device=CPU))
    long = load_clip(str(path), vocabulary=str(write_vocabulary(tmp_path / 'v.gz')), device=CPU)
    assert 'shorten' in user_error(lambda: long.text_features(['a very long text ' * 9]))
