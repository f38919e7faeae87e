"""`python -m services.coordinator`, as the coordinator was started before its package had a name of its own."""

import sys

from omni_rl_services.coordinator.__main__ import main

sys.stderr.write("python -m services.coordinator is deprecated; use python -m omni_rl_services.coordinator\n")
sys.exit(main(sys.argv[1:]))
