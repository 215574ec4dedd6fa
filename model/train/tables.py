"""Embedding tables: their rows by configuration, and which of them get sparse gradients."""

from __future__ import annotations

from torch import nn

from feature_store.view import PARTS, ModelView
from model.config import TrainConfig
from model.embedding import table_key
from model.farm import Ranker


def with_table_rows(view: ModelView, table_rows: str) -> ModelView:
    """The view with other sizes of its id and category tables.

    table_rows: "name:rows,...", a table by its name ("author_id", "user.user_id") or, when it is shared by nobody, by
    its field's ("user_id").  ValueError names what is wrong.
    """
    wanted = _parse(table_rows)
    record, named = view.model_dump(), set()
    for part in PARTS:
        for index, field in enumerate(view.fields(part)):
            names = {view.table_name(part, field)} | (set() if field.table else {field.name})
            for name in sorted(names & wanted.keys()):
                if field.kind not in ("id", "category"):
                    raise ValueError(f"table_rows: {name} is of kind {field.kind}, whose rows its buckets give")
                record[part][index]["rows"] = wanted[name]
                named.add(name)
    if wanted.keys() - named:
        tables = sorted({view.table_name(p, f) for p, f in view.all_fields() if f.kind in ("id", "category")})
        raise ValueError(f"table_rows: no table {min(wanted.keys() - named)!r}; there are {', '.join(tables)}")
    return ModelView.model_validate(record)


def _parse(table_rows: str) -> dict[str, int]:
    wanted = {}
    for pair in filter(None, table_rows.split(",")):
        name, _, rows = pair.strip().partition(":")
        if not rows.isdigit() or int(rows) < 2:
            raise ValueError(f"table_rows: {pair.strip()!r}: write name:rows, with at least 2 rows")
        wanted[name] = int(rows)
    return wanted


def make_sparse(model: Ranker, config: TrainConfig) -> list[nn.Embedding]:
    """Give the big tables sparse gradients: a step then costs as the rows it read, not as all of them.

    ValueError with table_weight_decay, which moves every row at every step and so has no sparse form.
    """
    keys = {
        table_key(model.view.table_name(part, field))
        for part, field in model.view.all_fields()
        if field.kind != "behaviours" and field.table_rows >= config.sparse_rows
    }
    if keys and config.table_weight_decay:
        raise ValueError(
            f"table_weight_decay: has no sparse form, and table {min(keys)} has sparse_rows={config.sparse_rows} rows "
            "or more; set table_weight_decay=0 or a greater sparse_rows"
        )
    tables = [model.tables[key] for key in sorted(keys)]
    sparse = [table for table in tables if isinstance(table, nn.Embedding)]
    for table in sparse:
        table.sparse = True
    return sparse
