r"""Stand-off annotation of the brat tool: a folder with a `.txt` and an `.ann` file per article.

    T1	EQUIPMENT 4 7	رتل
    T2	MIL_UNIT 9 12	قسد
    R1	HAS Arg1:T2 Arg2:T1
    *	SAME_AS T1 T3 T4

The path of the files below the folder, without suffix, is the article's id. Offsets are code points into the `.txt`,
which holds the text as it stands. `*` lines are read as a chain, each mention to the next one in the text, and are
allowed for transitive relations; writing uses `R` lines only, since a group does not say which links it was made of.

Events, attributes, normalisations and discontinuous spans have no place in a record and are errors; notes (`#`) are
skipped with a warning in the log. Lost in writing: `meta`, `score` and `normalized`.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from rasid.errors import DataError
from rasid.formats.files import Found, Lines, Problems, check_writable, number_lines, read_text, write_text
from rasid.records import Article, Entity, Relation
from rasid.schema import Ontology

TEXT, MARKS = ".txt", ".ann"
logger = logging.getLogger(__name__)
_SPAN = re.compile(r"(T[0-9]+)\t(\S+) ([0-9]+) ([0-9]+)\t(.*)")
_BROKEN_SPAN = re.compile(r"T[0-9]+\t\S+ [0-9 ]+;")
_LINK = re.compile(r"R[0-9]+\t(\S+) Arg1:(T[0-9]+) Arg2:(T[0-9]+)\s*")
_GROUP = re.compile(r"\*\t(\S+)((?: T[0-9]+){2,})\s*")
_NAME = re.compile(r"[\w-]+", re.ASCII)  # of a type, as the tool itself demands
_ID = re.compile(r"T[0-9]+")


def scan(path: Path, ontology: Ontology | None = None) -> Iterator[Found]:
    """Yield each article below a folder (or that of one `.ann` file), or what is wrong with it, in order of their ids.

    Raises:
        DataError: if there is nothing to read at `path`.
    """
    root = path if path.is_dir() else path.parent
    stems = sorted(
        {p.with_suffix("") for p in path.rglob("*") if p.suffix in (TEXT, MARKS)}
        if path.is_dir()
        else [path.with_suffix("")]
    )
    if not stems:
        raise DataError(f"{path}: no {MARKS} files below this folder; give a folder of brat stand-off files")
    for stem in stems:
        marks = Path(f"{stem}{MARKS}")
        try:
            yield f"{marks}:1", _read_pair(stem, stem.relative_to(root).as_posix(), ontology)
        except DataError as error:
            yield f"{marks}:1", error


def _read_pair(stem: Path, name: str, ontology: Ontology | None) -> Article | DataError:
    marks, source = Path(f"{stem}{MARKS}"), Path(f"{stem}{TEXT}")
    for file, other in ((marks, source), (source, marks)):
        if not file.is_file():
            raise DataError(
                f"{other}: {file.name} is missing beside it; brat needs both (an empty {MARKS} for no marks)"
            )
    # Not utf-8-sig: brat counts a byte order mark as a character of the text.
    return parse(read_text(marks), read_text(source, "utf-8"), name, marks, ontology)


def parse(marks: str, text: str, name: str, path: Path, ontology: Ontology | None = None) -> Article | DataError:
    """Read one article out of the contents of its two files; `path` is the `.ann` file, for messages."""
    problems, lines = Problems(path, 1), Lines()
    entities: list[Entity] = []
    links: list[tuple[int, Relation]] = []
    groups: list[tuple[int, str, list[str]]] = []
    for number, raw in number_lines(marks):
        line = raw.removesuffix("\r")
        if match := _SPAN.fullmatch(line):
            start, end = int(match[3]), int(match[4])
            entities.append(Entity(id=match[1], type=match[2], start=start, end=end, text=match[5]))
            lines[entities[-1]] = number
        elif match := _LINK.fullmatch(line):
            links.append((number, Relation(type=match[1], head=match[2], tail=match[3])))
        elif match := _GROUP.fullmatch(line):
            groups.append((number, match[1], match[2].split()))
        elif line.startswith("#"):
            logger.warning("%s:%d: note skipped, a record has no place for it: %s", path, number, line)
        elif line.strip():
            problems.add(number, _explain(line))
    for number, kind, members in groups:
        links.extend((number, relation) for relation in _chain(kind, members, entities, number, ontology, problems))
    lines.update((relation, number) for number, relation in links)
    article = Article(id=name, text=text, entities=tuple(entities), relations=tuple(r for _, r in links))
    problems.judge(article, lines, ontology)
    return problems.error() or article


def _chain(
    kind: str, members: list[str], entities: list[Entity], line: int, ontology: Ontology | None, problems: Problems
) -> list[Relation]:
    rule = ontology.relation_types.get(kind) if ontology is not None else None
    if rule is not None and not rule.transitive:
        problems.add(line, f"{kind} is not transitive in the ontology, so it cannot join a group; write R lines")
    starts = {e.id: e.start for e in entities}
    in_order = sorted(members, key=lambda member: starts.get(member, 0))
    return [Relation(type=kind, head=a, tail=b) for a, b in pairwise(in_order)]


def _explain(line: str) -> str:
    if _BROKEN_SPAN.match(line):
        return f"discontinuous span «{line}»; spans are unbroken here: mark one part, or each on its own"
    kinds = {"E": "an event", "A": "an attribute", "M": "an attribute", "N": "a normalisation"}
    if re.match(r"[EAMN][0-9]+\t", line):
        return f"{kinds[line[0]]} «{line}» has no place in a record; remove the line"
    return f"cannot read «{line}»; expected `T1<TAB>TYPE start end<TAB>text` or `R1<TAB>TYPE Arg1:T1 Arg2:T2`"


def write(articles: Iterable[Article], path: Path) -> int:
    """Write two files per article into a folder, which is made if need be; returns the number of articles.

    Raises:
        DataError: for the first article that brat cannot hold, before anything is written, or if a path cannot be
            written.
    """
    files: dict[str, tuple[str, str]] = {}
    for article in articles:
        marks = render(article)
        if article.id in files:
            raise DataError(f"article {article.id}: id used twice; the files of one would replace those of the other")
        files[article.id] = (article.text, marks)
    for name, (text, marks) in files.items():
        stem = path / name
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{stem.parent}: cannot be made: {error.strerror}; give the path of a folder") from error
        write_text(Path(f"{stem}{TEXT}"), text)
        write_text(Path(f"{stem}{MARKS}"), marks)
    return len(files)


def render(article: Article) -> str:
    """Write the `.ann` file of an article.

    Raises:
        DataError: if brat cannot hold it: an id that is no path below the folder, entity ids that are not `T` and a
            number, or types with other characters than ASCII letters, digits, `_` and `-`.
    """
    check_writable(article)
    where = f"article {article.id}"
    if any(part in ("", ".", "..") or re.search(r'[\0-\x1f\\:*?"<>|]', part) for part in article.id.split("/")):
        raise DataError(f"article «{article.id}»: the id cannot name a file below the folder; rename it")
    if strange := [e.id for e in article.entities if not _ID.fullmatch(e.id)]:
        raise DataError(f"{where}: entity id {strange[0]} is not T and a number, as brat needs; use --renumber")
    if bad := [e for e in article.entities if e.text.endswith("\r")]:
        raise DataError(f"{where}: entity {bad[0].id} ends in a carriage return; trim it")
    types = [e.type for e in article.entities] + [r.type for r in article.relations]
    if odd := [name for name in types if not _NAME.fullmatch(name)]:
        raise DataError(f"{where}: brat does not allow the type «{odd[0]}»; use ASCII letters, digits, _ and -")
    lines = [f"{e.id}\t{e.type} {e.start} {e.end}\t{e.text}\n" for e in article.entities]
    lines += [f"R{i}\t{r.type} Arg1:{r.head} Arg2:{r.tail}\n" for i, r in enumerate(article.relations, start=1)]
    return "".join(lines)
