#!/usr/bin/env bash
# safetensors 0.8.0 with NumPy: an array that is not contiguous is written in the order of its memory.
#
# `safetensors.numpy.save` takes a transposed or strided array without a word, stores its shape beside the bytes of the
# buffer it is a view of, and `load` gives back an array of the right shape with other values. The torch front of the
# same library refuses such tensors. Whoever stores weights from NumPy (a transposed W is the usual case between two
# conventions of linear layers) has to call numpy.ascontiguousarray first and should read back what was written.
#
# Seen:
#   saved [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#   loaded [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
#   saved [[0.0, 2.0], [3.0, 5.0]]
#   loaded [[0.0, 1.0], [2.0, 3.0]]
#
# Fails (status 1) when the values come back as they were saved, or saving is refused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.2.6 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
import numpy
from safetensors.numpy import load, save

a = numpy.arange(6.0).reshape(2, 3)
changed = []
for array in (a.T, a[:, ::2]):
    back = load(save({"w": array}))["w"]
    print("saved", array.tolist())
    print("loaded", back.tolist())
    assert back.shape == array.shape
    changed.append(not numpy.array_equal(back, array))
raise SystemExit(not all(changed))
PY
