"""Defines functions of one number that LLVM vectorises inside a compiled loop; it would not vectorise a C library
call."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

# Two parts of log 2, the first of few bits, so that a whole multiple of it is exact (Cody and Waite 1980).
_LOG2E, _LOG2_HIGH, _LOG2_LOW = np.float32(math.log2(math.e)), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88)
_BIAS, _BIAS_AND_HALF, _ONE = np.float32(127), np.float32(127.5), np.float32(1)
# exp(r) = 1 + r + r² · polynomial, |r| <= log(2) / 2 (Cephes, expf).
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4, _C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)

# Sums in the order written: LLVM would join the two parts of log 2 again.
_AS_WRITTEN = {"fastmath": {"contract"}, "error_model": "numpy"}


@intrinsic  # type: ignore[untyped-decorator]
def _float_with_exponent(_context: Any, _exponent: Any) -> Any:
    """Return float32 2^(e - 127) of int32 e, by its bits."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.shl(arguments[0], ir.Constant(ir.IntType(32), 23)), ir.FloatType())

    return types.float32(types.int32), code


@intrinsic  # type: ignore[untyped-decorator]
def _as_bfloat16(_context: Any, _value: Any) -> Any:
    """Return a float32 rounded to the nearest bfloat16, ties to even; NaN stays."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        moved = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
        rounded = builder.bitcast(builder.and_(moved, ir.Constant(word, 0xFFFF0000)), ir.FloatType())
        return builder.select(builder.fcmp_unordered("uno", arguments[0], arguments[0]), arguments[0], rounded)

    return types.float32(types.float32), code


def exponential(x: Any) -> Any:
    """Return exp(x); for float32 within two units in the last place, cut off below e^-87 and above e^88."""
    raise NotImplementedError("for compiled loops only")


@overload(exponential, jit_options=_AS_WRITTEN)  # type: ignore[untyped-decorator]
def _exponential(x: Any) -> Callable[[Any], Any]:
    def single(x: Any) -> Any:
        x = _LOWEST if x < _LOWEST else x
        x = _HIGHEST if x > _HIGHEST else x
        exponent = np.int32(x * _LOG2E + _BIAS_AND_HALF)
        whole = np.float32(exponent) - _BIAS
        rest = (x - whole * _LOG2_HIGH) - whole * _LOG2_LOW
        series = ((((_C0 * rest + _C1) * rest + _C2) * rest + _C3) * rest + _C4) * rest + _C5
        return (series * (rest * rest) + rest + _ONE) * _float_with_exponent(exponent)

    def double(x: Any) -> Any:
        return math.exp(x)

    return single if x == types.float32 else double


def rounded(x: Any, bfloat16: Any) -> Any:
    """Return x, rounded to bfloat16 if `bfloat16` is True and not None: the type decides, so that None costs
    nothing."""
    raise NotImplementedError("for compiled loops only")


@overload(rounded, jit_options=_AS_WRITTEN)  # type: ignore[untyped-decorator]
def _rounded(x: Any, bfloat16: Any) -> Callable[[Any, Any], Any]:
    def nearest(x: Any, bfloat16: Any) -> Any:
        return _as_bfloat16(x)

    def itself(x: Any, bfloat16: Any) -> Any:
        return x

    return nearest if x == types.float32 and bfloat16 == types.boolean else itself


def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + exp(-x))."""
    raise NotImplementedError("for compiled loops only")


@overload(sigmoid, jit_options=_AS_WRITTEN)  # type: ignore[untyped-decorator]
def _sigmoid(x: Any) -> Callable[[Any], Any]:
    def single(x: Any) -> Any:
        return _ONE / (_ONE + exponential(-x))

    def double(x: Any) -> Any:
        return 1.0 / (1.0 + math.exp(-x))

    return single if x == types.float32 else double
