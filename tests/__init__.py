"""The tests; a package so that `tests.cluster` has one name everywhere (pytest runs with the root on its path)."""
