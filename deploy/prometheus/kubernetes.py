"""Writes deploy/kuberay/alerts.yaml, the alerts as the Prometheus operator takes them; `--check` only says whether it
is up to date."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
PATH = HERE.parent / "kuberay" / "alerts.yaml"
HEAD = """\
# Written by deploy/prometheus/kubernetes.py from deploy/prometheus/alerts.yml; do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: omni-rl
spec:
"""


def manifest() -> str:
    """The rules as they stand in the file, two columns further in."""
    text = (HERE / "alerts.yml").read_text()
    rules = text[text.index("groups:") :]
    return HEAD + "".join(f"  {line}".rstrip() + "\n" for line in rules.splitlines())


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(PATH.read_text() != manifest())
    PATH.write_text(manifest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
