"""Names a set of weights: equal weights have equal digests."""

from dataclasses import dataclass

from omni_rl.errors import ConfigError

PRINTED = 16
"""How many characters of a digest a version's name has."""


@dataclass(frozen=True)
class WeightVersion:
    """Weights number `number` of attempt `attempt` of `run`; `digest` (hex) is over every released tensor
    (`omni_rl.sync.digest.weights_digest`)."""

    run: str
    attempt: int
    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.run}/{self.attempt}/{self.number}/{self.digest[:PRINTED]}"

    @classmethod
    def parse(cls, text: str) -> "WeightVersion":
        """Read a version from the text that `str` gives, with the digest as short as it was printed."""
        try:
            run, attempt, number, digest = text.rsplit("/", 3)
            return cls(run, int(attempt), int(number), digest)
        except ValueError:
            raise ConfigError(f"weight version {text!r} is not run/attempt/number/digest") from None


def same_weights(one: str, other: str) -> bool:
    """Return whether two printed versions are of equal weights, whoever numbered them."""
    return WeightVersion.parse(one).digest == WeightVersion.parse(other).digest
