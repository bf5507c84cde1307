"""Does a ladder doubt its law where its own runs speak against it, and only there?"""

import pytest

from packtrain.ladder.conclude import conclude
from packtrain.ladder.law import Point
from packtrain.runs.ladder import Asked, LadderRecord, Law, RungRecord

SIZES, LENGTHS = (43_168, 84_720, 409_248), (256_000, 512_000, 1_024_000)
LAW = Law(floor=1.5, size_factor=40.0, tokens_factor=60.0, exponent=0.3)
# Of a real ladder on a small corpus, whose runs had hardly begun to learn.
BEGINNING = {
    43_168: (5.051, 4.576, 4.250),
    84_720: (4.523, 4.253, 3.854),
    409_248: (4.281, 4.079, 3.622),
}


def record(losses: dict[Point, float]) -> LadderRecord:
    runs = tuple(
        RungRecord(
            name=f"{point.parameters}-{point.tokens}",
            parameters=point.parameters,
            hidden_size=32,
            num_hidden_layers=2,
            tokens=point.tokens,
            epochs=0.1,
            steps=500,
            global_batch_tokens=512,
            lr=1e-3,
            flops=6.0 * point.parameters * point.tokens,
            planned_s=1.0,
            state="finished",
            loss=loss,
            bits_per_byte=loss / 2,
            config={},
        )
        for point, loss in losses.items()
    )
    asked = Asked(settings={}, dataset_hash="0" * 64, budget="1e12flops")
    return LadderRecord(
        asked=asked,
        preset="demo",
        parameters=900_000,
        tokens=2_000_000,
        epochs=0.5,
        flops=1e13,
        slowdown=1.0,
        runs=runs,
    )


@pytest.mark.parametrize("is_beginning", [False, True])
def test_losses_that_fall_faster_and_faster_are_doubted(is_beginning: bool) -> None:
    losses = {
        Point(size, tokens, 0.0): BEGINNING[size][index] if is_beginning else LAW.predict(size, tokens)
        for size in SIZES
        for index, tokens in enumerate(LENGTHS)
    }
    concluded = conclude(record(losses))
    assert concluded.prediction is not None
    if is_beginning:
        (doubt,) = concluded.doubts
        assert doubt.startswith("In 2 of 3 sizes the loss falls faster") and "Raise --budget" in doubt
    else:
        assert concluded.doubts == ()
