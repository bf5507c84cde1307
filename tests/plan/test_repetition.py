"""Text that is read again is worth less each time, by the published fit, and feeds a model of the size that follows."""

import math

import pytest

from packtrain.plan.repetition import count_as_new, describe_text, find_epochs


def test_what_text_is_worth_is_the_published_law():
    # U_D + U_D R_D* (1 - e^(-R_D / R_D*)), with R_D the epochs after the first.
    assert count_as_new(100, 4) == pytest.approx(100 + 100 * 15.4 * (1 - math.exp(-3 / 15.4)))
    assert count_as_new(100, 0.5) == 50 and count_as_new(100, 1) == 100
    # Four epochs are nearly worth four, and no number of them more than 16.4.
    assert 3.7 < count_as_new(1, 4) < 4 and count_as_new(1, 10**6) == pytest.approx(16.4)
    worth = [count_as_new(1, epochs) for epochs in range(1, 100)]
    gains = [after - before for before, after in zip(worth, worth[1:], strict=False)]
    assert all(later < sooner for sooner, later in zip(gains, gains[1:], strict=False))


@pytest.mark.parametrize("epochs", [0.25, 1, 1.5, 4, 60])
def test_epochs_are_found_from_what_they_teach(epochs):
    assert find_epochs(1000, count_as_new(1000, epochs)) == pytest.approx(epochs)


def test_no_number_of_epochs_teaches_more_than_there_is():
    assert find_epochs(1000, 16_401) is None and find_epochs(1000, 16_390) > 100


def test_a_model_and_a_text():
    text = describe_text(1_000_000, 2_000_000, 4.0)
    assert text["usable_tokens"] == 20_000_000 and text["is_scarce"]
    assert text["fed_parameters"] == round(count_as_new(2_000_000, 4) / 20)
    assert count_as_new(2_000_000, text["usable_epochs"]) == pytest.approx(20_000_000)
    assert [reading["epochs"] for reading in text["readings"]][:3] == [1, 2, 4]
    assert not describe_text(1_000, 2_000_000, 0.5)["is_scarce"]
    assert describe_text(1_000, None, None) is None


def test_each_dataset_of_a_mixture_is_worth_what_it_is_read():
    sources = [{"epoch_tokens": 1000, "epochs": 8.0}, {"epoch_tokens": 9000, "epochs": 0.5}]
    text = describe_text(1_000, 10_000, 1.25, sources)
    assert text["worth_tokens"] == round(count_as_new(1000, 8) + 4500)
