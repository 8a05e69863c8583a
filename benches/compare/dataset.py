"""The data that every system holds and is asked for: 10,000 entities of 20 float64 features, the same in every run."""

import numpy

ENTITIES = 10_000
FEATURES = 20
BATCHES = (1, 100)

IDS = [f"CUST{number:05}" for number in range(ENTITIES)]
NAMES = [f"feature_{number:02}" for number in range(FEATURES)]
# Doubles with all their digits, as a pipeline's means and ratios are: round ones would make JSON look cheap.
VALUES = numpy.random.default_rng(seed=4).normal(size=(ENTITIES, FEATURES))


def batches(entities: int, count: int, seed: int) -> list[list[int]]:
    """So many random batches, each of distinct entities by their number."""
    random = numpy.random.default_rng(seed)
    return [random.choice(ENTITIES, size=entities, replace=False).tolist() for _ in range(count)]


def ids_of(numbers: list[int]) -> list[str]:
    return [IDS[number] for number in numbers]


def check(system: str, numbers: list[int], answer: numpy.ndarray) -> None:
    """Whether the answer is the data, bit for bit; a system that answers anything else is not worth measuring."""
    expected = VALUES[numbers]
    if answer.shape != expected.shape or answer.dtype != numpy.float64 or not numpy.array_equal(answer, expected):
        raise SystemExit(f"{system} answers other values than it was given, for entities {numbers[:3]}...: {answer}")
