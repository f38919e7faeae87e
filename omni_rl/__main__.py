"""`python -m omni_rl` is the `omni-rl` command."""

from omni_rl.cli import main

main()
