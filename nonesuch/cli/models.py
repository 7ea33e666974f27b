"""`nonesuch list` and `nonesuch cite`: what there is, and whose idea it was."""

from __future__ import annotations

import sys
from typing import Any

from nonesuch.cli._words import Json, Models, app, examples, print_json


@app.command("list", epilog=examples("nonesuch list", "nonesuch list --json"))
def list_models(as_json: Json = False) -> None:
    """Draw the families, their laws, and the models in each, with paper and capabilities."""
    from nonesuch import catalog
    from nonesuch.evaluate.comparison import LAWS

    found = {f: [_about(n) for n in catalog.names() if n.startswith(f"{f}/")] for f in catalog.FAMILIES}
    if as_json:
        families = [{"family": f, "law": LAWS[f][0], "directness": LAWS[f][1], "models": models} for f, models in found.items()]
        return print_json({"families": families})
    from rich.console import Console
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree("[bold]P(x | given)[/]  deep generative models of images")
    for family, models in found.items():
        branch = tree.add(f"[bold]{family}[/]  [italic]{escape(LAWS[family][0])}[/]  [dim]{LAWS[family][1]}[/]")
        for m in models:
            paper = f"{m['title']} ({m['authors'].split(',')[0]}, {m['year']})"
            branch.add(f"[cyan]{m['name']}[/]  {escape(paper)}\n[dim]{', '.join(m['capabilities']) or 'samples only'}[/]")
    Console(width=None if sys.stdout.isatty() else 160).print(tree)


def _about(name: str) -> dict[str, Any]:
    """A model's name, card and capabilities."""
    from nonesuch import catalog
    from nonesuch.core import model as contract

    cls = catalog.get(name)
    kinds = ("Likelihood", "Decoder", "Encoder", "Denoiser", "Completer", "Energy", "Guidable")
    card = {k: getattr(cls.card, k) for k in ("title", "authors", "year", "arxiv", "summary")}
    can = [k for k in kinds if issubclass(cls, getattr(contract, k))]
    return {"name": name, **card, "capabilities": can, "presets": list(cls.presets)}


@app.command(epilog=examples("nonesuch cite diffusion", "nonesuch cite gan/r3gan vae"))
def cite(models: Models, as_json: Json = False) -> None:
    """Print BibTeX for the papers behind models."""
    from nonesuch import catalog

    entries = {catalog.resolve_name(m): catalog.get(m).card.bibtex() for m in models}
    return print_json(entries) if as_json else print("\n\n".join(entries.values()))
