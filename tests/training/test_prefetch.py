"""Work done ahead by other processes comes back in order, with its errors."""

import pytest

from training.prefetch import prefetched


def reciprocal(number: int) -> float:
    return 1 / number


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(prefetched(reciprocal, range(1, 9), workers)) == [1 / n for n in range(1, 9)]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_raised_in_its_place(workers: int) -> None:
    results = prefetched(reciprocal, [2, 0, 4], workers)
    assert next(results) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(results)
