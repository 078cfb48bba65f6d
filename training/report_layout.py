"""What stands in report.html and how it looks."""

from __future__ import annotations

# Title, names (or a prefix that ends in '/'), logarithmic, how to read it.
CHARTS: tuple[tuple[str, tuple[str, ...], bool, str], ...] = (
    ('Scores of D', ('Loss/scores/real', 'Loss/scores/fake'), False, 'Real above fake, not far apart.'),
    ('Signs of D', ('Loss/signs/real', 'Loss/signs/fake'), False, '1, -1: D is always right. 0: it guesses.'),
    ('Losses', ('Loss/G/loss', 'Loss/D/loss'), False, 'Chance: 0.69 for G, 1.39 for D.'),
    ('R1 penalty', ('Loss/D/r1',), True, 'Before its weight gamma / 2.'),
    ('Density loss', ('Loss/G/density',), True, 'Before its weight.'),
    ('ADA probability', ('Progress/augment',), False, 'Rises when D overfits.'),
    ('Mouth response', ('Monitor/mouth_response',), False, '0: the jaw is ignored. 1: as the template.'),
    (
        'Share of the image',
        ('Monitor/share_dynamic', 'Monitor/share_static'),
        False,
        'Volume weights by source; the rest is transparent.',
    ),
    (
        'Alpha coverage of the planes',
        ('Monitor/alpha_front', 'Monitor/alpha_side', 'Monitor/alpha_top'),
        False,
        'Share of each plane that the head covers.',
    ),
    ('Gradient norms of G', ('Gradient/Gmain/',), True, 'Adversarial phase, by sub-network.'),
    ('Gradient norms of D', ('Gradient/Dmain/',), True, 'Adversarial phase.'),
    ('Latents', ('Monitor/w_avg', 'Monitor/w_spread'), False, 'rms of w_avg; spread of w relative to its rms.'),
    ('Throughput', ('Timing/images_per_sec',), False, 'Images a second, without maintenance.'),
    ('Memory', ('Resources/cpu_gib', 'Resources/gpu_gib'), False, 'Peak of rank 0 in GiB.'),
    ('Waiting for data', ('Timing/data_share',), False, 'Share of the training time.'),
)

STYLE = """
:root{--ink:#1f2933;--dim:#5f6c7b;--line:#e3e7ec;--page:#f6f7f9;--card:#fff;--bad:#b42318;--badbg:#fdf0ee;--good:#2f7d4f}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--dim:#98a3b3;--line:#2c333d;--page:#14181d;--card:#1c2128;
--bad:#ff9a8d;--badbg:#3a2321;--good:#7fcf9f}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1240px;margin:0 auto;padding:1.6rem 1.2rem 4rem}
h1{font-size:1.5rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2.2rem 0 .7rem}
.sub{color:var(--dim);margin:.1rem 0 1rem}
.bar{height:6px;border-radius:3px;background:var(--line);overflow:hidden}
.bar i{display:block;height:100%;background:#2b6cb0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.7rem;margin-top:1rem}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem .9rem}
.tile span{display:block;color:var(--dim);font-size:.8rem}.tile b{font-size:1.2rem;font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(360px,100%),1fr));gap:.8rem}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(280px,100%),1fr));gap:.8rem}
.pictures figure{margin:0}.pictures img{width:100%;display:block;border-radius:6px}
.pictures figcaption{font-size:.85rem;color:var(--dim);padding-top:.3rem}
.warning{background:var(--badbg);border:1px solid var(--bad);border-radius:8px;padding:.7rem .9rem;margin:.5rem 0}
.warning b{color:var(--bad)}.fine{color:var(--good)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;white-space:nowrap;padding:.25rem 1.1rem .25rem 0;
border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--dim);font-weight:500}tr.best td{font-weight:600;color:var(--good)}
details{margin:.8rem 0}summary{cursor:pointer;color:var(--dim)}pre{font-size:.8rem;overflow-x:auto}
"""
