"""The table of docs/models.md, made of the facts; the words around it are the page's own."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tests.released_models.facts import Model, Release, decoders, releases

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN = "<!-- The table is made by `python -m tests.released_models`, of tests/data/models. -->"
END = "<!-- Here the table ends. -->"
HEAD = ("folder", "language model", "ViT", "parameters", "context", "template", "what we do")
# After a folder's own name the suffix says enough.
PROOFS = {"golden": "served", "parts": "served²", "derived": "served³"}


def renewed(page: str) -> str:
    """Returns the page with the table that the facts give."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def table() -> str:
    """Returns the table: for each series the models, then what is refused for its kind."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for series, found in groupby(releases(), lambda release: release.model.series):
        group = list(found)
        rows.append((f"**{series}**", *[""] * (len(HEAD) - 1)))
        rows += [_row(release) for release in group if release.kind == "original"]
        rows += _refused_kinds([release for release in group if release.kind != "original"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(release: Release) -> tuple[str, ...]:
    model = release.model
    return (
        _names(release),
        f"{model.language_model} ({decoders()[model.decoder].name})",
        model.tower,
        f"{model.billion_parameters:.3g} B",
        f"{model.llm_config['max_position_embeddings']:,}",
        f"`{model.template}`",
        _refused(release) or PROOFS[model.proof] + _unseen(model),
    )


def _names(release: Release) -> str:
    """Returns the first folder's name, and the others' by their suffixes where they have them."""
    first, *others = release.folders
    suffixes = [name.removeprefix(first) for name in others if name.startswith(first)]
    further = [f"`{name}`" for name in others if not name.startswith(first)]
    return ", ".join([f"`{first}`", *(f"`{suffix}`" for suffix in suffixes), *further])


def _unseen(model: Model) -> str:
    return f": {', '.join(model.unseen)} not seen" if model.unseen else ""


def _refused(release: Release) -> str:
    refusal = release.refusal
    return f"**refused**: {refusal.why}; take {refusal.instead}" if refusal else ""


def _refused_kinds(refused: list[Release]) -> list[tuple[str, ...]]:
    """Returns a row for each kind, with the names of all folders of it."""
    rows = []
    for kind in dict.fromkeys(release.kind for release in refused):
        of_kind = [release for release in refused if release.kind == kind]
        names = ", ".join(f"`{name}`" for release in of_kind for name in release.folders)
        rows.append((names, *[""] * (len(HEAD) - 2), _refused(of_kind[0])))
    return rows
