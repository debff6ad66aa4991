"""Merging and rounding bf16 matrices on a CPU, compiled by Numba: one pass each, vectorised, without the GIL.

Matrices are NumPy views of the weights' bits (uint16). Every result is bit for bit that of `training.int8.quantize` and
`training.merge.add_update`; only the figures beside (errors and norms) are summed in another order.
"""

# Numba compiles what stands here: plain loops are its vector code, and bits are cast at each step, since it promotes
# small integers to 64 bits.

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]

SIXTEEN, ROUNDING, ONE = np.uint32(16), np.uint32(0x7FFF), np.uint32(1)
MAGNITUDE = np.uint16(0x7FFF)
LOW8, LOW16, LOW32 = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00000000FFFFFFFF)

compiled = njit(nogil=True, cache=True, error_model="numpy")
# Sums may be reordered, which vectorises them; a division, a rounding and a single addition stay what they are.
compiled_sums = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})


@compiled
def add_scaled(weight: Array, update: Array, scale: np.float32) -> None:
    """Weight += scale * update, in fp32, rounded to the nearest bf16, ties to even.

    Args:
        weight: uint16 [rows, columns], changed.
        update: fp32 of the same shape.
        scale: Of the update.
    """
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            bits = np.uint32(np.uint32(weight[i, j]) << SIXTEEN)
            total = np.float32(bits.view(np.float32) + scale * update[i, j]).view(np.uint32)
            weight[i, j] = np.uint16((total + ROUNDING + ((total >> SIXTEEN) & ONE)) >> SIXTEEN)


@compiled
def column_peaks(weight: Array, peaks: Array) -> None:
    """The largest magnitude of each column, as bits: uint16 [rows, columns] to uint16 [columns]."""
    peaks[:] = 0
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            peaks[j] = max(peaks[j], weight[i, j] & MAGNITUDE)


@compiled
def row_peaks(weight: Array, peaks: Array) -> None:
    """The largest magnitude of each row, as bits: uint16 [rows, columns] to uint16 [rows]."""
    for i in range(weight.shape[0]):
        peak = np.uint16(0)
        for j in range(weight.shape[1]):
            peak = max(peak, weight[i, j] & MAGNITUDE)
        peaks[i] = peak


@compiled
def round_columns(weight: Array, scale: Array, top: np.float32, steps: Array, error: Array, norm: Array) -> None:
    """Round with a scale for each column.

    Args:
        weight: uint16 [rows, columns].
        scale: fp32 [columns].
        top: The largest step.
        steps: int8 [rows, columns], written.
        error: fp32 [columns]; the squares of what rounding changed are added.
        norm: fp32 [columns]; the squares of the weights are added.
    """
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            value = np.uint32(np.uint32(weight[i, j]) << SIXTEEN).view(np.float32)
            step = min(max(np.rint(value / scale[j]), -top - np.float32(1)), top)
            steps[i, j] = np.int8(np.int32(step))
            off = step * scale[j] - value
            error[j] += off * off
            norm[j] += value * value


@compiled_sums
def round_rows(weight: Array, scale: Array, top: np.float32, steps: Array, error: Array, norm: Array) -> None:
    """The same with a scale for each row; scale, error and norm are [rows]."""
    for i in range(weight.shape[0]):
        of_error, of_norm = np.float32(0), np.float32(0)
        for j in range(weight.shape[1]):
            value = np.uint32(np.uint32(weight[i, j]) << SIXTEEN).view(np.float32)
            step = min(max(np.rint(value / scale[i]), -top - np.float32(1)), top)
            steps[i, j] = np.int8(np.int32(step))
            off = step * scale[i] - value
            of_error += off * off
            of_norm += value * value
        error[i] += of_error
        norm[i] += of_norm


@compiled
def transpose_bytes(source: Array, target: Array) -> None:
    """Transpose a matrix of bytes, eight by eight within 64-bit words (Hacker's Delight, section 7-3).

    Args:
        source: uint64 [rows, columns / 8]: a row's bytes, eight to a word.
        target: uint64 [columns, rows / 8], written.
    """
    rows, words = source.shape
    for block in range(0, rows // 8, 8):  # what eight lines of a cache hold is written before the next is read
        for word in range(words):
            for i in range(block, min(block + 8, rows // 8)):
                r, j = 8 * i, 8 * word
                a, b, c, d = source[r, word], source[r + 1, word], source[r + 2, word], source[r + 3, word]
                e, f, g, h = source[r + 4, word], source[r + 5, word], source[r + 6, word], source[r + 7, word]
                a, b = _swap(a, b, np.uint64(8), LOW8)
                c, d = _swap(c, d, np.uint64(8), LOW8)
                e, f = _swap(e, f, np.uint64(8), LOW8)
                g, h = _swap(g, h, np.uint64(8), LOW8)
                a, c = _swap(a, c, np.uint64(16), LOW16)
                b, d = _swap(b, d, np.uint64(16), LOW16)
                e, g = _swap(e, g, np.uint64(16), LOW16)
                f, h = _swap(f, h, np.uint64(16), LOW16)
                a, e = _swap(a, e, np.uint64(32), LOW32)
                b, f = _swap(b, f, np.uint64(32), LOW32)
                c, g = _swap(c, g, np.uint64(32), LOW32)
                d, h = _swap(d, h, np.uint64(32), LOW32)
                target[j, i], target[j + 1, i], target[j + 2, i], target[j + 3, i] = a, b, c, d
                target[j + 4, i], target[j + 5, i], target[j + 6, i], target[j + 7, i] = e, f, g, h


@njit(nogil=True, cache=True, inline="always")
def _swap(low: np.uint64, high: np.uint64, shift: np.uint64, mask: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Exchange the upper parts of one word with the lower parts of another."""
    changed = ((low >> shift) ^ high) & mask
    return low ^ (changed << shift), high ^ changed
