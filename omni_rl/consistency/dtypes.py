"""The dtypes that the two sides of a run compute in, and which of the two their difference is judged by."""

from typing import Final, Literal, get_args

Dtype = Literal["float32", "float16", "bfloat16", "fp8"]
"""The dtypes, from the finest to the coarsest."""
DTYPES: Final[tuple[Dtype, ...]] = get_args(Dtype)


def coarser(one: Dtype, other: Dtype | None) -> Dtype:
    """Return the coarser of two sides' dtypes, whose rounding their difference shows. `other` is None where it is `one`
    too."""
    return one if other is None else max(one, other, key=DTYPES.index)
