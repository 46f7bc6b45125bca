"""One vocabulary for models whose tokenizers differ: which token has which row, and whose row it is.

A token that a model lacks gets, as in mergekit, the base's row; else the row of the only model that has it; else
the mean of those that have it; and what `tokens:` says goes before all that. No row is ever cut off.

Only `tokenizer.json` is read (model vocabulary and added tokens); no tokenizer library is needed to plan or
to merge. Where `tokenizers` is installed, the written file is loaded back and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from isthmus.errors import InputError
from isthmus.recipe.language.recipe import Recipe
from isthmus.recipe.language.text import Problems, nearest
from isthmus.recipe.language.tokens import ModelToken, Token, Zero
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.tokens.tokenizer import Tokens, read_tokens, with_added


@dataclass(frozen=True)
class Vocabulary:
    """The output's tokens and where each row comes from.

    Args:
        source: what the recipe asks for, in words.
        ids: row of each token.
        size: rows, padding included.
        rows: per model, the row of its own embedding for each output row, -1 where it has none.
        fill: per model, the rows that stand in where others have none (a mean where several give one).
        folder: of the tokenizer that the output's files are copied from.
        content: the output's `tokenizer.json`, None where the file is copied as it is.
        odd: what happens to tokens that some model lacks: (token, row, the way).
    """

    source: str
    ids: Mapping[str, int]
    size: int
    rows: Mapping[str, tuple[int, ...]]
    fill: Mapping[str, tuple[int, ...]]
    folder: Path
    content: Mapping[str, object] | None
    odd: tuple[tuple[str, int, str], ...]

    @property
    def used(self) -> int:
        """Rows of tokens; those after them are padding."""
        return max(self.ids.values()) + 1 if self.ids else 0

    def unchanged(self, model: str) -> bool:
        """Whether a model's rows are taken as they are."""
        return self.rows[model] == tuple(range(self.size))


def plan_vocabulary(
    recipe: Recipe, parents: Mapping[str, Parent], base: str | None, problems: Problems
) -> Vocabulary | None:
    """Decide the output's tokens and rows, or nothing where the recipe asks for no tokenizer.

    Args:
        recipe: with `tokenizer` or `tokenizer_source`.
        parents: by the recipe's own names, in its order.
        base: the base model's name.
        problems: told what is wrong.
    """
    asked = recipe.tokenizer.source if recipe.tokenizer else recipe.tokenizer_source
    if asked is None:
        return None
    where = ("tokenizer",) if recipe.tokenizer else ("tokenizer_source",)
    first = base or next(iter(parents))
    known: dict[str, Tokens] = {}
    try:
        known[first] = read_tokens(parents[first].folder).below(parents[first].vocabulary_size)
        for name, parent in parents.items():
            if name != first:
                known[name] = read_tokens(parent.folder)
        output, changed, source = _output(asked, first, known, parents)
    except InputError as error:
        problems.add(where, error.what, error.hint)
        return None
    given = dict(recipe.tokenizer.tokens or {}) if recipe.tokenizer else {}
    new = [token for token in given if token not in output.ids]
    output, changed = (with_added(output, [(token, {}) for token in new]), True) if new else (output, changed)
    used = max(output.ids.values()) + 1
    multiple = (recipe.tokenizer.pad_to_multiple_of or 1) if recipe.tokenizer else 1
    size = -(-used // multiple) * multiple
    rows = {name: _rows(output, known[name], parent, size) for name, parent in parents.items()}
    fill, odd = _fill(output, known, rows, base, given, size, problems, where)
    # A forced token is nobody's own.
    forced = {output.ids[token] for token, how in given.items() if how.force}
    if forced:
        rows = {n: tuple(-1 if i in forced else r for i, r in enumerate(row)) for n, row in rows.items()}
    return Vocabulary(
        source, output.ids, size, rows, fill, output.folder, output.content if changed else None, tuple(odd)
    )


def _output(
    asked: object, first: str, known: Mapping[str, Tokens], parents: Mapping[str, Parent]
) -> tuple[Tokens, bool, str]:
    """The output's tokenizer, whether it differs from its file, and its name."""
    if asked == "base":
        stripped = known[first].content is not read_tokens(parents[first].folder).content
        same = known[first].ids == read_tokens(parents[first].folder).ids
        return known[first], stripped and not same, f"the tokenizer of {parents[first].name}"
    if asked == "union":
        return _union(first, known, parents)
    name = str(asked)
    if name not in parents:
        there = ", ".join(parents)
        raise InputError(f"the tokenizer's source {name} is no model of this recipe; there are: {there}")
    tokens = read_tokens(parents[name].folder)
    return tokens, False, f"the tokenizer of {parents[name].name}"


def _union(
    first: str, known: Mapping[str, Tokens], parents: Mapping[str, Parent]
) -> tuple[Tokens, bool, str]:
    """The base's tokenizer, with what the others have besides added at its end."""
    base = known[first]
    plain: dict[str, dict[str, object]] = {}
    added: dict[str, dict[str, object]] = {}
    for name, tokens in known.items():
        size = parents[name].vocabulary_size
        special = {str(entry["content"]): entry for entry in tokens.added}
        for token, index in sorted(tokens.ids.items(), key=lambda item: item[1]):
            if size is not None and index >= size:
                continue
            if token in special:
                added.setdefault(token, special[token])
            elif token not in base.ids:
                plain.setdefault(token, {})
    mine = {str(entry["content"]) for entry in base.added}
    more = [*plain.items(), *((token, entry) for token, entry in added.items() if token not in mine)]
    union = with_added(base, more) if more else base
    return union, bool(more), f"the union of {len(known)} tokenizers"


def _rows(output: Tokens, own: Tokens, parent: Parent, size: int) -> tuple[int, ...]:
    limit = parent.vocabulary_size
    rows = [-1] * size
    for token, index in output.ids.items():
        row = own.ids.get(token, -1)
        if limit is None or row < limit:
            rows[index] = row
    return tuple(rows)


def _fill(
    output: Tokens,
    known: Mapping[str, Tokens],
    rows: Mapping[str, tuple[int, ...]],
    base: str | None,
    given: Mapping[str, Token],
    size: int,
    problems: Problems,
    where: tuple[str | int, ...],
) -> tuple[dict[str, tuple[int, ...]], list[tuple[str, int, str]]]:
    fill = {name: [-1] * size for name in rows}
    odd: list[tuple[str, int, str]] = []
    for token, index in sorted(output.ids.items(), key=lambda item: item[1]):
        having = [name for name, row in rows.items() if row[index] >= 0]
        how = given.get(token)
        if how is None and len(having) == len(rows):
            continue
        if how is not None:
            way = _told(token, how, index, rows, known, fill, problems, (*where, "tokens", token))
            odd.append((token, index, way + (", in all" if how.force else ", where it is missing")))
            continue
        if base in having and len(having) > 1:
            having = [base]
        for name in having:
            fill[name][index] = rows[name][index]
        way = f"from {having[0]}" if len(having) == 1 else f"the mean of {len(having)} models"
        odd.append((token, index, way if having else "zero: no model has it"))
    return {name: tuple(row) for name, row in fill.items()}, odd


def _told(
    token: str,
    how: Token,
    index: int,
    rows: Mapping[str, tuple[int, ...]],
    known: Mapping[str, Tokens],
    fill: dict[str, list[int]],
    problems: Problems,
    where: tuple[str | int, ...],
) -> str:
    """Follow what `tokens:` says of one token."""
    if isinstance(how.source, Zero):
        return "zero"
    if isinstance(how.source, ModelToken):
        model = str(how.source.model)
        if (how.source.token is None) == (how.source.token_id is None):
            problems.add((*where, "source"), "a model_token has exactly one of token and token_id")
            return "?"
        row = how.source.token_id
        if row is None and model in known:
            row = known[model].ids.get(str(how.source.token), -1)
    else:
        model = str(how.source)
        row = rows[model][index] if model in rows else None
    if model not in rows:
        problems.add((*where, "source"), f"{model} is no model of this recipe{nearest(model, rows)}")
        return "?"
    if row is None or row < 0:
        problems.add((*where, "source"), f"{model} has no row for {token!r}")
        return "?"
    fill[model][index] = row
    return f"row {row} of {model}"
