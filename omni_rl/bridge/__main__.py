"""`python -m omni_rl.bridge FD` runs the child process of a coordinator that owns the connection to Ray."""

import logging
import os
import socket
import sys

from omni_rl.bridge.child import Child
from omni_rl.processes import end_with_parent
from omni_rl.runtime import prepare


def main(arguments: list[str]) -> int:
    prepare()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # A coordinator that is killed closes nothing in order; the next one's bridge must find the run free.
    end_with_parent()
    with socket.socket(fileno=int(arguments[0])) as parent:
        Child(parent).run()
    # Ray's and the engine room's threads need not be waited for: actors live on without this process.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
