import json

import pytest
from pydantic import ValidationError

from rasid.errors import ModelError
from rasid.schema import Ontology
from rasid.settings import CONFIG_FILE, MODEL_TYPE, ModelSettings, load_settings

RULE = {"head": ["A"], "tail": ["A"]}
ONTOLOGY = Ontology.model_validate({"entity_types": ["A"], "relation_types": {"IN": RULE, "AT": RULE, "TO": RULE}})


def test_thresholds_are_in_the_order_of_the_ontology() -> None:
    settings = ModelSettings(ontology=ONTOLOGY, relation_threshold=0.4, relation_thresholds={"TO": 0.7, "IN": 0.2})
    assert settings.thresholds == (0.2, 0.4, 0.7)
    assert ModelSettings(ontology=ONTOLOGY, relation_threshold=0.4).thresholds == (0.4, 0.4, 0.4)
    assert ModelSettings(ontology=Ontology(entity_types=("A",))).thresholds == ()


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, "many", None])
def test_a_threshold_is_a_probability(threshold: object) -> None:
    with pytest.raises(ValidationError, match=r"relation_thresholds\.AT"):
        ModelSettings.model_validate({"ontology": ONTOLOGY, "relation_thresholds": {"AT": threshold}})


def test_threshold_of_an_unknown_relation() -> None:
    with pytest.raises(ValidationError, match=r"relation_thresholds of unknown relations \['BY', 'NEAR'\]"):
        ModelSettings(ontology=ONTOLOGY, relation_thresholds={"NEAR": 0.5, "AT": 0.5, "BY": 0.5})


def test_the_bias_of_an_entity_type_is_that_of_its_tags() -> None:
    ontology = Ontology(entity_types=("A", "B", "C"))
    assert ontology.tags == ("O", "B-A", "I-A", "B-B", "I-B", "B-C", "I-C")
    assert ModelSettings(ontology=ontology, entity_bias={"B": -1.5}).tag_bias == (0, 0, 0, -1.5, -1.5, 0, 0)
    assert ModelSettings(ontology=ontology).tag_bias == (0,) * 7


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), "many", None])
def test_a_bias_is_a_number(bias: object) -> None:
    with pytest.raises(ValidationError, match=r"entity_bias\.A"):
        ModelSettings.model_validate({"ontology": ONTOLOGY, "entity_bias": {"A": bias}})


def test_bias_of_an_unknown_entity_type() -> None:
    with pytest.raises(ValidationError, match=r"entity_bias of unknown entities \['IN', 'PERSON'\]"):
        ModelSettings(ontology=ONTOLOGY, entity_bias={"PERSON": 1, "A": 1, "IN": 1})


def stored(**settings: object) -> str:
    made = ModelSettings(ontology=ONTOLOGY, relation_thresholds={"AT": 0.3}).model_dump(mode="json")
    return json.dumps({"model_type": MODEL_TYPE, "settings": made | settings})


def test_thresholds_survive_a_checkpoint(tmp_path) -> None:
    (tmp_path / CONFIG_FILE).write_text(stored(), encoding="utf-8")
    assert load_settings(tmp_path).thresholds == (0.5, 0.3, 0.5)


def test_a_checkpoint_from_before_there_were_thresholds_of_types_and_a_bias(tmp_path) -> None:
    config = json.loads(stored(relation_threshold=0.6))
    del config["settings"]["relation_thresholds"], config["settings"]["entity_bias"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    assert load_settings(tmp_path).thresholds == (0.6, 0.6, 0.6)
    assert load_settings(tmp_path).tag_bias == (0, 0, 0)


def test_a_checkpoint_with_a_threshold_of_an_unknown_relation(tmp_path) -> None:
    (tmp_path / CONFIG_FILE).write_text(stored(relation_thresholds={"NEAR": 0.5}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json: invalid settings: .*unknown relations \['NEAR'\]; copy the"):
        load_settings(tmp_path)
