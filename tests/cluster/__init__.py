"""A real Kubernetes for the tests, and for a developer's hand: see `python -m tests.cluster --help`.

`control_plane` starts etcd and the API server (no root, 2 s), `node` a whole node with containerd (root, 5 s),
`images` builds the container images from the repository's own Dockerfiles, `fixtures` offers them to pytest.
"""
