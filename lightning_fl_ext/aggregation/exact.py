"""The weighted mean of model updates, the same to the bit for every order and grouping."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.aggregation.float_sums import FloatSums
from lightning_fl_ext.aggregation.integer_sum import IntegerSum
from lightning_fl_ext.aggregation.structure import INTEGERS, PARTS, Arrays, Entry, check_update, structure_of
from lightning_fl_ext.errors import LightningFLError

MAX_UPDATES = 2**17
"""Updates up to which the low sums stay within float64: each adds at most 2^35 quanta, float64 twice."""

_NO_UPDATES = "nothing to average: expected at least one update. Add one first"


class ExactMean:
    """The exact weighted mean of arrays, in memory that does not grow with the number of updates.

    Add updates one by one as they arrive, or several at a time, which is faster; merge partial means of
    other aggregators; read the result. The same updates give the same bits in whatever order, grouping,
    tree of merges or number of threads.

    Floating arrays: the terms weight times value are summed within 2^-45 each (2^-44 if the model's array is
    float64), the sum of the terms is exact, and its quotient by the total weight is rounded once, half to
    even, to the global model's dtype. Where every term is a multiple of 2^-44, as with float32 of magnitude
    2^-21 and more, that is the exact mean rounded once. Complex arrays: the same for either part. Integer
    arrays: the exact mean rounded half to even. Bool arrays: the weighted majority, ties False.

    Args:
        like: The global model's arrays in state-dict order. Names, shapes and dtypes are read, not values.
        threads: How many threads fold at most; by default one for each core this process may use.

    Raises:
        TypeError: If ``like`` holds an array that has no mean here.
        ValueError: If ``threads`` is less than 1.

    Example:
        >>> import numpy as np
        >>> model = {"w": np.zeros(2, np.float32), "steps": np.array(0)}
        >>> mean = ExactMean(model)
        >>> mean.add({"w": np.array([0.1, 1.0], np.float32), "steps": np.array(3)}, weight=1)
        >>> mean.add({"w": np.array([0.2, 2.0], np.float32), "steps": np.array(4)}, weight=3)
        >>> mean.result()
        {'w': array([0.175, 1.75 ], dtype=float32), 'steps': array(4)}
    """

    def __init__(self, like: Arrays, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"`threads`: expected a positive number or None, got {threads}")
        self._threads = threads
        self._begin(structure_of(like))

    def _begin(self, structure: dict[str, Entry], room: FloatSums | None = None) -> None:
        integers = {name: entry for name, entry in structure.items() if entry.dtype in INTEGERS}
        # Sorted: the sums of one model merge whatever order its arrays were named in.
        floats = {name: entry for name, entry in sorted(structure.items()) if name not in integers}
        sums = FloatSums(floats, self._threads, room)
        totals = {name: IntegerSum.zero(entry) for name, entry in integers.items()}
        self._structure, self._floats, self._integers = structure, sums, totals
        self._total_weight = self._num_updates = 0

    def reset(self, like: Arrays | None = None) -> ExactMean:
        """Forget all updates and keep the memory: a large model's next mean begins faster than a new one.

        Args:
            like: As in `ExactMean`: the next mean may be of another model, and takes new memory if that is of
                another size. By default of the same.

        Returns:
            This mean.

        Raises:
            TypeError: If ``like`` holds an array that has no mean here. After any error nothing is forgotten.

        Example:
            >>> import numpy as np
            >>> mean = ExactMean({"w": np.zeros(1)})
            >>> mean.add({"w": np.ones(1)}, weight=1)
            >>> mean.reset().num_updates
            0
        """
        self._begin(self._structure if like is None else structure_of(like), self._floats)
        return self

    @property
    def total_weight(self) -> int:
        """Sum of the weights of all updates."""
        return self._total_weight

    @property
    def num_updates(self) -> int:
        """Number of updates."""
        return self._num_updates

    def add(self, arrays: Arrays, weight: int) -> None:
        """Add one update; see `add_many`."""
        self.add_many([(arrays, weight)])

    def add_many(self, updates: Iterable[tuple[Arrays, int]]) -> None:
        """Add several updates in one pass over the sums: all of them, or none.

        Args:
            updates: Arrays under the global model's names, in any order, with the update's weight: a whole
                number from 1 to 2^26, such as its example count. Arrays are read in place, and copied only
                if they are not contiguous or not aligned; they may be read-only and are not kept.

        Raises:
            InvalidUpdate: If an update lacks the global model's names, shapes and dtypes, holds a value
                that is not finite, or has an unusable weight.
            AggregationOverflow: If more than 2^17 updates came together, a weight is over 2^26, or for some
                array the sum of weight times largest magnitude, each rounded up, would reach 2^43. Which
                sets of updates overflow does not depend on their order. After any error the sums are, to
                the bit, what they were.
            LightningFLError: If an earlier call was interrupted (Ctrl-C) in the midst: what was added by then
                is not known. `reset` makes the mean usable again.
        """
        updates = self._checked(updates)
        integers = self._integers_with(updates)
        self._floats.fold(updates)
        self._integers = integers
        self._total_weight += sum(weight for _, weight in updates)
        self._num_updates += len(updates)

    def merge(self, other: ExactMean) -> None:
        """Add the updates of another mean of the same model, which stays as it is.

        Raises:
            InvalidUpdate: If the other mean was made for another model.
            AggregationOverflow: As if its updates were added here. The sums are then what they were.
        """
        if self._structure != other._structure:
            differing = [
                name
                for name in self._structure | other._structure
                if self._structure.get(name) != other._structure.get(name)
            ]
            raise InvalidUpdate(
                f"`other`: expected a mean of the same model, got one that differs in {len(differing)} arrays"
                f" {differing[:5]}. Build both from the same global model"
            )
        _check_number(self._num_updates + other._num_updates)
        integers = {name: total.merge(other._integers[name]) for name, total in self._integers.items()}
        self._floats.merge(other._floats)
        self._integers = integers
        self._total_weight += other._total_weight
        self._num_updates += other._num_updates

    def result(self, out: Mapping[str, NDArray[Any]] | None = None) -> dict[str, NDArray[Any]]:
        """Return the mean of what was added so far, in the global model's order and dtypes.

        Args:
            out: Arrays to write to and to return, of the global model's names, shapes and dtypes, writable
                and C-contiguous, without a byte in common; by default new ones.

        Raises:
            LightningFLError: If nothing was added.
            ValueError: If ``out`` is not as said.
        """
        if not self._num_updates:
            raise LightningFLError(_NO_UPDATES)
        means = self._to_write(out)
        self._floats.mean(self._total_weight, means)
        return self._with_integers(means, self._integers, self._total_weight)

    def wide_result(self, wide: Collection[str]) -> dict[str, NDArray[Any]]:
        """Return the mean with some arrays in float64 or complex128, for small differences to the model.

        Args:
            wide: Names of floating or complex arrays. The others have the global model's dtypes.

        Raises:
            LightningFLError: If nothing was added.

        Example:
            >>> import numpy as np
            >>> mean = ExactMean({"w": np.zeros(1, np.float16)})
            >>> mean.add_many([({"w": np.array([w], np.float16)}, 1) for w in (1, 1, 1.001)])
            >>> mean.wide_result(["w"])["w"] - mean.result()["w"]
            array([0.00032552])
        """
        if not self._num_updates:
            raise LightningFLError(_NO_UPDATES)
        means = {
            name: np.empty(entry.shape, _wide(entry.dtype) if name in wide else entry.dtype)
            for name, entry in self._structure.items()
        }
        self._floats.mean(self._total_weight, means)
        return self._with_integers(means, self._integers, self._total_weight)

    def _checked(self, updates: Iterable[tuple[Arrays, int]]) -> list[tuple[Arrays, int]]:
        updates = list(updates)
        for i, (arrays, weight) in enumerate(updates):
            check_update(f"update {i}", arrays, weight, self._structure)
        _check_number(self._num_updates + len(updates))
        return [(arrays, int(weight)) for arrays, weight in updates]

    def _integers_with(self, updates: Iterable[tuple[Arrays, int]]) -> dict[str, IntegerSum]:
        integers = dict(self._integers)
        for arrays, weight in updates:
            integers = {name: total.add(arrays[name], weight) for name, total in integers.items()}
        return integers

    def _to_write(self, out: Mapping[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
        if out is None:
            return {name: np.empty(entry.shape, entry.dtype) for name, entry in self._structure.items()}
        if unfit := [name for name, entry in self._structure.items() if not _can_take(out.get(name), entry)]:
            raise ValueError(
                f"`out`: expected writable C-contiguous arrays like the global model's, got something else"
                f" for {unfit[:5]}. Make them by np.empty(array.shape, array.dtype)"
            )
        return {name: out[name] for name in self._structure}

    @staticmethod
    def _with_integers(
        means: dict[str, NDArray[Any]], integers: Mapping[str, IntegerSum], total_weight: int
    ) -> dict[str, NDArray[Any]]:
        for name, total in integers.items():
            means[name][...] = total.mean(total_weight)
        return means


def exact_mean(
    like: Arrays,
    updates: Iterable[tuple[Arrays, int]],
    *,
    threads: int | None = None,
    out: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, NDArray[Any]]:
    """Average updates that are all at hand: what `ExactMean` gives, to the bit, in less time and memory.

    No sums are kept, so there is nothing to add to or to merge afterwards.

    Args:
        like: See `ExactMean`.
        updates: See `ExactMean.add_many`.
        threads: See `ExactMean`.
        out: See `ExactMean.result`; nor may they share memory with an update, which is not looked for: the
            means would be wrong. After an error, what they hold is undefined.

    Returns:
        See `ExactMean.result`.

    Raises:
        LightningFLError: If there are no updates; and whatever `ExactMean.add_many` raises.
        ValueError: If ``out`` is not as said.

    Example:
        >>> import numpy as np
        >>> exact_mean({"w": np.zeros(1)}, [({"w": np.array([0.5])}, 1), ({"w": np.array([2.0])}, 2)])
        {'w': array([1.5])}
    """
    mean = ExactMean(like, threads=threads)
    updates = mean._checked(updates)
    if not updates:
        raise LightningFLError(_NO_UPDATES)
    total_weight = sum(weight for _, weight in updates)
    integers, means = mean._integers_with(updates), mean._to_write(out)
    mean._floats.mean_of(updates, total_weight, means)
    return mean._with_integers(means, integers, total_weight)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.complex128 if dtype in PARTS else np.float64)


def _can_take(array: NDArray[Any] | None, entry: Entry) -> bool:
    return (
        isinstance(array, np.ndarray)
        and (array.shape, array.dtype) == (entry.shape, entry.dtype)
        and array.flags.c_contiguous
        and array.flags.writeable
    )


def _check_number(updates: int) -> None:
    if updates > MAX_UPDATES:
        raise AggregationOverflow(
            f"expected at most {MAX_UPDATES} updates, got {updates}: more could lose a bit. Average in"
            " stages: a mean of means, with the total weights as weights"
        )
