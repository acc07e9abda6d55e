"""A script in place of train.py, for tests of what runs jobs: it does what its first argument says,
and a run that ends leaves the log of one that completed."""

from __future__ import annotations

STAND_IN = """
import json, os, pathlib, signal, sys, time

deed, out_dir, run_name = sys.argv[1], sys.argv[2].split("=")[1], sys.argv[3].split("=")[1]
folder = pathlib.Path(out_dir, run_name)
folder.mkdir(parents=True, exist_ok=True)
rank = os.environ.get("RANK")
(folder / f"begun{rank or ''}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
(folder / f"pid{rank or ''}").write_text(str(os.getpid()))
if deed == "fail":
    print("a first line")
    sys.exit("no luck")
if deed == "fail second":
    print("a first line", flush=True)
    time.sleep(30 * (rank != "1"))
    sys.exit("no luck for the second")
if deed == "hang":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped politely"))
    (folder / f"hangs{rank or ''}").touch()
    time.sleep(60)
if deed == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"hangs{rank or ''}").touch()
    time.sleep(60)
if deed == "meet":  # ends only beside another
    while len(list(folder.parent.glob("*/begun"))) < 2:
        time.sleep(0.01)
if rank in (None, "0"):
    steps = [{"iter": 1, "val_loss": 2.5}]
    text = {"status": "completed", "eval_steps": steps, "summary": {"bad_steps": 0}}
    (folder / "run.json").write_text(json.dumps(text))
"""
