"""Other frameworks, each in an environment of its own; `install.py` makes them, `NAME.py` drives one."""
