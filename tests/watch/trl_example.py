"""Runs an example for TRL as it stands, but on the CPU: `python tests/watch/trl_example.py EXAMPLE ARGUMENTS`.

Run by the interpreter of TRL's own environment (tools/frameworks.py).
"""

import functools
import runpy
import sys

import trl

from tests.watch.trl_run import engine_on_the_cpu

if __name__ == "__main__":
    engine_on_the_cpu("float32")
    # By itself TRL asks for bfloat16 on a GPU.
    trl.GRPOConfig = functools.partial(trl.GRPOConfig, use_cpu=True, bf16=False)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
