"""Nothing is lost: runs that are stopped or killed, full disks, and damaged or hostile folders."""

import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import (
    ENVIRONMENT,
    LR,
    MAIN,
    MODULE,
    ROOT,
    SHAPE,
    TINY,
    both_scripts,
    call_in_each_step,
    contents,
    results,
    script,
)

import train_vit
from mimetic_min.lab import files, runs
from mimetic_min.lab import script as lab_script

# ---------------------------------------------------------------------------------------------
# Helpers

# The data have a folder of their own name in runs/.
FOLDER = {"vit": "runs/vit-shifted-digits", "lm": "runs/lm-docs"}


def without_times(folder):
    found = results(folder)
    for run in found["runs"]:
        run.pop("seconds")
    return found


def equal(a, b):
    """Whether two checkpoints hold the same, to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same(a, b):
    """Two run folders have the same files, figures, weights and optimizers, to the last bit. Only
    the seconds may differ.
    """
    assert sorted(os.listdir(a)) == sorted(os.listdir(b))
    assert without_times(a) == without_times(b)
    assert Path(a, "log.csv").read_bytes() == Path(b, "log.csv").read_bytes()
    for path in Path(a).glob("*.pt"):
        first = torch.load(path, weights_only=True)
        second = torch.load(Path(b, path.name), weights_only=True)
        for state in (first, second):
            state["run"].pop("seconds")
        assert equal(first, second), path.name


def way(task, folder="run"):
    """What each script says at its end if something is left to do."""
    return f"to go on: python train_{task}.py --resume {folder}"


def stop_at_step(monkeypatch, task, stop, act):
    """Have act() called at the beginning of a step, counted from 0 over all runs."""
    steps = []

    def count(step, lr):
        steps.append(step)
        if len(steps) == stop + 1:
            act()

    call_in_each_step(monkeypatch, task, count)


def interrupt():
    raise KeyboardInterrupt


# ---------------------------------------------------------------------------------------------
# Stopped, and gone on with


@both_scripts
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_can_be_stopped_before_and_after_each_file_that_it_writes(task, when, monkeypatch):
    """And it ends with the figures of a run that was never stopped, bit for bit."""
    # Two steps, and an evaluation after each.
    two_steps = {
        "vit": "--limit 10 --batch-size 10 --epochs 2 --init mimetic".split(),
        "lm": "--steps 2 --init mimetic".split(),
    }
    words = SHAPE[task] + two_steps[task]
    write = files.write
    written = []

    def write_or_stop(path, content):
        written.append(path)
        is_last = len(written) == stop
        if is_last and when == "before":
            raise KeyboardInterrupt
        write(path, content)
        if is_last:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "write", write_or_stop)
    stop = None
    MAIN[task]([*words, "--out", "whole"])
    suffixes = [Path(path).suffix for path in written]
    # The options, the start, twice the log and a checkpoint, and the log and the result.
    assert suffixes == [".json", ".pt", ".csv", ".pt", ".csv", ".pt", ".csv", ".json"]

    for stop in range(1, 9):
        written.clear()
        folder = f"stopped{stop}"
        with suppress(KeyboardInterrupt):
            MAIN[task]([*words, "--out", folder])
        assert len(written) == stop
        if Path(folder, "results.json").exists():
            MAIN[task](["--resume", folder])
        else:
            # A start that was stopped at once is in nobody's way.
            MAIN[task]([*words, "--out", folder])
        assert_same("whole", folder)


@both_scripts
@pytest.mark.parametrize("stop", [0, 5, 8])
def test_a_stop_in_the_middle_of_a_step_loses_only_what_came_after_the_checkpoint(
    task, stop, monkeypatch
):
    words = [*TINY[task], "--init", "default", "mimetic"]
    MAIN[task]([*words, "--out", "whole"])
    with monkeypatch.context() as patch:
        stop_at_step(patch, task, stop, interrupt)
        with pytest.raises(KeyboardInterrupt) as stopped:
            MAIN[task]([*words, "--out", "run"])
    assert stopped.value.__notes__ == [way(task)]
    assert len(results("run")["runs"]) == stop // 8
    done = []
    with monkeypatch.context() as patch:
        call_in_each_step(patch, task, lambda step, lr: done.append(step))
        MAIN[task](["--resume", "run"])
    assert len(done) == 16 - stop
    assert_same("whole", "run")


@both_scripts
def test_a_checkpoint_is_written_once_a_minute(task, monkeypatch):
    """With 25 seconds a step and an evaluation after every ten steps: after 75 seconds, and after
    each evaluation. What a stop then loses is seen again, and ends in the same figures.
    """
    eighty_steps = {
        "vit": "--limit 10 --batch-size 10 --epochs 80 --init mimetic".split(),
        "lm": "--steps 80 --init mimetic".split(),
    }
    words = SHAPE[task] + eighty_steps[task]
    MAIN[task]([*words, "--out", "whole"])
    now = [0.0]
    saved = []
    save = runs.Grid.save

    def spy(grid, path, state):
        if "steps_done" in state:
            saved.append(state["steps_done"])
        save(grid, path, state)

    def tick(step, lr):
        now[0] += 25.0
        if step == 34:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now[0]))
        patch.setattr(runs.Grid, "save", spy)
        call_in_each_step(patch, task, tick)
        with suppress(KeyboardInterrupt):
            MAIN[task]([*words, "--out", "run"])
    assert saved == [3, 6, 9, 10, 13, 16, 19, 20, 23, 26, 29, 30, 33]
    # Three losses since the last evaluation are in it, too.
    (path,) = [path for path in Path("run").glob("*.pt") if "start" not in path.name]
    assert len(torch.load(path, weights_only=True)["losses"]) == 3
    MAIN[task](["--resume", "run"])
    assert_same("whole", "run")


@both_scripts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_is_stopped_says_in_one_line_how_to_go_on(task, number, monkeypatch):
    """At once: no signal waits for a step to end. A second signal, in its last words, changes
    nothing.
    """
    reached = []

    def stop():
        os.kill(os.getpid(), number)
        reached.append("the end of the step")

    leave = runs.Grid.__exit__

    def leave_late(grid, *error):
        os.kill(os.getpid(), number)
        leave(grid, *error)

    stop_at_step(monkeypatch, task, 3, stop)
    monkeypatch.setattr(runs.Grid, "__exit__", leave_late)
    status, out, err = script(task, *TINY[task], "--init", "off", "--out", "run")
    assert (status, err) == (130, f"train_{task}.py: stopped; {way(task)}\n")
    assert out.count("s left") == 3
    assert reached == []


@pytest.mark.slow
@both_scripts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_with_twenty_signals_says_one_line(task, number):
    words = "--init default --dim 32 --depth 2 --heads 2 --out run".split()
    child = subprocess.Popen(
        [sys.executable, str(ROOT / f"train_{task}.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Until the first evaluation.
    while "s left" not in child.stdout.readline():
        assert child.poll() is None
    for _ in range(20):
        child.send_signal(number)
        time.sleep(0.005)
    _, err = child.communicate()
    assert err == f"train_{task}.py: stopped; {way(task)}\n"
    assert child.returncode == 130
    assert not list(Path("run").glob("*.tmp"))


@pytest.mark.slow
@both_scripts
def test_a_grid_survives_twenty_kills_at_random_moments(task, monkeypatch):
    """SIGKILL, each at a moment drawn from the time of the whole grid, and the same figures in the
    end.

    The children are forked from a server that has imported torch, so that the moments are those of
    the training and not of the import.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    # AdamW imports the last one.
    context.set_forkserver_preload(["train_vit", "train_lm", "torch._dynamo"])
    words = [*TINY[task], "--init", "default", "mimetic", "--seed", "0", "1"]

    def start(folder):
        is_begun = Path(folder, "results.json").exists()
        words_now = ["--resume", folder] if is_begun else [*words, "--out", folder]
        child = context.Process(target=MAIN[task], args=(words_now,))
        child.start()
        return child

    # The first one starts the server, and is not measured.
    start("warm").join()
    begin = time.perf_counter()
    start("whole").join()
    duration = time.perf_counter() - begin
    kills = 0
    grids = 0
    while kills < 20:
        child = start(f"killed{grids}")
        child.join(random.uniform(0, duration))
        if child.exitcode is None:
            child.kill()
            kills += 1
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode == 0:
            assert_same("whole", f"killed{grids}")
            grids += 1
    child = start(f"killed{grids}")
    child.join()
    assert child.exitcode == 0
    assert_same("whole", f"killed{grids}")


@both_scripts
def test_a_finished_grid_shows_its_table_again_and_stays_as_it_is(task):
    words = [*TINY[task], "--init", "off", "mimetic", "--out", "run"]
    status, out, err = script(task, *words)
    assert (status, err) == (0, "")
    before = contents("run")
    status, again, err = script(task, "--resume", "run")
    assert (status, err) == (0, "")
    assert again.split("\n\n", 1)[1] == out.split("\n\n", 1)[1]
    assert contents("run") == before


@pytest.mark.slow
@both_scripts
def test_a_grid_can_be_drawn_later(task):
    """--plot with --resume draws the runs of one seed and learning rate, from their files."""
    pytest.importorskip("matplotlib")
    words = [*TINY[task], "--init", "default", "mimetic", "--lr", "1e-3", "2e-3"]
    MAIN[task]([*words, "--out", "run"])
    before = contents("run")
    status, out, err = script(task, "--resume", "run", "--plot")
    assert (status, err) == (0, "")
    pictures = {path: content for path, content in contents("run").items() if path not in before}
    assert pictures and all(path.endswith(".png") for path in pictures)
    assert all(f"{path}\n" in out for path in pictures)
    assert {path: contents("run")[path] for path in before} == before

    # A file that is missing or damaged is one line.
    for spoil in (Path.unlink, lambda path: path.write_bytes(b"PK")):
        path = Path(f"run/mimetic-seed0-lr{0.001}-start.pt")
        spoil(path)
        status, _, err = script(task, "--resume", "run", "--plot")
        line = f"train_{task}.py: cannot read {path}: it is missing or damaged; {way(task)}\n"
        assert (status, err) == (2, line)
        path.touch()


# ---------------------------------------------------------------------------------------------
# The folder of a run


@both_scripts
def test_without_out_each_grid_has_a_fresh_folder(task):
    words = [*TINY[task], "--init", "off"]
    MAIN[task](words)
    before = contents("runs")
    MAIN[task](words)
    MAIN[task](words)
    names = [Path(FOLDER[task]).name + end for end in ("", "-2", "-3")]
    assert sorted(os.listdir("runs")) == names
    after = contents("runs")
    assert {path: after[path] for path in before} == before


def test_grids_that_start_together_have_different_folders():
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: runs.new_folder(None, "vit", "digits"), range(64)))
    ends = ["", *(f"-{n}" for n in range(2, 65))]
    assert sorted(map(str, folders)) == sorted(f"runs/vit-digits{end}" for end in ends)


@pytest.mark.slow
def test_two_processes_that_start_together_have_different_folders():
    words = [*TINY["vit"], "--init", "off"]
    command = [sys.executable, str(ROOT / "train_vit.py"), *words]
    children = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    first = FOLDER["vit"]
    assert_same(first, first + "-2")


def test_the_name_of_a_folder_comes_from_the_data():
    for data, name in (("my/pictures/", "vit-pictures"), ("/a/b.npz", "vit-b"), (".", "vit-")):
        assert runs.new_folder(None, "vit", data) == Path("runs", name)


def test_a_runs_folder_that_is_not_there_any_more_is_one_line():
    """A link to a disk that is not mounted."""
    os.symlink("gone/scratch", "runs")
    status, out, err = script("vit", *TINY["vit"])
    line = "train_vit.py: cannot make a folder in runs: File exists; choose another with --out\n"
    assert (status, out, err) == (2, "", line)


def test_a_second_process_in_a_folder_is_refused_until_the_first_is_dead():
    """Even a process that was killed leaves no lock behind."""
    with suppress(KeyboardInterrupt):
        with mock_step(train_vit, interrupt):
            train_vit.main([*TINY["vit"], "--init", "off", "--out", "run"])
    hold = """
        import fcntl, sys
        file = open("run/lock", "a")
        fcntl.flock(file, fcntl.LOCK_EX)
        print("held", flush=True)
        sys.stdin.read()
    """
    code = "\n".join(line.strip() for line in hold.splitlines())
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    before = contents("run")
    status, out, err = script("vit", "--resume", "run")
    line = "another process is training in run; wait for it, or stop it"
    assert (status, out, err) == (2, "", f"train_vit.py: {line}\n")
    assert contents("run") == before
    child.kill()
    child.communicate()
    status, _, err = script("vit", "--resume", "run")
    assert (status, err) == (0, "")
    assert len(results("run")["runs"]) == 1


@contextmanager
def mock_step(module, act):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "learning_rate", lambda *of: act())
        yield


def test_a_grid_that_trains_holds_the_lock_of_its_folder(monkeypatch):
    """Whether it was started or resumed, and in each of its runs."""
    seen = []

    def try_the_same_folder(step, lr):
        if step in (3, 5):
            with pytest.raises(ValueError, match="^another process is training in run; wait"):
                train_vit.prepare(["--resume", "run"])
            seen.append(step)
        if len(seen) == 3:
            raise KeyboardInterrupt

    call_in_each_step(monkeypatch, "vit", try_the_same_folder)
    with suppress(KeyboardInterrupt):
        train_vit.main([*TINY["vit"], "--init", "off", "mimetic", "--out", "run"])
    # It stopped in the second run, after step 3.
    train_vit.main(["--resume", "run"])
    assert seen == [3, 5, 3, 3, 5]


def test_a_lock_that_is_a_link_is_not_written_to():
    """A hostile folder may point it at a file of somebody else."""
    train_vit.main([*TINY["vit"], "--init", "off", "--out", "run"])
    Path("precious.txt").write_text("mine")
    Path("run/lock").unlink()
    os.symlink("../precious.txt", "run/lock")
    train_vit.main(["--resume", "run"])
    assert Path("precious.txt").read_text() == "mine"


# ---------------------------------------------------------------------------------------------
# Files that cannot be written, and an output that nobody reads


def test_no_reader_ever_sees_half_a_file():
    """While it is written again and again, full of a and of b in turn, it is always full of one."""
    path = Path("new/folder/file")
    is_done = threading.Event()
    contents_in_turn = [bytes([letter]) * 1_000_000 for letter in b"ab"]
    files.write(path, contents_in_turn[0])

    def keep_writing():
        while not is_done.is_set():
            for content in reversed(contents_in_turn):
                files.write(path, content)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen = []
    while len(set(seen)) < 2 or len(seen) < 50:
        seen.append(path.read_bytes())
    is_done.set()
    writer.join()
    assert all(content in contents_in_turn for content in seen)
    assert os.listdir("new/folder") == ["file"]


@contextmanager
def largest_file(size):
    """The process may write no larger file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_leaves_the_one_before_it():
    files.write("file", b"before")
    with largest_file(4096):
        with pytest.raises(OSError) as error:
            files.write("file", b"x" * 5000)
    assert str(error.value) == "cannot write file: File too large"
    assert contents() == {"file": b"before"}
    os.mkdir("folder")
    with pytest.raises(OSError, match="^cannot write folder: Is a directory$"):
        files.write("folder", b"")
    with pytest.raises(OSError, match="^cannot write file/x: "):
        files.write("file/x", b"")


@both_scripts
def test_a_checkpoint_that_cannot_be_written_is_one_line_and_the_run_can_go_on(task):
    """The start of the weights still fits, but not the weights with their optimizer."""
    words = [*TINY[task], "--init", "off"]
    MAIN[task]([*words, "--out", "whole"])
    name = f"off-seed0-lr{LR[task]}"
    fits = Path("whole", f"{name}-start.pt").stat().st_size
    assert fits < Path("whole", f"{name}.pt").stat().st_size
    with largest_file(fits):
        status, _, err = script(task, *words, "--out", "run")
    line = f"train_{task}.py: cannot write run/{name}.pt: File too large; {way(task)}\n"
    assert (status, err) == (2, line)
    assert not list(Path("run").glob("*.tmp"))
    MAIN[task](["--resume", "run"])
    assert_same("whole", "run")


def unshared(command):
    """Run a bash command where it may mount file systems, which nobody else sees and which go with
    it.
    """
    words = ["unshare", "--map-root-user", "--mount", "bash", "-c", command]
    return subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)


def python(task, *words):
    return " ".join([sys.executable, str(ROOT / f"train_{task}.py"), *words])


def can_mount():
    return shutil.which("unshare") and unshared("mount -t tmpfs none /mnt").returncode == 0


may_mount = pytest.mark.skipif(not can_mount(), reason="this machine lets no user mount a disk")


@pytest.mark.slow
@may_mount
@both_scripts
def test_a_full_disk_is_one_line_and_once_there_is_room_the_run_goes_on(task):
    words = [*TINY[task], "--init", "off"]
    MAIN[task]([*words, "--out", "whole"])
    os.mkdir("disk")
    name = f"disk/run/off-seed0-lr{LR[task]}.pt"
    # Room for the start and the log, but not for the checkpoint.
    done = unshared(f"""
        mount -t tmpfs -o size=40k tmpfs disk
        {python(task, *words, "--out", "disk/run")}
        echo status $?
        ls disk/run
        mount -o remount,size=10m disk
        {python(task, "--resume", "disk/run")} && cp -r disk/run .
    """)
    line = f"train_{task}.py: cannot write {name}: No space left on device"
    assert done.stderr == f"{line}; {way(task, 'disk/run')}\n"
    assert "\nstatus 2\n" in done.stdout
    assert ".tmp" not in done.stdout
    assert_same("whole", "run")


@pytest.mark.slow
@may_mount
@pytest.mark.parametrize(
    "words, line",
    [
        ("--out disk/there", "cannot write into disk/there: Read-only file system"),
        (
            "--out disk/new",
            "--out must be a folder that can be made, but disk/new is not: Read-only file system",
        ),
        ("--resume disk/run", "cannot write into disk/run: Read-only file system"),
    ],
)
def test_a_read_only_disk_is_one_line(words, line):
    train_vit.main([*TINY["vit"], "--init", "off", "--out", "run"])
    os.mkdir("disk")
    done = unshared(f"""
        mount -t tmpfs tmpfs disk
        mkdir disk/there
        cp -r run disk/
        rm disk/run/lock
        mount -o remount,ro disk
        {python("vit", words)}
    """)
    assert (done.returncode, done.stderr) == (2, f"train_vit.py: {line}\n")


@both_scripts
def test_an_output_that_is_full_stops_the_run_in_one_line(task):
    with open("/dev/full", "w") as full:
        status, _, err = script(task, *TINY[task], "--init", "off", "--out", "run", stdout=full)
    line = f"train_{task}.py: [Errno 28] No space left on device; {way(task)}\n"
    assert (status, err) == (2, line)


@both_scripts
def test_a_reader_that_goes_away_stops_the_run_in_one_line(task):
    """As with `python train_vit.py | head -1`. The run can go on."""
    here, there = os.pipe()
    os.close(here)
    with open(there, "w") as pipe:
        status, _, err = script(task, *TINY[task], "--init", "off", "--out", "run", stdout=pipe)
    assert (status, err) == (2, f"train_{task}.py: [Errno 32] Broken pipe; {way(task)}\n")
    MAIN[task](["--resume", "run"])
    assert len(results("run")["runs"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("line", ["2 runs", "start", "---- off writes"])
def test_a_reader_that_goes_away_at_any_line_leaves_no_traceback(line):
    """Also at the last lines, which Python would print at its very end."""
    words = [*TINY["lm"], "--init", "off", "mimetic", "--out", "run"]
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "train_lm.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not child.stdout.readline().startswith(line):
        assert child.poll() is None
    child.stdout.close()
    err = child.stderr.read()
    assert child.wait() in (0, 2)
    assert err in (
        "",
        *(f"train_lm.py: [Errno 32] Broken pipe{end}\n" for end in ("", f"; {way('lm')}")),
    )


def test_an_output_that_cannot_be_written_at_the_very_end_is_one_line(monkeypatch):
    """What is printed last waits in a buffer, and Python would write it when it ends."""
    train_vit.main([*TINY["vit"], "--init", "off", "--out", "run"])
    monkeypatch.setattr(train_vit, "train_grid", lambda *of: print("the last words"))
    with open("/dev/full", "w") as full:
        status, _, err = script("vit", "--resume", "run", stdout=full)
    assert (status, err) == (2, "train_vit.py: [Errno 28] No space left on device\n")


@both_scripts
def test_without_any_output_the_grid_is_trained_all_the_same(task, monkeypatch):
    """As with `python train_vit.py >&-`, and for a Windows program without a console."""
    monkeypatch.setattr(sys, "argv", ["", *TINY[task], "--init", "off", "--out", "run"])
    monkeypatch.setattr(sys, "stdout", None)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    lab_script.run(MODULE[task].prepare, MODULE[task].train_grid)
    signal.signal(signal.SIGINT, handlers[0])
    signal.signal(signal.SIGTERM, handlers[1])
    assert len(results("run")["runs"]) == 1


def test_what_the_output_cannot_encode_is_replaced():
    """Such as the ± of the table, or a character of a sample."""
    with open("out.txt", "w", encoding="ascii") as file:
        words = [*TINY["lm"], "--init", "mimetic", "--seed", "0", "1"]
        status, _, err = script("lm", *words, stdout=file)
    assert (status, err) == (0, "")
    assert " ? " in Path("out.txt").read_text()


# ---------------------------------------------------------------------------------------------
# Damaged and hostile folders


def damages(length):
    """A place to cut a file off at, or some bytes to put at some places."""
    place = st.integers(0, length - 1)
    bytes_at = st.dictionaries(place, st.integers(0, 255), min_size=1, max_size=4)
    return st.one_of(place, bytes_at)


def damaged(content, damage):
    if isinstance(damage, int):
        return content[:damage]
    content = bytearray(content)
    for place, value in damage.items():
        content[place] = value
    return bytes(content)


class Evil:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return open, ("it ran", "w")


def unfinished(task):
    """Make run/, whose only run has its last checkpoint but is not in the results yet, and the same
    grid, finished, as whole/. Returns the path of the checkpoint.
    """
    MAIN[task]([*TINY[task], "--init", "mimetic", "--out", "run"])
    shutil.copytree("run", "whole")
    Path("run/results.json").write_text(json.dumps(results("run") | {"runs": []}))
    return Path(f"run/mimetic-seed0-lr{LR[task]}.pt")


def refusal(path):
    return (
        f"cannot go on from {path}: it is damaged, or belongs to another run;"
        " move it away to train this run from its start"
    )


@both_scripts
@given(data=st.data())
@settings(max_examples=50)
def test_a_damaged_checkpoint_is_refused_or_right(task, data):
    """Whatever is cut off or changed: an OSError that names it, or the figures as without the
    damage. Nothing is overwritten.
    """
    path = Path(f"run/mimetic-seed0-lr{LR[task]}.pt")
    if not path.exists():
        unfinished(task)
    whole = Path("whole", path.name).read_bytes()
    path.write_bytes(damaged(whole, data.draw(damages(len(whole)))))
    Path("run/results.json").write_text(json.dumps(results("whole") | {"runs": []}))
    before = contents("run")
    try:
        MAIN[task](["--resume", "run"])
    except OSError as error:
        assert str(error) == refusal(path)
        assert contents("run") == before
    else:
        assert without_times("run") == without_times("whole")


@both_scripts
def test_a_checkpoint_that_is_damaged_or_of_another_run_is_one_line(task):
    """Also one with code in it, which does not run. Moved away, as the line says, it is trained
    anew.
    """
    path = unfinished(task)
    content = path.read_bytes()
    MAIN[task]([*TINY[task], "--init", "mimetic", "--seed", "1", "--out", "seed1"])
    more = ["--qk-alpha", "0.2", "--init", "mimetic"]
    MAIN[task]([*TINY[task], *more, "--out", "alpha"])
    torch.save({"model": Evil()}, "evil.pt")
    hostile = {
        "cut": content[:-100],
        "empty": b"",
        "text": b"mine",
        "seed": Path("seed1", path.name.replace("seed0", "seed1")).read_bytes(),
        "options": Path("alpha", path.name).read_bytes(),
        "start": Path("whole", path.stem + "-start.pt").read_bytes(),
        "code": Path("evil.pt").read_bytes(),
        "pickle": pickle.dumps(Evil()),
    }
    for name, other in hostile.items():
        path.write_bytes(other)
        before = contents("run")
        status, _, err = script(task, "--resume", "run")
        assert (status, err) == (2, f"train_{task}.py: {refusal(path)}; {way(task)}\n"), name
        assert contents("run") == before
    assert not Path("it ran").exists()
    path.unlink()
    MAIN[task](["--resume", "run"])
    assert_same("run", "whole")
    # It would have been seen.
    torch.load("evil.pt", weights_only=False)["model"].close()
    assert Path("it ran").exists()


@both_scripts
def test_the_checkpoint_of_another_seed_of_the_same_grid_is_refused(task):
    MAIN[task]([*TINY[task], "--init", "off", "--seed", "0", "1", "--out", "run"])
    for path in Path("run").glob("*seed1*.pt"):
        shutil.copy(path, str(path).replace("seed1", "seed0"))
    Path("run/results.json").write_text(json.dumps(results("run") | {"runs": []}))
    with pytest.raises(OSError, match="it is damaged, or belongs to another run"):
        MAIN[task](["--resume", "run"])


@both_scripts
@given(data=st.data())
@settings(max_examples=60)
def test_a_damaged_results_json_is_refused_or_read(task, data):
    """Whatever is cut off or changed: a ValueError in one line, or the closing table. The folder
    stays as it is.
    """
    if not Path("run").exists():
        MAIN[task]([*TINY[task], "--init", "default", "mimetic", "--out", "run"])
        shutil.copytree("run", "whole")
    content = Path("whole/results.json").read_bytes()
    Path("run/results.json").write_bytes(damaged(content, data.draw(damages(len(content)))))
    before = contents("run")
    try:
        MAIN[task](["--resume", "run"])
    except ValueError as error:
        # It names an option. Or it names the data: a letter of their name may have changed.
        line = str(error)
        assert "\n" not in line and ("--" in line or results("run")["config"]["data"] in line)
    assert contents("run") == before


def without_metric(found):
    """Take the accuracies out, everywhere."""
    for run in found["runs"]:
        run["final"] = {}
        for point in run["curve"]:
            point.pop("accuracy")


CHANGES = [
    lambda found: found.pop("runs"),
    lambda found: found.pop("config"),
    lambda found: found.pop("task"),
    lambda found: found.pop("fingerprint"),
    lambda found: found.update(runs=None),
    lambda found: found.update(runs={}),
    lambda found: found.update(runs=""),
    lambda found: found.update(runs=[{}]),
    lambda found: found.update(runs=[1]),
    lambda found: found.update(runs=2 * found["runs"]),
    lambda found: found.update(config={}),
    lambda found: found.update(config=[]),
    lambda found: found.update(config="mimetic"),
    lambda found: found.update(task=["vit"]),
    lambda found: found.update(fingerprint=0),
    lambda found: found["config"].pop("dim"),
    lambda found: found["config"].update(init=["best"]),
    lambda found: found["config"].update(init="mimetic"),
    lambda found: found["config"].update(init=[]),
    lambda found: found["config"].update(lr=[1]),
    lambda found: found["config"].update(epochs=9),
    lambda found: found["config"].update(dim=None),
    lambda found: found["config"].update(dim=8.0),
    lambda found: found["config"].update(dim=True),
    lambda found: found["config"].update(dim=[8]),
    lambda found: found["config"].update(dim={"a": 1}),
    lambda found: found["config"].update(qk_beta=2),
    lambda found: found["config"].update(data="no.npz"),
    lambda found: found["config"].update(device="cpu"),
    lambda found: found["config"].update(out="elsewhere"),
    lambda found: found["config"].update(more=1),
    lambda found: found["config"].update(help=True),
    lambda found: found["config"].update(help=[]),
    lambda found: found["runs"][0].pop("final"),
    lambda found: found["runs"][0].pop("curve"),
    lambda found: found["runs"][0].pop("steps"),
    lambda found: found["runs"][0].update(seed=1),
    lambda found: found["runs"][0].update(lr="0.002"),
    lambda found: found["runs"][0].update(steps=9),
    lambda found: found["runs"][0].update(curve="abc"),
    lambda found: found["runs"][0].update(curve=[]),
    lambda found: found["runs"][0].update(final={}),
    lambda found: found["runs"][0].update(final={"accuracy": 1.0}),
    lambda found: found["runs"][0]["curve"][0].update(accuracy="high"),
    lambda found: found["runs"][0]["curve"][0].update(more=1),
    without_metric,
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid of two runs that is finished."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_vit.main([*TINY["vit"], "--init", "off", "mimetic", "--out", str(folder)])
    return folder


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("runs_done", [1, 2])
def test_a_results_json_that_somebody_changed_is_refused(change, runs_done, finished):
    """In a grid that is finished, and in one that has a run to go. The folder stays as it is."""
    shutil.copytree(finished, "run")
    found = results("run")
    found["runs"] = found["runs"][:runs_done]
    change(found)
    Path("run/results.json").write_text(json.dumps(found))
    before = contents("run")
    status, out, err = script("vit", "--resume", "run")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert contents("run") == before
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize(
    "text, line",
    [
        ("", "--resume cannot read run/results.json: it is damaged"),
        ("[]", "--resume cannot read run/results.json: it is damaged"),
        ("null", "--resume cannot read run/results.json: it is damaged"),
        ("\x00", "--resume cannot read run/results.json: it is damaged"),
        ("[" * 100_000, "--resume cannot read run/results.json: it is damaged"),
        (
            '{"task": "vit", "config": {"help": true}}',
            "--resume cannot use run/results.json: its options are not those of this script",
        ),
    ],
)
def test_a_results_json_that_is_something_else_is_named(text, line):
    os.mkdir("run")
    Path("run/results.json").write_text(text)
    status, out, err = script("vit", "--resume", "run")
    assert (status, out, err) == (2, "", f"train_vit.py: {line}\n")
    assert os.listdir("run") == ["results.json"]


def test_a_results_json_that_is_no_text_is_named():
    os.mkdir("run")
    Path("run/results.json").write_bytes(b"\xff\xfe")
    status, out, err = script("vit", "--resume", "run")
    line = "--resume cannot read run/results.json: it is damaged"
    assert (status, out, err) == (2, "", f"train_vit.py: {line}\n")
    Path("run/results.json").unlink()
    os.mkdir("run/results.json")
    status, out, err = script("vit", "--resume", "run")
    line = "--resume finds no results.json in run (Is a directory)"
    assert (status, out, err) == (2, "", f"train_vit.py: {line}\n")
