"Two processes on a CPU (gloo), started by accelerate: the same losses and scores as one process, every clip counted once, stopped and resumed together."
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from torch.utils.data import TensorDataset
from stasta_edu.backbone import tsm_tiny
from stasta_edu.training import DataLoaders, Learner, Recipe

def learner(run=None, micro=None):
    generator = torch.Generator().manual_seed(1)
    clips = TensorDataset(torch.randn(16, 4, 3, 32, 32, generator=generator), torch.arange(16) % 3)
    valid = TensorDataset(torch.randn(13, 4, 3, 32, 32, generator=generator), torch.arange(13) % 3)  # 13 does not divide by 2
    torch.manual_seed(0)
    recipe = Recipe.short_actions(epochs=3, batch_size=8, micro_batch=micro, dropout=0.0, channels_last=False)
    return Learner(tsm_tiny(num_classes=3), DataLoaders.from_datasets(clips, valid, 8), recipe, run=run, device="cpu", progress=False)

if __name__ == "__main__":
    learn = learner(sys.argv[2])
    class Stop:
        def after_step(self, learn): learn.stopping = learn.step == int(sys.argv[3])
    learn.callbacks.insert(0, Stop())
    learn.fit(resume=len(sys.argv) > 4)
    if learn.accelerator.is_main_process: print("RESULT", json.dumps(dict(processes=learn.accelerator.num_processes, losses=learn.losses, history=learn.history)))
"""


def start(*arguments, processes=2):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no",
               "--dynamo_backend", "no", "--main_process_port", str(port), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def launch(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def result(done):
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert done.returncode == 0 and len(lines) == 1, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("RESULT "))


def test_two_processes_learn_like_one_and_go_on_after_an_interruption(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    stopped = result(launch(script, tmp_path, tmp_path / "run", "3"))
    assert stopped["processes"] == 2 and len(stopped["losses"]) == 3
    both = result(launch(script, tmp_path, tmp_path / "run", "-1", "resume"))
    sys.path.insert(0, str(tmp_path))
    try: from script import learner
    finally: sys.path.remove(str(tmp_path))
    one = learner(micro=4).fit()  # batch norm sees halves of a batch in both cases
    assert both["losses"] == pytest.approx(one.losses, rel=1e-3)
    assert both["losses"][:3] == stopped["losses"]

    # the weights of the two processes, validated by one: each of 13 clips once
    state = torch.load(sorted((tmp_path / "run" / "state").iterdir())[-1], weights_only=True)
    one.model.load_state_dict(state["model"])
    del one.prepared
    alone = one.validate()
    assert both["history"][-1]["valid_loss"] == pytest.approx(alone["valid_loss"], rel=1e-5) and both["history"][-1]["top1"] == pytest.approx(alone["top1"])
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").open()]
    assert steps == list(range(1, 7))  # one process writes


SCORING = """
import os, sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader, TensorDataset
from stasta_edu.backbone import tsm_tiny
from stasta_edu.evaluation import evaluate
from stasta_edu.training import DataLoaders, Learner, Recipe

def scores(n, several, views=()):
    generator = torch.Generator().manual_seed(n)
    labels = (torch.rand(n, 3, generator=generator) < 0.5).long() if several else torch.arange(n) % 3
    torch.manual_seed(0)
    clips = TensorDataset(torch.randn(n, *views, 4, 3, 32, 32, generator=generator), labels)
    return evaluate(tsm_tiny(num_classes=3), DataLoader(clips, 4), fuse="max" if several else "mean")

CASES = dict(odd=(13, False), several=(11, True, (2,)), few=(3, False), one=(1, False), even=(16, False), nine=(9, False))

if __name__ == "__main__":
    for name, case in CASES.items():
        scores(*case).save(Path(sys.argv[1]) / f"{name}-{os.environ.get('RANK', '0')}.npz")
"""


def test_two_processes_score_like_one(tmp_path):
    "Clips that do not divide by two, nor by the batch; fewer clips than a batch; fewer clips than processes."
    from stasta_edu.evaluation import load_scores
    script = tmp_path / "scoring.py"
    script.write_text(SCORING)
    done = launch(script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    sys.path.insert(0, str(tmp_path))
    try: from scoring import CASES, scores
    finally: sys.path.remove(str(tmp_path))
    for name, case in CASES.items():
        alone, both = scores(*case), [load_scores(tmp_path / f"{name}-{rank}.npz") for rank in range(2)]
        for e in both:  # each process has the whole result, in order
            assert torch.equal(e.labels, alone.labels) and torch.allclose(e.logits, alone.logits, rtol=0, atol=1e-5)
        assert torch.equal(both[0].logits, both[1].logits) and both[0].summary() == both[1].summary()


STOPPING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from script import learner

class CtrlC:
    def after_step(self, learn):
        sys.stdout.write(f"STEP {learn.step}\\n")  # in one piece: the launcher runs python -u, where print writes word by word, and two processes write
        if sys.argv[3] == "one" and learn.step == 2 and learn.accelerator.process_index == 1: signal.raise_signal(signal.SIGINT)
        if sys.argv[3] == "all": __import__("time").sleep(0.3)

learn = learner(sys.argv[2])
learn.callbacks.insert(0, CtrlC())
learn.fit()
sys.stdout.write(f"STOPPED {learn.accelerator.process_index} {learn.step}\\n")
"""


def stopped_at(output): return sorted(line.split()[1:] for line in output.splitlines() if line.startswith("STOPPED"))


def test_ctrl_c_in_one_process_stops_both(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "stopping.py").write_text(STOPPING)
    done = launch(tmp_path / "stopping.py", tmp_path, tmp_path / "run", "one")
    assert done.returncode == 0 and stopped_at(done.stdout) == [["0", "3"], ["1", "3"]], done.stderr[-3000:]
    assert torch.load(tmp_path / "run" / "state" / "step-00000003.pt", weights_only=True)["step"] == 3


def test_ctrl_c_at_the_terminal_saves_in_both_processes(tmp_path):
    "The terminal signals the launcher and whoever is in its group; the launcher tells the processes."
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "stopping.py").write_text(STOPPING)
    process = start(tmp_path / "stopping.py", tmp_path, tmp_path / "run", "all")
    assert any(line.startswith("STEP 1") for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    stopped = stopped_at(out)
    assert [s[0] for s in stopped] == ["0", "1"] and stopped[0][1] == stopped[1][1], err[-3000:]
    step = int(stopped[0][1])
    assert step < 6 and torch.load(sorted((tmp_path / "run" / "state").iterdir())[-1], weights_only=True)["step"] == step
