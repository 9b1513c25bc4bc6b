"""Property tests try the same cases every time, so that a red run is the change's doing; `make soak` looks for new
ones."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("same")
