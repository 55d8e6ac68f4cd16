"""Records of a small nonlinear plant, made here."""

import numpy as np

TIME_STEP = 0.1


def record(seed, count=400, noise=0.0, offset=(0.0, 0.0), scale=(1.0, 1.0)):
    """Return inputs (count, 1) and outputs (count, 1) of x+ = .8 x + .3 tanh(u + .4 y), a first-order lag behind it."""
    rng = np.random.default_rng(seed)
    u = np.repeat(rng.normal(size=count // 2 + 1), 2)[:count]
    x, y, found = 0.0, 0.0, []
    for value in u:
        found.append(y)
        x, y = 0.8 * x + 0.3 * np.tanh(value + 0.4 * y), 0.6 * y + 0.5 * x
    outputs = np.array(found) + noise * rng.normal(size=count)
    return (offset[0] + scale[0] * u)[:, None], (offset[1] + scale[1] * outputs)[:, None]


def write_csv(path, seed=0, count=400, rows=None, header="time,u,y", **options):
    """Write a record as CSV with a time column and return its path."""
    u, y = record(seed, count, **options)
    table = np.column_stack((TIME_STEP * np.arange(count), u, y))
    lines = [",".join(f"{value:.17g}" for value in row) for row in table]
    path.write_text("\n".join([header, *(lines if rows is None else rows(lines))]) + "\n")
    return path
