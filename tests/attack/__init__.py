"""Hostile inputs for emscope's own readers: generators with a seed, what runs them, and what counts as a failure.

Nothing here does harm where it is run: code that a file tries to have executed only writes a canary into the case's own folder.
"""
