"""The chain: the publications that lead to a weight version, one after the other."""

from __future__ import annotations

from common.errors import WeightsError
from common.stores.storage import WeightStorage, manifest_at
from common.weights import Manifest, PublicationKind


def chain(storage: WeightStorage, target: Manifest, held: Manifest | None) -> list[Manifest]:
    """What leads to `target`, oldest first: deltas on the version that is held, or an anchor and the deltas since.

    Whichever is met first on the way back is taken: deltas never weigh more than the anchor before them. Empty if the
    target is held: its very tensors, since the number alone may be that of another run. WeightsError if a link is
    missing.
    """
    if held is not None and held.version == target.version:
        if (held.tensors, held.files) == (target.tensors, target.files):
            return []
        held = None
    links = [target]
    while links[-1].kind is PublicationKind.DELTA and not (held is not None and held.version == links[-1].base):
        link = links[-1]
        try:
            base = manifest_at(storage, link.base)
        except WeightsError as error:
            raise WeightsError(f"version {link.version} builds upon {link.base}, which is missing: {error}") from error
        if base.version != link.base:
            raise WeightsError(
                f"version {base.version} lies where {link.base} should, upon which {link.version} builds"
            )
        links.append(base)  # an older one: every delta's base is, so this ends
    return links[::-1]
