"""The text that the small checkpoint's tokenizer and language model learn from: short chats from a grammar of ours.

It is written here, not collected, so that it is the same on every machine and nobody else's text is in the weights.
"""

from collections.abc import Iterator

from omni_rl.checkpoints.choices import Choices

_WHO = (
    "a small dog", "an old sailor", "the grey cat", "a young rabbit", "the tall nurse", "a tired farmer",
    "the clever child", "a brown horse", "the night guard", "a green bird", "my brother", "the new teacher",
    "an angry goose", "the quiet neighbour", "a blue robot", "the village doctor", "a red squirrel", "the painter",
)  # fmt: skip
_DOES = (
    "looks for a lost key", "paints the wooden door", "counts the white stones", "sings a slow song",
    "sleeps under the table", "jumps over the fence", "reads a long letter", "carries a heavy basket",
    "waits for the morning train", "listens to the rain", "draws a yellow circle", "follows the butterfly",
    "opens the kitchen window", "builds a paper boat", "plays the broken piano", "watches the bright moon",
)  # fmt: skip
_WHERE = (
    "in the garden", "near the river", "on the roof", "behind the old house", "in front of the school",
    "at the edge of the forest", "on a narrow bridge", "in a crowded market", "by the fire", "across the street",
    "between two hills", "inside the empty church",
)  # fmt: skip
_WHEN = (
    "every evening", "before breakfast", "after the storm", "on a cold Sunday", "without a sound", "for the first time",
    "until the sun goes down", "with great care", "while everybody laughs", "again and again",
)  # fmt: skip
_ASKS = (
    "Tell me a short story.", "What happened next?", "Write one sentence about {place}.", "Who is {place}?",
    "Describe what you see.", "Say something about {who}.", "Continue: {who} {does}",
)  # fmt: skip


def chats(seed: int) -> Iterator[tuple[str, str]]:
    """Endless pairs of a question and its answer, the same for the same seed."""
    choices = Choices(seed)
    while True:
        question = choices.pick(_ASKS).format(
            place=choices.pick(_WHERE), who=choices.pick(_WHO), does=choices.pick(_DOES)
        )
        yield question, " ".join(_sentence(choices) for _ in range(1 + choices.below(2)))


def _sentence(choices: Choices) -> str:
    who, does = choices.pick(_WHO), choices.pick(_DOES)
    place, when = choices.pick(_WHERE), choices.pick(_WHEN)
    text = choices.pick((f"{who} {does} {place}", f"{when}, {who} {does}", f"{place}, {who} {does} {when}"))
    return text[0].upper() + text[1:] + "."


def question_text(question: str) -> str:
    """A question in the chat format of the prompts, up to where the answer begins."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def chat_text(question: str, answer: str) -> str:
    """One exchange, closed after the answer."""
    return f"{question_text(question)}{answer}<|im_end|>\n"
