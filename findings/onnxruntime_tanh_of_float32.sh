#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: Tanh of float32 exceeds 1 and is not monotone.
#
# The operator is a rational approximation. Its largest value is 1.0000002, and over rising arguments it falls again and
# again by a rounding step, where numpy.tanh of the same float32 numbers never leaves [-1, 1] and never falls. Whoever
# certifies a network by slopes in [0, 1], entry by entry, has proven nothing of the exported file to its last bits: the
# difference quotient of neighbouring arguments is negative in places, and the range is wider than the function's.
#
# Seen:
#   largest 1.000000238418579, smallest -1.000000238418579
#   falls between neighbours of 4000001 rising arguments: 583304 (numpy: 0)
#
# Fails (status 1) when no value exceeds 1 or the values never fall.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
import numpy
import onnxruntime
from onnx import TensorProto, helper

ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Tanh", ["x"], ["y"])], "tanh", ends[:1], ends[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
x = numpy.linspace(-12, 12, 4_000_001).astype(numpy.float32)
(y,) = session.run(None, {"x": x})
falls, own = ((numpy.diff(values) < 0).sum() for values in (y, numpy.tanh(x)))
print(f"largest {y.max()}, smallest {y.min()}")
print(f"falls between neighbours of {len(x)} rising arguments: {falls} (numpy: {own})")
raise SystemExit(not (y.max() > 1 and falls > 0 and own == 0))
PY
