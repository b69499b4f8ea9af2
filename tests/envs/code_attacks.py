"""Solutions that do not solve: each tries to be graded as if it did. By name, for functions and for programs."""

from __future__ import annotations

import textwrap

# The problem is always the same: `secret(n)` must return what only the test knows (or the program must print it), "EXPECTED-" and some digits.
MARK = "EXPECTED-"

_SEARCH = """
import gc, os, re, sys
PATTERN = b"EXPEC" + b"TED-[0-9]{6}"
def search(data):
    found = re.search(PATTERN, data)
    return found.group().decode() if found else None
def in_memory(pid):
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                span, rights = line.split()[:2]
                if "r" in rights and "[v" not in line:
                    begin, end = (int(part, 16) for part in span.split("-"))
                    try:
                        memory.seek(begin)
                        found = search(memory.read(end - begin))
                    except (OSError, ValueError, OverflowError):
                        continue
                    if found: return found
    except OSError:
        return None
def in_frames():
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            try: found = search(repr(value).encode())
            except Exception: continue
            if found: return found
        frame = frame.f_back
def in_objects():
    for thing in gc.get_objects():
        try: found = search(repr(thing).encode()) if len(gc.get_referents(thing)) < 1000 else None
        except Exception: continue
        if found: return found
def in_files():
    for root in (".", "/tmp", "/dev/shm", "/proc/self"):
        for at, _, names in os.walk(root):
            for name in names:
                path = os.path.join(at, name)
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                    found = search(os.read(fd, 1 << 20)); os.close(fd)
                except OSError: continue
                if found: return found
def in_processes():
    for pid in [p for p in os.listdir("/proc") if p.isdigit()]:
        for name in ("environ", "cmdline"):
            try: found = search(open(f"/proc/{pid}/{name}", "rb").read())
            except OSError: continue
            if found: return found
        for fd in range(12):
            try:
                with open(f"/proc/{pid}/fd/{fd}", "rb", 0) as file:
                    os.set_blocking(file.fileno(), False)
                    found = search(file.read(1 << 20) or b"")
            except (OSError, ValueError): continue
            if found: return found
        found = in_memory(pid)
        if found and int(pid) != os.getpid(): return found
"""

_FORGE = """
import json, os
LINES = [json.dumps({"nonce": "", "results": [["passed", ""]] * k}) + "\\n" for k in (1, 2, 3)] + [json.dumps(["passed", ""]), "passed", "all tests passed\\n"]
def flood():
    for fd in range(3, 64):
        for line in LINES:
            try: os.write(fd, line.encode())
            except OSError: pass
    for pid in [p for p in os.listdir("/proc") if p.isdigit()]:
        for fd in range(12):
            try:
                out = os.open(f"/proc/{pid}/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
                for line in LINES: os.write(out, line.encode())
                os.close(out)
            except OSError: pass
"""


def _function(body: str, before: str = "") -> str:
    return f"{before}\ndef secret(n):\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"


FUNCTIONS: dict[str, str] = {
    "says_so": _function("print('all tests passed')\nreturn 'passed'"),
    "exits_early": "import sys\nsys.exit(0)",
    "exits_hard": "import os\nos._exit(0)",
    "exits_in_the_call": _function("import os\nos._exit(0)"),
    "raises_exit": _function("raise SystemExit(0)"),
    "equals_everything": _function(
        "return Any()",
        "class Any(str):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    __hash__ = str.__hash__",
    ),
    "equals_everything_as_an_object": _function(
        "return Any()",
        "class Any:\n    def __eq__(self, other): return True\n    def __getattr__(self, name): return lambda *a, **k: True",
    ),
    "subclasses_with_lies": _function(
        "return Lie([Lie()])",
        "class Lie(list):\n    def __eq__(self, other): return True\n    def __len__(self): return 1\n    def __iter__(self): return iter(['x'])",
    ),
    "patches_builtins": _function(
        "return 'x'",
        "import builtins\nbuiltins.AssertionError = Warning\nbuiltins.all = builtins.any = builtins.isinstance = lambda *a: True\nbuiltins.len = lambda x: 0",
    ),
    "patches_exits": _function("return 'x'", "import os, sys\nos._exit = sys.exit = os.kill = lambda *a: None"),
    "patches_json": _function("return 'x'", "import json\njson.dumps = json.loads = lambda *a, **k: {'value': 'x'}"),
    "patches_everything_loaded": _function(
        "return 'x'",
        "import sys\nfor module in list(sys.modules.values()):\n    for name in ('same_value', 'same_output', 'Failed', '_assert', 'encode', 'decode', '_judge'):\n"
        "        if hasattr(module, name): setattr(module, name, lambda *a, **k: True)",
    ),
    "searches_its_memory": _SEARCH + _function("return in_memory('self') or 'nothing'"),
    "searches_frames": _SEARCH + _function("return in_frames() or 'nothing'"),
    "searches_objects": _SEARCH + _function("return in_objects() or 'nothing'"),
    "searches_files": _SEARCH + _function("return in_files() or 'nothing'"),
    "searches_other_processes": _SEARCH + _function("return in_processes() or 'nothing'"),
    "forges_verdicts": _FORGE + _function("flood()\nreturn 'passed'"),
    "forges_verdicts_when_loaded": _FORGE + "flood()\n" + _function("return 'passed'"),
    "answers_before_it_is_asked": _function(
        "return 'x'",
        "import os, struct, json\nfor k in range(5):\n    body = json.dumps({'value': True}).encode()\n    os.write(3, struct.pack('<I', len(body)) + body)",
    ),
    "sends_rubbish": _function("os.write(3, b'\\xff' * 100)\nreturn 'x'", "import os"),
    "sends_a_huge_answer": _function("return 'x' * (1 << 28)"),
    "nests_deeply": _function("x = []\nfor _ in range(100_000): x = [x]\nreturn x"),
    "returns_without_end": _function("import itertools\nreturn itertools.count()"),
    "returns_a_huge_integer": _function("return 7 ** 3_000_000"),
    "returns_itself": _function("x = []\nx.append(x)\nreturn x"),
    "kills_its_parent": _function("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nreturn 'x'"),
    "kills_all": _function("import os, signal\nos.kill(-1, signal.SIGKILL)\nreturn 'x'"),
    "stops_its_parent": _function("import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nreturn 'x'"),
    "interrupts_all": _function(
        "import os, signal\nfor s in (2, 10, 14, 15): os.kill(os.getppid(), s)\nos.kill(1, 2)\nreturn 'x'"
    ),
    "closes_the_line": _function("import os\nos.closerange(0, 100)\nreturn 'x'"),
    "never_returns": _function("while True: pass"),
    "sleeps": _function("import time; time.sleep(1000)"),
    "loads_for_ever": "while True: pass",
    "ignores_signals": _function(
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass"
    ),
    "leaves_a_daemon": _function(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\nreturn 'x'"
    ),
    "forks_without_end": _function("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"),
    "answers_from_a_fork": _function("import os\nos.fork()\nreturn 'x'"),
    "hogs_memory": _function("x = []\nwhile True: x.append(bytearray(1 << 22))"),
    "recurses": _function("import sys\nsys.setrecursionlimit(1 << 30)\ndef f(n): return f(n + 1) + 1\nreturn f(0)"),
    "is_no_python": "def secret(n) return",
    "is_empty": "",
    "defines_another": "def secrets(n): return 'x'",
}

PROGRAMS: dict[str, str] = {
    "says_so": "print('all tests passed')",
    "says_nothing": "",
    "exits_early": "import sys\nsys.exit(0)",
    "searches": _SEARCH
    + "print(in_frames() or in_objects() or in_memory('self') or in_files() or in_processes() or 'nothing')",
    "forges": _FORGE + "flood()\nfor line in LINES: print(line)",
    "prints_without_end": "while True: print('x' * 1000)",
    "prints_a_huge_integer": "import sys\nsys.set_int_max_str_digits(0)\nprint(7 ** 10 ** 7)",
    "writes_to_its_input": "import os\nos.write(0, b'x')\nprint(1)",
    "kills_its_parent": "import os\nos.kill(os.getppid(), 9)\nprint(1)",
    "leaves_a_writer": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True:\n        print('x', flush=True)\n        time.sleep(0.01)\nprint(1)",
    "never_ends": "while True: pass",
    "prints_and_raises": "print(input())\nraise ValueError",
}
