"""The operations of a tape (`tape`) on one flat buffer of numbers, in compiled loops: one call runs all of them.

A matrix is where its first number is and the distances to the next row and the next column; a distance of 0 repeats a
number. A row of the tape is

    [operation, m, n, k, kind, o, its distances, a, its distances, b, its distances, c, its distances]

with the result at o. Nothing is allocated. Products are done in tiles of registers, written in LLVM's own operations:
at the sizes of a policy's matrices the compiler's own loops take five times as long.

Needs numba (the extra `fast`); compiled once, kept on the disk. Whatever is not finite stays so.
"""

from __future__ import annotations

import math
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

# Of what -ffast-math allows, only what leaves NaN and infinity alone.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
_WORD = ir.IntType(64)

# Operations.
ELEMENTWISE, PRODUCT, PLACE, SUM, TRIANGLE, CHOLESKY, TRIANGULAR, FACTOR, SOLVE, DOTS = range(10)
# Kinds of ELEMENTWISE: of a and b alone, then what reads c too.
COPY, NEGATE, ROOT, EXP, ADD, SUBTRACT, MULTIPLY, DIVIDE, POWER, ATLEAST, ATMOST, GREATER, LESS, CHOOSE = range(14)
# Kinds of TRIANGULAR (added up) and of SOLVE.
UPPER, UNIT = 1, 2
TRANSPOSED = 1
WIDTH = 17
"""Entries of a row of the tape."""


def _compiled(function: Any) -> Any:
    return numba.njit(function, fastmath=_FAST, cache=True, error_model="numpy", nogil=True)


def _tile(rows: int, lanes: int) -> Any:
    """Return the product of `rows` rows and `lanes` neighbouring columns, all in registers: o = c + a b."""

    @intrinsic
    def tile(typing_context, w, k, o, o_row, a, a_row, a_column, b, b_row, c, c_row):
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            data = context.make_array(w)(context, builder, given[0]).data
            k, o, o_row, a, a_row, a_column, b, b_row, c, c_row = given[1:]
            vector = ir.VectorType(context.get_data_type(w.dtype), lanes)
            lane, nothing = ir.IntType(32), ir.Constant(vector, ir.Undefined)
            same = ir.Constant(ir.VectorType(lane, lanes), [0] * lanes)

            def wide(at: Any) -> Any:
                return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())

            def along(start: Any, step: Any, count: int) -> Any:
                return builder.add(start, builder.mul(step, _WORD(count)))

            sums = [cgutils.alloca_once(builder, vector) for _ in range(rows)]
            for r, total in enumerate(sums):
                first = builder.load(wide(along(c, c_row, r)))
                first.align = w.dtype.bitwidth // 8
                builder.store(first, total)
            with cgutils.for_range(builder, k) as loop:
                right = builder.load(wide(builder.add(b, builder.mul(b_row, loop.index))))
                right.align = w.dtype.bitwidth // 8
                for r, total in enumerate(sums):
                    at = builder.add(along(a, a_row, r), builder.mul(a_column, loop.index))
                    one = builder.insert_element(nothing, builder.load(builder.gep(data, [at])), lane(0))
                    left = builder.shuffle_vector(one, nothing, same)
                    product = builder.fmul(left, right, flags=["contract"])
                    builder.store(builder.fadd(product, builder.load(total), flags=["contract"]), total)
            for r, total in enumerate(sums):
                last = builder.store(builder.load(total), wide(along(o, o_row, r)))
                last.align = w.dtype.bitwidth // 8
            return context.get_dummy_value()

        return types.void(w, *[types.int64] * 10), generate

    return tile


@intrinsic
def _fetch(typing_context, w, at, address, count):
    """Copy numbers at an address into w (all,), from `at` on."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        data = context.make_array(w)(context, builder, given[0]).data
        source = builder.inttoptr(given[2], data.type)
        cgutils.raw_memcpy(builder, builder.gep(data, [given[1]]), source, given[3], w.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(w, types.int64, types.int64, types.int64), generate


_tile_4_16, _tile_1_16, _tile_4_8, _tile_1_8 = _tile(4, 16), _tile(1, 16), _tile(4, 8), _tile(1, 8)
_tile_4_4, _tile_1_4, _tile_4_1, _tile_1_1 = _tile(4, 4), _tile(1, 4), _tile(4, 1), _tile(1, 1)


@_compiled
def _product(w, m, n, k, o, o_row, a, a_row, a_column, b, b_row, c, c_row, c_column):
    """Overwrite o (m, n) with c + a b; the columns of o and b are neighbours, those of c too or all the same."""
    j = 0
    while j < n:
        left = n - j
        # The last tiles reach back over numbers that are there: they are found again, the same.
        lanes, at = 1, j
        if left > 8 and n >= 16:
            lanes, at = 16, min(j, n - 16)
        elif left > 4 and n >= 8:
            lanes, at = 8, min(j, n - 8)
        elif n >= 4:
            lanes, at = 4, min(j, n - 4)
        i = 0
        while i < m:
            rows = 4 if m >= 4 else 1
            row = min(i, m - rows)
            to, of, plus = o + row * o_row + at, a + row * a_row, c + row * c_row + at * c_column
            if lanes == 16:
                if rows == 4:
                    _tile_4_16(w, k, to, o_row, of, a_row, a_column, b + at, b_row, plus, c_row)
                else:
                    _tile_1_16(w, k, to, o_row, of, a_row, a_column, b + at, b_row, plus, c_row)
            elif lanes == 8:
                if rows == 4:
                    _tile_4_8(w, k, to, o_row, of, a_row, a_column, b + at, b_row, plus, c_row)
                else:
                    _tile_1_8(w, k, to, o_row, of, a_row, a_column, b + at, b_row, plus, c_row)
            elif lanes == 4:
                if rows == 4:
                    _tile_4_4(w, k, to, o_row, of, a_row, a_column, b + at, b_row, plus, c_row)
                else:
                    _tile_1_4(w, k, to, o_row, of, a_row, a_column, b + at, b_row, plus, c_row)
            elif rows == 4:
                _tile_4_1(w, k, to, o_row, of, a_row, a_column, b + at, b_row, plus, c_row)
            else:
                _tile_1_1(w, k, to, o_row, of, a_row, a_column, b + at, b_row, plus, c_row)
            i += rows
        j += lanes


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
def _whole(w, m, n, at, row, column, spare):
    """Return the m n numbers of a matrix row after row, in `spare` if they lie otherwise."""
    if column == 1 and (m == 1 or row == n):
        return w[at : at + m * n]
    _place(w, m, n, spare, n, 1, at, row, column)
    return w[spare : spare + m * n]


@_compiled
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


@_compiled
def _triangle(w, m, n, k, upper, o, o_row, o_column, a, a_row, a_column):
    """Overwrite o (m, n) with a up to its k-th diagonal, or from there on."""
    zero = w.dtype.type(0)
    for i in range(m):
        for j in range(n):
            inside = j - i >= k if upper else j - i <= k
            w[o + i * o_row + j * o_column] = w[a + i * a_row + j * a_column] if inside else zero


@_compiled
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


@_compiled
def _eliminate(w, n, right, factor, i, p):
    """Take `factor` times the p-th of rows (all, n) from the i-th."""
    x, y = w[right + i * n : right + i * n + n], w[right + p * n : right + p * n + n]
    for j in range(n):
        x[j] -= factor * y[j]


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
def run(w, tape, spare, sources):
    """Run a tape (operations, 17) on w (all,); return whether every matrix had its factor or its inverse, finite.

    `spare` is where in w there is room for three rows and for the largest matrix. First the `sources` (count, 3) are
    brought into w: address, place, count of numbers each; an address of 0 stands for zeros.
    """
    for s in range(len(sources)):
        address, at, count = sources[s]
        if address:
            _fetch(w, at, address, count)
        else:
            w[at : at + count] = 0.0
    fine = True
    for t in range(len(tape)):
        code, m, n, k, kind, o, o_row, o_column, a, a_row, a_column, b, b_row, b_column, c, c_row, c_column = tape[t]
        if code == PRODUCT:
            _product(w, m, n, k, o, o_row, a, a_row, a_column, b, b_row, c, c_row, c_column)
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
