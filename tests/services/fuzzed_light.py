"""`python -m tests.services.fuzzed_light SETTINGS.json`: the watched coordinator as the light installation
has it, with uvicorn's own reader of HTTP and without a cluster."""

import sys

sys.modules["httptools"] = None  # type: ignore[assignment]  # an import of it fails

if __name__ == "__main__":
    from omni_rl_bench.fuzz.watched import main

    sys.exit(main(sys.argv[1:]))
