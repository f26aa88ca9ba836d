"""The decoder's operations as Triton programs; `triton_kernels` launches them.

Each reads its inputs once and writes its outputs once. Lengths are read from memory, so that a CUDA
graph replays a launch for any context. An argument that ends in `: tl.constexpr` is part of the
compiled program.

Launches may overlap (`overlaps`: programmatic dependent launch, from Hopper on): a launch begins as
soon as all programs of the launch before it run. Until `await_inputs` a program may read weights
alone, and write nothing. Every program comes there, for a launch waits only for the one before it.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def await_inputs():
    """Lets the next launch begin, and waits until all before this one are done."""
    gdc_launch_dependents()
    gdc_wait()


@triton.jit
def add_rms_norm(
    hidden,
    update,
    weight,
    normed,
    total,
    eps,
    width,
    has_update: tl.constexpr,
    padded: tl.constexpr,
    overlaps: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, padded)
    mask = column < width
    scale = tl.load(weight + column, mask, other=0.0)
    if overlaps:
        await_inputs()
    x = tl.load(hidden + row + column, mask, other=0.0)
    if has_update:
        x += tl.load(update + row + column, mask, other=0.0)
        tl.store(total + row + column, x, mask)
    exact = x.to(tl.float32)
    exact *= tl.rsqrt(tl.sum(exact * exact) / width + eps)
    tl.store(normed + row + column, exact.to(x.dtype) * scale, mask)


@triton.jit
def silu_multiply(gate_up, product, width, block: tl.constexpr, overlaps: tl.constexpr):
    if overlaps:
        await_inputs()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    mask = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + column, mask, other=0.0)
    exact = gate.to(tl.float32)
    activated = (exact * tl.sigmoid(exact)).to(gate.dtype)
    tl.store(product + row * width + column, activated * up, mask)


@triton.jit
def rotate_and_store(
    qkv,
    query,
    keys,
    values,
    rotation,
    slots,
    query_norm,
    key_norm,
    eps,
    kv_heads,
    has_norms: tl.constexpr,
    group: tl.constexpr,
    half: tl.constexpr,
    padded_heads: tl.constexpr,
    padded_half: tl.constexpr,
    overlaps: tl.constexpr,
):
    """One program a token and key/value head: its query heads, its key and its value."""
    if overlaps:
        await_inputs()
    token, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head = tl.arange(0, padded_heads)[:, None]
    pair = tl.arange(0, padded_half)[None, :]
    in_pair = pair < half
    cosine = tl.load(rotation + token * 2 * half + pair, in_pair)
    sine = tl.load(rotation + token * 2 * half + half + pair, in_pair)
    source = qkv + (token * kv_heads + kv_head) * (group + 2) * 2 * half
    mask = (head <= group) & in_pair
    first = tl.load(source + head * 2 * half + pair, mask, other=0.0)
    second = tl.load(source + head * 2 * half + half + pair, mask, other=0.0)
    if has_norms:
        exact_first, exact_second = first.to(tl.float32), second.to(tl.float32)
        squares = exact_first * exact_first + exact_second * exact_second
        scale = tl.rsqrt(tl.sum(squares, 1)[:, None] / (2 * half) + eps)
        query_first, query_second = _halves(query_norm, pair, half)
        key_first, key_second = _halves(key_norm, pair, half)
        is_query = head < group
        first = (exact_first * scale).to(first.dtype) * tl.where(is_query, query_first, key_first)
        second = (exact_second * scale).to(second.dtype) * tl.where(
            is_query, query_second, key_second
        )
    first, second = first.to(tl.float32), second.to(tl.float32)
    turned_first = first * cosine - second * sine
    turned_second = second * cosine + first * sine
    target = query + (token * kv_heads + kv_head) * group * 2 * half + head * 2 * half + pair
    tl.store(target, turned_first, (head < group) & in_pair)
    tl.store(target + half, turned_second, (head < group) & in_pair)
    place = (tl.load(slots + token) * kv_heads + kv_head) * 2 * half + pair
    is_key = (head == group) & in_pair
    tl.store(keys + place + head * 0, turned_first, is_key)
    tl.store(keys + place + head * 0 + half, turned_second, is_key)
    value = source + (group + 1) * 2 * half + pair
    tl.store(values + place, tl.load(value, in_pair), in_pair)
    tl.store(values + place + half, tl.load(value + half, in_pair), in_pair)


@triton.jit
def _halves(weight, pair, half: tl.constexpr):
    in_pair = pair < half
    return (
        tl.load(weight + pair, in_pair, other=0.0),
        tl.load(weight + half + pair, in_pair, other=0.0),
    )


@triton.jit
def attend_tile(
    query,
    keys,
    values,
    tiles,
    block_tables,
    context_lengths,
    outputs,
    masses,
    scale,
    table_width,
    kv_heads,
    splits: tl.constexpr,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    padded_rows: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    block_size: tl.constexpr,
    step: tl.constexpr,
    overlaps: tl.constexpr,
):
    """One program a tile, key/value head and split: attention over a part of the context.

    A tile is some consecutive tokens of one sequence; its rows are each token's query heads. Online
    softmax (Milakov and Gimelshein, 2018), split along the context as in Flash-Decoding.
    """
    if overlaps:
        await_inputs()
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(tiles + tile * 3).to(tl.int64)
    count = tl.load(tiles + tile * 3 + 1)
    if count == 0:  # a place that the step does not use
        return
    table = block_tables + tl.load(tiles + tile * 3 + 2).to(tl.int64) * table_width
    context = tl.load(context_lengths + first + count - 1)
    per_split = tl.cdiv(tl.cdiv(context, splits), step) * step
    begin = split * per_split
    end = tl.minimum(begin + per_split, context)
    row = tl.arange(0, padded_rows)
    token, head = row // padded_group, row % padded_group
    is_row = (token < count) & (head < group)
    visible = tl.load(context_lengths + first + token, is_row, other=1)
    column = tl.arange(0, padded_dim)
    in_dim = column < head_dim
    head_place = ((first + token) * kv_heads + kv_head) * group + head
    row_mask = is_row[:, None] & in_dim[None, :]
    queries = tl.load(query + head_place[:, None] * head_dim + column[None, :], row_mask, other=0.0)
    best = tl.full([padded_rows], float("-inf"), tl.float32)
    mass = tl.zeros([padded_rows], tl.float32)
    mixed = tl.zeros([padded_rows, padded_dim], tl.float32)
    for start in range(begin, end, step):
        place = start + tl.arange(0, step)
        valid = place < end
        block = tl.load(table + place // block_size, valid, other=0)
        slot = block.to(tl.int64) * block_size + place % block_size
        offset = (slot * kv_heads + kv_head)[:, None] * head_dim + column[None, :]
        mask = valid[:, None] & in_dim[None, :]
        key = tl.load(keys + offset, mask, other=0.0)
        score = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
        seen = valid[None, :] & (place[None, :] < visible[:, None])
        score = tl.where(seen, score, float("-inf"))
        new_best = tl.maximum(best, tl.max(score, 1))
        # A row that has seen no key yet has -inf as its best, which must not be subtracted.
        base = tl.where(new_best == float("-inf"), 0.0, new_best)
        weight = tl.exp(score - base[:, None])
        fade = tl.exp(best - base)
        value = tl.load(values + offset, mask, other=0.0)
        mixed = mixed * fade[:, None] + tl.dot(
            weight.to(value.dtype), value, input_precision="ieee"
        )
        mass = mass * fade + tl.sum(weight, 1)
        best = new_best
    part = head_place * splits + split
    # A row that has seen nothing has mass 0: its output is 0, its mass's logarithm -inf.
    mixed /= tl.where(mass > 0, mass, 1.0)[:, None]
    tl.store(outputs + part[:, None] * head_dim + column[None, :], mixed, row_mask)
    tl.store(masses + part, best + tl.log(mass), is_row)


@triton.jit
def attend_whole_tile(
    query,
    keys,
    values,
    key_rows,
    value_rows,
    tiles,
    block_tables,
    context_lengths,
    output,
    scale,
    table_width,
    kv_heads,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    padded_rows: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    step: tl.constexpr,
    overlaps: tl.constexpr,
):
    """One program a key/value head and tile, as `attend_tile`, over the whole context.

    What all rows of the tile see is read by descriptors of the cache's rows (`key_rows` and
    `value_rows`, [step, head_dim] each), which Hopper copies without the program's threads.
    `scale` is in powers of two.
    """
    if overlaps:
        await_inputs()
    kv_head, tile = tl.program_id(0), tl.program_id(1)
    first = tl.load(tiles + tile * 3).to(tl.int64)
    count = tl.load(tiles + tile * 3 + 1)
    if count == 0:  # a place that the step does not use
        return
    table = block_tables + tl.load(tiles + tile * 3 + 2).to(tl.int64) * table_width
    context = tl.load(context_lengths + first + count - 1)
    row = tl.arange(0, padded_rows)
    token, head = row // padded_group, row % padded_group
    is_row = (token < count) & (head < group)
    visible = tl.load(context_lengths + first + token, is_row, other=1)
    column = tl.arange(0, head_dim)
    head_place = ((first + token) * kv_heads + kv_head) * group + head
    place_in_query = head_place[:, None] * head_dim + column[None, :]
    queries = tl.load(query + place_in_query, is_row[:, None], other=0.0)
    best = tl.full([padded_rows], float("-inf"), tl.float32)
    mass = tl.zeros([padded_rows], tl.float32)
    mixed = tl.zeros([padded_rows, head_dim], tl.float32)
    seen_by_all = tl.load(context_lengths + first) // step * step
    for start in range(0, seen_by_all, step):
        slot = tl.load(table + start // block_size) * block_size + start % block_size
        key = key_rows.load([slot, kv_head * head_dim])
        score = tl.dot(queries, key.T, input_precision="ieee") * scale
        new_best = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp2(score - new_best[:, None])
        fade = tl.exp2(best - new_best)
        value = value_rows.load([slot, kv_head * head_dim])
        mixed = mixed * fade[:, None]
        mixed = tl.dot(weight.to(value.dtype), value, mixed, input_precision="ieee")
        mass = mass * fade + tl.sum(weight, 1)
        best = new_best
    for start in range(seen_by_all, context, step):
        place = start + tl.arange(0, step)
        valid = place < context  # behind it may be anything, such as another's NaN
        block = tl.load(table + start // block_size).to(tl.int64)
        slot = block * block_size + place % block_size
        offset = (slot * kv_heads + kv_head)[:, None] * head_dim + column[None, :]
        key = tl.load(keys + offset, valid[:, None], other=0.0)
        score = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(place[None, :] < visible[:, None], score, float("-inf"))
        new_best = tl.maximum(best, tl.max(score, 1))
        base = tl.where(new_best == float("-inf"), 0.0, new_best)
        weight = tl.exp2(score - base[:, None])
        fade = tl.exp2(best - base)
        value = tl.load(values + offset, valid[:, None], other=0.0)
        mixed = mixed * fade[:, None]
        mixed = tl.dot(weight.to(value.dtype), value, mixed, input_precision="ieee")
        mass = mass * fade + tl.sum(weight, 1)
        best = new_best
    mixed /= mass[:, None]
    tl.store(output + place_in_query, mixed, is_row[:, None])


@triton.jit
def merge_splits(
    outputs,
    masses,
    merged,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    splits: tl.constexpr,
    overlaps: tl.constexpr,
):
    """One program a token and query head: the parts, weighted by their softmax masses."""
    if overlaps:
        await_inputs()
    head = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, splits)
    column = tl.arange(0, padded_dim)
    in_dim = column < head_dim
    log_mass = tl.load(masses + head * splits + split)
    weight = tl.exp(log_mass - tl.max(log_mass))
    place = (head * splits + split)[:, None] * head_dim + column[None, :]
    parts = tl.load(outputs + place, in_dim[None, :], other=0.0)
    total = tl.sum(parts * weight[:, None], 0) / tl.sum(weight)
    tl.store(merged + head * head_dim + column, total, in_dim)


@triton.jit
def project_one(
    hidden,
    weight,
    bias,
    output,
    out_size,
    width: tl.constexpr,
    has_bias: tl.constexpr,
    rows: tl.constexpr,
    step: tl.constexpr,
    overlaps: tl.constexpr,
):
    """One program some outputs: the products of one token's hidden state and rows of the weight."""
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    is_row = row < out_size
    column = tl.arange(0, step)
    place = weight + tl.minimum(row, out_size - 1)[:, None] * width + column[None, :]
    # The first weights are on their way before the hidden state is there. All pass the cache by:
    # there are more of them than it holds.
    mask = column < width
    factor = tl.load(place, mask[None, :], 0.0, eviction_policy="evict_first")
    if overlaps:
        await_inputs()
    state = tl.load(hidden + column, mask, 0.0)
    total = factor.to(tl.float32) * state.to(tl.float32)[None, :]
    for start in tl.static_range(step, width, step):
        mask = start + column < width
        factor = tl.load(place + start, mask[None, :], 0.0, eviction_policy="evict_first")
        state = tl.load(hidden + start + column, mask, 0.0)
        total += factor.to(tl.float32) * state.to(tl.float32)[None, :]
    result = tl.sum(total, 1)
    if has_bias:
        result += tl.load(bias + row, is_row, 0.0).to(tl.float32)
    tl.store(output + row, result, is_row)
