"""A person at the keyboard: hotkeys in, operator events out."""
