"""The stages of a FineTuneJob, as they run in a pod or as a process on a laptop."""
