"""The probe in Triton: rows of attention summed up as they are computed, never stored.

Importing this needs triton (the extra `probe`); `rism.export.probe.launch` calls it.
Scores s_ij = q_i . k_j / sqrt(d) are accumulated in float32 from operands in their own type, and
with the row's log-sum-exp L_i known, exp(s_ij - L_i) is the attention itself: no maximum, no
division, and keys that nothing is asked of are not visited. Exponents are in base two, the
hardware's. Programs sum over the heads of their group, so no order of sums is left to chance.

The last tile reads the last row again where rows have ended: what is read twice has a score like
any other and a weight of zero, which costs no comparison for each score.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
# `size` is the tuner's key and nothing else: no compilation depends on it.
_FOR_ANY_SIZE = triton.jit(do_not_specialize=["size"])


@triton.jit
def _tile(base, stride, first, count, DIM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows first to first + ROWS of a (count, DIM) matrix, with zeros up to WIDTH."""
    row = tl.minimum(first + tl.arange(0, ROWS), count - 1)
    column = tl.arange(0, WIDTH)
    places = base + row[:, None] * stride + column[None, :]
    if DIM != WIDTH:
        return tl.load(places, mask=column[None, :] < DIM, other=0.0)
    return tl.load(places)


@triton.jit
def _narrowed(part, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """(ROWS, KEYS) to (ROWS, 8): sums over the keys that a thread of the tensor cores holds.

    The rest is summed when all keys are through, so no tile needs threads to exchange anything.
    """
    return tl.sum(tl.reshape(part, [ROWS, KEYS // 8, 8]), 1)


@_FOR_ANY_SIZE
def prompt_masses(
    q, k, weights, statistics, sums,
    q_batch, q_head, q_row, k_batch, k_head, k_row, weights_batch,
    statistics_batch, statistics_head, sums_batch, sums_group,
    rows, padded, prompt, heads, scale, share, size,
    DIM: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """sums[b, g, i] = share * sum over g's heads and prompt keys of w_j exp(s_ij - L_i).

    Rows up to `padded` are zero. Blocks of keys whose weights are all zero are not read. Grid:
    blocks of padded rows, groups, batch.
    """
    first_row = tl.program_id(0) * BLOCK_M
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    row = first_row + tl.arange(0, BLOCK_M)
    inside = row < rows
    total = tl.zeros([BLOCK_M, 8], tl.float32)
    for head in range(group * heads, group * heads + heads):
        query = q + batch * q_batch + head * q_head
        queries = _tile(query, q_row, first_row, rows, DIM, BLOCK_M, WIDTH)
        level = statistics + batch * statistics_batch + head * statistics_head + row
        level = tl.load(level, mask=inside, other=float("inf")) * _LOG2_E
        keys = k + batch * k_batch + head * k_head
        for first in range(0, prompt, BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            weight = weights + batch * weights_batch + column
            weight = tl.load(weight, mask=column < prompt, other=0.0)
            if tl.max(tl.abs(weight), 0) > 0:
                tile = _tile(keys, k_row, first, prompt, DIM, BLOCK_N, WIDTH)
                scores = tl.dot(queries, tl.trans(tile), input_precision=PRECISION)
                mass = tl.exp2(scores * (scale * _LOG2_E) - level[:, None])
                total += _narrowed(mass * weight[None, :], BLOCK_M, BLOCK_N)
    found = tl.where(inside, tl.sum(total, 1) * share, 0.0)
    tl.store(sums + batch * sums_batch + group * sums_group + row, found, mask=row < padded)


@triton.heuristics({"EVEN": lambda given: given["keys"] % given["BLOCK_N"] == 0})
@_FOR_ANY_SIZE
def propagation(
    q, k, values, statistics, sums,
    q_batch, q_head, q_row, k_batch, k_head, k_row, values_batch,
    statistics_batch, statistics_head, sums_batch, sums_group, sums_kind,
    rows, keys, heads, scale, share, size,
    DIM: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Numerator and denominator of T_l a_l, from one pass over the clean keys.

    sums[b, g, 0, i] = share * sum over heads and keys of exp(s_ij - L_i) values[b, j],
    sums[b, g, 1, i] = the same with ones. Values are zero up to a whole tile of keys. Grid:
    blocks of rows, groups, batch.
    """
    first_row = tl.program_id(0) * BLOCK_M
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    row = first_row + tl.arange(0, BLOCK_M)
    inside = row < rows
    spread = tl.zeros([BLOCK_M, 8], tl.float32)
    mass = tl.zeros([BLOCK_M, 8], tl.float32)
    for head in range(group * heads, group * heads + heads):
        query = q + batch * q_batch + head * q_head
        queries = _tile(query, q_row, first_row, rows, DIM, BLOCK_M, WIDTH)
        level = statistics + batch * statistics_batch + head * statistics_head + row
        level = tl.load(level, mask=inside, other=float("inf")) * _LOG2_E
        key = k + batch * k_batch + head * k_head
        for first in range(0, keys, BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            tile = _tile(key, k_row, first, keys, DIM, BLOCK_N, WIDTH)
            value = tl.load(values + batch * values_batch + column)
            scores = tl.dot(queries, tl.trans(tile), input_precision=PRECISION)
            part = tl.exp2(scores * (scale * _LOG2_E) - level[:, None])
            spread += _narrowed(part * value[None, :], BLOCK_M, BLOCK_N)
            if not EVEN:
                part *= tl.where(column < keys, 1.0, 0.0)[None, :]
            mass += _narrowed(part, BLOCK_M, BLOCK_N)
    places = sums + batch * sums_batch + group * sums_group + row
    tl.store(places, tl.sum(spread, 1) * share, mask=inside)
    tl.store(places + sums_kind, tl.sum(mass, 1) * share, mask=inside)


@triton.heuristics({"EVEN": lambda given: given["keys"] % given["BLOCK_N"] == 0})
@_FOR_ANY_SIZE
def row_statistics(
    q, k, weights, statistics, sums,
    q_batch, q_head, q_row, k_batch, k_head, k_row, weights_batch,
    statistics_batch, statistics_head, sums_batch, sums_group,
    rows, padded, prompt, keys, heads, scale, share, size,
    DIM: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """L_i over all keys, and what `prompt_masses` gives, where the main attention told neither.

    The softmax is kept up to date on the way (Milakov and Gimelshein, 2018). Grid: blocks of
    padded rows, groups, batch.
    """
    first_row = tl.program_id(0) * BLOCK_M
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    row = first_row + tl.arange(0, BLOCK_M)
    inside = row < rows
    total = tl.zeros([BLOCK_M], tl.float32)
    for head in range(group * heads, group * heads + heads):
        query = q + batch * q_batch + head * q_head
        queries = _tile(query, q_row, first_row, rows, DIM, BLOCK_M, WIDTH)
        key = k + batch * k_batch + head * k_head
        highest = tl.full([BLOCK_M], -float("inf"), tl.float32)
        whole = tl.zeros([BLOCK_M], tl.float32)
        weighted = tl.zeros([BLOCK_M], tl.float32)
        for first in range(0, keys, BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            tile = _tile(key, k_row, first, keys, DIM, BLOCK_N, WIDTH)
            weight = weights + batch * weights_batch + column
            weight = tl.load(weight, mask=column < prompt, other=0.0)
            scores = tl.dot(queries, tl.trans(tile), input_precision=PRECISION)
            scores = scores * (scale * _LOG2_E)
            higher = tl.maximum(highest, tl.max(scores, 1))
            part = tl.exp2(scores - higher[:, None])
            shrink = tl.exp2(highest - higher)
            weighted = weighted * shrink + tl.sum(part * weight[None, :], 1)
            if not EVEN:
                part *= tl.where(column < keys, 1.0, 0.0)[None, :]
            whole = whole * shrink + tl.sum(part, 1)
            highest = higher
        places = statistics + batch * statistics_batch + head * statistics_head + row
        tl.store(places, (highest + tl.log2(whole)) * _LN_2, mask=inside)
        total += weighted / whole
    found = tl.where(inside, total * share, 0.0)
    tl.store(sums + batch * sums_batch + group * sums_group + row, found, mask=row < padded)
