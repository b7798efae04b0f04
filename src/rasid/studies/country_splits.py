"""Corpora without the articles about some countries, and as large a corpus without a random fold. Pure."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rasid.errors import DataError
from rasid.records import Article

COUNTRY = "country"  # the key of `meta` that says what country an article is about
CONTROL = "control"
ELSEWHERE = "rest of the world"
REGIONS = {  # ISO 3166 codes
    "rest of Western Asia": "AE AM AZ BH CY GE IL IQ IR JO KW LB OM PS QA SA SY TR YE",
    "rest of North Africa": "DZ EG EH LY MA SD TN",
    "rest of Africa": "AO BF BI BJ BW CD CF CG CI CM CV DJ ER ET GA GH GM GN GQ GW KE KM LR LS MG ML MR MU MW MZ NA NE "
    "NG RW SC SL SN SO SS ST SZ TD TG TZ UG ZA ZM ZW",
    "rest of Asia": "AF BD BN BT CN ID IN JP KG KH KP KR KZ LA LK MM MN MV MY NP PH PK SG TH TJ TL TM TW UZ VN",
}


@dataclass(frozen=True)
class Split:
    """What one model is trained on, chosen by, and scored on.

    Attributes:
        name: Of the group of countries that is left out, or `CONTROL`.
        compared: Those of `test` that the control is not trained on either.
    """

    name: str
    train: tuple[Article, ...]
    dev: tuple[Article, ...]
    test: tuple[Article, ...]
    compared: tuple[Article, ...] = ()

    @property
    def countries(self) -> dict[str, int]:
        """The articles of `test` by country, from the largest on."""
        return dict(Counter(map(country_of, self.test)).most_common())


def country_of(article: Article) -> str:
    """What country an article is about.

    Raises:
        DataError: if it does not say.
    """
    if not (country := article.meta.get(COUNTRY)):
        raise DataError(
            f"article {article.id}: no meta.{COUNTRY}, so nobody can say that a country was left out of training; "
            "add it, or leave the corpus out of data.train and data.dev"
        )
    return str(country)


def group_countries(counts: Mapping[str, int], least: int) -> dict[str, str]:
    """The group of each country that is in one.

    Countries with few articles are joined by region, and small regions to the rest of the world. What is too small even
    then is in no group.

    Args:
        counts: Articles by country.
        least: Fewest articles of a group.
    """
    groups = {country: country for country in counts}
    for larger in ({code: name for name, codes in REGIONS.items() for code in codes.split()}, {}):
        sizes = _sizes(groups, counts)
        for country, group in groups.items():
            if sizes[group] < least:
                groups[country] = larger.get(country, ELSEWHERE)
    sizes = _sizes(groups, counts)
    return {country: group for country, group in groups.items() if sizes[group] >= least}


def _sizes(groups: Mapping[str, str], counts: Mapping[str, int]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for country, group in groups.items():
        sizes[group] += counts[country]
    return sizes


def split_countries(train: Sequence[Article], dev: Sequence[Article], least: int) -> list[Split]:
    """The control, then a split for each group of countries, from the largest on.

    All leave equally many articles out of training: the control a random fold of the size of the largest group, with an
    equal share of every group, and each split its group, and of the fold as many others as it is short of.

    Args:
        train: What there is to train on.
        dev: What there is to choose by; a group is left out of it too, and scored with the rest of its articles.
        least: Fewest articles of a group.

    Raises:
        DataError: if an article has no country, there is no group, or one is all of train or of dev.
    """
    counts = Counter(map(country_of, (*train, *dev)))
    groups = group_countries(counts, least)
    if not groups:
        most = ", ".join(f"{country} {n}" for country, n in counts.most_common(3))
        raise DataError(f"no group of countries has {least} articles ({most}); set fewer with --least")

    def group_of(article: Article) -> str | None:
        return groups.get(country_of(article))

    in_train = Counter(map(group_of, train))
    size = max(in_train[group] for group in groups.values())
    fold = draw_fold(train, list(map(group_of, train)), size)
    drawn = {article.id for article in fold}
    splits = [Split(CONTROL, tuple(a for a in train if a.id not in drawn), tuple(dev), tuple(fold))]
    for group, _ in _sizes(groups, counts).most_common():
        own = [article for article in train if group_of(article) == group]
        others = [article for article in fold if group_of(article) != group][: size - len(own)]
        left_out = {article.id for article in (*own, *others)}
        splits.append(
            Split(
                group,
                train=tuple(article for article in train if article.id not in left_out),
                dev=tuple(article for article in dev if group_of(article) != group),
                test=(*own, *(article for article in dev if group_of(article) == group)),
                compared=tuple(article for article in own if article.id in drawn),
            )
        )
    for split in reversed(splits):
        if not split.train or not split.dev:
            raise DataError(f"without {split.name} nothing is left to train on or to choose by; give more countries")
    return splits


def draw_fold(articles: Sequence[Article], groups: Sequence[str | None], size: int) -> list[Article]:
    """A random sample with the same share of each group, by a hash of the ids.

    Args:
        articles: What to draw from.
        groups: The group of each article.
        size: Articles to draw.

    Returns:
        The sample, in an order in which each beginning of it has the same share of each group too.
    """
    hashes = {article.id: hashlib.sha256(f"rasid:{article.id}".encode()).hexdigest() for article in articles}
    ranked = sorted(zip(articles, groups, strict=True), key=lambda pair: hashes[pair[0].id])
    sizes, seen = Counter(groups), Counter[str | None]()
    places: dict[str, float] = {}  # of an article in its group, in (0, 1)
    for article, group in ranked:
        places[article.id] = (seen[group] + 0.5) / sizes[group]
        seen[group] += 1
    return sorted(articles, key=lambda article: (places[article.id], hashes[article.id]))[:size]
