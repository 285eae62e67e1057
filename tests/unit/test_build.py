"""`build` makes only what TARGETS lists."""

from __future__ import annotations

import sys
import types
from fractions import Fraction

import pytest
from omegaconf import OmegaConf

from embodied.building import build as build_module
from embodied.building.build import build
from embodied.errors import UserError


@pytest.fixture(autouse=True)
def targets(monkeypatch):
    monkeypatch.setitem(sys.modules, "toys", types.SimpleNamespace(keep=lambda **kept: kept))
    monkeypatch.setattr(build_module, "TARGETS", ("fractions.Fraction", "textwrap.shorten", "toys.keep"))


def test_arguments_come_from_the_config_and_the_caller():
    config = OmegaConf.create({"_target_": "fractions.Fraction", "numerator": 3})
    assert build(config, denominator=4) == Fraction(3, 4)
    assert build({"_target_": "fractions.Fraction", "numerator": 5}) == 5


def test_the_config_is_not_changed():
    config = OmegaConf.create({"_target_": "fractions.Fraction", "numerator": 3})
    OmegaConf.set_readonly(config, True)
    before = OmegaConf.to_yaml(config)
    build(config, denominator=4)
    assert OmegaConf.to_yaml(config) == before


def test_inner_targets_are_built_first():
    inner = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}
    made = build({"_target_": "toys.keep", "one": inner, "many": [inner, {"deep": inner}]})
    half = Fraction(1, 2)
    assert made == {"one": half, "many": [half, {"deep": half}]}


@pytest.mark.parametrize("target", ["os.system", "fractions", "fractions.Fraction.limit_denominator", None, ["a"]])
def test_anything_else_is_refused(target):
    with pytest.raises(UserError, match="_target_ must be one of ours"):
        build({"_target_": target, "command": "true"})


def test_an_inner_target_is_refused_too():
    with pytest.raises(UserError, match=r"os\.system"):
        build({"_target_": "toys.keep", "a": [{"_target_": "os.system", "command": "true"}]})


def test_the_nearest_target_is_offered():
    with pytest.raises(UserError, match=r"did you mean fractions\.Fraction\?"):
        build({"_target_": "fractions.Fractoin"})


def test_unknown_and_missing_arguments():
    with pytest.raises(UserError, match=r"unknown argument 'denominatr'.*did you mean denominator"):
        build({"_target_": "fractions.Fraction", "denominatr": 2})
    with pytest.raises(UserError, match=r"textwrap\.shorten: width must be given"):
        build({"_target_": "textwrap.shorten", "text": "a"})
