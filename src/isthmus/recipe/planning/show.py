"""A plan in words: one screen, a table, JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from isthmus.recipe.language.aligning import Align, ByParts
from isthmus.recipe.parents.parent import Parent
from isthmus.recipe.parents.sizes import size
from isthmus.recipe.planning import costs
from isthmus.recipe.planning.afterwards import Afterwards
from isthmus.recipe.planning.alignment import reference_of
from isthmus.recipe.planning.planned import Planned
from isthmus.recipe.rows.row import Row
from isthmus.recipe.tokens.vocabulary import Vocabulary
from isthmus.registry import label


def describe(plan: Planned) -> str:
    """The plan on one screen."""
    how = Counter(row.how for row in plan.rows)
    width = max(len(name) for name in plan.parents)
    lines = [f"{plan.path.name}: {plan.recipe.merge_method} of {len(plan.parents)} models", ""]
    for name, parent in plan.parents.items():
        role = "base " if plan.is_base(name) else "model"
        licence = parent.licence or "licence unknown"
        held = f"{len(parent.checkpoint.entries)} tensors, {size(parent.checkpoint.nbytes)}"
        lines.append(f"  {role}  {name:{width}}  {held}, {licence}")
    dtypes = Counter(row.dtype for row in plan.rows if row.how != "agreed")
    words = {"merged": "merged", "copied": "copied", "agreed": "that must be equal in all models"}
    told = ", ".join(f"{count} {words[kind]}" for kind, count in how.items())
    lines += [
        "",
        f"output  {len(plan.rows)} tensors ({told}), {', '.join(dtypes)}, {size(plan.bytes_written)}",
    ]
    if plan.vocabulary is not None:
        lines += _vocabulary_lines(plan.vocabulary, plan.parents)
    if plan.recipe.isthmus.align is not None:
        lines.append(_first(plan, plan.recipe.isthmus.align))
    seconds = costs.seconds(plan)
    minutes = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    threads = "1 thread" if plan.threads == 1 else f"{plan.threads} threads"
    lines.append(
        f"needs   about {minutes} on {threads}, {size(costs.memory(plan))} of memory, "
        f"{size(costs.disk(plan))} of disk; reads {size(plan.bytes_read)}"
    )
    if plan.after is not None:
        lines.append(_after(plan, plan.after))
    lines += [f"note    {note}" for note in plan.notes]
    return "\n".join(lines)


def _first(plan: Planned, align: Align) -> str:
    by = plan.graph.name if plan.graph is not None else "config.json"
    reference = reference_of(plan.recipe, plan.parents)
    if isinstance(align, ByParts):
        by = by if plan.graph is not None else f"the symmetries of {by}"
        streams = "residual streams too" if align.residual == "match" else "residual streams left as they are"
        told = f"{align.method} and {by}, {streams} (time and memory not counted)"
        return f"first   aligned to {reference} by {told}"
    moving = plan.moving
    assert moving is not None
    by = (plan.rig.model if plan.rig is not None else "") or by
    seen = f", on {plan.recipe.isthmus.data}" if moving.data else ""
    mixed = "" if moving.keeps else "; units are mixed, so that the models meet by weighted average"
    return (
        f"first   aligned to {reference} by {label({'method': moving.method, **moving.options})} and the symmetries "
        f"of {by}{seen}: {len(plan.parents)} whole models in memory, {size(costs.aligning(plan))}; "
        f"moved models take {size(costs.moved(plan))} of disk until they are merged (time not counted){mixed}"
    )


def _after(plan: Planned, after: Afterwards) -> str:
    ours = plan.recipe.isthmus
    steps: list[str] = []
    if after.repair is not None:
        steps.append(f"{after.repair['method']}, kept if it is better on validation data")
    if ours.evaluate is not None:
        whom = "parents and merge" if after.whole else "the merge"
        steps.append(f"{whom} measured on the test split")
    if ours.report is not None:
        steps.append(f"{ours.report} and results.json written")
    model = ours.model or "the model of config.json"
    return f"then    {'; '.join(steps)}; {model} on {ours.data} (time not counted)"


def _vocabulary_lines(vocabulary: Vocabulary, parents: Mapping[str, Parent]) -> list[str]:
    padding = vocabulary.size - vocabulary.used
    padded = f" and {padding} of padding, the mean of the others" if padding else ""
    lines = [f"tokens  {vocabulary.source}: {vocabulary.used} rows{padded}"]
    for name in parents:
        rows = vocabulary.rows[name][: vocabulary.used]
        moved = sum(1 for i, row in enumerate(rows) if row not in (-1, i))
        lines.append(f"        {name}: {sum(row < 0 for row in rows)} rows of others, {moved} moved")
    for token, index, way in vocabulary.odd[:8]:
        lines.append(f"        {token!r} at {index}: {way}")
    if len(vocabulary.odd) > 8:
        lines.append(
            f"        and {len(vocabulary.odd) - 8} more tokens that some model lacks (--json lists them)"
        )
    return lines


def _vocabulary_dict(vocabulary: Vocabulary) -> dict[str, object]:
    return {
        "source": vocabulary.source,
        "size": vocabulary.size,
        "used": vocabulary.used,
        "odd": [{"token": token, "row": row, "from": way} for token, row, way in vocabulary.odd],
    }


def _row_dict(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "shape": list(row.shape),
        "dtype": row.dtype,
        "how": row.how,
        "parameters": dict(row.values),
        "parts": [
            {"model": part.model, "tensor": part.name, "base": part.base, "parameters": dict(part.values)}
            for part in row.parts
        ],
    }


def tabulate(plan: Planned) -> str:
    """One line per tensor; a column per model and parameter, and for those of the tensor."""
    rows: list[list[str]] = []
    shared = sorted({key for row in plan.rows for key in row.values})
    # A column that says the same all the way down is said once, above the table.
    constant = {
        k: v for k in shared if len(v := {repr(row.values[k]) for row in plan.rows if k in row.values}) == 1
    }
    varying = [key for key in shared if key not in constant]
    for row in plan.rows:
        if row.how == "merged":
            parts = [_part(plan, row, part.model, part.name, part.base, part.values) for part in row.parts]
        else:
            parts = [
                f"{row.how} from {row.parts[0].model}" if row.how == "copied" else "must be equal in all"
            ]
        shape = "x".join(map(str, row.shape)) or "()"
        rows.append([row.name, shape, *(_number(row.values.get(key)) for key in varying), "  ".join(parts)])
    head = ["tensor", "shape", *varying, "made of"]
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head) - 1)]
    text = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1]])
        for line in [head, *rows]
    ]
    said = "  ".join(
        f"{key} {_number(next(row.values[key] for row in plan.rows if key in row.values))}"
        for key in constant
    )
    return "\n".join([*([f"for all: {said}"] if said else []), *text])


def _part(plan: Planned, row: Row, model: str, name: str, base: bool, values: Mapping[str, object]) -> str:
    label = plan.parents[model].name
    if sum(p.name == label for p in plan.parents.values()) > 1:
        label = model
    if name != row.name:
        label += f":{name}"
    if base:
        return f"{label} (base)"
    told = {
        k: v
        for k, v in values.items()
        if v is not None and (k == "weight" or v != plan.method.parameters.get(k))
    }
    if list(told) == ["weight"]:
        return f"{label} {_number(told['weight'])}"
    return f"{label} ({', '.join(f'{k} {_number(v)}' for k, v in told.items())})" if told else label


def _number(value: object) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.6g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def as_dict(plan: Planned) -> dict[str, object]:
    """The plan as plain data for JSON."""
    return {
        "recipe": str(plan.path),
        "method": plan.recipe.merge_method,
        "models": [
            {
                "model": name,
                "role": "base" if plan.is_base(name) else "model",
                "tensors": len(parent.checkpoint.entries),
                "bytes": parent.checkpoint.nbytes,
                "licence": parent.licence,
            }
            for name, parent in plan.parents.items()
        ],
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "disk": costs.disk(plan),
        "memory": costs.memory(plan),
        "seconds": round(costs.seconds(plan), 1),
        "vocabulary": None if plan.vocabulary is None else _vocabulary_dict(plan.vocabulary),
        "aligned": None
        if plan.recipe.isthmus.align is None
        else _first(plan, plan.recipe.isthmus.align).removeprefix("first   "),
        "afterwards": None if plan.after is None else _after(plan, plan.after).removeprefix("then    "),
        "files": [file.name for file in plan.files],
        "notes": list(plan.notes),
        "tensors": [_row_dict(row) for row in plan.rows],
    }


def dump(plan: Planned) -> str:
    """The plan as JSON text."""
    return json.dumps(as_dict(plan), indent=1, ensure_ascii=False)
