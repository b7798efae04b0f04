"""The ontology: entity types, relation types and what each may join. It is data; no other module names a type."""

from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer, field_validator, model_validator

from rasid.errors import ConfigError, describe

OUTSIDE = "O"


class RelationType(BaseModel):
    """What one relation type may join.

    Attributes:
        head: Entity types allowed at the head.
        tail: Entity types allowed at the tail.
        symmetric: The order of the ends means nothing; it is written earlier mention first.
        transitive: Links join mentions into groups (an equivalence); requires `symmetric`.
        same_type: Head and tail must have one and the same entity type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: tuple[str, ...]
    tail: tuple[str, ...]
    symmetric: bool = False
    transitive: bool = False
    same_type: bool = False

    def allows(self, head: str, tail: str) -> bool:
        """Whether the relation may join an entity of type `head` to one of type `tail`."""
        return head in self.head and tail in self.tail and (head == tail or not self.same_type)


class Ontology(BaseModel):
    """Entity types, relation types and the proclitics that stay outside of spans.

    Attributes:
        entity_types: Names in a fixed order; the order gives the label indices of a model.
        relation_types: Relation name to its rule, in a fixed order.
        proclitics: Letters that may be cut off the first word of an entity; empty for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    entity_types: tuple[str, ...]
    relation_types: dict[str, RelationType] = {}
    proclitics: str = ""

    @field_validator("relation_types", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(v, dict) and "name" in v for v in value):
            return {v["name"]: {k: x for k, x in v.items() if k != "name"} for v in value}
        return value

    @field_serializer("relation_types", mode="plain")
    def _to_list(self, value: dict[str, RelationType]) -> list[dict[str, Any]]:
        # A list, since `transformers` sorts the keys of what it writes and the order is that of a model's outputs.
        return [{"name": name} | rule.model_dump(mode="json") for name, rule in value.items()]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.entity_types or len(set(self.entity_types)) != len(self.entity_types):
            raise ValueError("entity_types must name at least one type, and each one once")
        for name, rule in self.relation_types.items():
            if unknown := sorted({*rule.head, *rule.tail} - set(self.entity_types)):
                raise ValueError(f"{name} joins unknown entity types {unknown}; known: {list(self.entity_types)}")
            if rule.symmetric and set(rule.head) != set(rule.tail):
                raise ValueError(f"{name} is symmetric, so head and tail must list the same entity types")
            if rule.transitive and not rule.symmetric:
                raise ValueError(f"{name} is transitive, so it must be symmetric too")
        return self

    @cached_property
    def relation_names(self) -> tuple[str, ...]:
        """Relation type names; the order gives the label indices of a model."""
        return tuple(self.relation_types)

    @cached_property
    def symmetric(self) -> tuple[bool, ...]:
        """Whether each relation type is symmetric, in the order of `relation_names`."""
        return tuple(rule.symmetric for rule in self.relation_types.values())

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """IOB2 tags: `O`, then `B-` and `I-` of each entity type (`2 * len(entity_types) + 1` of them)."""
        return (OUTSIDE, *(f"{prefix}-{name}" for name in self.entity_types for prefix in "BI"))

    @cached_property
    def rules(self) -> tuple[tuple[tuple[bool, ...], ...], ...]:
        """`[head type][tail type][relation]`: whether it may join these, in the orders of types and relations."""
        names = self.entity_types
        return tuple(tuple(tuple(self.allows(r, h, t) for r in self.relation_names) for t in names) for h in names)

    def allows(self, relation: str, head: str, tail: str) -> bool:
        """Whether `relation` may join an entity of type `head` to one of type `tail`; False for unknown names."""
        rule = self.relation_types.get(relation)
        return rule is not None and rule.allows(head, tail)

    @classmethod
    def parse(cls, value: dict[str, Any], where: str) -> Self:
        """An ontology out of plain data.

        Raises:
            ConfigError: naming `where` and every problem.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ConfigError(f"{where}: not a valid ontology: {describe(error)}") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an ontology from a YAML file (needs the `train` extra).

        Raises:
            ConfigError: if the file is missing, is not YAML, or breaks a rule.
        """
        try:
            from omegaconf import OmegaConf
            from yaml import YAMLError
        except ImportError as error:
            raise ConfigError(f"reading {path} needs the training extra: pip install 'rasid[train]'") from error
        try:
            value = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path}: no such ontology file; the one of this project is data/ontology.yaml"
            ) from error
        except (YAMLError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: expected a mapping with entity_types and relation_types")
        return cls.parse(value, str(path))
