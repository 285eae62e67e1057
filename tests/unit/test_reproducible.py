"""The same numbers give the same result, wherever in memory they lie."""

import os
import subprocess
import sys

import pytest

PRODUCTS = """
import torch
{first}
import numpy as np
import embodied

torch.set_num_threads(1)
draw = np.random.default_rng(0)

def placed(values, offset):
    room = np.empty(values.size + 64, np.float32)
    start = -room.ctypes.data // 4 % 16 + offset  # of 16 numbers, between two lines of the cache
    room[start : start + values.size] = values.ravel()
    return torch.from_numpy(room[start : start + values.size].reshape(values.shape))

unlike = 0
for _ in range(100):
    rows, width, columns = (int(draw.integers(1, 200)) for _ in range(3))
    shapes = (rows, width), (columns, width), (width,)
    matrix, other, vector = (draw.normal(size=shape).astype(np.float32) for shape in shapes)
    results = [
        [each @ placed(vector, k), placed(vector, k) @ placed(vector, 0), each @ placed(other, 0).T]
        for k in range(0, 16, 3)
        for each in [placed(matrix, k)]
    ]
    unlike += sum(not torch.equal(a, b) for each in results[1:] for a, b in zip(each, results[0], strict=True))
print(unlike)
"""


@pytest.mark.parametrize("first", ["", "import policies.rlpd"])  # torch may be there before us
def test_products_do_not_depend_on_where_their_numbers_lie(first):
    told = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS.format(first=first)], env=told, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "0", done.stderr
