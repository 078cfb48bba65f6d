"""CLIP's byte-pair encoding, from the user's file of merges (bpe_simple_vocab_16e6.txt.gz or its text)."""

from __future__ import annotations

import gzip
import html
import re
import zlib
from pathlib import Path

import torch
from torch import Tensor

from dnnlib.errors import UserError
from dnnlib.files import explain_os_error

# English endings, runs of letters, single digits, runs of anything else.
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
END_OF_WORD = '</w>'
BYTES = 256


class Tokenizer:
    """texts -> token numbers [N, context]: start, pieces, end, zeros. The last two numbers are start and end."""

    def __init__(self, merges: list[tuple[str, str]], *, context: int) -> None:
        letters = list(_byte_letters().values())
        pieces = [*letters, *(letter + END_OF_WORD for letter in letters), *(''.join(pair) for pair in merges)]
        self.numbers = {piece: number for number, piece in enumerate(pieces)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.start, self.end = len(pieces), len(pieces) + 1
        self.context = context

    def __call__(self, texts: list[str]) -> Tensor:
        table = torch.zeros(len(texts), self.context, dtype=torch.long)
        for row, text in enumerate(texts):
            numbers = [self.start, *self.encode(text), self.end]
            if len(numbers) > self.context:
                raise UserError(f'text of {len(numbers)} tokens, but CLIP reads {self.context}; shorten {text[:40]!r}')
            table[row, : len(numbers)] = torch.tensor(numbers)
        return table

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of a text."""
        letters = _byte_letters()
        plain = ' '.join(html.unescape(html.unescape(text)).split()).lower()
        numbers = []
        for word in WORDS.findall(plain):
            spelled = [letters[byte] for byte in word.encode()]
            spelled[-1] += END_OF_WORD
            numbers += [self.numbers[piece] for piece in self._merge(spelled)]
        return numbers

    def _merge(self, pieces: list[str]) -> list[str]:
        """Joins the neighbours that come first in the list of merges, again and again."""
        while len(pieces) > 1:
            pairs = list(zip(pieces, pieces[1:], strict=False))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            joined: list[str] = []
            index = 0
            while index < len(pieces):
                if index + 1 < len(pieces) and (pieces[index], pieces[index + 1]) == best:
                    joined.append(pieces[index] + pieces[index + 1])
                    index += 2
                else:
                    joined.append(pieces[index])
                    index += 1
            pieces = joined
        return pieces


def _byte_letters() -> dict[int, str]:
    """A printable letter for each byte: Latin-1's printable ones stand for themselves, the rest for 256, 257, ..."""
    visible = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    letters = {byte: chr(byte) for byte in visible}
    hidden = [byte for byte in range(BYTES) if byte not in letters]
    return letters | {byte: chr(BYTES + number) for number, byte in enumerate(hidden)}


def read_tokenizer(path: str, *, vocabulary: int, context: int) -> Tokenizer:
    """The tokenizer of a network with `vocabulary` tokens; UserError if the file holds too few merges or none."""
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data).decode()
    except OSError as error:
        raise explain_os_error(error, path) from error
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected CLIP's bpe_simple_vocab_16e6.txt.gz, or its text ({error})") from error
    wanted = vocabulary - 2 * BYTES - 2
    pairs = [line.split() for line in text.split('\n')[1 : wanted + 1]]  # the first line is a heading
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) != wanted:
        raise UserError(f'{path}: {len(merges)} usable merges, but these CLIP weights need {wanted}; another file?')
    return Tokenizer(merges, context=context)
