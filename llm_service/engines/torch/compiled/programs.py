"""The programs of a decode step, which numba compiles: all threads run each of them together.

All of them are in this file: numba keeps what it has compiled, and looks at one file's age.
Arithmetic is float32 whatever the weights are stored as: bfloat16 in the bits of uint16, float32,
or int8 with a scale a row.
"""

from __future__ import annotations

import contextlib
import platform
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import carray, njit, types
from numba.core import cgutils
from numba.core.caching import NullCache
from numba.extending import intrinsic

Array = np.ndarray[Any, np.dtype[Any]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Integers = np.ndarray[Any, np.dtype[np.int64]]

# Sums may be taken in any order, as everywhere in linear algebra; NaN and infinity stay what they
# are, since a row of logits tells by them that it is none.
FAST = {"reassoc", "contract", "nsz", "arcp"}
# Vector registers: 16 of AVX2; 32 of AVX-512 and of Arm.
HAS_32_REGISTERS = platform.machine() in ("aarch64", "arm64") or bool(
    get_host_cpu_features().get("avx512vl")
)
# A thread that waits for the others looks so often before it lets another process have its core.
SPIN_COUNT = 4000
# Tokens of a context that one thread takes at a time.
PART_LENGTH = 256
# Of them, those that it looks at together: their keys fit the fastest cache.
STRIDE_LENGTH = 64
# A matrix is read at so many places at once: more of memory's speed than one place gives.
STREAM_COUNT = 4
# What one thread takes at a time from each of these places: so many bytes, within these rows.
CHUNK_BYTES = 32 * 1024
LEAST_CHUNK_ROWS, MOST_CHUNK_ROWS = 8, 64

# What `team` holds, of all threads together: how many have arrived, how often all have, the next
# chunk, and whether one has failed, for which nobody waits any more.
ARRIVED, GENERATION, NEXT_CHUNK, FAILED = 0, 8, 16, 24
TEAM_SIZE = 32  # each in a cache line of its own

# The columns of `layers`, see Layer.
(
    ATTENTION_NORM,
    QKV,
    QKV_BIAS,
    QKV_SCALES,
    QUERY_NORM,
    KEY_NORM,
    OUTPUT,
    OUTPUT_SCALES,
    FEED_FORWARD_NORM,
    GATE_UP,
    GATE_UP_SCALES,
    DOWN,
    DOWN_SCALES,
) = range(13)


class Shape(NamedTuple):
    """The sizes of a decoder."""

    hidden_size: int
    head_count: int
    kv_head_count: int
    head_dim: int
    intermediate_size: int
    vocabulary_size: int
    block_size: int
    eps: float


class Layer(NamedTuple):
    """The columns of `layers`: addresses, 0 where a layer has no such thing.

    Vectors and scales are float32; the scales are those of int8 matrices. The row behind the last
    layer's has the last norm as its `attention_norm`, the head as its `qkv`.
    """

    attention_norm: int
    qkv: int
    qkv_bias: int
    qkv_scales: int
    query_norm: int
    key_norm: int
    output: int
    output_scales: int
    feed_forward_norm: int
    gate_up: int
    gate_up_scales: int
    down: int
    down_scales: int


class Batch(NamedTuple):
    """What a step reads and writes: D tokens.

    Several may be of one sequence: a layer's keys and values are all stored before any is read.

    Attributes:
        hidden: [D, hidden_size] float32, the tokens' embeddings; becomes the stream of the layers.
        places: [D] int64, of the tokens in their sequences.
        slots: [D] int64, in the cache.
        block_tables: [D, W] int32.
        rotation: [length, 2, head_dim / 2] float32.
        cache: [layers, 2, blocks, block_size, kv_heads, head_dim], of bits or of float32.
        logits: [D, vocabulary_size] float32; zeros, to which the logits are added.
    """

    hidden: Floats
    places: Integers
    slots: Integers
    block_tables: Integers
    rotation: Floats
    cache: Array
    logits: Floats


class Room(NamedTuple):
    """Where the threads keep what they have computed.

    Attributes:
        queries: [D, heads, head_dim] float32, of all threads.
        sums: [D, heads, parts, 2 + head_dim] float32, of all: of each part of a context the largest
            score, the sum of the weights, and the weighted values.
        active: [D, intermediate_size] float32, of all.
        normed: [threads, D, hidden_size] float32, a thread's own.
        attended: [threads, D, heads x head_dim] float32, a thread's own.
        heads: [threads, D, STREAM_COUNT, head_dim or MOST_CHUNK_ROWS] float32, a thread's own.
        product: [threads, D, STREAM_COUNT, MOST_CHUNK_ROWS] float32, a thread's own.
        scores: [threads, group, STRIDE_LENGTH] float32, a thread's own.
        rows: [threads, STRIDE_LENGTH, head_dim] float32, a thread's own.
    """

    queries: Floats
    sums: Floats
    active: Floats
    normed: Floats
    attended: Floats
    heads: Floats
    product: Floats
    scores: Floats
    rows: Floats


@intrinsic
def at(context: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@intrinsic
def widened(context: Any, value: Any) -> Any:
    """A stored number as float32; uint16 are the bits of a bfloat16."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        if value == types.float32:
            return arguments[0]
        if value == types.int8:
            return builder.sitofp(arguments[0], ir.FloatType())
        bits = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(bits, bits.type(16)), ir.FloatType())

    return types.float32(value), generate


@intrinsic
def bits_float(context: Any, value: Any) -> Any:
    """The float32 of the bits in an int32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def fetch_add(context: Any, team: Any, place: Any, amount: Any) -> Any:
    """Adds to a number of all threads, and returns what it was; all threads see it in one order."""

    def generate(lowering: Any, builder: Any, _: Any, arguments: Any) -> Any:
        array = lowering.make_array(team)(lowering, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(team, types.int64, types.int64), generate


@intrinsic
def narrowed(context: Any, value: Any, like: Any) -> Any:
    """A float32 as a number of the cache: itself, or the bits of the nearest bfloat16."""
    stored = like.dtype

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        if stored == types.float32:
            return arguments[0]
        bits = builder.bitcast(arguments[0], ir.IntType(32))
        odd = builder.and_(builder.lshr(bits, bits.type(16)), bits.type(1))
        rounded = builder.add(builder.add(bits, bits.type(0x7FFF)), odd)
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        kept = builder.select(is_nan, bits.type(0x7FC00000), rounded)
        return builder.trunc(builder.lshr(kept, bits.type(16)), ir.IntType(16))

    return stored(value, like), generate


sched_yield = types.ExternalFunction("sched_yield", types.int32())


@njit
def next_chunk(team, chunk_count):
    """Returns a chunk of this phase that nobody has taken yet; -1 if there is none."""
    chunk = fetch_add(team, NEXT_CHUNK, 1)
    return chunk if chunk < chunk_count else -1


@njit
def wait_for_all(team, size):
    """Ends a phase: returns once all threads are here."""
    generation = fetch_add(team, GENERATION, 0)
    if fetch_add(team, ARRIVED, 1) == size - 1:
        fetch_add(team, ARRIVED, -size)
        fetch_add(team, NEXT_CHUNK, -fetch_add(team, NEXT_CHUNK, 0))
        fetch_add(team, GENERATION, 1)
        return
    spins = 0
    while fetch_add(team, GENERATION, 0) == generation and fetch_add(team, FAILED, 0) == 0:
        spins += 1
        if spins > SPIN_COUNT:
            sched_yield()


@njit(fastmath=FAST)
def exponential(value):
    """e^value, of a value cut to +-87; unlike the C library's it is vectorised."""
    value = min(max(value, np.float32(-87)), np.float32(87))
    power = np.floor(value * np.float32(1.44269504) + np.float32(0.5))
    rest = value - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    series = np.float32(1.9875691500e-4)
    series = series * rest + np.float32(1.3981999507e-3)
    series = series * rest + np.float32(8.3334519073e-3)
    series = series * rest + np.float32(4.1665795894e-2)
    series = series * rest + np.float32(1.6666665459e-1)
    series = series * rest + np.float32(5.0000001201e-1)
    series = series * rest * rest + rest + np.float32(1)
    return series * bits_float(np.int32(np.int32(power) + np.int32(127)) << np.int32(23))


@njit(fastmath=FAST)
def dot(keys, x):
    """The product of two vectors."""
    total = np.float32(0)
    for k in range(keys.shape[0]):
        total += keys[k] * x[k]
    return total


@njit(fastmath=FAST)
def dot_4x1(w0, w1, w2, w3, x):
    """The products of four vectors with one."""
    s0 = s1 = s2 = s3 = np.float32(0)
    for k in range(x.shape[0]):
        value = x[k]
        s0 += widened(w0[k]) * value
        s1 += widened(w1[k]) * value
        s2 += widened(w2[k]) * value
        s3 += widened(w3[k]) * value
    return s0, s1, s2, s3


@njit(fastmath=FAST)
def dot_2x4(w0, w1, x0, x1, x2, x3):
    """The products of two vectors with each of four."""
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
    for k in range(x0.shape[0]):
        weight0, weight1 = widened(w0[k]), widened(w1[k])
        s00 += weight0 * x0[k]
        s01 += weight0 * x1[k]
        s02 += weight0 * x2[k]
        s03 += weight0 * x3[k]
        s10 += weight1 * x0[k]
        s11 += weight1 * x1[k]
        s12 += weight1 * x2[k]
        s13 += weight1 * x3[k]
    return s00, s01, s02, s03, s10, s11, s12, s13


@njit(fastmath=FAST)
def dot_4x4(w0, w1, w2, w3, x0, x1, x2, x3):
    """The products of four vectors with each of four; their sums fill 16 registers."""
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0)
    for k in range(x0.shape[0]):
        weight0, weight1, weight2, weight3 = (
            widened(w0[k]),
            widened(w1[k]),
            widened(w2[k]),
            widened(w3[k]),
        )
        s00 += weight0 * x0[k]
        s01 += weight0 * x1[k]
        s02 += weight0 * x2[k]
        s03 += weight0 * x3[k]
        s10 += weight1 * x0[k]
        s11 += weight1 * x1[k]
        s12 += weight1 * x2[k]
        s13 += weight1 * x3[k]
        s20 += weight2 * x0[k]
        s21 += weight2 * x1[k]
        s22 += weight2 * x2[k]
        s23 += weight2 * x3[k]
        s30 += weight3 * x0[k]
        s31 += weight3 * x1[k]
        s32 += weight3 * x2[k]
        s33 += weight3 * x3[k]
    return s00, s01, s02, s03, s10, s11, s12, s13, s20, s21, s22, s23, s30, s31, s32, s33


@njit(fastmath=FAST)
def multiply(address, scales, rows, stride, first, size, x, count, like, product):
    """Some rows of a matrix [rows, columns] times each of x [count, columns].

    The matrix falls into streams of `stride` rows; of each the `size` rows from `first` on come
    into product [count, STREAM_COUNT, size]. What is behind the last row means nothing there.
    """
    matrix = carray(at(address), (rows, x.shape[1]), like.dtype)
    for row in range(size):
        place = first + row
        w0 = matrix[min(place, rows - 1)]
        w1 = matrix[min(place + stride, rows - 1)]
        w2 = matrix[min(place + 2 * stride, rows - 1)]
        w3 = matrix[min(place + 3 * stride, rows - 1)]
        quartet = count - count % 4
        for token in range(0, quartet, 4):
            x0, x1, x2, x3 = x[token], x[token + 1], x[token + 2], x[token + 3]
            if HAS_32_REGISTERS:
                put(product, token, 0, row, dot_4x4(w0, w1, w2, w3, x0, x1, x2, x3))
            else:
                put(product, token, 0, row, dot_2x4(w0, w1, x0, x1, x2, x3))
                put(product, token, 2, row, dot_2x4(w2, w3, x0, x1, x2, x3))
        for token in range(quartet, count):
            s0, s1, s2, s3 = dot_4x1(w0, w1, w2, w3, x[token])
            product[token, 0, row], product[token, 1, row] = s0, s1
            product[token, 2, row], product[token, 3, row] = s2, s3
    if scales != 0:
        scale_rows(scales, rows, stride, first, size, count, product)


@njit
def rows_at_a_time(x, like):
    """How many rows of a matrix for x a thread takes at a time from each stream."""
    fitting = CHUNK_BYTES // (x.shape[1] * like.itemsize)
    return max(LEAST_CHUNK_ROWS, min(fitting, MOST_CHUNK_ROWS))


@njit
def put(product, token, stream, row, sums):
    """Puts the sums of several vectors with each of four to their places."""
    for index in range(len(sums)):
        product[token + index % 4, stream + index // 4, row] = sums[index]


@njit(fastmath=FAST)
def scale_rows(scales, rows, stride, first, size, count, product):
    """Multiplies each row of a product by its scale."""
    factors = carray(at(scales), (rows,), np.float32)
    for stream in range(STREAM_COUNT):
        for row in range(size):
            factor = factors[min(stream * stride + first + row, rows - 1)]
            for token in range(count):
                product[token, stream, row] *= factor


@njit(fastmath=FAST)
def norm_vector(values, address, eps, normed):
    """The RMS norm of a vector, times a weight."""
    width = values.shape[0]
    weight = carray(at(address), (width,), np.float32)
    total = np.float32(0)
    for k in range(width):
        total += values[k] * values[k]
    factor = np.float32(1) / np.sqrt(total / np.float32(width) + np.float32(eps))
    for k in range(width):
        normed[k] = values[k] * factor * weight[k]


@njit
def norm(x, address, eps, normed):
    """The same of each of x [N, width], into the first rows of `normed`."""
    for token in range(x.shape[0]):
        norm_vector(x[token], address, eps, normed[token])


@njit(fastmath=FAST)
def rotate(head, rotation):
    """Rotates a head [head_dim] in place; rotation is [2, head_dim / 2]."""
    half = rotation.shape[1]
    for k in range(half):
        first, second = head[k], head[k + half]
        head[k] = first * rotation[0, k] - second * rotation[1, k]
        head[k + half] = second * rotation[0, k] + first * rotation[1, k]


@njit(fastmath=FAST)
def project_heads(rank, team, shape, layer, like, batch, cache, room):
    """Queries, keys and values of all heads, of which a thread takes one of each stream."""
    normed, product = room.normed[rank], room.heads[rank]
    count = batch.hidden.shape[0]
    norm(batch.hidden, layer[ATTENTION_NORM], shape.eps, normed)
    dim, heads = shape.head_dim, shape.head_count + 2 * shape.kv_head_count
    per_stream = -(-heads // STREAM_COUNT)
    address, scales, rows, stride = layer[QKV], layer[QKV_SCALES], heads * dim, per_stream * dim
    head = next_chunk(team, per_stream)
    while head >= 0:
        multiply(address, scales, rows, stride, head * dim, dim, normed, count, like, product)
        for stream in range(STREAM_COUNT):
            if stream * per_stream + head < heads:
                for token in range(count):
                    values = product[token, stream, :dim]
                    finish_head(shape, layer, stream * per_stream + head, token, values, batch)
                    keep_head(shape, stream * per_stream + head, token, values, batch, cache, room)
        head = next_chunk(team, per_stream)


@njit(fastmath=FAST)
def finish_head(shape, layer, head, token, values, batch):
    """Bias, norm and rotation of one head of a token."""
    dim, group = shape.head_dim, shape.head_count // shape.kv_head_count
    if layer[QKV_BIAS] != 0:
        bias = carray(at(layer[QKV_BIAS] + 4 * head * dim), (dim,), np.float32)
        for k in range(dim):
            values[k] += bias[k]
    part = head % (group + 2)
    if part <= group:
        weight = layer[QUERY_NORM] if part < group else layer[KEY_NORM]
        if weight != 0:
            norm_vector(values, weight, shape.eps, values)
        rotate(values, batch.rotation[batch.places[token]])


@njit
def keep_head(shape, head, token, values, batch, cache, room):
    """Puts a query where all threads find it, a key or a value into the cache."""
    group = shape.head_count // shape.kv_head_count
    kv_head, part = head // (group + 2), head % (group + 2)
    if part < group:
        query = room.queries[token, kv_head * group + part]
        for k in range(shape.head_dim):
            query[k] = values[k]
    else:
        block, offset = divmod(batch.slots[token], shape.block_size)
        stored = cache[part - group, block, offset, kv_head]
        for k in range(shape.head_dim):
            stored[k] = narrowed(values[k], cache)


@njit(fastmath=FAST)
def widen_rows(stored, table, block_size, kv_head, begin, count, rows):
    """One head's rows of the cache, of some tokens of a context, as float32 [count, head_dim]."""
    block, offset = begin // block_size, begin % block_size
    for token in range(count):
        row, wide = stored[table[block], offset, kv_head], rows[token]
        for k in range(row.shape[0]):
            wide[k] = widened(row[k])
        offset += 1
        if offset == block_size:
            block, offset = block + 1, 0


@njit(fastmath=FAST)
def attend_part(rank, shape, token, kv_head, part, batch, cache, room):
    """What one part of a context adds to the heads that share a key/value head."""
    group, dim = shape.head_count // shape.kv_head_count, shape.head_dim
    rows, scores = room.rows[rank], room.scores[rank]
    begin = part * PART_LENGTH
    end = min(begin + PART_LENGTH, batch.places[token] + 1)
    scale = np.float32(1) / np.sqrt(np.float32(dim))
    queries = room.queries[token, kv_head * group : (kv_head + 1) * group]
    sums = room.sums[token, kv_head * group : (kv_head + 1) * group, part]
    for head in range(group):
        sums[head] = np.float32(0)
        sums[head, 0] = -np.inf
    table = batch.block_tables[token]
    for first in range(begin, end, STRIDE_LENGTH):
        count = min(STRIDE_LENGTH, end - first)
        widen_rows(cache[0], table, shape.block_size, kv_head, first, count, rows)
        for head in range(group):
            score_keys(queries[head], rows, count, scale, scores[head])
        widen_rows(cache[1], table, shape.block_size, kv_head, first, count, rows)
        for head in range(group):
            add_values(sums[head], scores[head], rows, count)


@njit(fastmath=FAST)
def score_keys(query, keys, count, scale, scores):
    """The scores of some keys."""
    quartet = count - count % 4
    for place in range(0, quartet, 4):
        k0, k1, k2, k3 = keys[place], keys[place + 1], keys[place + 2], keys[place + 3]
        s0, s1, s2, s3 = dot_4x1(k0, k1, k2, k3, query)
        scores[place], scores[place + 1] = s0 * scale, s1 * scale
        scores[place + 2], scores[place + 3] = s2 * scale, s3 * scale
    for place in range(quartet, count):
        scores[place] = dot(keys[place], query) * scale


@njit(fastmath=FAST)
def add_values(sums, scores, values, count):
    """Adds the values of some tokens, weighted by their scores, to what is there of a head."""
    top = sums[0]
    for place in range(count):
        top = max(top, scores[place])
    weighted = sums[2:]
    if top > sums[0]:
        factor = exponential(sums[0] - top)
        sums[1] *= factor
        for k in range(weighted.shape[0]):
            weighted[k] *= factor
        sums[0] = top
    total = np.float32(0)
    for place in range(count):
        scores[place] = exponential(scores[place] - top)
        total += scores[place]
    sums[1] += total
    octets = count - count % 8
    for place in range(0, octets, 8):
        add_octet(weighted, scores[place : place + 8], values[place : place + 8])
    for place in range(octets, count):
        weight, row = scores[place], values[place]
        for k in range(weighted.shape[0]):
            weighted[k] += weight * row[k]


@njit(fastmath=FAST)
def add_octet(sums, weights, rows):
    """Adds eight rows, each times its weight: the sums go through the registers once for all."""
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    w4, w5, w6, w7 = weights[4], weights[5], weights[6], weights[7]
    r0, r1, r2, r3, r4, r5, r6, r7 = (
        rows[0],
        rows[1],
        rows[2],
        rows[3],
        rows[4],
        rows[5],
        rows[6],
        rows[7],
    )
    for k in range(sums.shape[0]):
        first = w0 * r0[k] + w1 * r1[k] + w2 * r2[k] + w3 * r3[k]
        sums[k] += first + (w4 * r4[k] + w5 * r5[k] + w6 * r6[k] + w7 * r7[k])


@njit
def part_count(batch, token):
    """Into how many parts a token's context falls."""
    return batch.places[token] // PART_LENGTH + 1


@njit(fastmath=FAST)
def attend(rank, team, shape, batch, cache, room):
    """Attention of all tokens: a thread takes a part of a context for one key/value head."""
    most = 0
    for token in range(batch.places.shape[0]):
        most = max(most, part_count(batch, token))
    per_token = most * shape.kv_head_count
    unit = next_chunk(team, batch.places.shape[0] * per_token)
    while unit >= 0:
        token, place = divmod(unit, per_token)
        part, kv_head = divmod(place, shape.kv_head_count)
        if part < part_count(batch, token):
            attend_part(rank, shape, token, kv_head, part, batch, cache, room)
        unit = next_chunk(team, batch.places.shape[0] * per_token)


@njit(fastmath=FAST)
def merge_parts(rank, shape, batch, room):
    """Attention's output from its parts: each thread makes all of it for itself."""
    dim = shape.head_dim
    for token in range(batch.places.shape[0]):
        parts = part_count(batch, token)
        for head in range(shape.head_count):
            sums = room.sums[token, head]
            merged = room.attended[rank, token, head * dim : (head + 1) * dim]
            top = sums[0, 0]
            for part in range(1, parts):
                top = max(top, sums[part, 0])
            total = np.float32(0)
            merged[:] = np.float32(0)
            for part in range(parts):
                factor = exponential(sums[part, 0] - top)
                total += factor * sums[part, 1]
                for k in range(dim):
                    merged[k] += factor * sums[part, 2 + k]
            for k in range(dim):
                merged[k] /= total


@njit(fastmath=FAST)
def add_product(rank, team, address, scales, x, like, sums, room):
    """Adds a matrix [rows, columns] times x to what is in `sums`, [D, rows]."""
    product, (count, rows) = room.product[rank], sums.shape
    stride, chunk_rows = -(-rows // STREAM_COUNT), rows_at_a_time(x, like)
    chunk = next_chunk(team, -(-stride // chunk_rows))
    while chunk >= 0:
        first = chunk * chunk_rows
        size = min(chunk_rows, stride - first)
        multiply(address, scales, rows, stride, first, size, x, count, like, product)
        for stream in range(STREAM_COUNT):
            begin = stream * stride + first
            for row in range(begin, min(begin + size, rows)):
                for token in range(count):
                    sums[token, row] += product[token, stream, row - begin]
        chunk = next_chunk(team, -(-stride // chunk_rows))


@njit(fastmath=FAST)
def activate(rank, team, shape, layer, like, batch, room):
    """silu(gate) x up."""
    normed, gates, ups = room.normed[rank], room.product[rank], room.heads[rank]
    count, rows = batch.hidden.shape[0], shape.intermediate_size
    norm(batch.hidden, layer[FEED_FORWARD_NORM], shape.eps, normed)
    address, scales = layer[GATE_UP], layer[GATE_UP_SCALES]
    up_address = address + rows * shape.hidden_size * like.itemsize
    up_scales = scales + 4 * rows if scales != 0 else 0
    stride, chunk_rows = -(-rows // STREAM_COUNT), rows_at_a_time(normed, like)
    chunk = next_chunk(team, -(-stride // chunk_rows))
    while chunk >= 0:
        first = chunk * chunk_rows
        size = min(chunk_rows, stride - first)
        multiply(address, scales, rows, stride, first, size, normed, count, like, gates)
        multiply(up_address, up_scales, rows, stride, first, size, normed, count, like, ups)
        for stream in range(STREAM_COUNT):
            begin = stream * stride + first
            for row in range(begin, min(begin + size, rows)):
                for token in range(count):
                    gate = gates[token, stream, row - begin]
                    silu = gate / (np.float32(1) + exponential(-gate))
                    room.active[token, row] = silu * ups[token, stream, row - begin]
        chunk = next_chunk(team, -(-stride // chunk_rows))


@njit(fastmath=FAST)
def score_tokens(rank, team, shape, layer, like, batch, room):
    """The logits."""
    normed = room.normed[rank]
    norm(batch.hidden, layer[ATTENTION_NORM], shape.eps, normed)
    address, scales = layer[QKV], layer[QKV_SCALES]
    add_product(rank, team, address, scales, normed, like, batch.logits, room)


@njit(nogil=True, fastmath=FAST, error_model="numpy")
def decode_step(rank, size, team, shape, layers, like, batch, room):
    """One step of all layers; each of `size` threads calls it with its rank."""
    last, hidden = layers.shape[0] - 1, batch.hidden
    for index in range(last):
        layer, cache = layers[index], batch.cache[index]
        project_heads(rank, team, shape, layer, like, batch, cache, room)
        wait_for_all(team, size)
        attend(rank, team, shape, batch, cache, room)
        wait_for_all(team, size)
        merge_parts(rank, shape, batch, room)
        x, address, scales = room.attended[rank], layer[OUTPUT], layer[OUTPUT_SCALES]
        add_product(rank, team, address, scales, x, like, hidden, room)
        wait_for_all(team, size)
        activate(rank, team, shape, layer, like, batch, room)
        wait_for_all(team, size)
        x, address, scales = room.active, layer[DOWN], layer[DOWN_SCALES]
        add_product(rank, team, address, scales, x, like, hidden, room)
        wait_for_all(team, size)
    score_tokens(rank, team, shape, layers[last], like, batch, room)
    wait_for_all(team, size)


# The digest is in the names of the files that numba keeps: a start that was killed while it wrote
# them would else find an older version's code there.
decode_step.py_func.__qualname__ += "_" + sha256(Path(__file__).read_bytes()).hexdigest()[:16]
# Where there is no folder to keep it in, each process compiles it anew.
with contextlib.suppress(RuntimeError):
    decode_step.enable_caching()


def forget_cache() -> None:
    """Has the program compiled for this process alone, since what is kept cannot be used."""
    decode_step._cache = NullCache()
