"""How long a command takes to its first answer, in CPU seconds of its process, beside the start of Python itself.

Aims: `--help` 1, `plan check` 1.5, `retrain` with a wrong plan 2 CPU seconds. The figure is the largest share of an aim, of the medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import conclude, show

PLANS = Path(__file__).parents[1] / "deployments" / "plans"
RUNS = 5
COMMANDS = {
    "--help": (["--help"], 1.0),
    "plan check PLAN": (["plan", "check", str(PLANS / "channel-islands-lila.yaml")], 1.5),
    "retrain, no such plan": (["retrain", "no-such-plan"], 2.0),
    "retrain, wrong value": (["retrain", "WRONG"], 2.0),
}


def cpu_and_wall(line: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """CPU and wall seconds of a process."""
    begun, before = time.monotonic(), os.times()
    subprocess.run(line, capture_output=True, env=environment, check=False)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, time.monotonic() - begun


def main() -> None:
    """Run each command several times, in turn."""
    with TemporaryDirectory() as folder:
        wrong = Path(folder) / "wrong.yaml"
        wrong.write_text((PLANS / "sample.yaml").read_text(encoding="utf-8").replace("epochs: ", "epochs: -"), encoding="utf-8")
        environment = os.environ | {"ANIML_STORE": f"{folder}/store"}
        lines = {
            name: [sys.executable, "-m", "animl_pipeline.cli", *(str(wrong) if w == "WRONG" else w for w in words)]
            for name, (words, _) in COMMANDS.items()
        }
        lines["python alone"] = [sys.executable, "-c", "pass"]
        runs = [{name: cpu_and_wall(line, environment) for name, line in lines.items()} for _ in range(RUNS)]
    cpu = {name: statistics.median(run[name][0] for run in runs) for name in lines}
    aims = {name: aim for name, (_, aim) in COMMANDS.items()}
    rows = [(name, cpu[name], min(r[name][0] for r in runs), max(r[name][0] for r in runs), aims.get(name, "")) for name in lines]
    show(f"CPU seconds to the end of a command, {RUNS} runs", ("command", "median", "least", "most", "aim"), rows)
    worst = max(aims, key=lambda name: cpu[name] / aims[name])
    conclude("command_start", figure=f"{worst}: {cpu[worst]:.2f} CPU s", aim=f"at most {aims[worst]:g}", met=cpu[worst] <= aims[worst])


if __name__ == "__main__":
    main()
