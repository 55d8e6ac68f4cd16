"""FMUs for the tests, compiled from unit.c with the C compiler that is there."""

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_TYPES = {"2": "Real", "3": "Float64"}
_LINES = [
    ("u", 0, "input", "continuous", ' start="0" min="-2" max="2"'),
    ("x", 1, "output", "continuous", ""),
    ("seen", 2, "output", "continuous", ""),
    ("begun", 3, "output", "continuous", ""),
    ("a", 4, "parameter", "fixed", ' start="0.5"'),
]


def description(version: str, keeps: bool) -> str:
    """Return modelDescription.xml."""
    state = {"2": "canGetAndSetFMUstate", "3": "canGetAndSetFMUState"}[version]
    slave = f'<CoSimulation modelIdentifier="unit" {state}="{str(keeps).lower()}"/>'
    experiment = '<DefaultExperiment startTime="0" stepSize="0.1"/>'
    if version == "2":
        variables = "".join(
            f'<ScalarVariable name="{name}" valueReference="{reference}" causality="{causality}" variability="{kind}">'
            f"<Real{more}/></ScalarVariable>"
            for name, reference, causality, kind, more in _LINES
        )
        head = '<fmiModelDescription fmiVersion="2.0" modelName="unit" guid="{1}">'
        structure = "<ModelStructure><Outputs>" + "".join(f'<Unknown index="{k}"/>' for k in (2, 3, 4))
        structure += "</Outputs></ModelStructure>"
    else:
        variables = "".join(
            f'<Float64 name="{name}" valueReference="{reference}" causality="{causality}" variability="{kind}"{more}/>'
            for name, reference, causality, kind, more in _LINES
        )
        head = '<fmiModelDescription fmiVersion="3.0" modelName="unit" instantiationToken="{1}">'
        structure = "<ModelStructure>" + "".join(f'<Output valueReference="{k}"/>' for k in (1, 2, 3))
        structure += "</ModelStructure>"
    inner = f"{slave}{experiment}<ModelVariables>{variables}</ModelVariables>{structure}"
    return f'<?xml version="1.0"?>{head}{inner}</fmiModelDescription>'


def build(folder: Path, version: str, *defines: str, keeps: bool = True) -> str:
    """Return the path of an FMU of FMI `version`; skips where FMPy or a C compiler is missing."""
    fmpy = pytest.importorskip("fmpy", reason="FMPy is not installed")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "unit.so"
    chosen = [f"-D{name}" for name in (*defines, *(["FMI3"] if version == "3" else []))]
    headers = Path(fmpy.__file__).parent / "c-code"
    # FMPy asks for every function of FMI 2: those that unit.c leaves out say that they failed.
    source = (HERE / "unit.c").read_text()
    names = re.findall(r"fmi\dFullName\((fmi\d\w+)\)", (headers / f"fmi{version}Functions.h").read_text())
    missing = [name for name in sorted(set(names)) if not re.search(rf"\b{name}\(|NAME\({name[4:]}\)", source)]
    stubs = folder / "stubs.c"
    stubs.write_text("".join(f"int {name}() {{ return 3; }}\n" for name in missing))
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", f"-I{headers}", *chosen, HERE / "unit.c", stubs, "-o", library],
        check=True,
        capture_output=True,
    )
    path = folder / "unit.fmu"
    place = f"binaries/{fmpy.platform if version == '2' else fmpy.platform_tuple}/unit{fmpy.sharedLibraryExtension}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("modelDescription.xml", description(version, keeps))
        archive.write(library, place)
    return str(path)
