"""The strategy `adapter`: the running engine takes the adapter of another version on the same base.

The name is unloaded and loaded again, with other files. vLLM's own `load_inplace` would do so in one call, and then
reads the files again at every step; a load that fails would leave the old adapter there, which undoing does as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipelines.settings import Settings
from serving.client import served_names
from serving.served import Served
from serving.strategies.in_place import Call, Change


def _calls(settings: Settings, wanted: Served) -> Iterator[Call]:
    assert wanted.adapter is not None  # what is none has an objection
    name = wanted.serving.name
    if name in served_names(settings.engine_url):  # not so after a load that failed
        yield Call("/v1/unload_lora_adapter", {"lora_name": name})
    yield Call("/v1/load_lora_adapter", wanted.adapter.request(name))


def _objections(old: Served, new: Served) -> Iterator[str]:
    if old.adapter is None or new.adapter is None:
        yield f"v{old.version} is a whole model, and v{new.version} an adapter on a base"
        return
    if old.digest != new.digest:
        yield f"v{old.version} is an adapter on another base"
    if old.adapter.room() != new.adapter.room():
        yield f"the engine has no place for the adapter of v{new.version}: it is of another rank, or of other parts"


ADAPTER: Final = Change("adapter", _objections, _calls)
