"""How the processes of one attempt of a launcher find each other, and none of an attempt before. Knows nothing else.

torchrun and `accelerate launch` keep one store for as long as they live. After a restart it still has the addresses of
processes that are gone, and who asks first is sent there. So the living agree on a part of the store of their own.
"""

import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

METHOD = "attempt://"
"""To be given to `init_process_group` as its `init_method`; else as env://."""

POLL_SECONDS = 0.02


def agree_on_attempt(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that the living processes share, and no others; to be called by all of them. Raises TimeoutError.

    The others greet process 0 by a name that nobody had before, so an answer to it is no old one. Process 0 goes on to
    answer until it has been understood by each of them, since the first greeting that it finds may be an old one.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"greeting/{rank}", own)
        attempt: str = store.get(f"answer/{own}").decode()
        store.set(f"understood/{attempt}/{rank}", "")
        return attempt
    deadline = time.monotonic() + timeout.total_seconds()
    missing = set(range(1, world_size))
    while missing:
        for other in missing:
            if store.check([f"greeting/{other}"]):
                store.set(f"answer/{store.get(f'greeting/{other}').decode()}", own)
        missing = {other for other in missing if not store.check([f"understood/{own}/{other}"])}
        if missing and time.monotonic() > deadline:
            raise TimeoutError(f"processes {', '.join(map(str, sorted(missing)))} did not start")
        time.sleep(POLL_SECONDS)
    return own


def _meet(url: str, timeout: timedelta, **kwargs: Any) -> Iterator[tuple[Store, int, int]]:
    store, rank, world_size = next(rendezvous(f"env://?{urlsplit(url).query}", timeout=timeout, **kwargs))
    store.set_timeout(timeout)
    yield PrefixStore(agree_on_attempt(store, rank, world_size, timeout), store), rank, world_size


register_rendezvous_handler(urlsplit(METHOD).scheme, _meet)  # type: ignore[no-untyped-call]
