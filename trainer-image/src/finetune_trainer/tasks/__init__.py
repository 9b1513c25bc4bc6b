"""One module a task: what its data looks like, how it is trained, measured and asked."""
