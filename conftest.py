"""The test cluster is a plugin, so that integration and end-to-end tests share its fixtures."""

pytest_plugins = ["tests.cluster.fixtures"]
