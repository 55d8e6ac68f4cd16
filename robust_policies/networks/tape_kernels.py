"""The operations of a tape (`tape`) on one flat buffer of numbers, in compiled loops: one call runs all of them.

A matrix is where its first number is and the distances to the next row and the next column; a distance of 0 repeats a
number. A row of the tape is

    [operation, m, n, k, kind, o, its distances, a, its distances, b, its distances, c, its distances]

with the result at o. Nothing is allocated.

Needs numba (the extra `fast`); compiled once, kept on the disk. Whatever is not finite stays so.
"""

from __future__ import annotations

import math
from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from robust_policies.networks.tiles import MOST, compiled, product

__all__ = ["MOST", "run"]

# Operations.
ELEMENTWISE, PRODUCT, PLACE, SUM, TRIANGLE, CHOLESKY, TRIANGULAR, FACTOR, SOLVE, DOTS = range(10)
# Kinds of ELEMENTWISE: of a and b alone, then what reads c too.
COPY, NEGATE, ROOT, EXP, ADD, SUBTRACT, MULTIPLY, DIVIDE, POWER, ATLEAST, ATMOST, GREATER, LESS, CHOOSE = range(14)
# Kinds of TRIANGULAR (added up) and of SOLVE.
UPPER, UNIT = 1, 2
TRANSPOSED = 1
WIDTH = 17
"""Entries of a row of the tape."""


@intrinsic
def _fetch(typing_context, w, at, address, count):
    """Copy numbers at an address into w (all,), from `at` on."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        data = context.make_array(w)(context, builder, given[0]).data
        source = builder.inttoptr(given[2], data.type)
        cgutils.raw_memcpy(builder, builder.gep(data, [given[1]]), source, given[3], w.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(w, types.int64, types.int64, types.int64), generate


@compiled
def _elementwise(kind, x, y, z, to):
    """Overwrite to (n,) with an operation on x, y and z, (n,) each."""
    n = len(to)
    if kind == ADD:
        for j in range(n):
            to[j] = x[j] + y[j]
    elif kind == MULTIPLY:
        for j in range(n):
            to[j] = x[j] * y[j]
    elif kind == SUBTRACT:
        for j in range(n):
            to[j] = x[j] - y[j]
    elif kind == DIVIDE:
        for j in range(n):
            to[j] = x[j] / y[j]
    elif kind == NEGATE:
        for j in range(n):
            to[j] = -x[j]
    elif kind == COPY:
        for j in range(n):
            to[j] = x[j]
    elif kind == ROOT:
        for j in range(n):
            to[j] = math.sqrt(x[j])
    elif kind == EXP:
        for j in range(n):
            to[j] = math.exp(x[j])
    elif kind == POWER:
        for j in range(n):
            to[j] = x[j] ** y[j]
    elif kind == ATLEAST:
        for j in range(n):
            to[j] = y[j] if x[j] < y[j] else x[j]
    elif kind == ATMOST:
        for j in range(n):
            to[j] = y[j] if x[j] > y[j] else x[j]
    elif kind == GREATER:
        for j in range(n):
            to[j] = 1.0 if x[j] >= y[j] else 0.0
    elif kind == LESS:
        for j in range(n):
            to[j] = 1.0 if x[j] <= y[j] else 0.0
    elif kind == CHOOSE:
        for j in range(n):
            to[j] = x[j] if z[j] != 0.0 else y[j]


@compiled
def _place(w, m, n, o, o_row, o_column, a, a_row, a_column):
    """Overwrite o (m, n) with a."""
    for i in range(m):
        to, of = o + i * o_row, a + i * a_row
        if o_column == 1 and a_column == 1:
            x, y = w[of : of + n], w[to : to + n]
            for j in range(n):
                y[j] = x[j]
        elif o_column == 1 and a_column == 0:
            value, y = w[of], w[to : to + n]
            for j in range(n):
                y[j] = value
        else:
            for j in range(n):
                w[to + j * o_column] = w[of + j * a_column]


@compiled
def _neighbours(w, at, step, n, spare):
    """Return n numbers that lie `step` apart as neighbours, in `spare` if they are not."""
    if step == 1:
        return w[at : at + n]
    found = w[spare : spare + n]
    if step == 0:
        value = w[at]
        for j in range(n):
            found[j] = value
    else:
        for j in range(n):
            found[j] = w[at + j * step]
    return found


@compiled
def _whole(w, m, n, at, row, column, spare):
    """Return the m n numbers of a matrix row after row, in `spare` if they lie otherwise."""
    if column == 1 and (m == 1 or row == n):
        return w[at : at + m * n]
    _place(w, m, n, spare, n, 1, at, row, column)
    return w[spare : spare + m * n]


@compiled
def _sum(w, m, n, o, o_row, o_column, a, a_row, a_column, spare):
    """Overwrite o with the sums of a (m, n) over the axes in which o does not move."""
    zero = w.dtype.type(0)
    for i in range(m if o_row else 1):
        for j in range(n if o_column else 1):
            w[o + i * o_row + j * o_column] = zero
    for i in range(m):
        x = _neighbours(w, a + i * a_row, a_column, n, spare)
        if o_column == 0:
            total = zero
            for j in range(n):
                total += x[j]
            w[o + i * o_row] += total
        else:
            for j in range(n):
                w[o + i * o_row + j * o_column] += x[j]


@compiled
def _triangle(w, m, n, k, upper, o, o_row, o_column, a, a_row, a_column):
    """Overwrite o (m, n) with a up to its k-th diagonal, or from there on."""
    zero = w.dtype.type(0)
    for i in range(m):
        for j in range(n):
            inside = j - i >= k if upper else j - i <= k
            w[o + i * o_row + j * o_column] = w[a + i * a_row + j * a_column] if inside else zero


@compiled
def _cholesky(w, n, o, o_row, o_column, a, a_row, a_column, spare):
    """Overwrite o (n, n) with the lower factor of a; return whether there is a finite one."""
    total = w.dtype.type(0)
    for i in range(n):
        x = w[spare + i * n : spare + i * n + n]
        for j in range(i + 1):
            y = w[spare + j * n : spare + j * n + n]
            value = w[a + i * a_row + j * a_column]
            for p in range(j):
                value -= x[p] * y[p]
            if i > j:
                x[j] = value / y[j]
            elif value > 0.0:
                x[j] = math.sqrt(value)
            else:
                return False
            total += x[j]
        for j in range(i + 1, n):
            x[j] = 0.0
    _place(w, n, n, o, o_row, o_column, spare, n, 1)
    return math.isfinite(total)


@compiled
def _eliminate(w, n, right, factor, i, p):
    """Take `factor` times the p-th of rows (all, n) from the i-th."""
    x, y = w[right + i * n : right + i * n + n], w[right + p * n : right + p * n + n]
    for j in range(n):
        x[j] -= factor * y[j]


@compiled
def _substitute(w, m, n, a, a_row, a_column, upper, unit, right):
    """Overwrite the rows `right` (m, n) with the solution of a triangular matrix a (m, m)."""
    for step in range(m):
        i = m - 1 - step if upper else step
        for p in range(i + 1, m) if upper else range(i):
            _eliminate(w, n, right, w[a + i * a_row + p * a_column], i, p)
        if not unit:
            scale, x = w[a + i * a_row + i * a_column], w[right + i * n : right + i * n + n]
            for j in range(n):
                x[j] = x[j] / scale


@compiled
def _factor(w, n, o, o_row, o_column, a, a_row, a_column, pivots, spare):
    """Overwrite o (n, n) with the factors of a whose rows are exchanged, pivots (n,); return whether there are any."""
    _place(w, n, n, spare, n, 1, a, a_row, a_column)
    for k in range(n):
        best = k
        for i in range(k + 1, n):
            if abs(w[spare + i * n + k]) > abs(w[spare + best * n + k]):
                best = i
        w[pivots + k] = best
        head, other = w[spare + k * n : spare + k * n + n], w[spare + best * n : spare + best * n + n]
        if best != k:
            for j in range(n):
                head[j], other[j] = other[j], head[j]
        if head[k] == 0.0:
            return False
        for i in range(k + 1, n):
            x = w[spare + i * n : spare + i * n + n]
            ratio = x[k] / head[k]
            x[k] = ratio
            for j in range(k + 1, n):
                x[j] -= ratio * head[j]
    _place(w, n, n, o, o_row, o_column, spare, n, 1)
    return True


@compiled
def _solve(w, m, n, transposed, o, o_row, o_column, a, a_row, a_column, b, b_row, b_column, pivots, spare):
    """Overwrite o (m, n) with the solution of a matrix of which a (m, m) are the factors; return whether finite."""
    _place(w, m, n, spare, n, 1, b, b_row, b_column)
    if transposed:
        _substitute(w, m, n, a, a_column, a_row, False, False, spare)
        _substitute(w, m, n, a, a_column, a_row, True, True, spare)
    for step in range(m):
        k = m - 1 - step if transposed else step
        other = int(w[pivots + k])
        if other != k:
            for j in range(n):
                at, to = spare + k * n + j, spare + other * n + j
                w[at], w[to] = w[to], w[at]
    if not transposed:
        _substitute(w, m, n, a, a_row, a_column, False, True, spare)
        _substitute(w, m, n, a, a_row, a_column, True, False, spare)
    _place(w, m, n, o, o_row, o_column, spare, n, 1)
    total = w.dtype.type(0)
    for j in range(m * n):
        total += w[spare + j]
    return math.isfinite(total)


@compiled
def run(w, tape, spare, sources):
    """Run a tape (operations, 17) on w (all,); return whether every matrix had its factor or its inverse, finite.

    `spare` is where in w there is room for three rows and for the largest matrix. First the `sources` (count, 3) are
    brought into w: address, place, count of numbers each; an address of 0 stands for zeros.
    """
    for s in range(len(sources)):
        address, at, count = sources[s]
        if address:
            _fetch(w, at, address, count)  # pyright: ignore[reportCallIssue] (the first argument is numba's)
        else:
            w[at : at + count] = 0.0
    fine = True
    for t in range(len(tape)):
        code, m, n, k, kind, o, o_row, o_column, a, a_row, a_column, b, b_row, b_column, c, c_row, c_column = tape[t]
        if code == PRODUCT:
            product(m, n, k, w, o, o_row, w, a, a_row, a_column, w, b, b_row, w, c, c_row, c_column)
        elif code == ELEMENTWISE:
            x = _whole(w, m, n, a, a_row, a_column, spare)
            y = _whole(w, m, n, b, b_row, b_column, spare + m * n) if kind >= ADD else x
            z = _whole(w, m, n, c, c_row, c_column, spare + 2 * m * n) if kind == CHOOSE else x
            if m == 1 or o_row == n:
                _elementwise(kind, x, y, z, w[o : o + m * n])
            else:
                for i in range(m):
                    part = slice(i * n, i * n + n)
                    _elementwise(kind, x[part], y[part], z[part], w[o + i * o_row : o + i * o_row + n])
        elif code == PLACE:
            _place(w, m, n, o, o_row, o_column, a, a_row, a_column)
        elif code == SUM:
            _sum(w, m, n, o, o_row, o_column, a, a_row, a_column, spare)
        elif code == DOTS:
            for i in range(m):
                x = _neighbours(w, a + i * a_row, a_column, k, spare)
                y = _neighbours(w, b, b_row, k, spare + k)
                total = w.dtype.type(0)
                for j in range(k):
                    total += x[j] * y[j]
                w[o + i * o_row] = total
        elif code == TRIANGLE:
            _triangle(w, m, n, k, kind, o, o_row, o_column, a, a_row, a_column)
        elif code == CHOLESKY:
            fine &= _cholesky(w, n, o, o_row, o_column, a, a_row, a_column, spare)
        elif code == TRIANGULAR:
            _place(w, m, n, spare, n, 1, b, b_row, b_column)
            _substitute(w, m, n, a, a_row, a_column, kind & UPPER > 0, kind & UNIT > 0, spare)
            _place(w, m, n, o, o_row, o_column, spare, n, 1)
        elif code == FACTOR:
            fine &= _factor(w, n, o, o_row, o_column, a, a_row, a_column, c, spare)
        elif code == SOLVE:
            fine &= _solve(w, m, n, kind, o, o_row, o_column, a, a_row, a_column, b, b_row, b_column, c, spare)
        if not fine:
            return False
    return fine
