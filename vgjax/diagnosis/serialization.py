"""Readings as plain JSON values and back; what JSON has no number for is a text: ``"-inf"``, ``"nan"``."""

import dataclasses
import math
from typing import Any

from vgjax.diagnosis.readings import Frontier, Path, Readings, Row


def readings_to_json(readings: Readings) -> dict[str, Any]:
    """Nested dicts, lists, numbers, texts."""
    return plain(dataclasses.asdict(readings))


def plain(value: Any) -> Any:
    """Any nest of dicts, tuples and numbers as JSON values."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def readings_from_json(described: dict[str, Any]) -> Readings:
    """What `readings_to_json` described."""
    return Readings(
        paths=tuple(
            Path(each["name"], each["kind"], tuple(map(_row, each["rows"])), each["all_gradient"])
            for each in described["paths"]
        ),
        sites=tuple(map(_row, described["sites"])),
        parameter_gradients={name: float(log) for name, log in described["parameter_gradients"].items()},
        zero_parameters=tuple(described["zero_parameters"]),
        opaque=tuple((what, where) for what, where in described["opaque"]),
        constants=tuple((tuple(shape), where) for shape, where in described["constants"]),
        frontier=tuple(_with_floats(Frontier, each) for each in described["frontier"]),
        loss=float(described["loss"]),
        cotangent=described["cotangent"],
        first_inexact=described["first_inexact"],
    )


def _row(described: dict[str, Any]) -> Row:
    nested = {"shape": tuple(described["shape"]), "sites": tuple(map(_row, described["sites"]))}
    nested |= {"kinds": tuple(described["kinds"]), "log_cuts": tuple(map(float, described["log_cuts"]))}
    return _with_floats(Row, described | nested)


def _with_floats(kind: Any, described: dict[str, Any]) -> Any:
    floats = {field.name for field in dataclasses.fields(kind) if field.type is float}
    return kind(**{name: float(value) if name in floats else value for name, value in described.items()})
