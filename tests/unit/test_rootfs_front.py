"""Which front serves a rootfs that is not all here: what was asked for, what goes together, what the host can."""

from __future__ import annotations

from pathlib import Path

import pytest

from castoff.disk.clone import CloneKind
from castoff.errors import Unsupported
from castoff.hydrate.record import FrontKind
from castoff.rootfs.front import choose_front, fanotify_lacks, fuse_lacks
from castoff.store.settings import StoreSettings
from castoff.store.store import Store


@pytest.mark.parametrize(
    ("clone", "wanted"), [(CloneKind.COPY, None), (CloneKind.REFLINK, FrontKind.FUSE), (CloneKind.OVERLAY, FrontKind.FANOTIFY)]
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, clone: CloneKind, wanted: FrontKind | None) -> None:
    """Before anything is tried on the host."""
    store = Store.open(tmp_path / "state", StoreSettings(backing="native"))
    with pytest.raises(Unsupported, match=f"does not go with a {clone.value} clone"):
        choose_front(store, clone=clone, wanted=wanted)


def test_a_store_without_reflinks_serves_an_overlays_base(tmp_path: Path) -> None:
    """And never a clone of its own, for whoever asks for one."""
    store = Store.open(tmp_path / "state", StoreSettings(backing="native"))
    assert not store.reflink, "the tests' directory reflinks"
    assert fanotify_lacks(store) == "the store has no reflinks"
    with pytest.raises(Unsupported, match="the store has no reflinks"):
        choose_front(store, clone=CloneKind.REFLINK, wanted=None)
    if not fuse_lacks(store):
        assert choose_front(store, clone=None, wanted=None) is FrontKind.FUSE


def test_the_best_that_works_is_taken(scratch_xfs: Path) -> None:
    """Tried on this kernel; whatever was made to try it is gone."""
    store = Store.open(scratch_xfs / "state", StoreSettings(backing="native"))
    fronts = [
        front for front, lack in ((FrontKind.FANOTIFY, fanotify_lacks(store)), (FrontKind.FUSE, fuse_lacks(store))) if not lack
    ]
    if fronts:
        assert choose_front(store, clone=None, wanted=None) is fronts[0]
    for front in fronts:
        assert choose_front(store, clone=None, wanted=front) is front
    assert list(store.machines.iterdir()) == list((store.root / "tmp").iterdir()) == []
