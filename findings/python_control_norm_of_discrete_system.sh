#!/usr/bin/env bash
# python-control 0.10.2: the H-infinity norm of a discrete system comes out below the system's real gain.
#
# G(z) = 1 / (z - 0.9) has its largest gain at frequency 0: G(1) = 10 exactly. `control.norm(G, p="inf")` gives a number
# below it, by more than a part in ten million, and so does `control.system_norm`; asking for a smaller tolerance
# (`tol`) brings the figure nearer to 10, still from below. A figure that is below the gain it stands for is no bound:
# whoever puts it into a small-gain argument needs a margin, or a proof of the inequality with the number it gives.
#
# Seen:
#   norm 9.99999874516537, gain at frequency 0: 10
#   tol=1e-10: 9.999999999724277
#
# Fails (status 1) when the norm is at least 10.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q control==0.10.2 numpy==2.2.6 scipy==1.15.3 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
import control

G = control.ss([[0.9]], [[1.0]], [[1.0]], [[0.0]], 1.0)
gain = abs(G(1.0))
norm = control.norm(G, p="inf")
finer = control.system_norm(G, p="inf", tol=1e-10)
print(f"norm {float(norm)!r}, gain at frequency 0: {float(gain):.10g}")
print(f"tol=1e-10: {float(finer)!r}")
raise SystemExit(not (norm < 10.0 - 1e-6 and finer < 10.0))
PY
