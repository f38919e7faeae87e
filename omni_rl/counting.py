"""Words that agree with a number: "1 token", "2 tokens"; "1 of 3 answers was", "2 of 3 answers were"."""


def agreeing(number: int, one: str, many: str) -> str:
    """Return the word that goes with `number` things: `one` for 1 thing, else `many`."""
    return one if number == 1 else many


def counted(number: int, one: str, many: str = "") -> str:
    """Return `number` with its word: `one` for 1 thing, else `many`, which is `one` with an s where it is not given."""
    return f"{number} {agreeing(number, one, many or f'{one}s')}"
