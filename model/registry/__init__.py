"""The artifact store: versions of models in a directory or behind any fsspec URL, and the pointer to what serves.

`from model.registry.store import ArtifactStore`; the command line imports `verbs` alone, so nothing is imported here.
"""
