"""What this machine could do: matrix products in fp32 and bf16, and reading memory, measured in the same run.

GFLOP/s of (M, K) x (K, N) with the widths of the 4m and 15m models, and GB/s of a sum over working sets that lie in
each cache. Medians of rounds in which everything takes its turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from measure import arguments, median, spread, table, write_json
from ours import DTYPES, Prepare, kernels

SHAPES = ((256, 704), (704, 256), (512, 1408), (1408, 512), (1024, 1024))
"""(K, N)."""
ROWS = (1, 8, 32, 128, 512, 2048)
MEGABYTES = (0.5, 4.0, 16.0, 256.0)


def by_torch(a: torch.Tensor, b: torch.Tensor) -> Callable[[], object]:
    return partial(torch.mm, a, b)


def gemm_rate(prepare: Prepare, rows: int, shape: tuple[int, int], dtype: torch.dtype, seconds: float) -> float:
    """GFLOP/s of one product, repeated for about so many seconds."""
    a, b = torch.randn(rows, shape[0]).to(dtype), torch.randn(shape[1], shape[0]).to(dtype).T
    return 2e-9 * rows * shape[0] * shape[1] / seconds_each(prepare(a, b), seconds)


def seconds_each(call: Callable[[], object], seconds: float) -> float:
    """Wall seconds of a call at its best of four attempts, which take about so many seconds together."""
    count, spent = 1, repeated(call, 1)
    while spent < seconds / 4:
        count *= 2
        spent = repeated(call, count)
    return min(spent, *(repeated(call, count) for _ in range(3))) / count


def repeated(call: Callable[[], object], count: int) -> float:
    """Wall seconds of so many calls."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - began


def bf16_roof(threads: int) -> float:
    """The best GFLOP/s of torch's bf16 products over shapes and row counts."""
    torch.set_num_threads(threads)
    return max(gemm_rate(by_torch, rows, shape, torch.bfloat16, 0.05) for rows in ROWS[3:] for shape in SHAPES)


def read_rate(megabytes: float, seconds: float) -> float:
    """GB/s of reading a working set again and again."""
    half = torch.ones(2, int(megabytes * 2**20 / 8))
    return half.numel() * 4e-9 / seconds_each(lambda: torch.dot(half[0], half[1]), seconds)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=0.05, help="for each single measurement (default: 0.05)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    products: dict[str, tuple[Prepare, torch.dtype]] = {f"torch {name}": (by_torch, d) for name, d in DTYPES.items()}
    if options.threads == 1:  # ours multiplies on one thread; more cores take other rows
        products |= kernels()
    rates: dict[str, dict[int, list[float]]] = {name: {rows: [] for rows in ROWS} for name in products}
    reads: dict[float, list[float]] = {size: [] for size in MEGABYTES}
    for _ in range(options.repetitions):
        for rows in ROWS:
            for name, (prepare, dtype) in products.items():
                each = [gemm_rate(prepare, rows, shape, dtype, options.seconds) for shape in SHAPES]
                rates[name][rows].append(median(each))
        for size in MEGABYTES:
            reads[size].append(read_rate(size, options.seconds))
    print(f"GFLOP/s on {options.threads} thread(s), the median of {len(SHAPES)} shapes (rounds: least–most)")
    table(("rows", *rates), [(rows, *(spread(each[rows]) for each in rates.values())) for rows in ROWS])
    print("\nreading, GB/s")
    table(("working set", "GB/s"), [(f"{size:g} MB", spread(values)) for size, values in reads.items()])
    write_json(options.json, options, {"gflops": rates, "gigabytes_per_second": reads})


if __name__ == "__main__":
    main()
