"""Arrays in npz files are what NumPy reads, and damage is said, not read."""

import struct
import zipfile

import numpy as np
import pytest

from robust_policies.files.npz import Npz


def test_arrays_are_those_that_numpy_reads(tmp_path):
    given = {
        "one": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.random.default_rng(0).standard_normal((3, 4))),
        "nothing": np.zeros((0, 3)),
        "number": np.array(1.5),
        "flags": np.array([True, False]),
        "other_end": np.array([1.0, 2.0], dtype=">f8"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "arrays.npz", **given)
        found = Npz(tmp_path / "arrays.npz")
        assert list(found) == list(given) and len(found) == len(given) and "two" not in found
        with np.load(tmp_path / "arrays.npz") as expected:
            for name in given:
                assert found[name].dtype == expected[name].dtype
                np.testing.assert_array_equal(found[name], expected[name], strict=True)
                found[name][...] = 0
        with pytest.raises(KeyError):
            found["two"]


def test_damage_and_pythons_objects_are_refused(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, values=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="objects"):
        Npz(path)["values"]
    np.savez_compressed(path, values=np.random.default_rng(0).standard_normal(200))
    whole = path.read_bytes()
    path.write_bytes(whole[:80] + bytes(100) + whole[180:])
    with pytest.raises((zipfile.BadZipFile, ValueError)):
        Npz(path)["values"]
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(zipfile.BadZipFile):
        Npz(path)
    with pytest.raises(FileNotFoundError):
        Npz(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': (",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000000000000000000,), }",
        "{'descr': ('<f8',), 'fortran_order': False, 'shape': (2,), }",
        "{'descr': ',f8', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 2), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
    ],
)
def test_what_is_no_header_is_refused(tmp_path, header):
    path = tmp_path / "arrays.npz"
    with zipfile.ZipFile(path, "w") as file:
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(16)
        file.writestr("values.npy", content)
    with pytest.raises((zipfile.BadZipFile, ValueError)):
        Npz(path)["values"]


def test_damage_of_other_compressions_and_versions_is_said(tmp_path):
    path = tmp_path / "arrays.npz"
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", kind) as file:
            file.writestr("values.npy", np.random.default_rng(0).bytes(2000))
        whole = path.read_bytes()
        path.write_bytes(whole[:80] + bytes(1000) + whole[1080:])
        with pytest.raises(zipfile.BadZipFile, match="values"):
            Npz(path)["values"]
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"PK\x01\x02") + 6] = 220
    path.write_bytes(whole)
    with pytest.raises(zipfile.BadZipFile, match="version"):
        Npz(path)


def test_what_would_fill_the_memory_is_not_expanded(tmp_path):
    path = tmp_path / "arrays.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("values.npy", bytes(2000))
    whole = bytearray(path.read_bytes())
    at = whole.index(b"PK\x01\x02") + 24
    whole[at : at + 4] = struct.pack("<I", 2**31)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="would expand to 2147483648"):
        Npz(path)["values"]
