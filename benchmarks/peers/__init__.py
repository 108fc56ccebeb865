"""Other frameworks, each in a separate environment; `install.py` creates them, `NAME.py` runs one."""
