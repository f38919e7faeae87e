"""`python -m omni_rl_services.coordinator [SETTINGS.json]` runs the coordinator, with the bridge that its settings ask
for."""

import json
import logging
import sys
from pathlib import Path

from omni_rl.bridge.devices import require_devices
from omni_rl.errors import ConfigError, OmniRLError
from omni_rl_services.coordinator.server import serve
from omni_rl_services.coordinator.settings import CoordinatorSettings
from omni_rl_services.coordinator.supervisor import SupervisedBridge


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = _settings(arguments)
        bridge = None
        if settings.cluster is not None:
            require_devices(settings.cluster, settings.cluster.replicas)
            bridge = SupervisedBridge(settings.cluster)
        serve(settings, bridge)
    except OmniRLError as error:
        sys.stderr.write(f"error [{error.code}]: {error}\n")
        return 2
    return 0


def _settings(arguments: list[str]) -> CoordinatorSettings:
    if not arguments:
        return CoordinatorSettings()
    if len(arguments) > 1:
        raise ConfigError("usage: python -m omni_rl_services.coordinator [SETTINGS.json]")
    try:
        return CoordinatorSettings(**json.loads(Path(arguments[0]).read_text()))
    except OSError as error:
        raise ConfigError(f"{arguments[0]} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{arguments[0]}: {error}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
