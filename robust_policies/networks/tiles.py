"""Products of small matrices in tiles of registers, for compiled loops.

Written in LLVM's own operations: at the sizes of a policy's matrices the compiler's own loops take five times as long.

Needs numba (the extra `fast`); compiled once, kept on the disk. Whatever is not finite stays so.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

# Of what -ffast-math allows, only what leaves NaN and infinity alone.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
_WORD = ir.IntType(64)
_ARRAYS = (1, 4, 8, 11)  # which arguments of a tile are arrays
MOST = 32
"""Neighbouring numbers that a tile may read at once."""
# Whether there are registers for 8 rows of 32 numbers of float32.
_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))


def compiled(function: Any) -> Any:
    """Return a function compiled, and kept on the disk."""
    return numba.njit(function, fastmath=_FAST, cache=True, error_model="numpy", nogil=True)


def _tile(rows: int, lanes: int) -> Any:
    """Return the product of `rows` rows and `lanes` neighbouring columns, all in registers: o = c + a b."""

    @intrinsic
    def tile(typing_context, k, to, o, o_row, left, a, a_row, a_column, right, b, b_row, plus, c, c_row):
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            k, o, o_row, a, a_row, a_column, b, b_row, c, c_row = (given[i] for i in range(14) if i not in _ARRAYS)
            base = [context.make_array(signature.args[i])(context, builder, given[i]).data for i in _ARRAYS]
            vector = ir.VectorType(context.get_data_type(to.dtype), lanes)
            align = to.dtype.bitwidth // 8
            lane, nothing = ir.IntType(32), ir.Constant(vector, ir.Undefined)
            same = ir.Constant(ir.VectorType(lane, lanes), [0] * lanes)

            def wide(data: Any, at: Any) -> Any:
                return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())

            def along(start: Any, step: Any, count: int) -> Any:
                return builder.add(start, builder.mul(step, _WORD(count)))

            sums = [cgutils.alloca_once(builder, vector) for _ in range(rows)]
            for r, total in enumerate(sums):
                first = builder.load(wide(base[3], along(c, c_row, r)))
                first.align = align
                builder.store(first, total)
            with cgutils.for_range(builder, k) as loop:
                row = builder.load(wide(base[2], builder.add(b, builder.mul(b_row, loop.index))))
                row.align = align
                for r, total in enumerate(sums):
                    at = builder.add(along(a, a_row, r), builder.mul(a_column, loop.index))
                    one = builder.insert_element(nothing, builder.load(builder.gep(base[1], [at])), lane(0))
                    more = builder.fmul(builder.shuffle_vector(one, nothing, same), row, flags=["contract"])
                    builder.store(builder.fadd(more, builder.load(total), flags=["contract"]), total)
            for r, total in enumerate(sums):
                last = builder.store(builder.load(total), wide(base[0], along(o, o_row, r)))
                last.align = align
            return context.get_dummy_value()

        number = types.int64
        kinds = (to, number, number, left, *[number] * 3, right, number, number, plus, number, number)
        return types.void(types.int64, *kinds), generate

    return tile


_tile_8_32 = _tile(8, MOST)
_tile_4_16, _tile_1_16, _tile_4_8, _tile_1_8 = _tile(4, 16), _tile(1, 16), _tile(4, 8), _tile(1, 8)
_tile_4_4, _tile_1_4, _tile_4_1, _tile_1_1 = _tile(4, 4), _tile(1, 4), _tile(4, 1), _tile(1, 1)


@compiled
def product(m, n, k, to, o, o_row, left, a, a_row, a_column, right, b, b_row, plus, c, c_row, c_column):
    """Overwrite `to` (m, n) with plus + left right: of each array where its first number is, and its distances.

    The columns of `to` and `right` are neighbours. Those of `plus` are too, or c_column and c_row are 0: then its first
    `MOST` numbers are added to all.
    """
    j = 0
    wide = _WIDE and to.itemsize == 4 and m >= 8
    while wide and n - j >= 32:
        for i in range(0, m, 8):
            row = min(i, m - 8)
            here, of, also = o + row * o_row + j, a + row * a_row, c + row * c_row + j * c_column
            _tile_8_32(k, to, here, o_row, left, of, a_row, a_column, right, b + j, b_row, plus, also, c_row)
        j += 32
    while j < n:
        rest = n - j
        # The last tiles reach back over numbers that are there: they are found again, the same.
        lanes, at = 1, j
        if rest > 8 and n >= 16:
            lanes, at = 16, min(j, n - 16)
        elif rest > 4 and n >= 8:
            lanes, at = 8, min(j, n - 8)
        elif n >= 4:
            lanes, at = 4, min(j, n - 4)
        i = 0
        while i < m:
            rows = 4 if m >= 4 else 1
            row = min(i, m - rows)
            here, of, also = o + row * o_row + at, a + row * a_row, c + row * c_row + at * c_column
            if lanes == 16:
                if rows == 4:
                    _tile_4_16(k, to, here, o_row, left, of, a_row, a_column, right, b + at, b_row, plus, also, c_row)
                else:
                    _tile_1_16(k, to, here, o_row, left, of, a_row, a_column, right, b + at, b_row, plus, also, c_row)
            elif lanes == 8:
                if rows == 4:
                    _tile_4_8(k, to, here, o_row, left, of, a_row, a_column, right, b + at, b_row, plus, also, c_row)
                else:
                    _tile_1_8(k, to, here, o_row, left, of, a_row, a_column, right, b + at, b_row, plus, also, c_row)
            elif lanes == 4:
                if rows == 4:
                    _tile_4_4(k, to, here, o_row, left, of, a_row, a_column, right, b + at, b_row, plus, also, c_row)
                else:
                    _tile_1_4(k, to, here, o_row, left, of, a_row, a_column, right, b + at, b_row, plus, also, c_row)
            elif rows == 4:
                _tile_4_1(k, to, here, o_row, left, of, a_row, a_column, right, b + at, b_row, plus, also, c_row)
            else:
                _tile_1_1(k, to, here, o_row, left, of, a_row, a_column, right, b + at, b_row, plus, also, c_row)
            i += rows
        j += lanes


def _gram(rows: int, columns: int, lanes: int, added: bool = True) -> Any:
    """Return the sums over steps of each of `rows` rows times each of `columns`, all in registers.

    With `added` over neighbours too, `count` times `lanes` of them; else of `lanes` neighbours one by one.
    """

    @intrinsic
    def gram(typing_context, steps, count, to, o, o_row, o_column, left, a, a_row, a_step, right, b, b_row, b_step):
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            steps, count, _, o, o_row, o_column, _, a, a_row, a_step, _, b, b_row, b_step = given
            base = [context.make_array(signature.args[i])(context, builder, given[i]).data for i in (2, 6, 10)]
            vector = ir.VectorType(context.get_data_type(to.dtype), lanes)
            align, lane, sums = to.dtype.bitwidth // 8, ir.IntType(32), []

            def along(start: Any, step: Any, times: Any) -> Any:
                return builder.add(start, builder.mul(step, times))

            def wide(data: Any, at: Any) -> Any:
                return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())

            def loaded(data: Any, at: Any) -> Any:
                value = builder.load(wide(data, at))
                value.align = align
                return value

            for _ in range(rows * columns):
                sums.append(cgutils.alloca_once(builder, vector))
                builder.store(ir.Constant(vector, [0.0] * lanes), sums[-1])
            with cgutils.for_range(builder, steps) as step, cgutils.for_range(builder, count) as piece:
                here = builder.mul(piece.index, _WORD(lanes))
                at, of = (builder.add(along(x, y, step.index), here) for x, y in ((a, a_step), (b, b_step)))
                some = [loaded(base[1], along(at, a_row, _WORD(i))) for i in range(rows)]
                others = [loaded(base[2], along(of, b_row, _WORD(j))) for j in range(columns)]
                for i, one in enumerate(some):
                    for j, other in enumerate(others):
                        total = sums[i * columns + j]
                        more = builder.fmul(one, other, flags=["contract"])
                        builder.store(builder.fadd(more, builder.load(total), flags=["contract"]), total)
            for i in range(rows):
                for j in range(columns):
                    total, width = builder.load(sums[i * columns + j]), lanes
                    at = along(along(o, o_row, _WORD(i)), o_column, _WORD(j))
                    if not added:
                        builder.store(total, wide(base[0], at)).align = align
                        continue
                    while width > 1:
                        width //= 2
                        halves = [range(width), range(width, 2 * width)]
                        masks = [ir.Constant(ir.VectorType(lane, width), list(half)) for half in halves]
                        total = builder.fadd(*(builder.shuffle_vector(total, total, mask) for mask in masks))
                    builder.store(builder.extract_element(total, lane(0)), builder.gep(base[0], [at]))
            return context.get_dummy_value()

        number = types.int64
        kinds = (to, *[number] * 3, left, *[number] * 3, right, *[number] * 3)
        return types.void(number, number, *kinds), generate

    return gram


LANES = 16 if _WIDE else 8
"""Neighbours that `gram` takes at once: those that it is given are a multiple of it."""
_gram_4_4, _gram_1_4 = _gram(4, 4, LANES), _gram(1, 4, LANES)
_gram_4_1, _gram_1_1 = _gram(4, 1, LANES), _gram(1, 1, LANES)
_each_4_4, _each_1_1 = _gram(4, 4, LANES, added=False), _gram(1, 1, LANES, added=False)


@compiled
def gram(m, n, steps, lanes, to, left, a, a_row, a_step, right, b, b_row, b_step):
    """Overwrite `to` (m n,) with the sums over steps and lanes of m rows of `left` times n of `right`.

    Of each array where its first number is, and how far its rows and its steps are apart; lanes are neighbours.
    """
    count = lanes // LANES
    for i0 in range(0, m, 4):
        rows = 4 if m >= 4 else 1
        for i1 in range(1 if m >= 4 else min(4, m)):
            i = min(i0, m - 4) if m >= 4 else i0 + i1
            of = a + i * a_row
            for j0 in range(0, n, 4):
                if n >= 4:
                    j = min(j0, n - 4)
                    at, also = i * n + j, b + j * b_row
                    if rows == 4:
                        _gram_4_4(steps, count, to, at, n, 1, left, of, a_row, a_step, right, also, b_row, b_step)
                    else:
                        _gram_1_4(steps, count, to, at, n, 1, left, of, a_row, a_step, right, also, b_row, b_step)
                else:
                    for j in range(n):
                        at, also = i * n + j, b + j * b_row
                        if rows == 4:
                            _gram_4_1(steps, count, to, at, n, 1, left, of, a_row, a_step, right, also, b_row, b_step)
                        else:
                            _gram_1_1(steps, count, to, at, n, 1, left, of, a_row, a_step, right, also, b_row, b_step)


@compiled
def composed(n, lanes, left, right, to):
    """Overwrite `to` (n, n, lanes) with left right, both (n, n, lanes), lane by lane."""
    row, tile = n * lanes, 4 if n >= 4 else 1
    for piece in range(0, lanes, LANES):
        for i0 in range(0, n, tile):
            for j0 in range(0, n, tile):
                i, j = min(i0, n - tile), min(j0, n - tile)
                at, a, b = i * row + j * lanes + piece, i * row + piece, j * lanes + piece
                if tile == 4:
                    _each_4_4(n, 1, to, at, row, lanes, left, a, row, lanes, right, b, lanes, row)
                else:
                    _each_1_1(n, 1, to, at, row, lanes, left, a, row, lanes, right, b, lanes, row)
