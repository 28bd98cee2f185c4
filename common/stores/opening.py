"""Which store a run uses: the learner's side, which writes, and the generators' side, which reads."""

from __future__ import annotations

from common.settings import RunFile
from common.stores.access import HTTP, weights_token
from common.stores.directory import DirectoryStorage
from common.stores.http import HttpStorage
from common.stores.object_store import ObjectStorage
from common.stores.storage import WeightStorage


def storage_to_write(settings: RunFile) -> WeightStorage:
    """Where the learner publishes: its directory, which it may serve, or the object store that weights.url names."""
    url = settings.weights.url
    if url is None or url.startswith(HTTP):
        return DirectoryStorage(settings.weights_directory)
    return ObjectStorage(url, settings.run.directory)


def storage_to_read(settings: RunFile) -> WeightStorage:
    """Where generators fetch. SettingsError if the token for it cannot be sent."""
    url = settings.weights.url
    if url is not None and url.startswith(HTTP):
        return HttpStorage(url, weights_token())
    return storage_to_write(settings)
