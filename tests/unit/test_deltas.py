"""A delta turns one state of a tensor into the next, bit by bit, and hostile bytes into an error."""

from __future__ import annotations

import io
import math
import struct
import tracemalloc
from typing import cast

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.deltas import SPAN, DeltaHead, Patch, compare, differing, read_head, read_patches, write_delta
from common.errors import WeightsError
from common.tensor_file import PATTERN_TYPES, Layout, Patterns

DTYPES = {1: "F8_E4M3", 2: "BF16", 4: "F32", 8: "I64"}


def patterns(values: list[int], width: int = 2) -> Patterns:
    return np.array(values, PATTERN_TYPES[width])


def encoded(states: dict[str, tuple[Layout, Patterns, Patterns]], base: int = 3, version: int = 5) -> bytes:
    file = io.BytesIO()
    patches = (patch for name, (layout, old, new) in states.items() for patch in compare(name, layout, old, new))
    size = write_delta(file, patches, base=base, version=version)
    assert size.bytes == len(file.getvalue())
    assert size.changed == sum(int((old != new).sum()) for _, old, new in states.values())
    return file.getvalue()


def applied(delta: bytes, states: dict[str, tuple[Layout, Patterns, Patterns]]) -> dict[str, Patterns]:
    held = {name: old.copy() for name, (_, old, _) in states.items()}
    for _ in range(2):  # twice: a delta is idempotent
        for patch in read_patches(delta, {name: layout for name, (layout, _, _) in states.items()}):
            patch.apply(held[patch.name])
    return held


def test_a_delta_of_two_elements_by_hand() -> None:
    old = patterns([0x3F80, 0, 0x7FC1, *[5] * 37])
    new = patterns([0x3F80, 0x8000, 0x7FC2, *[5] * 37])  # -0.0, and another NaN
    delta = encoded({"w": (Layout("BF16", (40,)), old, new)})
    head = b"\x83\xa6schema\x01\xa4base\x03\xa7version\x05"
    patch = b"\x98\xa1w\xa4BF16\x91\x28\x00\x28\xa1g\x02" + b"\x24"
    gaps = b"\0\2\0\0\0\1\0" + b"\2\0\0\0\0" * 3  # 1 and 0 elements in between; three planes of nothing
    values = b"\0\2\0\0\0\x00\xc2" + b"\0\2\0\0\0\x80\x7f"
    expected = b"TRBD" + struct.pack("<I", len(head)) + head + struct.pack("<I", len(patch)) + patch + gaps + values
    assert delta == expected + struct.pack("<II", 0, 1)
    assert read_head(delta) == DeltaHead(3, 5)
    (read,) = read_patches(delta, {"w": Layout("BF16", (40,))})
    assert read.indices is not None
    assert (read.indices.tolist(), read.values.tolist()) == ([1, 2], [0x8000, 0x7FC2])


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Layout, Patterns, Patterns]:
    width = draw(st.sampled_from([1, 2, 4, 8]))
    shape = tuple(draw(st.lists(st.integers(0, 40), max_size=3)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    layout = Layout(DTYPES[width], shape)
    raw = random.integers(0, 256, layout.bytes, dtype=np.uint8)
    old = raw.view(PATTERN_TYPES[width])
    new = old.copy()
    chosen = random.random(layout.elements) < draw(st.sampled_from([0, 0.01, 0.1, 0.3, 0.9, 1]))
    new[chosen] ^= random.integers(1, 200, int(chosen.sum()), dtype=np.uint8)
    return layout, old, new


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), tensors(), max_size=4))
def test_whatever_changes_arrives_bit_by_bit(states: dict[str, tuple[Layout, Patterns, Patterns]]) -> None:
    held = applied(encoded(states), states)
    assert all(np.array_equal(held[name], new) for name, (_, _, new) in states.items())


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.013, 0.2, 0.85, 1.0])
@pytest.mark.parametrize("width", [2, 4])
def test_tensors_of_several_runs_arrive_at_every_density(share: float, width: int) -> None:
    random = np.random.default_rng(1)
    size = 2 * SPAN + 3
    old = random.integers(0, 1 << 16, size).astype(PATTERN_TYPES[width])
    new = old.copy()
    chosen = random.random(size) < share
    chosen[[0, SPAN - 1, SPAN, -1]] = True
    new[chosen] += 1
    states = {"w": (Layout(DTYPES[width], (size,)), old, new)}
    delta = encoded(states)
    assert np.array_equal(applied(delta, states)["w"], new)
    if share == 0.0:
        assert len(delta) < 400


def test_at_one_percent_a_delta_of_bfloat16_weights_is_over_fifty_times_smaller() -> None:
    random = np.random.default_rng(1)
    old = (random.normal(0, 0.02, SPAN).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    new = old.copy()
    new[random.random(SPAN) < 0.013] += 1
    assert 50 < old.nbytes / len(encoded({"w": (Layout("BF16", (SPAN,)), old, new)})) < 70


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 300), st.sampled_from([1, 2, 4, 8]), st.integers(0, 3), st.floats(0, 1))
def test_differing_finds_what_a_plain_comparison_finds(
    seed: int, size: int, width: int, offset: int, share: float
) -> None:
    random = np.random.default_rng(seed)
    base = random.integers(0, 9, size + offset).astype(PATTERN_TYPES[width])[offset:]
    new = np.where(random.random(size) < share, base + 1, base).astype(PATTERN_TYPES[width])
    assert differing(base, new).tolist() == np.flatnonzero(base != new).tolist()


def a_delta() -> tuple[bytes, dict[str, Layout]]:
    random = np.random.default_rng(1)
    states: dict[str, tuple[Layout, Patterns, Patterns]] = {}
    for name, share in (("sparse", 0.05), ("mask", 0.4), ("whole", 1.0)):
        old = random.integers(0, 1 << 12, 20_000).astype(np.uint16)
        new = old + (random.random(20_000) < share).astype(np.uint16)
        states[name] = (Layout("BF16", (200, 100)), old, new)
    return encoded(states), {name: layout for name, (layout, _, _) in states.items()}


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_bytes_give_an_error_or_patches_inside_their_tensors(data: st.DataObject) -> None:
    whole, layouts = a_delta()
    delta = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        delta[data.draw(st.integers(0, len(delta) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(delta)), st.integers(0, len(delta))))
    try:
        for patch in read_patches(bytes(delta[:cut]), layouts):
            held = np.zeros(patch.layout.elements, PATTERN_TYPES[patch.layout.width])
            patch.apply(held)
    except WeightsError:
        pass


def test_every_cut_is_an_error() -> None:
    delta, layouts = a_delta()
    for cut in [*range(200), *range(200, len(delta), 97), len(delta) - 1]:
        with pytest.raises(WeightsError):
            list(read_patches(delta[:cut], layouts))
    with pytest.raises(WeightsError, match="end is not where"):
        list(read_patches(delta + b"x", layouts))


@pytest.mark.parametrize(
    ("layouts", "message"),
    [({}, "which the base has as None"), ({"w": Layout("BF16", (6,))}, "which the base has as Layout")],
)
def test_a_patch_of_another_tensor_is_refused(layouts: dict[str, Layout], message: str) -> None:
    delta = encoded({"w": (Layout("BF16", (5,)), patterns([1] * 5), patterns([2] * 5))})
    with pytest.raises(WeightsError, match=message):
        list(read_patches(delta, layouts))


def test_a_delta_of_a_newer_schema_is_refused() -> None:
    delta = encoded({}).replace(b"schema\x01", b"schema\x02")
    with pytest.raises(WeightsError, match="newer version of this project"):
        read_head(delta)


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan, 1.5, -1, True, "1", None, [], 1 << 62])
@pytest.mark.parametrize("place", range(8))
def test_a_patch_with_an_odd_number_is_refused(odd: object, place: int) -> None:
    head: list[object] = ["w", "BF16", [5], 0, 5, "w", 5, 3]
    head[place] = [odd] if place == 2 else odd
    packed = cast(bytes, msgpack.packb(head))
    delta = encoded({})[:-8] + struct.pack("<I", len(packed)) + packed + bytes(40)
    with pytest.raises(WeightsError):
        list(read_patches(delta, {"w": Layout("BF16", (5,))}))


@pytest.mark.parametrize("name", ["schema", "base", "version"])
def test_a_head_with_an_odd_number_is_refused(name: str) -> None:
    head = cast(bytes, msgpack.packb({"schema": 1, "base": 3, "version": 5} | {name: math.inf}))
    with pytest.raises(WeightsError):
        read_head(b"TRBD" + struct.pack("<I", len(head)) + head)


def test_a_small_message_cannot_ask_for_much_memory() -> None:
    huge = Layout("F32", (1 << 40,))
    file = io.BytesIO()
    patch = Patch("w", huge, 0, SPAN, np.arange(SPAN, dtype=np.int64), np.zeros(SPAN, np.uint32))
    write_delta(file, [patch], base=1, version=2)
    assert len(file.getvalue()) < 300_000
    tracemalloc.start()
    (read,) = read_patches(file.getvalue(), {"w": huge})
    assert tracemalloc.get_traced_memory()[1] < 64 * SPAN
    tracemalloc.stop()
    assert len(read.values) == SPAN
