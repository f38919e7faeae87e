"""A prompt's items come in the order of their placeholders, whatever their kinds."""

from PIL import Image

from omni_rl.media.formats import in_order, marked, model_text
from omni_rl.media.types import Prompt
from tests.robustness.conftest import clip, hiss

TEXT = "First <video>, then <image> and <image>, <so_embedding> at last. <audio> is none."


def test_items_come_in_the_order_of_their_placeholders() -> None:
    one, two = Image.new("RGB", (2, 2)), Image.new("RGB", (3, 3))
    sound, video = hiss(1, 100, 1, 16_000), clip(2, 2, 4, 4)
    prompt = Prompt("p", TEXT, (one, two), (sound,), (video,))
    assert list(in_order(prompt)) == [("video", 0, video), ("image", 0, one), ("image", 1, two), ("audio", 0, sound)]
    assert [kind for kind, _, _ in in_order(prompt)] == marked(TEXT)


def test_a_model_reads_its_own_placeholders() -> None:
    assert model_text(Prompt("p", TEXT)) == TEXT
