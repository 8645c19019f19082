"""Loaders of licensed data sets, each from the folders and the annotation that its owners hand out."""
