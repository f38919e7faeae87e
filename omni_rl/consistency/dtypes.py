"""The dtypes that the two sides of a run compute in, and by which of them their difference is judged."""

from typing import Final, Literal, get_args

Dtype = Literal["float32", "float16", "bfloat16", "fp8"]
"""From the finest to the coarsest."""
DTYPES: Final[tuple[Dtype, ...]] = get_args(Dtype)


def coarser(one: Dtype, other: Dtype | None) -> Dtype:
    """The coarser of two sides' dtypes, whose rounding their difference shows; None: the same as the other side's."""
    return one if other is None else max(one, other, key=DTYPES.index)
