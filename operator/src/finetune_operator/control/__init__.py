"""The control plane in a cluster: watch -> cache -> queue -> observe -> decide -> apply."""
