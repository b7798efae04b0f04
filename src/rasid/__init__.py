"""Rasid: forces, places, equipment and their relations out of Arabic conflict news, on a CPU."""

from rasid.errors import ConfigError, DataError, ModelError, RasidError
from rasid.inference import Extractor
from rasid.records import Article, Entity, Relation
from rasid.schema import Ontology

__all__ = [
    "Article",
    "ConfigError",
    "DataError",
    "Entity",
    "Extractor",
    "ModelError",
    "Ontology",
    "RasidError",
    "Relation",
]
__version__ = "0.1.0"
