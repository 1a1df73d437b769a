"""Corpora, splits, tasks, files of text."""
