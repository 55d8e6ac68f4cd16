#!/usr/bin/env bash
# numba 0.68.1: a compiled function is compiled again for every literal that another compiled function calls it with.
#
# Integers written at the place of a call have types of their own, Literal[int](0), Literal[int](1), and the callee is
# typed, optimised and kept in the cache once for each combination of them, though its code does not ask for constants
# (numba.literally is not used). The notes of version 0.50 say that types that are no literals are preferred, to reduce
# just that. A kernel that takes offsets and distances as integers is so compiled up to once for each place it is called
# from with other zeros and ones; called from Python, or with the same numbers made by numpy.int64(0), once.
#
# Seen:
#   called with 0, 1 and 2 by a compiled function: 3 signatures, Literal[int](0) Literal[int](1) Literal[int](2)
#   called with numpy.int64(0), (1) and (2) by one: 1 signature, int64
#   called with 0, 1 and 2 from Python: 1 signature, int64
#
# Fails (status 1) when the first are not three signatures or the others not one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numba==0.68.1 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
import numba
import numpy


def kernel():
    @numba.njit
    def added(x, offset):
        return x + offset

    return added


def said(who, called):
    kinds = [str(signature[1]) for signature in called.signatures]
    print(f"called with {who}: {len(kinds)} signature{'s' * (len(kinds) > 1)}, {' '.join(kinds)}")
    return len(kinds)


literal, typed, plain = kernel(), kernel(), kernel()


@numba.njit
def by_literals(x):
    return literal(x, 0) + literal(x, 1) + literal(x, 2)


@numba.njit
def by_numbers(x):
    return typed(x, numpy.int64(0)) + typed(x, numpy.int64(1)) + typed(x, numpy.int64(2))


by_literals(1.0)
by_numbers(1.0)
for offset in range(3):
    plain(1.0, offset)
found = [
    said("0, 1 and 2 by a compiled function", literal),
    said("numpy.int64(0), (1) and (2) by one", typed),
    said("0, 1 and 2 from Python", plain),
]
raise SystemExit(found != [3, 1, 1])
PY
