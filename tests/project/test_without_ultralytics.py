"""The default path does without ultralytics, whose licence is the AGPL: nothing imports it, and nothing needs it to be installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import jpeg
from tests.support.detectors import settings_with_megadetector_lite

BLOCKED = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ultralytics", "ultralytics_thop", "ultralytics_platform", "yolov5", "megadetector"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
"""
IMPORTS = """
import flows.retrain, flows.release, animl_pipeline.serve.app, animl_pipeline.cli.main
import animl_pipeline.steps.training.trainer, animl_pipeline.steps.training.network_and_weights, animl_pipeline.steps.training.onnx_export
import animl_pipeline.steps.detections.step, animl_pipeline.steps.detections.yolox_lite, animl_pipeline.steps.crops.step
import animl_pipeline.steps.calibration.step, animl_pipeline.steps.evaluation.step, animl_pipeline.steps.package.step
"""
DETECTION = """
from pathlib import Path
from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.steps.detections.choose_detector import choose_detector
detector = choose_detector(DetectionsConfig(source="detector"), Settings()).load()
assert len(detector.predict([detector.preprocess(Path(sys.argv[1]).read_bytes())])) == 1
"""
CHECK = """
found = sorted(name for name in sys.modules if name.startswith(("ultralytics", "yolov5", "megadetector")))
assert not found, found
"""


def test_a_default_retraining_and_serving_do_without_ultralytics(tmp_path: Path) -> None:
    settings_with_megadetector_lite()
    (tmp_path / "a.jpg").write_bytes(jpeg(320, 240))
    program = [sys.executable, "-c", BLOCKED + IMPORTS + DETECTION + CHECK, str(tmp_path / "a.jpg")]
    done = subprocess.run(program, check=False, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
