"""`python -m omni_rl.service.probe URL` ends with exit code 0 if the URL answers 200. The health checks of containers
run it."""

import sys
import urllib.error
import urllib.request

SECONDS = 4.0


def main(arguments: list[str]) -> int:
    (url,) = arguments
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:  # noqa: S310, the address is the operator's
            return 0 if answer.status == 200 else 1
    except urllib.error.HTTPError as error:
        sys.stderr.write(f"{url}: {error.code} {error.read(500).decode(errors='replace')}\n")
    except OSError as error:
        sys.stderr.write(f"{url}: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
