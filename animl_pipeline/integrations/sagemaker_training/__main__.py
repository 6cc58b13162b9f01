"""``python -m animl_pipeline.integrations.sagemaker_training``: what SageMaker starts in the pipeline's image."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from animl_pipeline.integrations.sagemaker_training.container import run_job


def main() -> int:
    """Train what the order says; the exit status comes back."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    # As the container's first process it would not hear SIGTERM by itself; checkpoints are whole at any moment.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    return run_job(Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")))


if __name__ == "__main__":
    sys.exit(main())
