import pytest

from rasid.errors import ConfigError
from rasid.schema import Ontology, RelationType

BASE = {
    "entity_types": ["UNIT", "PLACE"],
    "relation_types": {
        "AT": {"head": ["UNIT"], "tail": ["PLACE"]},
        "SAME": {
            "head": ["UNIT", "PLACE"],
            "tail": ["PLACE", "UNIT"],
            "symmetric": True,
            "transitive": True,
            "same_type": True,
        },
    },
    "proclitics": "وب",
}


def test_order_of_the_file_is_the_order_of_labels():
    ontology = Ontology.parse(BASE, "test")
    assert ontology.tags == ("O", "B-UNIT", "I-UNIT", "B-PLACE", "I-PLACE")
    assert ontology.relation_names == ("AT", "SAME")


def test_rules_say_what_is_allowed_and_leave_ontologies_comparable():
    ontology, other = Ontology.parse(BASE, "test"), Ontology.parse(BASE, "test")
    assert ontology.rules == (((False, True), (True, False)), ((False, False), (False, True)))
    assert ontology == other
    assert other.rules is not ontology.rules
    assert ontology == other


def test_allows_follows_direction_and_same_type():
    ontology = Ontology.parse(BASE, "test")
    assert ontology.allows("AT", "UNIT", "PLACE")
    assert not ontology.allows("AT", "PLACE", "UNIT")
    assert ontology.allows("SAME", "PLACE", "PLACE")
    assert not ontology.allows("SAME", "UNIT", "PLACE")
    assert not ontology.allows("NEVER_HEARD_OF", "UNIT", "PLACE")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entity_types": []}, "must name at least one type"),
        ({"entity_types": ["UNIT", "PLACE", "UNIT"]}, "each one once"),
        ({"relation_types": {"AT": {"head": ["UNIT"], "tail": ["SHIP"]}}}, r"AT joins unknown entity types \['SHIP'\]"),
        ({"relation_types": {"AT": {"head": ["UNIT"], "tail": ["PLACE"], "symmetric": True}}}, "AT is symmetric"),
        ({"relation_types": {"AT": {"head": ["UNIT"], "tail": ["UNIT"], "transitive": True}}}, "AT is transitive"),
        ({"relation_types": {"AT": {"head": ["UNIT"]}}}, r"relation_types\.AT\.tail: Field required"),
        ({"entity_typos": []}, "entity_typos: Extra inputs"),
    ],
)
def test_broken_ontologies_are_refused_with_the_place(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Ontology.parse({**BASE, **change}, "my.yaml")
    assert str(caught.value).startswith("my.yaml: not a valid ontology: ")


def test_load_reads_yaml_and_explains_what_is_wrong(tmp_path):
    pytest.importorskip("omegaconf")
    path = tmp_path / "o.yaml"
    path.write_text("entity_types: [A]\nrelation_types:\n  R: {head: [A], tail: [A]}\n", encoding="utf-8")
    assert Ontology.load(path).relation_types["R"] == RelationType(head=("A",), tail=("A",))
    path.write_text("entity_types: [A\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"o\.yaml: cannot be read as YAML"):
        Ontology.load(path)
    path.write_text("- A\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a mapping"):
        Ontology.load(path)
    with pytest.raises(ConfigError, match="no such ontology file"):
        Ontology.load(tmp_path / "missing.yaml")


def test_project_ontology_survives_plain_data():
    pytest.importorskip("omegaconf")
    from pathlib import Path

    ontology = Ontology.load(Path(__file__).parents[1] / "data" / "ontology.yaml")
    assert Ontology.parse(ontology.model_dump(mode="json"), "again") == ontology
