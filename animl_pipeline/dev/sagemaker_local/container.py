"""``python -m animl_pipeline.dev.sagemaker_local.container PARENT MODULE …``: runs a module as a container runs it, and ends with its parent."""

from __future__ import annotations

import os
import runpy
import sys

from animl_pipeline.serve.parent_watch import watch_parent


def main() -> None:
    """Run the module; it ends at once when the process that started it is gone."""
    parent, module, *arguments = sys.argv[1:]
    watch_parent(int(parent), lambda: os._exit(1))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
