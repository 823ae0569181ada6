"""Configurations are checked when made; wrong names and values get an error that helps."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tase.config import METHODS, PRESETS, Config, ConfigError, fields, override, preset


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_with_every_method_survives_json(name, method):
    config = preset(name, method, seed=3)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (config.method, config.seed, config.preset) == (method, 3, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifr10-lt"}, "unknown preset 'cifr10-lt'; did you mean 'cifar10-lt'?"),
        ({"method": "tse"}, "unknown method 'tse'; did you mean 'tase'?"),
        ({"overrides": {"guidance.tau_mx": 1}}, "did you mean 'guidance.tau_max'?"),
        ({"overrides": {"guidance.tau_min": 0}}, "guidance.tau_min = 0.0 is not possible: it must be above 0"),
        ({"overrides": {"guidance.tau_max": 0.05}}, "at least guidance.tau_min = 0.1"),
        ({"overrides": {"data.rho": 0.5}}, "data.rho = 0.5"),
        ({"overrides": {"data.source": "cifar"}}, "did you mean 'cifar"),
        ({"overrides": {"optim.batch": 1}}, "optim.batch = 1"),
        ({"overrides": {"optim.epochs": "many"}}, "optim.epochs = 'many' is not possible: it must be a whole number"),
        ({"overrides": {"optim.lr": "nan"}}, "optim.lr"),
        ({"overrides": {"optim.compile": "yes"}}, "optim.compile = 'yes' is not possible: it must be true or false"),
        ({"overrides": {"views.scale": "0.5"}}, "2 values"),
        ({"overrides": {"evaluation.protocols": "linear,few-shots"}}, "did you mean 'few-shot'?"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_wrong_input_names_field_value_and_what_is_allowed(arguments, message):
    with pytest.raises(ConfigError, match="(?s).*") as error:
        preset(**{"name": "cifar10-lt", **arguments})
    assert message in str(error.value)


def test_values_from_the_command_line_take_the_fields_type():
    config = preset("digits-lt", overrides={"views.scale": "0.5,0.9", "optim.epochs": "7", "data.balanced": "True"})
    assert config.views.scale == (0.5, 0.9)
    assert config.optim.epochs == 7
    assert config.data.balanced is True


def test_a_methods_fields_give_way_to_overrides():
    assert preset("digits-lt", "tase-tau").guidance.gamma == 0
    assert preset("digits-lt", "tase-tau", overrides={"guidance.gamma": 2}).guidance.gamma == 2


def test_identity_is_of_what_decides_the_result():
    config = preset("digits-lt")
    same = override(config, {"record.knn_every": 1, "optim.device": "cpu", "data.root": "elsewhere"})
    assert config.identity == same.identity
    for name, value in (("seed", 1), ("guidance.gamma", 0.1), ("data.balanced", True), ("optim.epochs", 3)):
        assert override(config, {name: value}).identity != config.identity


def test_every_field_has_help_and_can_be_set_to_its_own_default():
    for name, (_, default, text) in fields().items():
        assert text
        if "." in name:
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            assert override(Config(), {name: shown}) == Config()


def test_configurations_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("digits-lt").optim.epochs = 3


@given(st.sampled_from(sorted(fields())), st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()))
def test_any_value_gives_a_valid_configuration_or_one_error_naming_the_field(name, value):
    try:
        config = override(Config(), {name: value})
    except ConfigError as error:
        assert name in str(error) or "unknown" in str(error)
    else:
        assert Config.from_dict(config.to_dict()) == config


def test_what_a_method_does_not_read_makes_no_other_method_of_it():
    own = {"guidance.tau_0": 0.3, "guidance.clusters": 7, "guidance.tau_max": 0.9}
    simclr, plain = (preset("digits-lt", "simclr", overrides=o) for o in (own, {"guidance.tau_0": 0.3}))
    assert simclr.learnt == plain.learnt != preset("digits-lt", "simclr").learnt and simclr.identity != plain.identity
    for method in ("tase", "mm-ts"):
        assert preset("digits-lt", method, overrides=own).learnt == preset("digits-lt", method, overrides=own)
