"""Prepare, find, check and read datasets, and tokenize text."""
