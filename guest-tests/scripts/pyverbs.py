#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# rdma-core's own tests (pyverbs), as Debian's python3-pyverbs ships them, against the RDMA device of
# this guest, one test module a process; compares each test's result with the table pyverbs.table.
# The tests are rdma-core's; here is only how they are run and judged.
"""Usage: pyverbs.py [--device NAME] [--no-table] [MODULE...], where a module is test_qp or the like."""

import argparse
import collections
import gzip
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
import unittest

SUITE = pathlib.Path("/usr/share/doc/rdma-core/tests")
# Of these devices there is none here, and some of these files fail already when they are imported.
VENDORS = re.compile(r"(test_)?(mlx5|efa|efadv|irdma|cuda)_?")
UNPACKED = pathlib.Path("/tmp/pyverbs")
# The lab lays it into the folder where scripts start.
TABLE = pathlib.Path("pyverbs.table")
# Generous: the longest module takes 20 seconds under emulation on a quiet machine.
MODULE_SECONDS = 300
# What some tests take their memory from: not in UML.
HUGE_PAGES = pathlib.Path("/proc/sys/vm/nr_hugepages")
# Some tests wait for the kernel or for one another for a second only, which a busy host can miss. If
# only so many fail, each is run once more by itself, and that is said.
SECOND_TRIES = 3


def unpack():
    """Lays the suite out as it is in rdma-core's tree, and returns its modules."""
    package = UNPACKED / "tests"
    package.mkdir(parents=True, exist_ok=True)
    for file in sorted(SUITE.iterdir()):
        name = file.name.removesuffix(".gz")
        if not name.endswith(".py") or (name.startswith("test_") and VENDORS.match(name)):
            continue
        data = file.read_bytes()
        (package / name).write_bytes(gzip.decompress(data) if file.suffix == ".gz" else data)
    # The suite's own imports every module.
    (package / "__init__.py").write_text("")
    return sorted(file.stem for file in package.glob("test_*.py"))


class Result(unittest.TestResult):
    """Says what each test comes to, as soon as that is known: a process that crashes has said it."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def say(self, test, result, why=""):
        print(json.dumps([test.id().removeprefix("tests."), result, why]), file=self.out, flush=True)

    def startTest(self, test):
        super().startTest(test)
        # Some tests choose at random what they ask for. They shall ask for the same always.
        random.seed(test.id())
        self.say(test, "begun")

    def addSuccess(self, test):
        self.say(test, "ok")

    def addSkip(self, test, reason):
        self.say(test, "skip", reason)

    def addFailure(self, test, err):
        self.say(test, "failed", self._exc_info_to_string(err, test))

    def addError(self, test, err):
        self.say(test, "failed", self._exc_info_to_string(err, test))

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addFailure(test, err)


def run_module(module, device, out):
    """In a process of its own: runs one module's tests and writes their results, one a line."""
    sys.path[:0] = [str(UNPACKED), str(UNPACKED / "tests")]
    sys.argv = [sys.argv[0], "--dev", device, "--port", "1"]
    from args_parser import parser

    parser.parse_args()
    suite = unittest.defaultTestLoader.loadTestsFromName(f"tests.{module}")
    suite.run(Result(out))


def results_of(module, device):
    """Runs a module or one test in a child, and returns what it came to: name -> (result, why)."""
    said = UNPACKED / f"{module}.results"
    said.write_text("")
    child = subprocess.Popen(
        [sys.executable, __file__, "--device", device, "--child", str(said), module],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        status = child.wait(MODULE_SECONDS)
    except subprocess.TimeoutExpired:
        status = f"no end after {MODULE_SECONDS} s"
        # Some tests have children of their own.
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    results = {}
    for line in said.read_text().splitlines():
        name, result, why = json.loads(line)
        if results.get(name, ("begun",))[0] != "failed":
            results[name] = (result, why)
    for name, (result, _) in results.items():
        if result == "begun":
            results[name] = ("failed", f"its process ended in it: {status}")
    if status != 0:
        results[f"{module}, its process"] = ("failed", f"ended with {status}")
    return results


def try_again(results, device):
    """Gives tests that failed a second try, if they are few."""
    failed = [name for name, (result, _) in results.items() if result == "failed"]
    if len(failed) > SECOND_TRIES:
        return
    for name in failed:
        print(f"{name} failed, once more by itself: {results[name][1]}", flush=True)
        again = results_of(name, device).get(name)
        if again is not None:
            results[name] = again


def read_table():
    """The table: name -> "ok" or "skip" (it may be skipped, for the reason that stands there)."""
    expected = {}
    for number, line in enumerate(TABLE.read_text().splitlines(), 1):
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        if words[1:] != ["ok"] and not (len(words) == 3 and words[1] == "skip"):
            sys.exit(f"{TABLE.name}:{number}: neither `name ok` nor `name skip reason`")
        if words[0] in expected:
            sys.exit(f"{TABLE.name}:{number}: {words[0]} stands there twice")
        expected[words[0]] = words[1]
    return expected


def differences(results, expected):
    """What is worse than the table says, in words. What is better is only printed."""
    wrong = []
    for name, (result, why) in sorted(results.items()):
        want = expected.get(name)
        if result == "failed":
            wrong.append(f"{name} failed: {why}")
        elif want is None:
            wrong.append(f"{name} is not in the table; it came to: {result} {why}")
        elif result == "skip" and want == "ok":
            wrong.append(f"{name} was skipped ({why}); the table says ok")
        elif result == "ok" and want == "skip":
            print(f"{name} passes here, where the table lets it be skipped", flush=True)
    for name in sorted(expected.keys() - results.keys()):
        wrong.append(f"{name} did not run")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=os.environ.get("RDMA_DEVICE"))
    parser.add_argument("--no-table", action="store_true", help="only show all results")
    parser.add_argument("--child", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    arguments = parser.parse_args()
    if arguments.child:
        with open(arguments.child, "a", encoding="utf-8") as out:
            run_module(arguments.modules[0], arguments.device, out)
        return 0

    if HUGE_PAGES.exists():
        HUGE_PAGES.write_text("16")
    results = {}
    modules = unpack()
    for module in arguments.modules or modules:
        begun = time.monotonic()
        found = results_of(module, arguments.device)
        results.update(found)
        counts = collections.Counter(result for result, _ in found.values())
        print(f"{module}: {dict(counts)} in {time.monotonic() - begun:.1f} s", flush=True)
    try_again(results, arguments.device)
    if arguments.no_table:
        for name, (result, why) in sorted(results.items()):
            print(name, result, why, flush=True)
    counts = collections.Counter(result for result, _ in results.values())
    print(f"pyverbs: {counts['ok']} ok, {counts['skip']} skipped, {counts['failed']} failed")
    if arguments.no_table:
        return 0
    expected = read_table()
    if arguments.modules:
        expected = {n: r for n, r in expected.items() if n.split(".")[0] in arguments.modules}
    wrong = differences(results, expected)
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
