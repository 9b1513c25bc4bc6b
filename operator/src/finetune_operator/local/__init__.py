"""The same job on one machine: `decide` with processes in place of pods and files in place of the API server."""
