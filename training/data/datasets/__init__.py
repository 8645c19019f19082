"""Loaders of licensed data sets, from the folders and annotations that their owners hand out."""
