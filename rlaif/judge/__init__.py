"""Asking a judge, reading what it said, and adding it up. A label is evidence or it is nothing."""
