"""What can be seen on a GPU only: `python -m tests.gpu`, or `make gpu`. Nothing here is collected by pytest.

Models are made on the spot with random weights. Every part runs in a process of its own with a bound of its own, and
its figures are kept as JSON whether the others succeed or not. `--smoke` goes through the same motions on a CPU with
tiny models, to find mistakes before a GPU is at hand.
"""
