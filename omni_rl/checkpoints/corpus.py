"""Writes the text that the small checkpoint's tokenizer and language model learn from: short chats from a grammar of
ours.

The text is made here, not collected, so that it is the same on every machine and nobody else's text is in the weights.
"""

from collections.abc import Iterator

from omni_rl.checkpoints.choices import StableDraws

# One independent choice a word: a model that knows the grammar perfectly is still unsure of every other token.
_HOW = (
    "small", "old", "grey", "young", "tall", "tired", "clever", "brown", "quiet", "green", "angry", "blue", "red",
    "heavy", "broken", "yellow", "bright", "empty", "narrow", "cold", "wooden", "white", "long", "slow",
)  # fmt: skip
_WHO = (
    "dog", "sailor", "cat", "rabbit", "nurse", "farmer", "child", "horse", "guard", "bird", "brother", "teacher",
    "goose", "neighbour", "robot", "doctor", "squirrel", "painter", "queen", "baker", "fox", "pilot", "judge", "owl",
)  # fmt: skip
_DOES = (
    "finds", "paints", "counts", "carries", "follows", "opens", "builds", "watches", "draws", "forgets", "sells",
    "hides", "holds", "repairs", "loses", "wants",
)  # fmt: skip
_WHAT = (
    "key", "door", "stone", "song", "table", "fence", "letter", "basket", "train", "circle", "window", "boat", "piano",
    "moon", "picture", "bridge", "lamp", "clock", "bottle", "map",
)  # fmt: skip
_WHERE = (
    "in the garden", "near the river", "on the roof", "behind the house", "at school", "in the forest", "by the fire",
    "across the street", "between two hills", "at home", "at the market", "under a tree",
)  # fmt: skip
_WHEN = ("today", "again", "before breakfast", "after the storm", "on Sunday", "in the evening", "with care", "at last")
_ASKS = (
    "Tell me a story.", "What happened next?", "Write one sentence about a {what}.", "Who is {where}?",
    "Say something about the {who}.", "What does the {how} {who} do?",
)  # fmt: skip


def chats(seed: int) -> Iterator[tuple[str, str]]:
    """Yield endless pairs of a question and its answer, the same for the same seed."""
    choices = StableDraws(seed)
    while True:
        question = choices.pick(_ASKS).format(
            what=choices.pick(_WHAT), where=choices.pick(_WHERE), who=choices.pick(_WHO), how=choices.pick(_HOW)
        )
        yield question, " ".join(_sentence(choices) for _ in range(1 + choices.below(2)))


def _sentence(choices: StableDraws) -> str:
    who = f"the {choices.pick(_HOW)} {choices.pick(_WHO)}"
    does = f"{choices.pick(_DOES)} the {choices.pick(_HOW)} {choices.pick(_WHAT)}"
    where, when = choices.pick(_WHERE), choices.pick(_WHEN)
    text = choices.pick((f"{who} {does} {where}", f"{when}, {who} {does}", f"{where}, {who} {does} {when}"))
    return text[0].upper() + text[1:] + "."


def question_text(question: str) -> str:
    """Return a question in the chat format of the prompts, up to where the answer begins."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def chat_text(question: str, answer: str) -> str:
    """Return one exchange, closed after the answer."""
    return f"{question_text(question)}{answer}<|im_end|>\n"
