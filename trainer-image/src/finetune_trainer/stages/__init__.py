"""One module a stage; each has `run(context) -> Summary`."""
