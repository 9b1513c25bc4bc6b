"""The control plane in a cluster: watch -> cache -> queue -> observe -> decide -> apply."""

from finetune_operator.control.left_out import leave_out_the_synchronous_client

leave_out_the_synchronous_client()  # before a module of this package imports kopf or the client
