#!/usr/bin/env bash
# FMPy 0.3.32: in co-simulation, a row of the result holds the input of the step before, not the one at the row's time.
#
# A row is written after the step to its time, before the input of that time is applied. So the column of an input at
# time t is the input that was held from t - h to t: with the input u(t) = t, given as a table at every time of a row,
# the row of t says t - h. Whoever identifies a model from such a result, or replays it, has inputs that are one step
# late beside the outputs, without a word; the state x of the model below, x' = u, is right.
#
# The FMU is made here, of the headers in FMPy's wheel (needs gcc).
#
# Seen:
#   time  given  recorded  x
#   0.0   0.0    0.0       0.0
#   0.5   0.5    0.0       0.0
#   1.0   1.0    0.5       0.25
#   1.5   1.5    1.0       0.75
#   2.0   2.0    1.5       1.5
#
# Fails (status 1) when the recorded input is the given one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q fmpy==0.3.32 numpy==2.2.6 2>/dev/null
cd "$folder"
cat > unit.c <<'C'
#include <stdlib.h>
#include "fmi2Functions.h"
typedef struct { double u, x; } Unit;
fmi2Component fmi2Instantiate(fmi2String n, fmi2Type t, fmi2String g, fmi2String r, const fmi2CallbackFunctions *c,
                              fmi2Boolean v, fmi2Boolean l) { return calloc(1, sizeof(Unit)); }
void fmi2FreeInstance(fmi2Component c) { free(c); }
fmi2Status fmi2SetupExperiment(fmi2Component c, fmi2Boolean d, fmi2Real t, fmi2Real s, fmi2Boolean e, fmi2Real f) {
    return fmi2OK; }
fmi2Status fmi2EnterInitializationMode(fmi2Component c) { return fmi2OK; }
fmi2Status fmi2ExitInitializationMode(fmi2Component c) { return fmi2OK; }
fmi2Status fmi2Terminate(fmi2Component c) { return fmi2OK; }
fmi2Status fmi2GetReal(fmi2Component c, const fmi2ValueReference r[], size_t n, fmi2Real v[]) {
    for (size_t k = 0; k < n; k++) v[k] = r[k] ? ((Unit *)c)->x : ((Unit *)c)->u;
    return fmi2OK; }
fmi2Status fmi2SetReal(fmi2Component c, const fmi2ValueReference r[], size_t n, const fmi2Real v[]) {
    for (size_t k = 0; k < n; k++) if (r[k] == 0) ((Unit *)c)->u = v[k];
    return fmi2OK; }
fmi2Status fmi2DoStep(fmi2Component c, fmi2Real t, fmi2Real h, fmi2Boolean p) {
    ((Unit *)c)->x += h * ((Unit *)c)->u;
    return fmi2OK; }
C
cat > modelDescription.xml <<'XML'
<?xml version="1.0" encoding="UTF-8"?>
<fmiModelDescription fmiVersion="2.0" modelName="unit" guid="{1}">
  <CoSimulation modelIdentifier="unit"/>
  <ModelVariables>
    <ScalarVariable name="u" valueReference="0" causality="input" variability="continuous"><Real start="0"/></ScalarVariable>
    <ScalarVariable name="x" valueReference="1" causality="output" variability="continuous"><Real/></ScalarVariable>
  </ModelVariables>
  <ModelStructure><Outputs><Unknown index="2"/></Outputs></ModelStructure>
</fmiModelDescription>
XML
venv/bin/python - <<'PY'
import re
import subprocess
import zipfile
from pathlib import Path

import fmpy
import numpy as np

headers = Path(fmpy.__file__).parent / "c-code"
source = Path("unit.c").read_text()
# FMPy asks for every function of FMI 2; those that are not called here may be anything.
names = set(re.findall(r"fmi2FullName\((fmi2\w+)\)", (headers / "fmi2Functions.h").read_text()))
stubs = [name for name in sorted(names) if f"{name}(" not in source]
Path("stubs.c").write_text("".join(f"int {name}() {{ return 3; }}\n" for name in stubs))
library = f"unit{fmpy.sharedLibraryExtension}"
subprocess.run(["gcc", "-shared", "-fPIC", f"-I{headers}", "unit.c", "stubs.c", "-o", library], check=True)
with zipfile.ZipFile("unit.fmu", "w") as archive:
    archive.write("modelDescription.xml")
    archive.write(library, f"binaries/{fmpy.platform}/{library}")

times = np.arange(5) * 0.5
given = np.array([(t, t) for t in times], dtype=[("time", float), ("u", float)])
found = fmpy.simulate_fmu(
    "unit.fmu", stop_time=2.0, output_interval=0.5, input=given, output=["u", "x"], fmi_type="CoSimulation"
)
assert np.allclose(found["time"], times)
print("time  given  recorded  x")
for t, row in zip(times, found):
    print(f"{t:<5} {t:<6} {row['u']:<9} {row['x']}")
late = np.allclose(found["u"][1:], times[:-1])
right = np.allclose(found["x"], np.concatenate(([0.0], np.cumsum(0.5 * times[:-1]))))
raise SystemExit(not (late and right))
PY
