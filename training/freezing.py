"""Which of the generator's parameters stay as they are while a trained generator is moved to another style.

The paper (supplement C): "we fixed all toRGB layers of the synthesis blocks except for the last ones for the texture
generator and static generator. We also fix the NeRF decoders"; its section A.2 adds the last toRGB layer of G_teeth.
Following StyleGAN-NADA, which it builds on, the mapping network stays fixed as well, so that a latent code remains
the same person. So do our learned scale and translation of the template, which tie the mesh to the volume.
"""

from __future__ import annotations

from training.generator import Generator

FIXED_STAGES = ('mapping.', 'decoder.', 'rasterizer.')


def frozen_generator_parameters(generator: Generator, rule: str) -> set[str]:
    """Names of the parameters that training leaves alone. rule: none, or stylization."""
    if rule == 'none':
        return set()
    if rule != 'stylization':
        raise ValueError(f'rule: expected none or stylization, got {rule!r}')
    trained = last_output_layers(generator)
    return {
        name
        for name, _ in generator.named_parameters()
        if name.startswith(FIXED_STAGES) or ('.torgb.' in name and not name.startswith(trained))
    }


def last_output_layers(generator: Generator) -> tuple[str, ...]:
    """Prefixes of the last toRGB layer of the texture, static and teeth networks."""
    networks = {'texture.synthesis': generator.texture.synthesis}
    if generator.static is not None:
        networks['static.synthesis'] = generator.static.synthesis
    names = [f'{name}.b{network.block_resolutions[-1]}.torgb.' for name, network in networks.items()]
    if generator.teeth is not None:
        names.append(f'teeth.unet.b{generator.teeth.unet.block_resolutions[-1]}.torgb.')
    return tuple(names)
