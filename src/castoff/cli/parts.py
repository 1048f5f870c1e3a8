"""An image's parts for people and scripts: what of it is in the store, in an artifact, at its origin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castoff.cli.exits import printable
from castoff.cli.text import columns, size

if TYPE_CHECKING:
    from castoff.whereabouts import LayerParts, Whereabouts

__all__ = ["parts_as_json", "parts_as_text"]


def parts_as_json(found: Whereabouts) -> dict[str, Any]:
    """For scripts."""
    from dataclasses import asdict

    artifact = found.artifact
    return {
        "reference": found.image.reference,
        "image": str(found.image.digest),
        "platform": str(found.image.platform),
        "rootfs": list(found.rootfs),
        "machines": list(found.machines),
        "artifact": artifact and {"repository": artifact.repository, "digest": str(artifact.digest), "signer": artifact.signer},
        "why": found.why,
        "layers": [asdict(layer) for layer in found.layers],
    }


def parts_as_text(found: Whereabouts) -> str:
    """For people: facts, then a line a layer."""
    artifact = found.artifact
    facts = [
        ("image", printable(found.image.reference)),
        ("digest", str(found.image.digest)),
        ("rootfs", " ".join(found.rootfs) or "not composed here"),
        ("machines", " ".join(found.machines) or "none"),
        ("artifact", f"{artifact.repository}@{artifact.digest}" if artifact else f"none: {printable(found.why)}"),
        *([("signed by", printable(artifact.signer))] if artifact else []),
    ]
    rows = [(layer.diff_id, _store(layer), _artifact(layer), size(layer.origin_size)) for layer in found.layers]
    return f"{columns(facts)}\n\n{columns(rows, heads=('LAYER (DIFF ID)', 'STORE', 'ARTIFACT', 'ORIGIN'), right=(2, 3))}"


def _store(layer: LayerParts) -> str:
    if layer.complete:
        return "complete"
    return "-" if not layer.chunks else f"{layer.here * 100 // layer.chunks} %"


def _artifact(layer: LayerParts) -> str:
    return "-" if layer.pack_size is None else size(layer.pack_size + (layer.index_size or 0))
