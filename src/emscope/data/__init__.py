"""Conversations to train on, items to measure with: the bundled sets and the user's own files."""
