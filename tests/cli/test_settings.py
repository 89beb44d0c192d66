"""One table of settings: flags, help and config file say the same."""

import tomllib
from dataclasses import replace

import pytest

from lightning_fl_ext.cli.config import merge, read_config, to_toml
from lightning_fl_ext.cli.errors import WrongInput
from lightning_fl_ext.cli.settings import SETTINGS, RunSettings, flag_of

LEAST = {"model": "m:M", "data": "m:d", "clients": 3}
EXAMPLES = {
    "str": '"x"',
    "int": "4",
    "float": "0.5",
    "bool": "true",
    "list": '["a", "b"]',
    "pairs": "{ k = 1 }",
}
VALUES = {"str": "x", "int": 4, "float": 0.5, "bool": True, "list": ["a", "b"], "pairs": {"k": 1}}


def test_every_setting_can_be_in_a_config_file(tmp_path):
    path = tmp_path / "fed.toml"
    path.write_text("".join(f"{flag_of(s)} = {EXAMPLES[s.metadata['kind']]}\n" for s in SETTINGS))
    merged = merge(read_config(path), {})
    assert {s.name: getattr(merged, s.name) for s in SETTINGS} == {
        s.name: VALUES[s.metadata["kind"]] for s in SETTINGS
    }


def test_help_lists_every_setting_and_where_it_defaults(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = call("run", "--help")
    assert done.code == 0
    for setting in SETTINGS:
        assert setting.name == "model" or f"--{flag_of(setting)} " in done.out
    for text in ("[default: ExactFedAvg]", "[default: 3]", "[default: exclude]", "MODULE:CLASS", "--json"):
        assert text in done.out


@pytest.mark.parametrize("setting", SETTINGS, ids=flag_of)
def test_a_flag_goes_before_the_config_file(setting):
    other = {"str": "y", "int": 5, "float": 0.25, "bool": False, "list": ["c"], "pairs": {"k": 2}}
    kind = setting.metadata["kind"]
    merged = merge({**LEAST, setting.name: VALUES[kind]}, {setting.name: other[kind]})
    assert getattr(merged, setting.name) == other[kind]


def test_pairs_are_merged_key_by_key():
    merged = merge({**LEAST, "trainer_option": {"a": 1, "b": 2}}, {"trainer_option": {"b": 3, "c": 4}})
    assert merged.trainer_option == {"a": 1, "b": 3, "c": 4}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("round = 3", "there is no setting `round`. Did you mean `rounds`?"),
        ("min_accepted = 3", "there is no setting `min_accepted`. Did you mean `min-accepted`?"),
        ("rounds = 'three'", "`rounds` must be a whole number. Got 'three'."),
        ("rounds = 3.0", "`rounds` must be a whole number. Got 3.0."),
        ("rounds = true", "`rounds` must be a whole number. Got True."),
        ("fraction = 'half'", "`fraction` must be a number. Got 'half'."),
        ("fraction = true", "`fraction` must be a number. Got True."),
        ("resume = 1", "`resume` must be true or false. Got 1."),
        ("model = 3", "`model` must be a text. Got 3."),
        ("exclude = [1]", "`exclude` must be a text or a list of texts. Got [1]."),
        ("trainer-option = 'a=1'", "`trainer-option` must be a table"),
        ("rounds = ", "cannot read"),
        ("\x00", "cannot read"),
    ],
)
def test_a_config_file_that_is_wrong_is_named_with_the_place(tmp_path, content, says):
    path = tmp_path / "fed.toml"
    path.write_text(content)
    with pytest.raises(WrongInput) as refused:
        read_config(path)
    assert str(path) in str(refused.value)
    assert says in str(refused.value)


def test_whole_numbers_and_lone_patterns_are_taken_for_what_they_mean(tmp_path):
    path = tmp_path / "fed.toml"
    path.write_text("fraction = 1\nexclude = 'head.*'\n")
    assert read_config(path) == {"fraction": 1.0, "exclude": ["head.*"]}


@pytest.mark.parametrize("missing", sorted(LEAST))
def test_what_has_no_default_must_be_given(missing):
    with pytest.raises(WrongInput, match=r"is missing: give it, or write `\w+` into a config file"):
        merge({name: value for name, value in LEAST.items() if name != missing}, {})


def test_settings_survive_being_written_and_read(tmp_path):
    settings = RunSettings(
        **LEAST,
        seed=9,
        max_update_norm=2.5,
        exclude=["a.*", 'odd"name\\'],
        trainer_option={"devices": 1, "precision": "bf16-mixed", "callbacks": None},
        dir="somewhere",
        resume=True,
    )
    path = tmp_path / "run.toml"
    path.write_text(to_toml(settings), encoding="utf-8")
    expected = replace(
        settings, dir=None, resume=False, trainer_option={"devices": 1, "precision": "bf16-mixed"}
    )
    assert merge(read_config(path), {}) == expected
    assert not {"dir", "resume"} & tomllib.loads(path.read_text()).keys()
