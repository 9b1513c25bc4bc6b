"""One pure function for each child object. Plain manifests in, plain manifests out."""
