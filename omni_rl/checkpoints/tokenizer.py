"""Trains the small checkpoint's tokenizer: byte-level BPE, the released checkpoints' special ids, digits one by one."""

from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from omni_rl.checkpoints.corpus import chats
from omni_rl.checkpoints.scenes import sentences
from omni_rl.tasks.digits import QUESTION

VOCABULARY = 780  # no multiple of 64: the engine then pads its embedding and head, which its readers must handle
IM_START, IM_END, IMAGE, SOUND, VIDEO = 10, 11, 18, 27, 30
_NAMED = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    IM_START: "<|im_start|>",
    IM_END: "<|im_end|>",
    12: "<think>",
    13: "</think>",
    IMAGE: "<image>",
    19: "<img>",
    20: "</img>",
    SOUND: "<so_embedding>",
    28: "<so_start>",
    29: "<so_end>",
    VIDEO: "<video>",
}
SPECIALS = [_NAMED.get(number, f"<SPECIAL_{number}>") for number in range(VIDEO + 1)]
_CHATS = 2000
# Words of every prompt, whole: the roles, the digit task's question, and what the engine itself writes between a
# video's frames.
_OFTEN = ("user\n", "assistant\n", QUESTION, "\nFrame 1 sampled at 0.04 seconds and frame 2 sampled at 0.08 seconds: ")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer. It has the same bytes on every machine, because text, counts and ties are the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for chat in islice(chats(0), _CHATS) for text in chat]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *sentences() * 20, *_OFTEN * 200], trainer)
    roles = {"bos_token": 1, "eos_token": IM_END, "unk_token": 0, "pad_token": 0}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=SPECIALS[3:],
        clean_up_tokenization_spaces=False,
        **{role: SPECIALS[number] for role, number in roles.items()},
    )


def save_tokenizer(directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, as the engine and transformers read them."""
    build_tokenizer().save_pretrained(directory)
