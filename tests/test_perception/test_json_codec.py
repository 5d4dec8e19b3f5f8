import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import pytest
from toy_bundle import toy_card

from perception.errors import InputError
from perception.json_codec import from_json, to_json
from perception.model_card import ModelCard


@dataclass(frozen=True, kw_only=True)
class Wheel:
    radius: float
    name: str | None

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ValueError(f"radius is {self.radius}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class Car:
    wheels: tuple[Wheel, ...]
    size: tuple[float, float]
    seats: int
    names: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Petrol:
    kind: Literal["petrol"] = "petrol"
    tank: float


@dataclass(frozen=True, kw_only=True)
class Battery:
    kind: Literal["battery"] = "battery"
    tank: float


@dataclass(frozen=True, kw_only=True)
class Drive:
    source: Petrol | Battery
    spare: Petrol | Battery | None


CAR = Car(
    wheels=(Wheel(radius=0.3, name=None), Wheel(radius=0.4, name="spare")),
    size=(4.0, 1.7),
    seats=5,
    names={"a": 1},
)


def changed(**change: object) -> str:
    return json.dumps(dataclasses.asdict(CAR) | change)


def test_there_and_back() -> None:
    assert from_json(Car, to_json(CAR), "car.json") == CAR
    card = toy_card()
    assert from_json(ModelCard, to_json(card), "card.json") == card


def test_whole_numbers_may_stand_for_fractions() -> None:
    size = from_json(Car, changed(size=[4, 2]), "car.json").size
    assert size == (4.0, 2.0)
    assert all(type(number) is float for number in size)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"car\.json is not valid JSON"),
        ("[]", r"car\.json is \[\], expected dict"),
        (changed(seat=4), "unknown key 'seat'. Did you mean 'seats'?"),
        (changed(xyz=4), "unknown key 'xyz'.$"),
        (json.dumps({"wheels": []}), "lacks the key 'size'"),
        (changed(seats="5"), r"car\.json\.seats is '5', expected int"),
        (changed(seats=True), r"car\.json\.seats is True, expected an int"),
        (changed(seats=5.5), "seats is 5.5, expected int"),
        (changed(size=[1.0]), "size has 1 values, expected 2"),
        (changed(size=[1.0, True]), r"size\[1\] is True, expected float"),
        (changed(size=[1.0, 10**400]), "too large"),
        (changed(names={"a": "b"}), r"names\.a is 'b', expected int"),
        (changed(wheels={}), "wheels is {}, expected list"),
        (changed(wheels=[{"radius": -1, "name": None}]), r"wheels\[0\]: radius is -1.0, expected"),
        (changed(wheels=[{"radius": 1, "name": 3}]), r"wheels\[0\]\.name is 3, expected str"),
    ],
)
def test_mistakes_are_named_with_their_place(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_json(Car, text, "car.json")


def test_a_card_of_another_format_is_refused() -> None:
    text = to_json(toy_card()).replace('"format_version": 3', '"format_version": 4')
    with pytest.raises(InputError, match="export the model again"):
        from_json(ModelCard, text, "card.json")


def test_parts_of_several_kinds_are_told_apart_by_their_kind() -> None:
    # the same fields: only the word says which
    drive = Drive(source=Battery(tank=2.0), spare=None)
    assert from_json(Drive, to_json(drive), "drive") == drive
    wrong = to_json(drive).replace("battery", "steam")
    with pytest.raises(InputError, match=r"drive\.source is of kind 'steam', expected one of"):
        from_json(Drive, wrong, "drive")
    with pytest.raises(InputError, match="is of kind None"):
        from_json(Drive, '{"source": 3, "spare": null}', "drive")
