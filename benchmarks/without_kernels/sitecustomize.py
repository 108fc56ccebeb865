"""Python imports this at its start if this folder is in PYTHONPATH: ssfl is then as installed without a C compiler.

Processes that such an interpreter starts inherit PYTHONPATH, so worker processes have no kernels either.
"""

import sys

sys.modules["ssfl.native.kernels"] = None  # type: ignore[assignment]
