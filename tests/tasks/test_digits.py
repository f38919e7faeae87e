import gzip
from pathlib import Path

import numpy as np
import pytest

from omni_rl.tasks import digits
from omni_rl.tasks.digits import digit_image, load_digits
from omni_rl.tasks.rewards import exact_digit


def test_the_splits_share_no_image_and_hold_every_digit() -> None:
    train, held_out = load_digits("train"), load_digits("held_out")

    assert len(train) + len(held_out) == 1797
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in held_out.images}
    assert set(train.labels) == set(held_out.labels) == set(range(10))
    ids = [split.prompt(index).id for split in (train, held_out) for index in range(len(split))]
    assert sorted(ids) == sorted(f"digit-{number}" for number in range(1797))


def test_there_are_as_many_of_each_digit_as_its_source_says() -> None:
    """https://doi.org/10.24432/C50P49, "Class Distribution", of the images of its test set."""
    labels = np.concatenate([load_digits("train").labels, load_digits("held_out").labels])

    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_an_image_belongs_to_its_split_whatever_the_order_of_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = load_digits("held_out")
    with gzip.open(digits.STORED, "rt") as stored:
        lines = stored.readlines()
    (tmp_path / "turned.csv").write_text("".join(reversed(lines)))
    monkeypatch.setattr(digits, "STORED", tmp_path / "turned.csv")
    turned = load_digits.__wrapped__("held_out")

    assert 0.15 < len(held_out) / 1797 < 0.25
    np.testing.assert_array_equal(turned.images[::-1], held_out.images)
    np.testing.assert_array_equal(turned.labels[::-1], held_out.labels)


def test_a_prompt_shows_the_image_and_knows_its_answer() -> None:
    held_out = load_digits("held_out")
    prompt = held_out.prompt(3)

    assert prompt.kind == "image"
    assert prompt.text.count("<image>") == 1
    assert prompt.text.endswith("<|im_start|>assistant\n")
    assert prompt.answer == str(held_out.labels[3])


def test_the_picture_is_the_ink_eight_times_larger() -> None:
    ink = load_digits("train").images[0]
    picture = digit_image(ink)

    assert picture.mode == "RGB"
    assert picture.size == (64, 64)
    pixels = np.asarray(picture)
    for row, column in np.ndindex(8, 8):
        square = pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert np.all(square == round(ink[row, column] * 255 / 16))


@pytest.mark.parametrize(
    ("answer", "reward"), [("7", 1.0), ("7 is it", 1.0), ("", 0.0), (" 7", 0.0), ("17", 0.0), ("seven", 0.0)]
)
def test_only_an_answer_that_starts_with_the_digit_is_rewarded(answer: str, reward: float) -> None:
    assert exact_digit(answer, "7") == reward
